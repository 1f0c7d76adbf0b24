"""Text readers without Paddle: the PP-OCR models in the ``rapidocr`` wheel, run by onnxruntime, offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flowopd_cli.errors import MissingDependency
from flowopd_cli.rewards.ocr.reading import DROP_SCORE, SIDE_LIMIT, Line, PageReader, Reading

HEIGHT = 48
WIDTH_STEP, WIDTH_MAX = 16, 320
MARGIN = 3
INK = 0.5
FAINTEST = 0.04
BATCH = 32


def bundled_model(kind: str) -> Path:
    """The ONNX file of a ``kind``, ``det`` or ``rec``, in the installed ``rapidocr``.

    Raises :class:`MissingDependency`: ``rapidocr`` or ``onnxruntime`` is not installed, or has no such file.
    """
    try:
        import onnxruntime  # noqa: F401
        import rapidocr
    except ImportError as error:
        raise MissingDependency(str(error.name), extra="ocr") from error
    paths = (Path(rapidocr.__file__).parent / "models").glob(f"*_{kind}_*.onnx")
    path = min(paths, default=None)
    if path is None:
        raise MissingDependency(f"rapidocr with its weights for {kind!r}", extra="ocr")
    return path


class RapidPageReader(PageReader):
    """Reads every line of an image with the detector and the recognizer of the ``rapidocr`` wheel.

    Images keep their size, as in PaddleOCR, where rapidocr would enlarge them: generated images have large letters.
    Lines are not rotated, as in the published protocol.
    """

    def __init__(self, drop_score: float = DROP_SCORE, threads: int = 1) -> None:
        """``drop_score`` is the confidence a line needs; ``threads`` those of onnxruntime."""
        super().__init__(drop_score)
        det, rec = bundled_model("det"), bundled_model("rec")
        from rapidocr import RapidOCR

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

    def page(self, bgr: NDArray[np.uint8]) -> Iterable[tuple[str, float, Any]]:
        """The engine's result for one page."""
        result = self._engine(bgr)
        return [] if result.txts is None else zip(result.txts, result.scores, result.boxes, strict=True)


class RapidTextReader:
    """Reads a single line per image with the recognizer alone, from the rows that contain ink.

    On the small images of the toy world the text detector would take far longer than the recognizer. Images with
    several lines need :class:`RapidPageReader`.
    """

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` defaults to 1: images are small, and the model under training uses the other cores."""
        path = bundled_model("rec")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        options.log_severity_level = 4
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        characters = self._session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._characters = ["", *characters, " "]
        self._input = self._session.get_inputs()[0].name
        self.name = f"rapidocr-{version('rapidocr')}/{path.stem}/band"

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> list[Reading]:
        """At most one line for each RGB image in [0, 1]."""
        readings = [Reading()] * len(images)
        bands = {
            i: band for i, image in enumerate(images.detach().float().cpu()) if (band := text_band(image)) is not None
        }
        for width in sorted({band.shape[-1] for band in bands.values()}):
            rows = [i for i, band in bands.items() if band.shape[-1] == width]
            for start in range(0, len(rows), BATCH):
                part = rows[start : start + BATCH]
                lines = self._recognize(torch.stack([bands[i] for i in part]))
                for i, line in zip(part, lines, strict=True):
                    readings[i] = Reading((line,) if line.text else ())
        return readings

    def _recognize(self, bands: Float[Tensor, "B 3 H W"]) -> list[Line]:
        bgr = bands.flip(1).mul(2).sub(1).numpy()
        output: Any = self._session.run(None, {self._input: bgr})[0]
        return [decode_ctc(row, self._characters) for row in output]


def text_band(image: Float[Tensor, "3 H W"]) -> Float[Tensor, "3 48 W"] | None:
    """The rows with ink and a margin, resized to 48 pixels in height; ``None`` for a blank image.

    A row has ink when its three darkest differences from the paper (the median color) reach half of the largest
    row's. The width keeps the aspect, rounded up to 16 pixels so that bands can share a batch.
    """
    paper = image.flatten(1).median(dim=1).values[:, None, None]
    ink = (image - paper).abs().amax(dim=0).topk(min(3, image.shape[-1]), dim=1).values.mean(dim=1)
    if ink.max() < FAINTEST:
        return None
    rows = (ink > INK * ink.max()).nonzero().flatten().tolist()
    top, bottom = max(0, rows[0] - MARGIN), min(image.shape[1], rows[-1] + 1 + MARGIN)
    target_width = HEIGHT * image.shape[-1] / (bottom - top)
    width = min(WIDTH_MAX, -(-int(target_width) // WIDTH_STEP) * WIDTH_STEP)
    band = image[None, :, top:bottom]
    return F.interpolate(band, (HEIGHT, width), mode="bicubic", align_corners=False).clamp(0, 1)[0]


def decode_ctc(probabilities: NDArray[np.float32], characters: Sequence[str]) -> Line:
    """Greedy CTC: the best class per column, without repeats and blanks (class 0); confidence is the mean."""
    best: list[int] = probabilities.argmax(axis=-1).tolist()
    columns = [i for i, k in enumerate(best) if k != 0 and (i == 0 or k != best[i - 1])]
    text = "".join(characters[best[i]] for i in columns)
    confidence = float(np.mean([probabilities[i, best[i]] for i in columns])) if columns else 0.0
    return Line(text, confidence)
