"""Scoring in the background: in order, one batch at a time, beside the caller, errors and all."""

import threading
import time

import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.stages.training.scoring import InBackground

PROMPTS = [Prompt(str(i), f"text {i}", "a") for i in range(6)]


def pictures(first, count):
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 3, 2, 2)


class Slow:
    """The value of a picture's pixels, after a while; knows how many asked it at once, and from where."""

    def __init__(self, seconds=0.0, broken=None):
        self.seconds, self.broken, self.inside, self.most = seconds, broken, 0, 0
        self.calls, self.threads = [], set()

    def __call__(self, images, prompts):
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.threads.add(threading.get_ident())
        self.calls.append([prompt.id for prompt in prompts])
        assert not torch.is_grad_enabled()
        time.sleep(self.seconds)
        self.inside -= 1
        if self.broken in self.calls[-1]:
            raise RewardError("reward slow: is broken")
        total = images[:, 0, 0, 0]
        return RewardResult(
            total, {"value": total}, torch.ones(len(prompts), dtype=torch.bool), ({"n": 1},) * len(total)
        )


def submit_all(scoring, size=2):
    for start in range(0, len(PROMPTS), size):
        scoring.submit(pictures(start, size), PROMPTS[start : start + size])


@pytest.mark.parametrize("size", [1, 2, 6])
def test_scores_come_in_the_order_of_the_pictures(size):
    scoring = InBackground(Slow())
    submit_all(scoring, size)
    result = scoring.result()
    assert result.total.tolist() == result.scores["value"].tolist() == [0, 1, 2, 3, 4, 5]
    assert result.valid.all()
    assert result.details == ({"n": 1},) * 6


def test_one_batch_is_scored_at_a_time_by_one_thread_that_is_not_the_callers():
    slow = Slow(0.01)
    scoring = InBackground(slow)
    submit_all(scoring, 1)
    scoring.result()
    assert slow.most == 1
    assert slow.calls == [[prompt.id] for prompt in PROMPTS]
    assert len(slow.threads) == 1
    assert threading.get_ident() not in slow.threads


def test_the_caller_goes_on_meanwhile():
    scoring = InBackground(Slow(0.1))
    started = time.perf_counter()
    submit_all(scoring)
    assert time.perf_counter() - started < 0.1
    time.sleep(0.25)  # what the caller does
    scoring.result()
    assert time.perf_counter() - started < 0.5  # 0.3 of scoring beside 0.25 of other work, not 0.55


def test_an_error_is_raised_where_the_result_is_asked_for_and_ends_the_scoring():
    slow = Slow(broken="2")
    scoring = InBackground(slow)
    submit_all(scoring)
    with pytest.raises(RewardError, match=r"^reward slow: is broken$"):
        scoring.result()
    assert slow.calls == [["0", "1"], ["2", "3"]]


def test_no_more_is_drawn_for_a_scorer_that_failed():
    scoring = InBackground(Slow(broken="0"))
    scoring.submit(pictures(0, 2), PROMPTS[:2])
    for _ in range(100):
        time.sleep(0.01)
        if scoring._worker.failed:
            break
    with pytest.raises(RewardError, match="is broken"):
        scoring.submit(pictures(2, 2), PROMPTS[2:4])


def test_no_picture_has_no_score():
    assert len(InBackground(Slow()).result()) == 0
