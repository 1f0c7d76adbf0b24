"""Text readers that need no Paddle: the PP-OCR models that the ``rapidocr`` wheel carries, run by onnxruntime, offline.

``make_reader`` picks a reader by name. What all page readers share is here too: channel order, reading order, the
confidence below which a line is dropped, and that a picture which breaks the engine costs itself alone.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flowopd_cli.errors import MissingDependency, RewardError
from flowopd_cli.rewards.ocr.reward import Line, Reading, TextReader
from flowopd_cli.rewards.pictures import to_arrays

HEIGHT = 48
WIDTH_STEP, WIDTH_MAX = 16, 320
MARGIN = 3
INK = 0.5
FAINTEST = 0.04
BATCH = 32
READERS = ("auto", "paddleocr", "rapidocr", "rapidocr-band")
# PaddleOCR 2.9.1, which the published scores were read with: lines below this confidence are dropped, tops closer than
# this many pixels stand on one row, and a picture's longer side is not enlarged, only brought down to this
DROP_SCORE = 0.5
ROW_PIXELS = 10.0
SIDE_LIMIT = 960


def make_reader(name: str = "auto", **options: Any) -> TextReader:
    """The reader of a name: ``auto`` is ``paddleocr`` where that is installed, else ``rapidocr``.

    ``options`` are those of its constructor.

    Raises:
        RewardError: there is no reader of this name.
        MissingDependency: its package is not installed.
    """
    if name == "auto":
        name = "paddleocr" if importlib.util.find_spec("paddleocr") else "rapidocr"
    if name == "paddleocr":
        from flowopd_cli.rewards.ocr.paddle import PaddleTextReader

        return PaddleTextReader(**options)
    if name not in READERS:
        raise RewardError(f"ocr: there is no reader {name!r}; known: {', '.join(READERS)}")
    return RapidPageReader(**options) if name == "rapidocr" else RapidTextReader(**options)


class Found(NamedTuple):
    """A line with the top left corner of its box, in pixels."""

    line: Line
    x: float
    y: float


def read_pages(
    images: Float[Tensor, "B 3 H W"], engine: Callable[[NDArray[np.uint8]], Iterable[Found]], drop_score: float
) -> list[Reading]:
    """Let ``engine`` read each picture, given to it as bytes in the order B, G, R, which PP-OCR was trained on.

    The lines come back from top to bottom, then left to right, those below ``drop_score`` left out. A picture on which
    the engine raises has a reading with ``error``.
    """
    readings = []
    for array in to_arrays(images):
        try:
            found = list(engine(np.ascontiguousarray(array[..., ::-1])))
        except Exception as error:
            readings.append(Reading(error=one_line(error)))
            continue
        ordered = (found[i].line for i in reading_order([(one.x, one.y) for one in found]))
        readings.append(Reading(tuple(line for line in ordered if line.confidence >= drop_score)))
    return readings


def reading_order(corners: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of ``(x, y)`` corners in reading order.

    From top to bottom; one that starts less than ten pixels below its forerunner and left of it goes before it.
    """
    order: list[int] = []
    for i in sorted(range(len(corners)), key=lambda i: (corners[i][1], corners[i][0])):
        place = len(order)
        while place and _precedes(corners[i], corners[order[place - 1]]):
            place -= 1
        order.insert(place, i)
    return order


def _precedes(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return abs(one[1] - other[1]) < ROW_PIXELS and one[0] < other[0]


def one_line(error: Exception) -> str:
    """An exception in one line, its kind first."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300].removesuffix(":")


def carried_model(kind: str) -> Path:
    """The ONNX file of a ``kind``, ``det`` or ``rec``, inside the installed ``rapidocr``.

    Raises:
        MissingDependency: ``rapidocr`` is not installed, or carries none.
    """
    if importlib.util.find_spec("rapidocr") is None:
        raise MissingDependency("rapidocr", extra="ocr")
    models = files("rapidocr") / "models"
    found = [str(p) for p in models.iterdir() if f"_{kind}_" in p.name and p.name.endswith(".onnx")]
    if not found:
        raise MissingDependency(f"rapidocr with its weights for {kind!r}", extra="ocr")
    return Path(min(found))


class RapidPageReader:
    """Finds and reads every line of a picture with the detector and the recogniser of the ``rapidocr`` wheel.

    The picture is read at its own size, not enlarged as rapidocr would by default: generated pictures have large
    letters, and PaddleOCR does the same. Lines are not turned, as in the published protocol.
    """

    def __init__(self, drop_score: float = DROP_SCORE, threads: int = 1) -> None:
        """``drop_score`` is the confidence a line needs; ``threads`` those of onnxruntime.

        Raises:
            MissingDependency: ``rapidocr`` or ``onnxruntime`` is not installed.
        """
        _need_rapidocr()
        from rapidocr import RapidOCR

        det, rec = carried_model("det"), carried_model("rec")
        self.drop_score = drop_score
        self._lock = Lock()
        self._engine: Any = RapidOCR(
            params={
                "Global.use_cls": False,
                "Global.text_score": 0.0,
                "Global.log_level": "critical",
                "EngineConfig.onnxruntime.intra_op_num_threads": threads,
                "Det.model_path": str(det),
                "Det.limit_type": "max",
                "Det.limit_side_len": SIDE_LIMIT,
                "Rec.model_path": str(rec),
            }
        )
        self.name = f"rapidocr-{version('rapidocr')}/{det.stem}+{rec.stem}"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """The lines of each RGB picture in [0, 1]."""
        with self._lock:
            return read_pages(images, self._page, self.drop_score)

    def _page(self, bgr: NDArray[np.uint8]) -> list[Found]:
        result = self._engine(bgr)
        if result.txts is None:
            return []
        rows = zip(result.txts, result.scores, result.boxes, strict=True)
        return [Found(Line(text, float(score)), float(box[0][0]), float(box[0][1])) for text, score, box in rows]


class RapidTextReader:
    """Reads one line of text a picture with the recogniser alone, on the band of rows that carries ink.

    The text detector is left out on purpose: on the small pictures of the toy world it takes far longer than the
    recogniser. Pictures with several lines want :class:`RapidPageReader`.
    """

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` is 1 when left out: pictures are small, and the model under training wants the other cores.

        Raises:
            MissingDependency: ``rapidocr`` or ``onnxruntime`` is not installed.
        """
        _need_rapidocr()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        options.log_severity_level = 4
        path = carried_model("rec")
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        characters = self._session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._characters = ["", *characters, " "]
        self._input = self._session.get_inputs()[0].name
        self.name = f"rapidocr-{version('rapidocr')}/{path.stem}/band"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """One line at most for each RGB picture in [0, 1]."""
        bands = [text_band(image) for image in images.detach().float().cpu()]
        readings = [Reading()] * len(bands)
        widths = sorted({band.shape[-1] for band in bands if band is not None})
        for width in widths:
            rows = [i for i, band in enumerate(bands) if band is not None and band.shape[-1] == width]
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                batch = torch.stack([b for i in part if (b := bands[i]) is not None])
                for i, line in zip(part, self._recognise(batch), strict=True):
                    readings[i] = Reading((line,) if line.text else ())
        return readings

    def _recognise(self, bands: Float[Tensor, "B 3 H W"]) -> list[Line]:
        bgr = bands.flip(1).mul(2).sub(1).numpy()
        output: Any = self._session.run(None, {self._input: bgr})[0]
        return [decode_ctc(row, self._characters) for row in output]


def _need_rapidocr() -> None:
    try:
        import onnxruntime  # noqa: F401
        import rapidocr  # noqa: F401
    except ImportError as error:
        raise MissingDependency(str(error.name), extra="ocr") from error


def text_band(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 48 W"] | None:
    """The rows that carry ink with a margin, enlarged to 48 pixels' height; ``None`` for a blank picture.

    A row carries ink when its three darkest differences from the paper (the median color) reach half of the largest
    row's. The width keeps the aspect, rounded up to 16 pixels so that bands can share a batch.
    """
    paper = image.flatten(1).median(dim=1).values[:, None, None]
    ink = (image - paper).abs().amax(dim=0).topk(min(3, image.shape[-1]), dim=1).values.mean(dim=1)
    if ink.max() < FAINTEST:
        return None
    rows = (ink > INK * ink.max()).nonzero().flatten().tolist()
    top, bottom = max(0, rows[0] - MARGIN), min(image.shape[1], rows[-1] + 1 + MARGIN)
    wanted = HEIGHT * image.shape[-1] / (bottom - top)
    width = min(WIDTH_MAX, -(-int(wanted) // WIDTH_STEP) * WIDTH_STEP)
    band = image[None, :, top:bottom]
    return F.interpolate(band, (HEIGHT, width), mode="bicubic", align_corners=False).clamp(0, 1)[0]


def decode_ctc(probabilities: NDArray[np.float32], characters: Sequence[str]) -> Line:
    """Greedy CTC: the best class a column, repeats and blanks (class 0) dropped; confidence is their mean."""
    best = probabilities.argmax(axis=-1)
    kept = [i for i, k in enumerate(best) if k != 0 and (i == 0 or k != best[i - 1])]
    text = "".join(characters[best[i]] for i in kept)
    confidence = float(np.mean([probabilities[i, best[i]] for i in kept])) if kept else 0.0
    return Line(text, confidence)
