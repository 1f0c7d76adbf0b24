"""The GenEval detector without mmdet: Mask2Former with a Swin-S backbone, pictures in, classes, boxes and masks out.

Pre- and post-processing are those of mmdet's test pipeline, batched on the device. CLIP names the color of an object,
cut out of the picture, on grey. Sources: Cheng et al. 2022 (arXiv 2112.01527), as configured by
``mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco``; ``evaluate_images.py`` of Ghosh et al. 2023 (arXiv 2310.11513).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.clauses import GENEVAL_CLASSES
from flowopd_cli.rewards.geneval.mmdet_keys import Architecture
from flowopd_cli.rewards.geneval.mmdet_weights import load_network
from flowopd_cli.rewards.geneval.rules import COLORS, DEFAULTS, Box, Detection, Detector, GenEvalOptions, keep
from flowopd_cli.rewards.pictures import to_arrays
from flowopd_cli.rewards.preference.clip import ClipEncoder, as_dtype
from flowopd_cli.rewards.preference.scoring import centre_square
from flowopd_cli.rewards.weights import pick_device, weights_id
from flowopd_cli.system.text import suggest

CLIP = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
SHORT_SIDE, LONG_SIDE = 800, 1333
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
DETECTIONS = 100
PIXELS_AT_ONCE = 1 << 25
EPSILON = 1e-6
GREY = 0x99
TEMPLATES = ("a photo of a {color} {label}", "a photo of a {color}-colored {label}", "a photo of a {color} object")


@dataclass(frozen=True)
class DetectorSettings:
    """The weights and how they are run.

    ``weights``: ``None`` for GenEval's own, or a checkpoint of mmdet, or a folder or Hub id of ``transformers``.
    ``clip``: folder or Hub id of the color model; both ids may be ``repository@revision``. ``short_side``: the size
    that pictures are resized to; below 800 it is faster and not the reference. ``batch``: pictures at a time.
    """

    weights: str | None = None
    clip: str = CLIP
    short_side: int = SHORT_SIDE
    device: str = "auto"
    dtype: str = "float32"
    batch: int = 4


class Frame(NamedTuple):
    """Height and width of a picture, after its resize, and after its padding."""

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


class Instances(NamedTuple):
    """N detections of a picture: class index, the query each comes from, score, and box in pixels."""

    labels: Int[Tensor, " N"]
    queries: Int[Tensor, " N"]
    scores: Float[Tensor, " N"]
    boxes: Float[Tensor, "N 4"]


class Mask2FormerDetector(Detector):
    """Finds COCO's 80 classes under GenEval's names, and the colors of those objects that a prompt asks about."""

    def __init__(
        self,
        settings: DetectorSettings,
        options: GenEvalOptions = DEFAULTS,
        architecture: Architecture = Architecture(),
    ) -> None:
        """Load both models. ``options`` are the thresholds that decide which objects need a color.

        Raises :class:`ArtifactError`: weights are missing or are not those of the models.
        """
        s = self._settings = settings
        self._options = options
        self._device, self._dtype = pick_device(s.device), as_dtype(s.dtype)
        network = load_network(s.weights, architecture=architecture)
        self._network = network.module.to(self._device, self._dtype).requires_grad_(False)
        self._colors = ColorClassifier(ClipEncoder.load(s.clip, dtype=s.dtype, device=s.device))
        changes = [f"@{s.short_side}"] * (s.short_side != SHORT_SIDE) + [f"/{s.dtype}"] * (s.dtype != "float32")
        changes += [f"+{Path(s.clip).name}"] * (s.clip != CLIP)
        self.name = network.name + "".join(changes)
        self.official = network.official and not changes
        self.weights = {"detector": self.name, "clip": weights_id(s.clip)}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts with a class or a color that the detector does not know."""
        for prompt in prompts:
            for clause in (*prompt.metadata.get("include", ()), *prompt.metadata.get("exclude", ())):
                for kind, names in (("class", GENEVAL_CLASSES), ("color", COLORS)):
                    name = str(clause.get(kind, names[0]))
                    if name not in names:
                        hint = f"the geneval detector knows no {kind} {name!r}{suggest(name, names)}"
                        raise PromptError(f"prompt {prompt.id!r}: {hint}")

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> list[list[Detection] | None]:
        """All detections of each picture; ``None`` where the network's output is not finite."""
        size = self._settings.batch
        starts = range(0, len(images), size)
        return [d for i in starts for d in self._detect(images[i : i + size], prompts[i : i + size])]

    def _detect(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> list[list[Detection] | None]:
        pixels, frame = prepare(images.to(self._device), self._settings.short_side)
        classes, masks = (output.float() for output in self._network(pixels.to(self._dtype)))
        results: list[list[Detection] | None] = []
        cutouts: list[tuple[list[Detection], int, Image.Image]] = []
        for row, (prompt, picture) in enumerate(zip(prompts, to_arrays(images), strict=True)):
            if not bool(classes[row].isfinite().all() & masks[row].isfinite().all()):
                results.append(None)
                continue
            instances = instances_of(classes[row], masks[row], frame)
            columns = (instances.labels.tolist(), instances.boxes.tolist(), instances.scores.tolist())
            detections = [Detection(GENEVAL_CLASSES[i], tuple(b), score) for i, b, score in zip(*columns, strict=True)]
            results.append(detections)
            for index in colored(detections, prompt, self._options):
                mask = full_size(masks[row, instances.queries[index]][None], frame)[0] > 0
                cutouts.append((detections, index, cut_out(picture, mask, detections[index].box)))
        colors = self._colors([cutout for _, _, cutout in cutouts], [d[i].label for d, i, _ in cutouts])
        for (detections, index, _), color in zip(cutouts, colors, strict=True):
            detections[index] = replace(detections[index], color=color)
        return results


def prepare(images: Float[Tensor, "B 3 H W"], short_side: int = SHORT_SIDE) -> tuple[Float[Tensor, "B 3 h w"], Frame]:
    """mmdet's test pipeline: bytes, resized into 1333 x 800 with the aspect kept, normalized, padded with zeros.

    The resize interpolates bilinearly without antialiasing and rounds to bytes, as OpenCV does (within one grey level).
    """
    original = (images.shape[-2], images.shape[-1])
    long_side = round(short_side * LONG_SIDE / SHORT_SIDE)
    scale = min(long_side / max(original), short_side / min(original))
    resized = (int(original[0] * scale + 0.5), int(original[1] * scale + 0.5))
    padded = (-(-resized[0] // 32) * 32, -(-resized[1] // 32) * 32)
    grey_levels = images.float().clamp(0, 1).mul(255).round()
    scaled = F.interpolate(grey_levels, resized, mode="bilinear", align_corners=False).round()
    mean, std = (scaled.new_tensor(values)[:, None, None] for values in (MEAN, STD))
    pixels = F.pad((scaled - mean) / std, (0, padded[1] - resized[1], 0, padded[0] - resized[0]))
    return pixels, Frame(original, resized, padded)


def instances_of(classes: Float[Tensor, "Q C"], masks: Float[Tensor, "Q h w"], frame: Frame) -> Instances:
    """The 100 likeliest pairs of query and class, without the last class, "no object".

    A score is the class's probability times the mean mask probability inside the mask at the picture's own size.
    """
    probabilities = classes.softmax(dim=-1)[:, :-1]
    scores, pairs = probabilities.flatten().topk(min(DETECTIONS, probabilities.numel()))
    queries, labels = pairs // probabilities.shape[-1], pairs % probabilities.shape[-1]
    distinct, index = queries.unique(return_inverse=True)
    largest = max(frame.original[0] * frame.original[1], frame.padded[0] * frame.padded[1])
    portions = masks[distinct].split(max(1, PIXELS_AT_ONCE // largest))  # bounds the memory
    measures = [measure(full_size(portion, frame)) for portion in portions]
    quality, boxes = (torch.cat(column)[index] for column in zip(*measures, strict=True))
    return Instances(labels, queries, scores * quality, boxes)


def full_size(masks: Float[Tensor, "N h w"], frame: Frame) -> Float[Tensor, "N H W"]:
    """Mask logits resized to the padded input, cropped to the resized picture, and resized to the original one."""
    padded = F.interpolate(masks[None], frame.padded, mode="bilinear", align_corners=False)
    inside = padded[..., : frame.resized[0], : frame.resized[1]]
    return F.interpolate(inside, frame.original, mode="bilinear", align_corners=False)[0]


def measure(masks: Float[Tensor, "N H W"]) -> tuple[Float[Tensor, " N"], Float[Tensor, "N 4"]]:
    """Mean probability inside each mask (logits above 0), and its box ``[x_min, y_min, x_max + 1, y_max + 1]``.

    An empty mask has quality 0 and a box of zeros.
    """
    inside = masks > 0
    quality = (masks.sigmoid() * inside).sum(dim=(1, 2)) / (inside.sum(dim=(1, 2)) + EPSILON)
    columns, rows = inside.any(dim=1).int(), inside.any(dim=2).int()
    near = [axis.argmax(dim=1) for axis in (columns, rows)]
    far = [axis.shape[1] - axis.flip(1).argmax(dim=1) for axis in (columns, rows)]
    return quality, torch.stack([*near, *far], dim=1).float() * columns.any(dim=1)[:, None]


def colored(detections: Sequence[Detection], prompt: Prompt, options: GenEvalOptions = DEFAULTS) -> list[int]:
    """Indices of the detections whose color decides the verdict: the best ``count`` of each class with a color clause.

    With fewer than ``count`` the clause fails whatever their colors.
    """
    positions = {id(detection): index for index, detection in enumerate(detections)}
    objects = keep(detections, str(prompt.metadata.get("tag", "")), options)
    indices: dict[int, None] = {}
    for clause in prompt.metadata.get("include", ()):
        matches = objects.get(clause["class"], [])
        if "color" in clause and len(matches) >= clause["count"]:
            indices |= {positions[id(d)]: None for d in matches[: clause["count"]] if d.box[2] > d.box[0]}
    return list(indices)


class ColorClassifier:
    """Names the color of cut-out objects of a class, by the nearest of ten averaged texts."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self._encoder = encoder
        self._texts: dict[str, Float[Tensor, "colors D"]] = {}

    def __call__(self, cutouts: Sequence[Image.Image], labels: Sequence[str]) -> list[str]:
        """The color of each cut-out of an object with the given class."""
        if not cutouts:
            return []
        squares = [centre_square(cutout, self._encoder.image_size) for cutout in cutouts]
        vectors = self._encoder.images(squares)
        nearest = [int((self._directions(label) @ v).argmax()) for v, label in zip(vectors, labels, strict=True)]
        return [COLORS[index] for index in nearest]

    def _directions(self, label: str) -> Float[Tensor, "colors D"]:
        """A unit vector for each color: the mean of its templates' unit vectors, normalized again."""
        if label not in self._texts:
            texts = [t.format(color=color, label=label) for color in COLORS for t in TEMPLATES]
            vectors = self._encoder.texts(texts).unflatten(0, (len(COLORS), len(TEMPLATES)))
            self._texts[label] = F.normalize(vectors.mean(dim=1), dim=-1)
        return self._texts[label]


def cut_out(picture: UInt8[NDArray, "H W 3"], mask: Bool[Tensor, "H W"], box: Box) -> Image.Image:
    """The picture inside the box, with everything outside the mask grey."""
    masked = np.where(mask.cpu().numpy()[..., None], picture, np.uint8(GREY))
    left, top, right, bottom = (round(edge) for edge in box)
    return Image.fromarray(masked[top:bottom, left:right])
