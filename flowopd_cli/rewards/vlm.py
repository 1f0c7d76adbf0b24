"""``vlm``: a vision-language model behind an OpenAI-compatible endpoint (vLLM, SGLang, a provider) as the judge.

The judge is asked for one number in a stated range. An answer without exactly that is invalid, never zero. Sources:
UnifiedReward (arXiv 2503.05236), the judges of Flow-GRPO (arXiv 2505.05470); the questions are our own words.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import png_url, to_pil
from flowopd_cli.rewards.remote.http import RETRYABLE, EndpointError, Endpoints
from flowopd_cli.system.arguments import OptionsOf
from flowopd_cli.system.threads import in_parallel

KEY_ENV = "FLOWOPD_VLM_API_KEY"
PATH = "chat/completions"
REFUSED = frozenset({400, 413, 415, 422})  # this picture or prompt is refused; others may pass
ON_ERROR = ("retry", "skip", "fail")
NUMBER = r"([-+]?\d+(?:\.\d+)?)(?:\s*/\s*5)?"
# One label per line; after the number only blanks, asterisks and full stops, so that "3-4" is not 3.
FINAL = rf"(?im)^(?:(?!Final Score:).)*Final Score:[\s*]*{NUMBER}(?:[^\S\n]|[*.])*$"
THOUGHT = re.compile(r"(?i)<(/?)think(?:ing)?>")
REPORTED = 500  # characters of an answer
Options = TypeVar("Options", bound="Connection")

UNIFIED = """You see a picture that was generated from a caption. Judge two things.
1. Faithfulness: are the things in the caption there, with the attributes, numbers and relations that it gives them?
2. Quality: is the picture sharp, detailed, natural in its colors and pleasant to look at?
Weigh both and give one score from 1 (poor) to 5 (excellent).
End your answer with one line of the form
Final Score: <number>
Caption: [{prompt}]"""
QWEN = """You judge pictures made by a text-to-image model. The text was:
{prompt}
Consider how well the picture follows the text, how plausible its content is and how good it looks. Then give one \
overall score from 1 (very bad) to 5 (very good), decimals allowed, between tags, exactly like this:
<overall>3.5</overall>"""


@dataclass(frozen=True)
class Connection:
    """How endpoints are asked.

    ``extra`` is merged into the request (``None`` removes a key). ``key_env`` names the environment variable that holds
    the API key. When no endpoint answers, ``on_error`` is ``retry`` (``retries`` times, then stop), ``skip`` (the same,
    then the picture is invalid) or ``fail`` (stop).
    """

    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5
    on_error: Literal["retry", "skip", "fail"] = "retry"
    key_env: str = KEY_ENV
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout <= 0 or min(self.retries, self.backoff) < 0:
            raise RewardError("judge: concurrency must be 1 or more, timeout above 0, retries and backoff 0 or more")
        if self.on_error not in ON_ERROR:
            raise RewardError(f"judge: on_error {self.on_error!r} is not one of {', '.join(ON_ERROR)}")

    @property
    def identity(self) -> dict[str, str]:
        """What ``extra`` adds to the identity of a scorer: its digest, as it changes the answers."""
        text = json.dumps(dict(self.extra), sort_keys=True, default=str)
        return {"extra": hashlib.sha256(text.encode()).hexdigest()} if self.extra else {}

    def endpoints(self, reward: str, urls: Sequence[str]) -> Endpoints:
        """The endpoints, with the API key.

        Raises :class:`RewardError`: an address or the key is missing or wrong.
        """
        retries = 0 if self.on_error == "fail" else self.retries
        return Endpoints(urls, authorization(reward, self.key_env), self.timeout, retries, self.backoff)


@dataclass(frozen=True)
class JudgeOptions(Connection):
    """The question to a judge and the parsing of its answer; a preset sets all fields, options override them.

    ``template`` is the question, with ``{prompt}`` in place of the prompt. ``pattern``, a regular expression with one
    group, finds the number, which must lie in ``low`` to ``high``; divided by ``divisor`` it is the total. Pictures
    are shrunk to ``side`` pixels at most (0: never). The other fields are those of :class:`Connection`.
    """

    template: str = UNIFIED
    pattern: str = FINAL
    low: float = 1.0
    high: float = 5.0
    divisor: float = 5.0
    side: int = 512
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise RewardError(f"vlm: pattern {self.pattern!r} is not a regular expression ({error})") from error
        if groups != 1:
            raise RewardError(f"vlm: pattern {self.pattern!r} has {groups} groups; one, around the number, is needed")
        if not self.low < self.high or self.divisor <= 0 or self.side < 0:
            raise RewardError(f"vlm: low {self.low} must be below high {self.high}, divisor above 0, side 0 or more")


PRESETS = {
    "unifiedreward": JudgeOptions(),
    "qwenvl": JudgeOptions(template=QWEN, pattern=rf"(?i)<overall>\s*{NUMBER}\s*</overall>", side=0),
}


class Chat(Protocol):
    """What answers: endpoints, or a model in this process."""

    def request(self, path: str, payload: Any) -> Any:
        """The reply, in the form of the chat completions API."""


class Judgement(NamedTuple):
    """A judge's number, or the reason why it is missing; ``refused`` if the endpoint refused the picture."""

    score: float | None
    answer: str = ""
    error: str | None = None
    refused: bool = False


class Judge(Reward):
    """A reward that asks a chat model about each picture; ``raw`` is its number, the total ``raw / divisor``."""

    concurrent = True
    chat: Chat
    connection: Connection
    divisor: float = 5.0
    name: str = ""

    @abstractmethod
    def body(self, image: Image.Image, text: str) -> dict[str, Any]:
        """The body of the request about a picture that was drawn for a text."""

    @abstractmethod
    def read(self, answer: str, cut: bool) -> Judgement:
        """The number in an answer, which may be ``cut`` off."""

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Ask about B pictures, several at a time.

        Raises :class:`RewardError`: no endpoint answers, or each of several pictures was refused.
        """
        questions = zip(to_pil(images), prompts, strict=True)
        judgements = self.judge_all([partial(self.judge, image, prompt.text) for image, prompt in questions])
        raw = torch.tensor([float("nan") if judgement.score is None else judgement.score for judgement in judgements])
        details = tuple(
            {"judge": self.name, "answer": judgement.answer[-REPORTED:]}
            | ({"error": judgement.error} if judgement.error else {})
            for judgement in judgements
        )
        return RewardResult(raw / self.divisor, {"raw": raw}, ~torch.isnan(raw), details)

    def judge_all(self, tasks: Sequence[Callable[[], Judgement]]) -> list[Judgement]:
        """The judgements of several calls of :meth:`judge`; :class:`RewardError` if all of several were refused."""
        judgements = in_parallel(tasks, self.connection.concurrency)
        if len(judgements) > 1 and all(judgement.refused for judgement in judgements):
            raise RewardError(f"{self.info.name}: every picture was refused: {judgements[0].error}")
        return judgements

    def judge(self, image: Image.Image, text: str) -> Judgement:
        """Ask about one picture."""
        body = {name: value for name, value in self.body(image, text).items() if value is not None}
        try:
            reply = self.chat.request(PATH, body)
        except EndpointError as error:
            refused = error.status in REFUSED
            transient = error.status in (None, 200) or error.status in RETRYABLE  # 200: an answer that is not JSON
            if not refused and not (transient and self.connection.on_error == "skip"):
                raise
            return Judgement(None, error=str(error), refused=refused)
        try:
            choice = reply["choices"][0]
            answer = choice["message"]["content"]
            if not isinstance(answer, str):
                raise TypeError("the content is not text")
        except (KeyError, IndexError, TypeError):
            return Judgement(None, error=f"no message in the answer: {str(reply)[:200]}")
        return self.read(answer, choice.get("finish_reason") == "length")


class VLMReward(Judge):
    """The judge's number: ``raw`` in its own range (1 to 5 in the presets), and the total, ``raw / divisor``."""

    info = RewardInfo(
        "vlm",
        "arXiv 2503.05236",
        0.2,
        1.0,
        license="that of the model behind the endpoint",
        exact=False,
        note="questions in our own words, scores from 1 to 5; unifiedreward asks the published question",
    )

    def __init__(
        self,
        url: str | Sequence[str] = (),
        model: str = "",
        preset: Literal["unifiedreward", "qwenvl"] = "unifiedreward",
        **options: Annotated[Any, OptionsOf(JudgeOptions)],
    ) -> None:
        """``url`` is one endpoint or several, up to and with ``/v1``; ``model`` the name they serve.

        ``options`` are the fields of ``JudgeOptions``. Pictures are spread over the endpoints; when one fails, the
        next is tried.

        Raises :class:`RewardError`: an endpoint, the model, the preset, an option or the key is missing or wrong.
        """
        if preset not in PRESETS:
            raise RewardError(f"vlm: preset {preset!r} is not one of {', '.join(PRESETS)}")
        urls = named_endpoints("vlm", url, model)
        self.options = self.connection = with_options(PRESETS[preset], "vlm", options)
        self.chat, self.divisor = self.options.endpoints("vlm", urls), self.options.divisor
        self.model, self.name = model, f"{model}/{preset if 'template' not in options else 'own'}"
        self.weights = {"model": model, "question": self.options.template, "pattern": self.options.pattern}
        self.weights |= self.options.identity
        low, high = self.options.low / self.options.divisor, self.options.high / self.options.divisor
        self.info = replace(self.info, low=low, high=high)

    def body(self, image: Image.Image, text: str) -> dict[str, Any]:
        """The picture, shrunk, then the question; greedy decoding."""
        if self.options.side:
            image = image.copy()
            image.thumbnail((self.options.side, self.options.side), Image.Resampling.BICUBIC)
        question = self.options.template.replace("{prompt}", text)
        return {
            "model": self.model,
            "messages": [message(png_url(image), question)],
            "temperature": 0,
            "max_tokens": self.options.max_tokens,
            **self.options.extra,
        }

    def read(self, answer: str, cut: bool) -> Judgement:
        """The one number of the pattern; an answer that is cut off is invalid."""
        if cut:
            limit = self.options.max_tokens
            return Judgement(None, answer, f"the answer was cut off (max_tokens {limit}), maybe its score")
        return read_answer(answer, self.options)


def named_endpoints(reward: str, url: str | Sequence[str], model: str) -> tuple[str, ...]:
    """One URL or several as a tuple; :class:`RewardError` without an endpoint or the name of its model."""
    urls = (url,) if isinstance(url, str) else tuple(url)
    if not all(urls) or not urls or not model:
        raise RewardError(f"{reward}: name the endpoint and its model: options url=http://host:port/v1 model=name")
    return urls


def with_options(defaults: Options, reward: str, options: Mapping[str, Any]) -> Options:
    """The defaults with a user's options; :class:`RewardError` for one that there is not."""
    if unknown := sorted(options.keys() - {f.name for f in fields(defaults)}):
        hint = f"; the API key is read from the environment, ${KEY_ENV} or the variable that key_env names"
        raise RewardError(f"{reward}: no option {', '.join(unknown)}" + hint * any("key" in name for name in unknown))
    return replace(defaults, **options)


def message(picture: str, question: str) -> dict[str, Any]:
    """A user's message: the data URL of a picture, then the question."""
    content = [{"type": "image_url", "image_url": {"url": picture}}, {"type": "text", "text": question}]
    return {"role": "user", "content": content}


def authorization(reward: str, key_env: str = KEY_ENV) -> dict[str, str]:
    """The header with the API key that an environment variable holds; none where the default variable is empty.

    Raises :class:`RewardError`: another variable is named, and it holds no key.
    """
    key = os.environ.get(key_env, "").strip()
    if not key and key_env != KEY_ENV:
        raise RewardError(f"{reward}: the environment variable {key_env} holds no API key")
    return {"Authorization": f"Bearer {key}"} if key else {}


def read_answer(answer: str, options: JudgeOptions) -> Judgement:
    """The one number that the pattern finds, in range.

    Text up to the last ``</think>`` is skipped, even without a ``<think>``, which some servers leave out. Thoughts
    without an end hold no answer.
    """
    *_, tag, conclusion = ["/", *THOUGHT.split(answer)]
    if tag != "/":
        return Judgement(None, answer, "the answer has no score: its thoughts do not end")
    numbers = re.findall(options.pattern, conclusion)
    if not numbers:
        return Judgement(None, answer, "the answer has no score of the requested form")
    try:
        values = {float(number) for number in numbers}
    except ValueError:
        return Judgement(None, answer, f"the score {numbers[0]!r} is not a number")
    if len(values) > 1:
        return Judgement(None, answer, f"the answer has different scores: {', '.join(numbers)}")
    score = values.pop()
    if not options.low <= score <= options.high:
        return Judgement(None, answer, f"the score {score:g} is not in {options.low:g} to {options.high:g}")
    return Judgement(score, answer)
