"""DPG-Bench's own judge behind a worker, and any vision-language model behind an endpoint in its place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import Annotated, Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.dpg_bench.rules import YES, Question, grade, read_questions
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.remote.client import RemoteReward
from flowopd_cli.rewards.remote.settings import DPG_BENCH_PORT
from flowopd_cli.rewards.vlm import Judgement, JudgeOptions, VLMReward
from flowopd_cli.system.arguments import OptionsOf

# The judge is asked for a digit, because a judgement of ``vlm`` is one number.
ASKED: dict[str, Any] = {
    "template": "Look at the picture and answer with one digit, 1 for yes or 0 for no.\n{prompt}",
    "pattern": r"\A\W*([01])\W*\Z",
    "low": 0.0,
    "high": 1.0,
    "divisor": 1.0,
    "side": 0,
    "max_tokens": 256,
}


class DPGBenchReward(RemoteReward):
    """``dpg-bench``: the share of a prompt's questions that mPLUG affirms, in a worker with packages of its own.

    ``url`` names one worker or several; further options are those of :class:`RemoteReward`.
    """

    info = RewardInfo(
        name="dpg-bench",
        paper="arXiv 2403.05135",
        low=0.0,
        high=1.0,
        license="Apache-2.0",
        note="in a worker: flowopd rewards serve dpg-bench",
    )
    served = info.name

    def __init__(
        self,
        url: str = f"http://127.0.0.1:{DPG_BENCH_PORT}",
        timeout: float = 600.0,
        batch: int = 4,
        **options: Annotated[Any, OptionsOf(RemoteReward)],
    ) -> None:
        super().__init__(url, timeout=timeout, batch=batch, **options)


class DPGBenchVLMReward(VLMReward):
    """``dpg-bench-vlm``: DPG-Bench's questions and rules, with a model behind an endpoint in place of mPLUG."""

    info = RewardInfo(
        "dpg-bench-vlm",
        "arXiv 2403.05135",
        0.0,
        1.0,
        license="that of the model behind the endpoint",
        exact=False,
        note="another judge than DPG-Bench's own: not comparable with published figures",
    )

    def __init__(
        self, url: str | Sequence[str] = (), model: str = "", **options: Annotated[Any, OptionsOf(JudgeOptions)]
    ) -> None:
        """``url`` and ``model`` as for ``vlm``; ``options`` are the fields of ``JudgeOptions``."""
        super().__init__(url, model, **{**ASKED, **options})

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without questions."""
        for prompt in prompts:
            _questions(prompt)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Ask every question about B pictures, several at a time; a question without an answer is an invalid picture.

        Raises :class:`RewardError`: no endpoint answers, or refuses everything.
        """
        lists = [_questions(prompt) for prompt in prompts]
        pairs = zip(to_pil(images), lists, strict=True)
        tasks = [partial(self.judge, image, question.question) for image, questions in pairs for question in questions]
        judgements = iter(self.judge_all(tasks))
        graded = [_grade(questions, list(islice(judgements, len(questions)))) for questions in lists]
        total = torch.tensor([float("nan") if score is None else score for score, _ in graded])
        details = tuple({"judge": self.name, **report} for _, report in graded)
        return RewardResult(total, {}, ~torch.isnan(total), details)


def _questions(prompt: Prompt) -> tuple[Question, ...]:
    try:
        return read_questions(prompt.metadata)
    except ValueError as error:
        raise PromptError(f"prompt {prompt.id!r}: {error}") from error


def _grade(questions: Sequence[Question], judgements: Sequence[Judgement]) -> tuple[float | None, dict[str, Any]]:
    error = next((judgement.error for judgement in judgements if judgement.score is None), None)
    if error is not None:
        return None, {"error": error}
    answers = {q.id: YES if j.score else "no" for q, j in zip(questions, judgements, strict=True)}
    return grade(questions, answers)
