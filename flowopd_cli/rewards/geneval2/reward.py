"""The rewards ``geneval2`` and ``geneval2-endpoint``: Soft-TIFA of the picture's questions.

Source: Kamath et al. 2025, arXiv 2512.16853. ``metadata`` of a prompt has the fields of :class:`Atoms`.
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.prompts.atoms import Atoms
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.geneval2.qwen import MODEL, Qwen3VL, first_tokens, load_tokenizer
from flowopd_cli.rewards.geneval2.rules import QUESTION, arithmetic_mean, geometric_mean, wordings
from flowopd_cli.rewards.pictures import png_url, to_pil
from flowopd_cli.rewards.preference.scoring import declared
from flowopd_cli.rewards.qwen_vl import refuse_special_tokens
from flowopd_cli.rewards.remote.http import EndpointError, Endpoints
from flowopd_cli.rewards.vlm import KEY_ENV, PATH, REFUSED, authorization, message, named_endpoints
from flowopd_cli.rewards.weights import shared, weights_id
from flowopd_cli.system.arguments import OptionsOf
from flowopd_cli.system.threads import in_parallel

Score = Literal["gm", "am"]
MEANS = {"gm": geometric_mean, "am": arithmetic_mean}
LICENSE = "Apache-2.0"


class Answer(NamedTuple):
    """The probability of the right answer to a question, NaN with the reason where there is none."""

    probability: float
    error: str | None = None


class SoftTIFAReward(Reward):
    """Base of the rewards: ``scores`` has the means ``gm`` (geometric) and ``am`` (arithmetic) over the questions."""

    tokenizer: Any
    score: Score = "gm"  #: the one that is the total

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without valid questions."""
        for prompt in prompts:
            _atoms(prompt)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Ask all questions about B pictures.

        ``details`` has the probabilities in the order of ``vqa_list``, unrounded, and what the suite averages them by.
        """
        atoms = [_atoms(prompt) for prompt in prompts]
        answers = self.answer(to_pil(images), atoms)
        columns: dict[str, list[float]] = {name: [] for name in MEANS}
        details: list[dict[str, Any]] = []
        for one, row in zip(atoms, answers, strict=True):
            probabilities = [answer.probability for answer in row]
            failed = next((answer for answer in row if not math.isfinite(answer.probability)), None)
            for name, mean in MEANS.items():
                columns[name].append(math.nan if failed else mean(probabilities))
            parts = {"probabilities": probabilities, "skills": list(one.skills), "atom_count": one.atom_count}
            error = {"error": failed.error or "a probability is not a number"} if failed else parts
            details.append({"judge": self.engine, **error})
        scores = {name: torch.tensor(column) for name, column in columns.items()}
        total = scores[self.score]
        return RewardResult(total, scores, torch.isfinite(total), tuple(details))

    @abstractmethod
    def answer(self, pictures: Sequence[Image.Image], atoms: Sequence[Atoms]) -> list[list[Answer]]:
        """The answers to the questions about each picture."""

    def right_tokens(self, question: str, answer: str) -> list[int]:
        """The tokens whose probabilities add up to that of the right answer."""
        return first_tokens(self.tokenizer, wordings(question, answer))


class GenEval2Reward(SoftTIFAReward):
    """The reward ``geneval2``: Qwen3-VL in this process, one forward pass a question."""

    info = RewardInfo("geneval2", "arXiv 2512.16853", 0.0, 1.0, license=LICENSE, note="papers print a hundred times it")

    def __init__(
        self, source: str = MODEL, *, score: Score = "gm", dtype: str = "bfloat16", device: str = "auto"
    ) -> None:
        """``source`` is the judge's folder or Hub id; ``score`` is the mean that is the total.

        Raises :class:`ArtifactError`: the judge cannot be read.
        """
        self.judge = shared(Qwen3VL, source, dtype=dtype, device=device)
        self.tokenizer, self.score = self.judge.tokenizer, score
        self.engine = source.partition("@")[0] if source == MODEL else weights_id(source)
        self.weights = {"model": weights_id(source), "dtype": dtype}
        self.info = declared(self.info, source == MODEL, dtype, "bfloat16")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without valid questions, or with special tokens of the model in one."""
        questions = ((prompt, question) for prompt in prompts for question, _ in _atoms(prompt).vqa_list)
        refuse_special_tokens(self.info.name, self.tokenizer, questions)

    def answer(self, pictures: Sequence[Image.Image], atoms: Sequence[Atoms]) -> list[list[Answer]]:
        """The answers to the questions about each picture."""
        return [
            [self._answer(picture, question, answer) for question, answer in one.vqa_list]
            for picture, one in zip(pictures, atoms, strict=True)
        ]

    def _answer(self, picture: Image.Image, question: str, answer: str) -> Answer:
        likely = self.judge.next_token(picture, QUESTION.format(question))
        return Answer(sum(float(likely[token]) for token in self.right_tokens(question, answer)))


@dataclass(frozen=True)
class EndpointOptions:
    """How an endpoint is asked: ``top_logprobs`` likeliest tokens of an answer, which servers limit, often to 20.

    ``key_env`` names the environment variable that holds the API key.
    """

    top_logprobs: int = 20
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    key_env: str = KEY_ENV

    def __post_init__(self) -> None:
        if min(self.top_logprobs, self.concurrency) < 1 or self.timeout <= 0 or self.retries < 0:
            raise RewardError(
                "geneval2-endpoint: top_logprobs and concurrency must be 1 or more, timeout above 0, retries 0 or more"
            )


class GenEval2EndpointReward(SoftTIFAReward):
    """The reward ``geneval2-endpoint``: the judge behind an OpenAI-compatible endpoint that returns log-probabilities.

    Tokens that are not among the likeliest count as impossible.
    """

    concurrent = True

    info = RewardInfo(
        "geneval2-endpoint",
        "arXiv 2512.16853",
        0.0,
        1.0,
        license="that of the model behind the endpoint",
        exact=False,
        note="answers outside the likeliest tokens count as 0; papers print a hundred times it",
    )

    def __init__(
        self,
        url: str | Sequence[str] = (),
        model: str = "",
        tokenizer: str = MODEL,
        score: Score = "gm",
        **options: Annotated[Any, OptionsOf(EndpointOptions)],
    ) -> None:
        """``url`` is one endpoint or several, up to and with ``/v1``; ``model`` the name they serve.

        ``tokenizer`` is that of the model: its folder or Hub id. ``options`` are the fields of ``EndpointOptions``.

        Raises :class:`RewardError`: an endpoint, the model or an option is missing or wrong.
        Raises :class:`ArtifactError`: the tokenizer cannot be read.
        """
        urls = named_endpoints(self.info.name, url, model)
        self.options, self.model, self.score = EndpointOptions(**options), model, score
        self.tokenizer = load_tokenizer(tokenizer, sys.maxsize)
        headers = authorization(self.info.name, self.options.key_env)
        self._endpoints = Endpoints(urls, headers, self.options.timeout, self.options.retries)
        self.engine = model
        self.weights = {"model": model, "tokenizer": weights_id(tokenizer)}

    def answer(self, pictures: Sequence[Image.Image], atoms: Sequence[Atoms]) -> list[list[Answer]]:
        """The answers to the questions about each picture, several questions at a time.

        Raises :class:`RewardError`: no endpoint answers, or each of several questions was refused.
        """
        tasks = [
            partial(self._answer, url, question, answer)
            for url, one in zip(map(png_url, pictures), atoms, strict=True)
            for question, answer in one.vqa_list
        ]
        answers = in_parallel(tasks, self.options.concurrency)
        if len(answers) > 1 and all(answer.error for answer in answers):
            raise RewardError(f"{self.info.name}: every question was refused: {answers[0].error}")
        left = iter(answers)
        return [[next(left) for _ in one.vqa_list] for one in atoms]

    def _answer(self, picture: str, question: str, answer: str) -> Answer:
        request = {
            "model": self.model,
            "messages": [message(picture, QUESTION.format(question))],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": True,
            "top_logprobs": self.options.top_logprobs,
        }
        try:
            likely = self._endpoints.request(PATH, request, read_likely)
        except EndpointError as error:
            if error.status not in REFUSED:
                raise
            return Answer(math.nan, str(error))
        tokens = self.right_tokens(question, answer)
        return Answer(sum(likely.get(self.tokenizer.decode([token]), 0.0) for token in tokens))


def read_likely(reply: Any) -> dict[str, float]:
    """The probabilities of the likeliest first tokens, by their texts, in a chat completion with log-probabilities.

    Raises :class:`ValueError`: it has none.
    """
    try:
        likeliest = reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return {str(entry["token"]): math.exp(entry["logprob"]) for entry in likeliest}
    except (KeyError, IndexError, TypeError, OverflowError) as error:
        raise ValueError("its answer has no top_logprobs: does the server return log-probabilities?") from error


def _atoms(prompt: Prompt) -> Atoms:
    try:
        return Atoms.read(prompt.metadata)
    except ValueError as error:
        raise PromptError(f"prompt {prompt.id!r}: geneval2 needs GenEval 2's metadata: {error}") from error
