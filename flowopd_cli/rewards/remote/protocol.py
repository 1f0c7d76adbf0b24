"""The protocol of a scoring worker: JSON whose pictures are base64 PNG. Reading it never runs code.

``POST /score`` takes ``{"protocol", "reward", "items": [{"png", "prompt": {"id", "text", "task", "metadata"}}]}`` and
answers ``{"protocol", "reward", "fingerprint", "total", "scores", "valid", "details"}``. A value that is not a finite
number travels as ``null``, and a ``null`` total is never valid. Every refusal is ``{"error": one line}``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import field
from io import BytesIO
from typing import Annotated, Any, TypeVar

import pydantic_core
from PIL import Image
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from flowopd_cli.system.pictures import decode_picture

R = TypeVar("R", bound="Request")
PROTOCOL = 1
HEALTH, INFO, CHECK, SCORE = "/health", "/info", "/check", "/score"
MAX_PICTURES = 256  # of one request
NO_NUMBER = "the reward gave no finite number"
EXCERPT = 100
ENGINES = ("reader", "detector")  # among the weights, the software that scores
NEUTRAL_OPTIONS = ("device", "batch", "threads")  # they change no score


class Refusal(Exception):
    """The one-line reason why a request is refused, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@dataclass(frozen=True)
class Limits:
    """The limits of a worker. A single picture is not subject to ``request_pixels``."""

    body_bytes: int = 64 << 20
    pixels: int = 2048 * 2048
    request_pixels: int = 32 << 20
    waiting_pixels: int = 256 << 20
    queue_seconds: float = 60.0
    header_seconds: int = 10
    body_seconds: float = 60.0
    connections: int = 64


def to_json(value: Any) -> Any:
    """The value as JSON: NaN and infinities become ``None``, unknown objects their text."""

    def replace(unknown: Any) -> Any:
        return dict(unknown) if isinstance(unknown, Mapping) else str(unknown)

    return pydantic_core.from_json(pydantic_core.to_json(value, inf_nan_mode="null", fallback=replace))


def _number(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        raise ValueError("Input should be a number")
    return None if value != value or value in (math.inf, -math.inf) else value


Number = Annotated[float | None, BeforeValidator(_number)]  # None for NaN and infinities


@dataclass
class Answer:
    """Scores of n pictures, all lists of length n. ``None`` replaces NaN and infinities; as a total it is invalid.

    Raises :class:`ValidationError`: lengths differ, or a value has the wrong type.
    """

    total: list[Number]
    scores: dict[str, list[Number]] = field(default_factory=dict)
    valid: list[bool] = field(default_factory=list)
    details: Annotated[list[dict[str, Any]], BeforeValidator(to_json)] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.details = self.details or [{} for _ in self.total]
        for name, column in {"valid": self.valid, "details": self.details, **self.scores}.items():
            if len(column) != len(self.total):
                raise ValueError(f"{len(column)} values of {name} for {len(self.total)} totals")
        for i, valid in enumerate(self.valid):
            if valid and self.total[i] is None:
                self.details[i].setdefault("error", NO_NUMBER)
            self.total[i] = self.total[i] if valid else None
            self.valid[i] = self.total[i] is not None

    def require(self, count: int) -> Answer:
        """The answer itself; ``ValueError`` if it is not for ``count`` pictures."""
        if len(self.total) != count:
            raise ValueError(f"{len(self.total)} totals for {count} pictures")
        return self

    def rows(self, start: int, stop: int) -> Answer:
        """The pictures from ``start`` up to ``stop``."""
        scores = {name: column[start:stop] for name, column in self.scores.items()}
        return Answer(self.total[start:stop], scores, self.valid[start:stop], self.details[start:stop])


class WorkerInfo(BaseModel):
    """The answer to ``/info``."""

    protocol: int = Field(strict=True, ge=PROTOCOL, le=PROTOCOL)
    reward: str
    fingerprint: str
    package: str = "?"
    weights: dict[str, Any] = {}
    options: dict[str, Any] = {}
    limits: Limits = Limits()
    low: Number = None
    high: Number = None
    higher_is_better: bool = True
    exact: bool = True
    paper: str = ""
    license: str = ""
    note: str = ""

    def __str__(self) -> str:
        weights = ", ".join(f"{name} {value}" for name, value in self.weights.items())
        return f"{self.reward} ({weights or self.fingerprint})"


def fingerprint(reward: str, weights: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Twelve hex digits, equal for comparable scores: same reward, weights and options."""
    relevant = {name: value for name, value in options.items() if name not in NEUTRAL_OPTIONS}
    text = json.dumps([reward, dict(weights), relevant], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _read_png(text: Any, info: ValidationInfo) -> Image.Image:
    context: dict[str, Any] = info.context or {}
    limits: Limits = context["limits"]

    def check_size(width: int, height: int) -> None:
        before, pixels = context["pixels"], width * height
        if pixels > limits.pixels:
            raise Refusal(413, f"{width} x {height} pixels, at most {limits.pixels} are accepted")
        if before and before + pixels > limits.request_pixels:
            raise Refusal(413, f"more than {limits.request_pixels} pixels in a request")
        context["pixels"] += pixels

    try:
        return decode_picture(BytesIO(base64.b64decode(text, validate=True)), check_size, formats=("PNG",))
    except (TypeError, ValueError, OSError, SyntaxError) as error:
        raise ValueError("not a PNG picture in base64") from error


class PromptRecord(BaseModel, coerce_numbers_to_str=True):
    """A prompt as transmitted; only the text is required."""

    id: str = ""
    text: str = Field(strict=True)
    task: str = ""
    metadata: Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})] = {}


class ScoreItem(BaseModel):
    """A picture and its prompt."""

    png: Annotated[Any, BeforeValidator(_read_png)]
    prompt: PromptRecord


class Request(BaseModel):
    """The fields of every request."""

    protocol: int = Field(strict=True)
    reward: str | None = None

    @field_validator("protocol", "reward")
    @classmethod
    def _match(cls, value: Any, info: ValidationInfo) -> Any:
        served = (info.context or {})[info.field_name]
        if value not in (None, served):
            raise Refusal(409, f"this worker's {info.field_name} is {served!r}, that of the request {excerpt(value)}")
        return value


class CheckRequest(Request):
    """The body of a ``/check`` request."""

    prompts: list[PromptRecord]


class ScoreRequest(Request):
    """The body of a ``/score`` request."""

    items: Annotated[list[ScoreItem], Field(max_length=MAX_PICTURES)]


def read_request(model: type[R], body: bytes, reward: str, limits: Limits) -> R:
    """The request in a body.

    Raises :class:`Refusal`: it is malformed (400), of another protocol or for another reward (409), or beyond a limit
    (413).
    """
    context = {"protocol": PROTOCOL, "reward": reward, "limits": limits, "pixels": 0}
    try:
        return model.model_validate_json(body, context=context)
    except ValidationError as error:
        status = 413 if error.errors()[0]["type"] == "too_long" else 400
        raise Refusal(status, describe_validation(error)) from error


def describe_validation(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where, reason = ".".join(map(str, problem["loc"]))[:EXCERPT], problem["msg"].removeprefix("Value error, ")
    return f"{where}: {reason}" if where else reason


def excerpt(value: Any) -> str:
    """An untrusted value for an error or a log: at most 100 characters, all printable."""
    return ascii(value[:EXCERPT] if isinstance(value, str) else value)[:EXCERPT]


def one_line(error: BaseException) -> str:
    """The type and the message of an error, without a traceback."""
    if isinstance(error, ValidationError):
        return describe_validation(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300].removesuffix(": ")


def prompt_record(prompt: Any) -> dict[str, Any]:
    """A prompt as transmitted."""
    return {"id": prompt.id, "text": prompt.text, "task": prompt.task, "metadata": to_json(prompt.metadata)}


def score_item(picture: Image.Image, prompt: Any) -> dict[str, Any]:
    """A picture and its prompt as transmitted: base64 PNG, uncompressed because that is fastest."""
    sink = BytesIO()
    picture.save(sink, "PNG", compress_level=0)
    return {"png": base64.b64encode(sink.getvalue()).decode(), "prompt": prompt_record(prompt)}
