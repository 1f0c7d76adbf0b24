"""Text readers. ``RapidTextReader`` is the PP-OCR recogniser that ships inside the ``rapidocr`` wheel: offline."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from flowopd_cli.errors import MissingDependency
from flowopd_cli.rewards.ocr import Line, Reading

HEIGHT = 48
WIDTH_STEP, WIDTH_MAX = 16, 320
MARGIN = 3
INK = 0.5
FAINTEST = 0.04
BATCH = 32


class RapidTextReader:
    """Reads one line of text a picture with the recogniser alone, on the band of rows that carries ink.

    The text detector is left out on purpose: it enlarges small pictures and takes a hundred times as long. Pictures
    with several lines want another reader.
    """

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` is 1 when left out: pictures are small, and the model under training wants the other cores.

        Raises:
            MissingDependency: ``rapidocr`` or ``onnxruntime`` is not installed.
        """
        try:
            import onnxruntime
            import rapidocr  # noqa: F401
        except ImportError as error:
            raise MissingDependency(str(error.name), extra="ocr") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 1
        options.log_severity_level = 4
        models = files("rapidocr") / "models"
        path = min((str(p) for p in models.iterdir() if "_rec_" in p.name and p.name.endswith(".onnx")), default=None)
        if path is None:
            raise MissingDependency("rapidocr with its recogniser's weights", extra="ocr")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        characters = self._session.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._characters = ["", *characters, " "]
        self._input = self._session.get_inputs()[0].name
        model = path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".onnx")
        self.name = f"rapidocr-{version('rapidocr')}/{model}/band"

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
