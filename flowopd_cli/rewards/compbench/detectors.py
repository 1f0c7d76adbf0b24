"""Open-vocabulary detectors: find named objects in pictures with Grounding DINO or OWLv2, through ``transformers``.

They replace UniDet in T2I-CompBench's spatial and counting categories. Their labels, confidences and misses differ from
UniDet's, so scores are not comparable with published ones and carry the detector's name.
Sources: Liu et al. 2023, arXiv 2303.05499 (Apache-2.0); Minderer et al. 2023, arXiv 2306.09683 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import MissingDependency, RewardError
from flowopd_cli.rewards.compbench.spatial import plain_iou
from flowopd_cli.rewards.geneval.rules import Detection
from flowopd_cli.rewards.preference.clip import as_dtype, read
from flowopd_cli.rewards.weights import pick_device, refuse_mismatch, weights_id

if TYPE_CHECKING:
    from typing_extensions import Self

GROUNDING_DINO = "IDEA-Research/grounding-dino-tiny@a2bb814dd30d776dcf7e30523b00659f4f141c71"
OWLV2 = "google/owlv2-base-patch16-ensemble@cfd3195ba4ea9592eec887ded089f4c08eff231d"
OVERLAP = 0.5
MOST = 300
OWL_TEXT = "a photo of a {}"
OWL_TOKENS = 16
EXTRA = "detect"
Found = list[Detection] | None


class Grounder(Protocol):
    """Finds named objects. Scores carry ``name`` in their names; ``engine`` also identifies the weights.

    An image for which the network's output is not finite has ``None`` in place of detections.
    """

    name: str
    engine: str

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Found]:
        """Detections of each image's own names, most confident first, boxes in its pixels."""
        ...


class _NetworkDetector:
    """A network with its tokenizer and image processor."""

    name: str
    source: str
    threshold: float

    def __init__(
        self, model: Any, tokenizer: Any, processor: Any, *, threshold: float | None = None, batch: int = 8
    ) -> None:
        self._model, self._tokenizer, self._processor = model.eval().requires_grad_(False), tokenizer, processor
        self._threshold, self._batch = self.threshold if threshold is None else threshold, batch
        self.engine = self.name

    @classmethod
    def load(
        cls,
        source: str | None = None,
        *,
        threshold: float | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 8,
    ) -> Self:
        """Read the network from a local folder or a Hub id, by default its published weights.

        Raises:
            ArtifactError: it is missing or incomplete.
            MissingDependency: a package that its image processor needs is not installed.
        """
        source = source or cls.source
        network, tokenizer, processor = cls._classes()
        model = complete(network, source).to(pick_device(device), as_dtype(dtype))
        parts = (read(kind, source) for kind in (tokenizer, processor))
        detector = cls(model, *parts, threshold=threshold, batch=batch)
        detector.engine = f"{cls.name}/{weights_id(source)}"
        return detector

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Found]:
        """Detections of each image's own names, most confident first, boxes in its pixels."""
        detections: list[Found] = []
        for start in range(0, len(pictures), self._batch):
            rows = slice(start, start + self._batch)
            for (scores, boxes), labels in zip(self._forward(pictures[rows], names[rows]), names[rows], strict=True):
                finite = bool(scores.isfinite().all() and boxes.isfinite().all())
                detections.append(choose(scores, boxes, labels, self._threshold) if finite else None)
        return detections

    @classmethod
    def _classes(cls) -> tuple[Any, Any, Any]:
        """The classes of network, tokenizer and image processor in ``transformers``."""
        raise NotImplementedError

    def _forward(
        self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]
    ) -> Iterator[tuple[Float[Tensor, "Q K"], Float[Tensor, "Q 4"]]]:
        """Of each image, the scores of its K names on Q boxes, and the boxes in pixels."""
        raise NotImplementedError


class GroundingDino(_NetworkDetector):
    """Grounding DINO with the text ``"dog. cat."``; a name scores on a box as its best token does."""

    name, source, threshold = "grounding-dino", GROUNDING_DINO, 0.35

    @classmethod
    def _classes(cls) -> tuple[Any, Any, Any]:
        from transformers import BertTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

        return GroundingDinoForObjectDetection, BertTokenizer, GroundingDinoImageProcessorPil

    def _forward(
        self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]
    ) -> Iterator[tuple[Float[Tensor, "Q K"], Float[Tensor, "Q 4"]]]:
        texts = [self._tokens(labels) for labels in names]
        inputs = self._processor(list(pictures), return_tensors="pt")
        ids, mask = self._padded([ids for ids, _ in texts])
        output = self._model(
            pixel_values=inputs.pixel_values.to(self._model.device, self._model.dtype),
            pixel_mask=inputs.pixel_mask.to(self._model.device),
            input_ids=ids,
            attention_mask=mask,
            token_type_ids=torch.zeros_like(ids),
        )
        likely, boxes = output.logits.float().sigmoid().cpu(), output.pred_boxes.float().cpu()
        for row, picture in enumerate(pictures):
            columns = [likely[row, :, first:last].amax(dim=1) for first, last in texts[row][1]]
            scores = torch.stack(columns, dim=1) if columns else likely.new_zeros(len(boxes[row]), 0)
            yield scores, corners(boxes[row], picture.size)

    def _tokens(self, names: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of ``"dog. cat."`` and the span of each name among them."""
        words = self._tokenizer
        stop = words.convert_tokens_to_ids(".")
        ids, spans = [words.cls_token_id], []
        for name in names:
            piece = words(name.lower(), add_special_tokens=False).input_ids
            spans.append((len(ids), len(ids) + len(piece)))
            ids += [*piece, stop]
        return [*ids, words.sep_token_id], spans

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        return ids.to(self._model.device), mask.to(self._model.device)


class Owlv2(_NetworkDetector):
    """OWLv2 with the text ``"a photo of a dog"``."""

    name, source, threshold = "owlv2", OWLV2, 0.2

    @classmethod
    def _classes(cls) -> tuple[Any, Any, Any]:
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise MissingDependency("scipy", extra=EXTRA) from error
        from transformers import CLIPTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

        return Owlv2ForObjectDetection, CLIPTokenizer, Owlv2ImageProcessorPil

    def _forward(
        self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]
    ) -> Iterator[tuple[Float[Tensor, "Q K"], Float[Tensor, "Q 4"]]]:
        most = max(1, *map(len, names))
        texts = [OWL_TEXT.format(name) for labels in names for name in [*labels, *[" "] * (most - len(labels))]]
        words = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=OWL_TOKENS, return_tensors="pt"
        )
        pixels = self._processor(list(pictures), return_tensors="pt").pixel_values
        output = self._model(
            pixel_values=pixels.to(self._model.device, self._model.dtype),
            input_ids=words.input_ids.to(self._model.device),
            attention_mask=words.attention_mask.to(self._model.device),
        )
        likely, boxes = output.logits.float().sigmoid().cpu(), output.pred_boxes.float().cpu()
        for row, picture in enumerate(pictures):
            side = max(picture.size)  # the processor puts the image in the upper left of a square
            limits = torch.tensor([picture.width, picture.height] * 2)
            yield likely[row, :, : len(names[row])], corners(boxes[row], (side, side)).minimum(limits)


KINDS: Mapping[str, type[_NetworkDetector]] = {cls.name: cls for cls in (GroundingDino, Owlv2)}


def load_grounder(kind: str = GroundingDino.name, source: str | None = None, **options: Any) -> Grounder:
    """A detector by name, from ``source`` (a folder or a Hub id) or its published weights.

    Raises:
        RewardError: no such detector.
        ArtifactError: its weights cannot be read.
    """
    if kind not in KINDS:
        raise RewardError(f"detector {kind!r} is not one of {', '.join(KINDS)}")
    return KINDS[kind].load(source, **options)


def complete(kind: Any, source: str, unused: str | None = None) -> Any:
    """A model with every weight that it uses; surplus weights in the file are ignored.

    ``unused`` is a part of the names of weights that the forward pass never reads.

    Raises:
        ArtifactError: weights are missing or of another shape.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # missing weights are reported below
    try:
        model, info = read(kind, source, output_loading_info=True, ignore_mismatched_sizes=True)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(name for name in info["missing_keys"] if unused is None or unused not in name)
    refuse_mismatch(source, missing, [], sorted(str(item[0]) for item in info["mismatched_keys"]))
    return model


def corners(boxes: Float[Tensor, "Q 4"], size: tuple[int, int]) -> Float[Tensor, "Q 4"]:
    """``(x1, y1, x2, y2)`` in pixels, within the picture, from ``(cx, cy, w, h)`` in fractions of ``size``."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    edges = torch.cat([centre - half, centre + half], dim=1).clamp(0, 1)
    return edges * torch.tensor([*size, *size], dtype=edges.dtype)


def choose(
    scores: Float[Tensor, "Q K"], boxes: Float[Tensor, "Q 4"], names: Sequence[str], threshold: float
) -> list[Detection]:
    """Each box under its best name if that scores above ``threshold``, best first, without heavy overlaps of one name.

    A box is dropped when it is empty, or when its IoU with a better one of the same name is above one half.
    """
    if not len(names) or not len(scores):
        return []
    best, label = scores.max(dim=1)
    chosen: list[Detection] = []
    for row in best.argsort(descending=True, stable=True).tolist():
        if float(best[row]) <= threshold or len(chosen) == MOST:
            break
        x1, y1, x2, y2 = boxes[row].tolist()
        if x2 <= x1 or y2 <= y1:
            continue
        detection = Detection(names[int(label[row])], (x1, y1, x2, y2), float(best[row]))
        if not any(
            detection.label == other.label and plain_iou(detection.box, other.box) > OVERLAP for other in chosen
        ):
            chosen.append(detection)
    return chosen
