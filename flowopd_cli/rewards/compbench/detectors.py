"""Open-vocabulary detectors: find named objects in pictures with Grounding DINO or OWLv2, through ``transformers``.

They stand in for UniDet in T2I-CompBench's spatial and counting categories. Their labels, confidences and misses are
not UniDet's, so the figures are not those of papers: whatever is scored with them carries the detector's name.
Sources: Liu et al. 2023, arXiv 2303.05499 (Apache-2.0); Minderer et al. 2023, arXiv 2306.09683 (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import MissingDependency, RewardError
from flowopd_cli.rewards.compbench.spatial import plain_iou
from flowopd_cli.rewards.geneval.rules import Detection
from flowopd_cli.rewards.preference.clip import as_dtype, read, split_revision
from flowopd_cli.rewards.weights import pick_device, refuse_mismatch, weights_id

GROUNDING_DINO = "IDEA-Research/grounding-dino-tiny@a2bb814dd30d776dcf7e30523b00659f4f141c71"
OWLV2 = "google/owlv2-base-patch16-ensemble@cfd3195ba4ea9592eec887ded089f4c08eff231d"
OVERLAP = 0.5
MOST = 300
OWL_TEXT = "a photo of a {}"
OWL_TOKENS = 16
EXTRA = "detect"
Found = list[Detection] | None


class Grounder(Protocol):
    """Finds named objects. ``name`` goes into the name of every figure, ``engine`` says which weights.

    A picture for which the network's numbers are not finite has ``None`` in place of detections.
    """

    name: str
    engine: str

    def __call__(self, pictures: Sequence[Image.Image], wanted: Sequence[Sequence[str]]) -> list[Found]:
        """Detections of each picture's own names, most confident first, boxes in its pixels."""
        ...


class _Loaded:
    """A network with its tokenizer and picture processor."""

    name: str

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, threshold: float, batch: int = 8) -> None:
        self._model, self._tokenizer, self._processor = model.eval().requires_grad_(False), tokenizer, processor
        self._threshold, self._batch = threshold, batch
        self.engine = self.name

    def _choose(self, scores: Float[Tensor, "Q K"], placed: Float[Tensor, "Q 4"], names: Sequence[str]) -> Found:
        """The detections of a picture; ``None`` where the network gave something that is no number."""
        sound = bool(scores.isfinite().all() and placed.isfinite().all())
        return choose(scores, placed, names, self._threshold) if sound else None


class GroundingDino(_Loaded):
    """Grounding DINO asked for ``"dog. cat."``: a name's score on a box is that of its best token."""

    name = "grounding-dino"

    @classmethod
    def load(
        cls,
        source: str = GROUNDING_DINO,
        *,
        threshold: float = 0.35,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 8,
    ) -> GroundingDino:
        """Read a ``GroundingDinoForObjectDetection`` from a local folder or a Hub id.

        Raises:
            ArtifactError: it is not there, or incomplete.
        """
        from transformers import BertTokenizer, GroundingDinoForObjectDetection, GroundingDinoImageProcessorPil

        model = complete(GroundingDinoForObjectDetection, source).to(pick_device(device), as_dtype(dtype))
        place = split_revision(source)
        tokenizer, processor = read(BertTokenizer, *place), read(GroundingDinoImageProcessorPil, *place)
        made = cls(model, tokenizer, processor, threshold=threshold, batch=batch)
        made.engine = f"{cls.name}/{weights_id(source)}"
        return made

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], wanted: Sequence[Sequence[str]]) -> list[Found]:
        """Detections of each picture's own names, most confident first, boxes in its pixels."""
        found: list[Found] = []
        for start in range(0, len(pictures), self._batch):
            part, names = pictures[start : start + self._batch], wanted[start : start + self._batch]
            texts = [self._tokens(mine) for mine in names]
            inputs = self._processor(list(part), return_tensors="pt")
            ids, mask = self._padded([ids for ids, _ in texts])
            output = self._model(
                pixel_values=inputs.pixel_values.to(self._model.device, self._model.dtype),
                pixel_mask=inputs.pixel_mask.to(self._model.device),
                input_ids=ids,
                attention_mask=mask,
                token_type_ids=torch.zeros_like(ids),
            )
            likely, boxes = output.logits.float().sigmoid().cpu(), output.pred_boxes.float().cpu()
            for row, (picture, mine) in enumerate(zip(part, names, strict=True)):
                columns = [likely[row, :, first:last].amax(dim=1) for first, last in texts[row][1]]
                scores = torch.stack(columns, dim=1) if columns else likely.new_zeros(len(boxes[row]), 0)
                placed = corners(boxes[row], (picture.width, picture.height))
                found.append(self._choose(scores, placed, mine))
        return found

    def _tokens(self, names: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of ``"dog. cat."`` and where each name stands among them."""
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


class Owlv2(_Loaded):
    """OWLv2 asked for ``"a photo of a dog"``."""

    name = "owlv2"

    @classmethod
    def load(
        cls,
        source: str = OWLV2,
        *,
        threshold: float = 0.2,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 8,
    ) -> Owlv2:
        """Read an ``Owlv2ForObjectDetection`` from a local folder or a Hub id.

        Raises:
            ArtifactError: it is not there, or incomplete.
            MissingDependency: scipy is not installed, which its picture processor needs.
        """
        try:
            import scipy  # noqa: F401
        except ImportError as error:
            raise MissingDependency("scipy", extra=EXTRA) from error
        from transformers import CLIPTokenizer, Owlv2ForObjectDetection, Owlv2ImageProcessorPil

        model = complete(Owlv2ForObjectDetection, source).to(pick_device(device), as_dtype(dtype))
        place = split_revision(source)
        tokenizer, processor = read(CLIPTokenizer, *place), read(Owlv2ImageProcessorPil, *place)
        made = cls(model, tokenizer, processor, threshold=threshold, batch=batch)
        made.engine = f"{cls.name}/{weights_id(source)}"
        return made

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image], wanted: Sequence[Sequence[str]]) -> list[Found]:
        """Detections of each picture's own names, most confident first, boxes in its pixels."""
        found: list[Found] = []
        for start in range(0, len(pictures), self._batch):
            part, names = pictures[start : start + self._batch], wanted[start : start + self._batch]
            most = max(1, *map(len, names))
            texts = [OWL_TEXT.format(name) for mine in names for name in [*mine, *[" "] * (most - len(mine))]]
            words = self._tokenizer(
                texts, padding="max_length", truncation=True, max_length=OWL_TOKENS, return_tensors="pt"
            )
            pixels = self._processor(list(part), return_tensors="pt").pixel_values
            output = self._model(
                pixel_values=pixels.to(self._model.device, self._model.dtype),
                input_ids=words.input_ids.to(self._model.device),
                attention_mask=words.attention_mask.to(self._model.device),
            )
            likely, boxes = output.logits.float().sigmoid().cpu(), output.pred_boxes.float().cpu()
            for row, (picture, mine) in enumerate(zip(part, names, strict=True)):
                side = max(picture.size)  # the picture stands in the upper left of a square
                placed = corners(boxes[row], (side, side)).minimum(torch.tensor([picture.width, picture.height] * 2))
                scores = likely[row, :, : len(mine)]
                found.append(self._choose(scores, placed, mine))
        return found


class Kind(NamedTuple):
    """A detector that can be asked for by name."""

    load: Any
    source: str


KINDS: Mapping[str, Kind] = {
    GroundingDino.name: Kind(GroundingDino.load, GROUNDING_DINO),
    Owlv2.name: Kind(Owlv2.load, OWLV2),
}


def load_grounder(kind: str = GroundingDino.name, source: str | None = None, **options: Any) -> Grounder:
    """A detector by name, from ``source`` (a folder or a Hub id) or its usual weights.

    Raises:
        RewardError: no such detector.
        ArtifactError: its weights cannot be read.
    """
    if kind not in KINDS:
        raise RewardError(f"detector {kind!r} is not one of {', '.join(KINDS)}")
    return KINDS[kind].load(source or KINDS[kind].source, **options)


def complete(kind: Any, source: str, unused: str | None = None) -> Any:
    """A model with every weight that it uses; surplus ones in the file do no harm.

    ``unused`` names weights, by a part of their names, that the forward pass never reads.

    Raises:
        ArtifactError: weights are missing or of another shape.
    """
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of missing weights is ours to make
    try:
        model, info = read(kind, *split_revision(source), output_loading_info=True, ignore_mismatched_sizes=True)
    finally:
        logging.set_verbosity(told)
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
    kept: list[Detection] = []
    for row in best.argsort(descending=True, stable=True).tolist():
        if float(best[row]) <= threshold or len(kept) == MOST:
            break
        x1, y1, x2, y2 = boxes[row].tolist()
        if x2 <= x1 or y2 <= y1:
            continue
        found = Detection(names[int(label[row])], (x1, y1, x2, y2), float(best[row]))
        if not any(found.label == other.label and plain_iou(found.box, other.box) > OVERLAP for other in kept):
            kept.append(found)
    return kept
