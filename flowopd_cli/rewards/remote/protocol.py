"""The protocol of a scoring worker: JSON whose pictures are base64 PNG. Nothing that is read can run code.

``POST /score`` takes ``{"protocol", "reward", "items": [{"png", "prompt": {"id", "text", "task", "metadata"}}]}`` and
answers ``{"protocol", "reward", "fingerprint", "total", "scores", "valid", "details"}``. What is not a finite number
travels as ``null``, and a total that is ``null`` is never valid. Every refusal is ``{"error": one line}``.
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
from typing import Any, TypeVar

from PIL import Image

T = TypeVar("T")
PROTOCOL = 1
HEALTH, INFO, CHECK, SCORE = "/health", "/info", "/check", "/score"
NO_NUMBER = "the reward gave no finite number"
SHOWN = 100
# What a worker may do otherwise without its scores becoming others.
NEUTRAL = ("device", "batch", "threads")


class Refusal(Exception):
    """Why a request is not answered, with its HTTP status; the message is one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What a worker accepts: bytes of a body, pictures of a request, pixels of a picture, pixels of a request, pixels
    that wait at once, seconds in the queue, seconds for a header and for a body to arrive, requests at once,
    connections at once.
    """

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

    def told(self) -> dict[str, int]:
        """What clients must keep to. A request may always hold one picture of the largest size."""
        together = max(self.request_pixels, self.pixels)
        limits = {"pictures": self.pictures, "pixels": self.pixels, "request_pixels": together}
        return {**limits, "body_bytes": self.body_bytes}


@dataclass(frozen=True)
class Answer:
    """Scores of n pictures as they travel; ``None`` is no number."""

    total: list[float | None]
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    valid: list[bool] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)

    def rows(self, start: int, stop: int) -> Answer:
        """The pictures from ``start`` up to ``stop``."""
        columns = {name: column[start:stop] for name, column in self.scores.items()}
        return Answer(self.total[start:stop], columns, self.valid[start:stop], self.details[start:stop])


def fingerprint(reward: str, weights: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Twelve letters that are equal where scores are comparable: same reward, weights and options."""
    told = {name: value for name, value in options.items() if name not in NEUTRAL}
    text = json.dumps([reward, dict(weights), told], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def encode_png(image: Image.Image) -> str:
    """A picture as base64 PNG, lossless, unfiltered and stored: PIL's encoder takes ten times as long, more than a LAN
    saves by its smaller files.
    """
    pixels, stride = image.convert("RGB").tobytes(), 3 * image.width
    rows = b"".join(b"\0" + pixels[start : start + stride] for start in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, 2, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


def decode_pngs(texts: Sequence[Any], limits: Limits, where: str = "items") -> list[Image.Image]:
    """The RGB pictures behind base64 PNG. No pixel is unpacked before all sizes are known to be within the limits: a
    few bytes of PNG can stand for millions of pixels.

    Raises:
        Refusal: one is no PNG (400), or has more pixels than allowed, alone or with the others (413).
    """
    names = [f"{where}.{i}" for i in range(len(texts))]
    packed = [_packed(text, name) for text, name in zip(texts, names, strict=True)]
    total = 0
    for data, name in zip(packed, names, strict=True):
        width, height = _opened(data, name, lambda image: image.size)
        if width * height > limits.pixels:
            raise Refusal(413, f"{name}: {width} x {height} pixels, at most {limits.pixels} are accepted")
        total += width * height
    if total > limits.told()["request_pixels"]:
        most = limits.told()["request_pixels"]
        raise Refusal(413, f"{total} pixels in a request, at most {most} are accepted")
    return [_opened(data, name, _rgb) for data, name in zip(packed, names, strict=True)]


def _packed(text: Any, where: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError) as error:
        raise Refusal(400, f"{where}: not a PNG picture in base64") from error


def _opened(data: bytes, where: str, act: Callable[[Image.Image], T]) -> T:
    """What ``act`` makes of a picture that has been opened, its pixels still packed."""
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            return act(image)
    except Image.DecompressionBombError as error:
        raise Refusal(413, f"{where}: {error}") from error
    except (TypeError, ValueError, OSError, SyntaxError) as error:
        raise Refusal(400, f"{where}: not a PNG picture in base64") from error


def _rgb(image: Image.Image) -> Image.Image:
    """The pixels alone: a PNG's texts would be kept with them."""
    found = image.convert("RGB")
    found.info = {}
    return found


def read_request(body: bytes, reward: str, limits: Limits) -> tuple[list[Image.Image], list[dict[str, Any]]]:
    """Pictures and prompts of a ``/score`` request.

    Raises:
        Refusal: it is malformed, of another protocol or for another reward, or beyond a limit.
    """
    tree = read_tree(body, reward)
    items = tree.get("items")
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise Refusal(400, "items: want a list of {png, prompt}")
    if len(items) > limits.pictures:
        raise Refusal(413, f"{len(items)} pictures in a request, at most {limits.pictures} are accepted")
    prompts = [read_prompt(item.get("prompt"), f"items.{i}") for i, item in enumerate(items)]
    return decode_pngs([item.get("png") for item in items], limits), prompts


def read_tree(body: bytes, reward: str) -> dict[str, Any]:
    """A request's JSON object, whose protocol and reward are ours.

    Raises:
        Refusal: it is no JSON object (400), or of another protocol or reward (409).
    """
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON") from error
    if not isinstance(tree, dict):
        raise Refusal(400, "the body is not a JSON object")
    if not is_ours(tree.get("protocol")):
        raise Refusal(409, f"this worker speaks protocol {PROTOCOL}, the request {shown(tree.get('protocol'))}")
    if tree.get("reward", reward) != reward:
        raise Refusal(409, f"this worker serves {reward!r}, the request wants {shown(tree.get('reward'))}")
    return tree


def is_ours(protocol: Any) -> bool:
    """Whether a protocol is the one spoken here; ``true`` is not 1."""
    return type(protocol) is int and protocol == PROTOCOL


def shown(value: Any) -> str:
    """Somebody else's value in an error or a log: 100 characters at most, none of which moves a cursor."""
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    return ascii(value[:SHOWN] if isinstance(value, str) else value)[:SHOWN]


def read_prompt(tree: Any, where: str) -> dict[str, Any]:
    """A prompt as ``{"id", "text", "task", "metadata"}``; all but the text may be missing.

    Raises:
        Refusal: it is something else.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("text"), str):
        raise Refusal(400, f"{where}: want a prompt with a text")
    found = {"id": str(tree.get("id", "")), "text": tree["text"], "task": str(tree.get("task", ""))}
    metadata = tree.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise Refusal(400, f"{where}: metadata is not an object")
    return {**found, "metadata": metadata}


def cleaned(answer: Answer, count: int) -> Answer:
    """An answer fit to travel: a total that is no finite number makes its picture invalid.

    Raises:
        Refusal: some list has not one entry a picture (500).
    """
    columns = {"total": answer.total, "valid": answer.valid, **answer.scores}
    for name, column in columns.items():
        if len(column) != count:
            raise Refusal(500, f"the reward gave {len(column)} values of {name} for {count} pictures")
    total = [finite(value) for value in answer.total]
    scores = {name: [finite(value) for value in column] for name, column in answer.scores.items()}
    details = [dict(plain(d)) for d in answer.details] or [{} for _ in range(count)]
    if len(details) != count:
        raise Refusal(500, f"the reward gave {len(details)} details for {count} pictures")
    valid = [bool(v) and t is not None for v, t in zip(answer.valid, total, strict=True)]
    for i, (said, value) in enumerate(zip(answer.valid, total, strict=True)):
        if said and value is None:
            details[i].setdefault("error", NO_NUMBER)
    return Answer([t if v else None for t, v in zip(total, valid, strict=True)], scores, valid, details)


def read_answer(tree: Any, count: int) -> Answer:
    """The answer to ``count`` pictures, every list checked: lengths, kinds, finite numbers.

    Raises:
        Refusal: it is not what the protocol promises.
    """
    if not isinstance(tree, dict):
        raise Refusal(502, f"the answer is {type(tree).__name__}, not an object")
    scores = tree.get("scores", {})
    if not isinstance(scores, dict):
        raise Refusal(502, "the answer's scores are not an object")
    for name, column in {"total": tree.get("total"), "valid": tree.get("valid"), **scores}.items():
        if not isinstance(column, list) or len(column) != count:
            found = len(column) if isinstance(column, list) else "no list of"
            raise Refusal(502, f"the answer has {found} values of {name} for {count} pictures")
    if not all(isinstance(value, bool) for value in tree["valid"]):
        raise Refusal(502, "the answer's valid are not all true or false")
    for name, column in {"total": tree["total"], **scores}.items():
        if not all(value is None or (isinstance(value, (int, float)) and type(value) is not bool) for value in column):
            raise Refusal(502, f"the answer's {name} are not all numbers or null")
    details = tree.get("details", [])
    if not isinstance(details, list) or not all(isinstance(d, dict) for d in details):
        raise Refusal(502, "the answer's details are not a list of objects")
    return cleaned(Answer(tree["total"], scores, tree["valid"], details), count)


def finite(value: Any) -> float | None:
    """A number, or ``None`` for NaN, infinities and whatever is no number."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def plain(value: Any) -> Any:
    """A value as JSON can hold it: keys are strings, NaN and infinities ``None``, anything unknown its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return finite(value)
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def to_bytes(tree: Any) -> bytes:
    """JSON; a NaN that came this far is an error of ours."""
    return json.dumps(tree, allow_nan=False).encode()


def one_line(error: BaseException) -> str:
    """What went wrong, for a refusal: kind and first line, no traceback."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300] if text else type(error).__name__


def prompt_tree(prompt: Any) -> dict[str, Any]:
    """A prompt record as it travels."""
    return {"id": prompt.id, "text": prompt.text, "task": prompt.task, "metadata": plain(dict(prompt.metadata))}


def score_request(reward: str, pngs: Sequence[str], prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The body of a ``/score`` request."""
    items = [{"png": png, "prompt": dict(prompt)} for png, prompt in zip(pngs, prompts, strict=True)]
    return {"protocol": PROTOCOL, "reward": reward, "items": items}
