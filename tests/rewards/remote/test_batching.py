"""Requests of several callers in one batch: order, sizes, faults, cancelled requests, a full queue."""

import threading
import time

import pytest

from flowopd_cli.rewards.remote.batching import Batcher
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal


class Dot(int):
    """A number in place of a picture, as many pixels wide."""

    height = 1
    width = property(int)


def batcher(score, linger=0.05, **limits):
    return Batcher(score, max_batch=4, linger=linger, limits=Limits(**limits))


def submit(batch, *numbers):
    return batch.submit(list(map(Dot, numbers)), [{}] * len(numbers))


def identity(pictures, prompts):
    return Answer([float(p) for p in pictures], {"twice": [2.0 * p for p in pictures]}, [True] * len(pictures))


@pytest.fixture
def gated():
    """A batcher whose reward waits until ``gate`` is set, busy with one picture, and the sizes of its batches."""
    gate, sizes = threading.Event(), []

    def score(pictures, prompts):
        sizes.append(len(pictures))
        gate.wait(10)
        return identity(pictures, prompts)

    batch = batcher(score, linger=0.0, waiting_pixels=8)
    first = submit(batch, 0)
    while not first.running():
        time.sleep(0.01)
    yield batch, gate, sizes
    gate.set()


def test_requests_are_joined_up_to_the_largest_batch(gated):
    batch, gate, sizes = gated
    futures = [submit(batch, *numbers) for numbers in ([1], [2], [1, 0], [2, 0, 1])]
    assert batch.waiting == 7
    gate.set()
    assert [future.result(5).total for future in futures] == [[1], [2], [1, 0], [2, 0, 1]]
    assert futures[2].result().scores == {"twice": [2, 0]}
    assert sizes == [1, 4, 3]


def test_the_fault_of_one_request_reaches_no_other():
    def score(pictures, prompts):
        if 0 in pictures:
            raise ValueError("nought")
        return identity(pictures, prompts)

    batch = batcher(score)
    good, bad, other = submit(batch, 1), submit(batch, 0), submit(batch, 2)
    assert (good.result(5).total, other.result(5).total) == ([1], [2])
    assert isinstance(bad.exception(5), ValueError)


def test_a_full_queue_refuses_and_a_cancelled_request_makes_room(gated):
    batch, gate, sizes = gated
    waiting = submit(batch, 2, 2, 2, 2)
    with pytest.raises(Refusal, match="the queue is full: 4 pictures of 8 pixels are waiting"):
        submit(batch, 1)
    assert waiting.cancel()
    assert batch.waiting == 0
    other = submit(batch, 1)
    gate.set()
    assert other.result(5).total == [1]
    assert sizes == [1, 1]


def test_cancelling_while_a_batch_lingers_leaves_the_queue_working():
    batch = batcher(identity, linger=0.2)
    assert submit(batch, 1).cancel()
    time.sleep(0.3)
    assert submit(batch, 2).result(5).total == [2]


def test_a_reward_that_calls_exit_ends_neither_its_thread_nor_its_callers():
    def score(pictures, prompts):
        if pictures == [0]:
            raise SystemExit("bye")
        return identity(pictures, prompts)

    batch = batcher(score, linger=0.0)
    error = submit(batch, 0).exception(5)
    assert isinstance(error, RuntimeError)
    assert str(error) == "SystemExit: bye"
    assert submit(batch, 1).result(5).total == [1]
