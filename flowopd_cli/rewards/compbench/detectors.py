"""Open-vocabulary detectors, Grounding DINO and OWLv2, in place of T2I-CompBench's UniDet.

Labels, confidences and misses differ from UniDet's, so scores are not comparable with published ones and carry the
detector's name. Sources: Liu et al. 2023, arXiv 2303.05499; Minderer et al. 2023, arXiv 2306.09683 (both Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flowopd_cli.errors import MissingDependency, RewardError
from flowopd_cli.rewards.compbench.spatial import plain_iou
from flowopd_cli.rewards.geneval.rules import Detection
from flowopd_cli.rewards.preference.clip import read
from flowopd_cli.rewards.weights import pick_device, refuse_mismatch, weights_id

OVERLAP = 0.5
MOST = 300
OWL_TEXT = "a photo of a {}"
OWL_TOKENS = 16
Detections = list[Detection] | None  #: ``None`` for an image on which the network's output is not finite
#: For each image, the scores of its K names on Q boxes, and the boxes in pixels
Scored = Iterator[tuple[Float[Tensor, "Q K"], Float[Tensor, "Q 4"]]]


class Grounder:
    """A network that finds named objects; ``engine`` is its name and the digest of its weights."""

    name: str
    source: str  #: the published weights
    threshold: float
    classes: tuple[str, str, str]  #: network, tokenizer and image processor in ``transformers``
    requires: str | None = None  #: a package that the image processor needs
    framed = False  #: whether boxes are in the benchmark's 479-pixel frame, not in the picture's pixels

    def __init__(
        self, source: str | None = None, *, threshold: float | None = None, device: str = "auto", batch: int = 8
    ) -> None:
        """Read the network from a local folder or a Hub id, by default its published weights.

        Raises :class:`ArtifactError`: it is missing or incomplete.
        Raises :class:`MissingDependency`: a package that its image processor needs is not installed.
        """
        import transformers

        if self.requires and find_spec(self.requires) is None:
            raise MissingDependency(self.requires, extra="detect")
        source = source or self.source
        network, *others = (getattr(transformers, name) for name in self.classes)
        self._model = load_complete(network, source).to(pick_device(device)).float().eval().requires_grad_(False)
        self._tokenizer, self._processor = (read(kind, source) for kind in others)
        self._threshold, self._batch = self.threshold if threshold is None else threshold, batch
        self.engine = f"{self.name}/{weights_id(source)}"

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[Detections]:
        """Detections of each image's own names, most confident first, boxes in its pixels."""
        detections: list[Detections] = []
        for start in range(0, len(pictures), self._batch):
            rows = slice(start, start + self._batch)
            for (scores, boxes), labels in zip(self._forward(pictures[rows], names[rows]), names[rows], strict=True):
                finite = bool(scores.isfinite().all() and boxes.isfinite().all())
                detections.append(choose(scores, boxes, labels, self._threshold) if finite else None)
        return detections

    def _forward(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> Scored:
        raise NotImplementedError


class GroundingDino(Grounder):
    """Grounding DINO with the text ``"dog. cat."``; a name's score on a box is that of its best token."""

    name, threshold = "grounding-dino", 0.35
    source = "IDEA-Research/grounding-dino-tiny@a2bb814dd30d776dcf7e30523b00659f4f141c71"
    classes = ("GroundingDinoForObjectDetection", "BertTokenizer", "GroundingDinoImageProcessorPil")

    def _forward(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> Scored:
        texts = [self._tokens(labels) for labels in names]
        inputs = self._processor(list(pictures), return_tensors="pt")
        device = self._model.device
        ids = pad_sequence([tokens for tokens, _ in texts], batch_first=True).to(device)
        output = self._model(
            pixel_values=inputs.pixel_values.to(device),
            pixel_mask=inputs.pixel_mask.to(device),
            input_ids=ids,
            attention_mask=pad_sequence([torch.ones_like(tokens) for tokens, _ in texts], batch_first=True).to(device),
            token_type_ids=torch.zeros_like(ids),
        )
        likely, boxes = output.logits.sigmoid().cpu(), output.pred_boxes.cpu()
        for row, picture in enumerate(pictures):
            columns = [likely[row, :, first:last].amax(dim=1) for first, last in texts[row][1]]
            scores = torch.stack(columns, dim=1) if columns else likely.new_zeros(len(boxes[row]), 0)
            yield scores, corners(boxes[row], picture.size)

    def _tokens(self, names: Sequence[str]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Token ids of ``"dog. cat."`` and the span of each name among them."""
        words = self._tokenizer
        stop = words.convert_tokens_to_ids(".")
        ids, spans = [words.cls_token_id], []
        for name in names:
            piece = words(name.lower(), add_special_tokens=False).input_ids
            spans.append((len(ids), len(ids) + len(piece)))
            ids += [*piece, stop]
        return torch.tensor([*ids, words.sep_token_id]), spans


class Owlv2(Grounder):
    """OWLv2 with the text ``"a photo of a dog"``."""

    name, threshold, requires = "owlv2", 0.2, "scipy"
    source = "google/owlv2-base-patch16-ensemble@cfd3195ba4ea9592eec887ded089f4c08eff231d"
    classes = ("Owlv2ForObjectDetection", "CLIPTokenizer", "Owlv2ImageProcessorPil")

    def _forward(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> Scored:
        most = max(1, *map(len, names))
        texts = [OWL_TEXT.format(name) for labels in names for name in [*labels, *[" "] * (most - len(labels))]]
        words = self._tokenizer(
            texts, padding="max_length", truncation=True, max_length=OWL_TOKENS, return_tensors="pt"
        )
        words["pixel_values"] = self._processor(list(pictures), return_tensors="pt").pixel_values
        output = self._model(**words.to(self._model.device))
        likely, boxes = output.logits.sigmoid().cpu(), output.pred_boxes.cpu()
        for row, picture in enumerate(pictures):
            side = max(picture.size)  # the processor pads the image to a square, on the right or below
            limits = torch.tensor([picture.width, picture.height] * 2)
            yield likely[row, :, : len(names[row])], corners(boxes[row], (side, side)).minimum(limits)


KINDS: Mapping[str, type[Grounder]] = {cls.name: cls for cls in (GroundingDino, Owlv2)}


def load_grounder(kind: str = GroundingDino.name, source: str | None = None, **options: Any) -> Grounder:
    """A detector by name; ``source`` and ``options`` are those of :class:`Grounder`.

    Raises :class:`RewardError`: no such detector.
    """
    if kind not in KINDS:
        raise RewardError(f"detector {kind!r} is not one of unidet, {', '.join(KINDS)}")
    return KINDS[kind](source, **options)


def load_complete(kind: Any, source: str, unused: str | None = None) -> Any:
    """A model with every weight that it uses; surplus weights in the file are ignored.

    ``unused`` is a part of the names of weights that the forward pass does not read.

    Raises :class:`ArtifactError`: weights are missing or of another shape.
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
    """Each box under its best name, best first, of those with a score above ``threshold``.

    A box is dropped when it is empty, or when its IoU with a better one of the same name is above one half.
    """
    if not scores.numel():
        return []
    best, label = scores.max(dim=1)
    chosen: list[Detection] = []
    for row in best.argsort(descending=True, stable=True).tolist():
        if float(best[row]) <= threshold or len(chosen) == MOST:
            break
        x1, y1, x2, y2 = boxes[row].tolist()
        if x2 <= x1 or y2 <= y1:
            continue
        name, box = names[int(label[row])], (x1, y1, x2, y2)
        if not any(name == other.label and plain_iou(box, other.box) > OVERLAP for other in chosen):
            chosen.append(Detection(name, box, float(best[row])))
    return chosen
