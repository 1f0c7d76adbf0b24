"""The protocol of a scoring worker: JSON whose pictures are base64 PNG. Nothing that is read can run code.

``POST /score`` takes ``{"protocol", "reward", "items": [{"png", "prompt": {"id", "text", "task", "metadata"}}]}`` and
answers ``{"protocol", "reward", "fingerprint", "total", "scores", "valid", "details"}``. A value that is not a finite
number travels as ``null``, and a ``null`` total is never valid. Every refusal is ``{"error": one line}``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any, TypeVar

from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictStr, ValidationError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
PROTOCOL = 1
HEALTH, INFO, CHECK, SCORE = "/health", "/info", "/check", "/score"
NO_NUMBER = "the reward gave no finite number"
EXCERPT = 100
NEUTRAL_OPTIONS = ("device", "batch", "threads")  # they change no score
WEIGHT_FILES = (".safetensors", ".bin", ".pt", ".pth", ".onnx")
CHUNK = 1 << 20


class Refusal(Exception):
    """Why a request is not answered, in one line, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a worker accepts: sizes of a request, of all that wait, times in seconds, and requests at once."""

    body_bytes: int = 64 << 20
    pictures: int = 256
    pixels: int = 2048 * 2048
    request_pixels: int = 32 << 20
    waiting_pixels: int = 256 << 20
    queue_seconds: float = 60.0
    header_seconds: float = 10.0
    body_seconds: float = 60.0
    requests: int = 32
    connections: int = 128

    def published(self) -> dict[str, int]:
        """The limits that clients must keep to. A request may always hold one picture of the largest size."""
        request_pixels = max(self.request_pixels, self.pixels)
        sizes = {"pictures": self.pictures, "pixels": self.pixels, "request_pixels": request_pixels}
        return {**sizes, "body_bytes": self.body_bytes}


@dataclass(frozen=True)
class Answer:
    """Scores of n pictures; ``None`` where there is no number."""

    total: list[float | None]
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    valid: list[bool] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def rows(self, start: int, stop: int) -> Answer:
        """The pictures from ``start`` up to ``stop``."""
        scores = {name: column[start:stop] for name, column in self.scores.items()}
        return Answer(self.total[start:stop], scores, self.valid[start:stop], self.details[start:stop])


class PromptRecord(BaseModel):
    """A prompt as it travels; only the text is required."""

    model_config = ConfigDict(coerce_numbers_to_str=True)

    id: str = ""
    text: StrictStr
    task: str = ""
    metadata: Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})] = {}


class ScoreItem(BaseModel):
    """A picture and its prompt."""

    png: StrictStr
    prompt: PromptRecord


class ScoreRequest(BaseModel):
    """The body of a ``/score`` request."""

    items: list[ScoreItem]


class CheckRequest(BaseModel):
    """The body of a ``/check`` request."""

    prompts: list[PromptRecord]


Number = Annotated[float, Field(strict=True)] | None


class ScoreResponse(BaseModel):
    """The answer to ``/score``, before lengths and numbers are checked."""

    total: list[Number]
    valid: list[StrictBool]
    scores: dict[str, list[Number]] = {}
    details: list[dict[str, Any]] = []


class WorkerInfo(BaseModel):
    """The answer to ``/info``, the parts that clients read."""

    model_config = ConfigDict(allow_inf_nan=False)

    protocol: Annotated[int, Field(strict=True)]
    reward: StrictStr
    fingerprint: StrictStr
    package: str = "?"
    weights: dict[str, Any] = {}
    limits: dict[str, Annotated[int, Field(strict=True, gt=0)]] = {}
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True
    exact: bool = True
    paper: str = ""
    license: str = ""
    note: str = ""

    def __str__(self) -> str:
        weights = ", ".join(f"{name} {value}" for name, value in self.weights.items())
        return f"{self.reward} ({weights or self.fingerprint})"


def fingerprint(reward: str, weights: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Twelve hex digits that are equal where scores are comparable: same reward, weights and options."""
    relevant = {name: value for name, value in options.items() if name not in NEUTRAL_OPTIONS}
    text = json.dumps([reward, dict(weights), relevant], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def path_digest(path: Path) -> str:
    """``sha256:`` and the digest of a file, or of the digests of a folder's weights in the order of their names."""
    if path.is_file():
        return f"sha256:{_sha256(path)}"
    files = sorted(file for file in path.rglob("*") if file.suffix in WEIGHT_FILES and file.is_file())
    return f"sha256:{hashlib.sha256(''.join(map(_sha256, files)).encode()).hexdigest()}"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as source:
        while block := source.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def encode_png(image: Image.Image) -> str:
    """A picture as base64 PNG, lossless and stored: PIL's encoder takes more than twice the time even so."""
    pixels, stride = image.convert("RGB").tobytes(), 3 * image.width
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def decode_pngs(texts: Sequence[str], limits: Limits) -> list[Image.Image]:
    """RGB pictures from base64 PNG. All sizes are checked before any pixel is unpacked: a few bytes of PNG can stand
    for millions of pixels.

    Raises:
        Refusal: one is not a PNG (400), or has more pixels than allowed, alone or with the others (413).
    """
    files = {f"items.{i}": _from_base64(text, f"items.{i}") for i, text in enumerate(texts)}
    pixels = 0
    for where, data in files.items():
        width, height = _open(data, where, lambda image: image.size)
        if width * height > limits.pixels:
            raise Refusal(413, f"{where}: {width} x {height} pixels, at most {limits.pixels} are accepted")
        pixels += width * height
    most = limits.published()["request_pixels"]
    if pixels > most:
        raise Refusal(413, f"{pixels} pixels in a request, at most {most} are accepted")
    return [_open(data, where, _to_rgb) for where, data in files.items()]


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refusal(400, f"{where}: not a PNG picture in base64") from error


def _open(data: bytes, where: str, read: Callable[[Image.Image], T]) -> T:
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            return read(image)
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"{where}: {error}") from error
    except (TypeError, ValueError, OSError, SyntaxError) as error:
        raise Refusal(400, f"{where}: not a PNG picture in base64") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    rgb = image.convert("RGB")
    rgb.info = {}  # the texts of a PNG would stay in memory
    return rgb


def read_score_request(body: bytes, reward: str, limits: Limits) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """Pictures and prompts of a ``/score`` request.

    Raises:
        Refusal: it is malformed, of another protocol or for another reward, or beyond a limit.
    """
    tree = _read_object(body, reward)
    count = len(tree["items"]) if isinstance(tree.get("items"), list) else 0
    if count > limits.pictures:
        raise Refusal(413, f"{count} pictures in a request, at most {limits.pictures} are accepted")
    items = _validate(ScoreRequest, tree).items
    return decode_pngs([item.png for item in items], limits), [item.prompt.model_dump() for item in items]


def read_check_request(body: bytes, reward: str) -> list[dict[str, Any]]:
    """Prompts of a ``/check`` request.

    Raises:
        Refusal: it is malformed, of another protocol or for another reward.
    """
    return [prompt.model_dump() for prompt in _validate(CheckRequest, _read_object(body, reward)).prompts]


def _read_object(body: bytes, reward: str) -> dict[str, Any]:
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not isinstance(tree, dict):
        raise Refusal(400, "the body is not a JSON object")
    if not is_supported(tree.get("protocol")):
        raise Refusal(409, f"this worker speaks protocol {PROTOCOL}, the request {excerpt(tree.get('protocol'))}")
    if tree.get("reward", reward) != reward:
        raise Refusal(409, f"this worker serves {reward!r}, the request is for {excerpt(tree.get('reward'))}")
    return tree


def _validate(model: type[M], tree: Any, status: int = 400) -> M:
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        raise Refusal(status, describe_validation(error)) from error


def describe_validation(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line."""
    problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(str(part) for part in problem["loc"])[:EXCERPT]
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])


def is_supported(protocol: Any) -> bool:
    """Whether this is the protocol spoken here; ``true`` is not 1."""
    return type(protocol) is int and protocol == PROTOCOL


def excerpt(value: Any) -> str:
    """An untrusted value for an error or a log: at most 100 characters, all printable."""
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    return ascii(value[:EXCERPT] if isinstance(value, str) else value)[:EXCERPT]


def normalize_answer(answer: Answer, count: int) -> Answer:
    """An answer fit to travel: a total that is not a finite number makes its picture invalid.

    Raises:
        Refusal: a list does not have one entry a picture (500).
    """
    for name, column in {"total": answer.total, "valid": answer.valid, **answer.scores}.items():
        if len(column) != count:
            raise Refusal(500, f"the reward gave {len(column)} values of {name} for {count} pictures")
    details = [dict(to_json(detail)) for detail in answer.details] or [{} for _ in range(count)]
    if len(details) != count:
        raise Refusal(500, f"the reward gave {len(details)} details for {count} pictures")
    total = [finite(value) if valid else None for value, valid in zip(answer.total, answer.valid, strict=True)]
    for detail, valid, value in zip(details, answer.valid, total, strict=True):
        if valid and value is None:
            detail.setdefault("error", NO_NUMBER)
    scores = {name: [finite(value) for value in column] for name, column in answer.scores.items()}
    return Answer(total, scores, [value is not None for value in total], details)


def read_answer(tree: Any, count: int) -> Answer:
    """The answer to ``count`` pictures, every list checked: lengths, types, finite numbers.

    Raises:
        Refusal: it is not what the protocol promises.
    """
    response = _validate(ScoreResponse, tree, 502)
    return normalize_answer(Answer(response.total, response.scores, response.valid, response.details), count)


def finite(value: Any) -> float | None:
    """A number, or ``None`` for NaN, infinities and anything else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def to_json(value: Any) -> Any:
    """A value as JSON can hold it: keys are strings, NaN and infinities ``None``, other objects their text."""
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if isinstance(value, float):
        return finite(value)
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def one_line(error: BaseException) -> str:
    """Kind and message of an error, without a traceback."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def prompt_record(prompt: Any) -> dict[str, Any]:
    """A prompt as it travels."""
    return {"id": prompt.id, "text": prompt.text, "task": prompt.task, "metadata": to_json(dict(prompt.metadata))}


def score_request(reward: str, pngs: Sequence[str], prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of a ``/score`` request."""
    items = [{"png": png, "prompt": dict(prompt)} for png, prompt in zip(pngs, prompts, strict=True)]
    return {"protocol": PROTOCOL, "reward": reward, "items": items}
