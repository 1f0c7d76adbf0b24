"""Pairs of pictures, the training set of the toy's preference scorer, and the hidden judge who chooses between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.ocr.reward import levenshtein
from flowopd_cli.toy import prompts as toy_prompts
from flowopd_cli.toy import scenes
from flowopd_cli.toy.draw import Code, Shape, Wear, render
from flowopd_cli.toy.scenes import Habits, Scene
from flowopd_cli.toy.train_base import TAG_WEIGHTS

KINDS = ("any", "obedience", "quality")
HABITS = Habits(careless=0.55, misspelt=0.3, worn=0.3, hatch=(0.2, 1.0), drift=4, codes=0.5)
CLEAN_HATCH = 0.6  #: the least hatch of a clean print
STRANGE = 0.12  #: share of scenes that belong to another prompt
DEFECT_WEIGHT = 8.0  #: a mean absolute error of 1/8 is as bad as a mistake
SHARPNESS = 3.0  #: the judge prefers a picture with one mistake less with the probability sigmoid(3)
OTHERS = 3  #: other prompts a pair


@dataclass(frozen=True)
class Print:
    """How a scene becomes a picture: wear, blur in [0, 1], deviation of the noise, a pass through the autoencoder."""

    wear: Wear = field(default_factory=Wear)
    blur: float = 0.0
    noise: float = 0.0
    reconstructed: bool = False
    seed: int = 0
    hatch: float = CLEAN_HATCH


@dataclass(frozen=True)
class Pairs:
    """N pairs of pictures for one prompt each, with other prompts to compare it with, and the judge's knowledge.

    ``kind`` is an index of ``KINDS``: two pictures of any kind, or of one print and other mistakes, or of one scene.
    ``text`` has rows of ``texts``, the pair's own prompt first.
    """

    images: UInt8[Tensor, "N 2 3 32 32"]
    texts: list[str]
    text: Int[Tensor, "N K"]
    mistakes: Float[Tensor, "N 2 K"]
    defects: Float[Tensor, "N 2"]
    kind: Int[Tensor, " N"]
    code: Bool[Tensor, " N"]

    @property
    def picture_margin(self) -> Float[Tensor, " N"]:
        """The judge's utility of the first picture less that of the second, with their own prompt."""
        utility = -self.mistakes[:, :, 0] - DEFECT_WEIGHT * self.defects
        return utility[:, 0] - utility[:, 1]

    @property
    def prompt_margin(self) -> Float[Tensor, "N 2 K-1"]:
        """The utility of each picture with its own prompt less that with each other prompt."""
        return self.mistakes[:, :, 1:] - self.mistakes[:, :, :1]


def mistakes(prompt: Prompt, scene: Scene) -> int:
    """The letters to edit, or the wrong, missing and surplus shapes, wrong colors and a wrong relation."""
    first = scene[0] if scene else None
    if prompt.task == "ocr":
        return levenshtein(prompt.metadata["target"], first.text if isinstance(first, Code) else "")
    clauses = [clause for clause in prompt.metadata["include"] for _ in range(clause["count"])]
    shapes = [item for item in scene if isinstance(item, Shape)]
    surplus = max(0, len(shapes) - len(clauses))
    padded = [*shapes, *[None] * (len(clauses) - len(shapes))]
    return surplus + min(
        sum(map(_mismatch, clauses, order)) + _misplaced(clauses, order) for order in permutations(padded, len(clauses))
    )


def _mismatch(clause: dict[str, Any], shape: Shape | None) -> int:
    if shape is None:
        return 1
    return (shape.kind != clause["class"]) + (clause.get("color", shape.color) != shape.color)


def _misplaced(clauses: list[dict[str, Any]], shapes: tuple[Shape | None, ...]) -> bool:
    """Whether the second of two shapes is not in its relation to the first."""
    relation = clauses[-1].get("position", [None])[0]
    reference, subject = shapes[0], shapes[-1]
    if relation is None or reference is None or subject is None:
        return False
    away = subject.x - reference.x if relation in ("left of", "right of") else subject.y - reference.y
    return away >= -4 if relation in ("left of", "above") else away <= 4


class Drawer:
    """Draws pairs from the prompts of one split, seeded."""

    def __init__(self, split: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        composed = toy_prompts.geneval(split)
        self.by_tag = {tag: [p for p in composed if p.metadata["tag"] == tag] for tag in TAG_WEIGHTS}
        self.by_tag["ocr"] = toy_prompts.ocr(split)
        weights = np.array([*TAG_WEIGHTS.values()])
        self.shares = [*(weights / weights.sum() * (1 - HABITS.codes)), HABITS.codes]
        self.tags = list(self.by_tag)

    def prompt(self, task: str | None = None) -> Prompt:
        """A prompt, of one task or of any."""
        while True:
            rows = self.by_tag[self.tags[self.rng.choice(len(self.tags), p=self.shares)]]
            prompt = rows[self.rng.integers(len(rows))]
            if task in (None, prompt.task):
                return prompt

    def scene(self, prompt: Prompt) -> Scene:
        """An attempt at a prompt, or a scene of another prompt of its task."""
        strange = self.rng.random() < STRANGE
        return scenes.attempt(self.prompt(prompt.task) if strange else prompt, self.rng, HABITS)

    def print(self) -> Print:
        """Wear, blur and noise, each now and then."""
        rng = self.rng
        blur = rng.uniform(0, 1) if rng.random() < 0.25 else 0.0
        noise = rng.uniform(0, 0.12) if rng.random() < 0.25 else 0.0
        wear, reconstructed = scenes.wear(rng, HABITS.worn), bool(rng.random() < 0.2)
        return Print(wear, blur, noise, reconstructed, int(rng.integers(2**31)), rng.uniform(*HABITS.hatch))

    def pair(self, kind: str) -> tuple[list[Prompt], list[Scene], list[Print]]:
        """The prompts of a pair, its own first; two scenes and two prints, equal where the kind says it."""
        own = self.prompt()
        prompts = [own, *(self.prompt(own.task) for _ in range(OTHERS))]
        scene, sheet = self.scene(own), self.print()
        if kind == "quality":
            return prompts, [scene, scene], [sheet, self.print()]
        second = self.scene(own)
        while kind == "obedience" and mistakes(own, second) == mistakes(own, scene):
            second = self.scene(own)
        return prompts, [scene, second], [sheet, sheet if kind == "obedience" else self.print()]


@torch.no_grad()
def make_pairs(count: int, split: str, seed: int, autoencoder: Any) -> Pairs:
    """Draw pairs of the three kinds, half of them of obedience, and their pictures."""
    drawer = Drawer(split, seed)
    torch.manual_seed(seed)
    kinds = torch.tensor([0, 1, 2, 1]).repeat(count // 4 + 1)[:count]
    pairs = [drawer.pair(KINDS[kind]) for kind in kinds.tolist()]
    texts = {text: i for i, text in enumerate(dict.fromkeys(p.text for prompts, *_ in pairs for p in prompts))}
    sheets = [sheet for _, two, prints in pairs for sheet in zip(two, prints, strict=True)]
    drawn = [_pictures(sheets[start : start + 500], autoencoder) for start in range(0, len(sheets), 500)]
    return Pairs(
        images=torch.cat([images for images, _ in drawn]).unflatten(0, (-1, 2)),
        texts=list(texts),
        text=torch.tensor([[texts[p.text] for p in prompts] for prompts, *_ in pairs]),
        mistakes=torch.tensor([[[float(mistakes(p, s)) for p in prompts] for s in two] for prompts, two, _ in pairs]),
        defects=torch.cat([defects for _, defects in drawn]).view(-1, 2),
        kind=kinds,
        code=torch.tensor([prompts[0].task == "ocr" for prompts, *_ in pairs]),
    )


def _pictures(
    sheets: list[tuple[Scene, Print]], autoencoder: Any
) -> tuple[UInt8[Tensor, "b 3 32 32"], Float[Tensor, " b"]]:
    """The printed pictures and their mean absolute error against clean prints of the same scenes.

    A clean print has the same hatch, or `CLEAN_HATCH` where that is more.
    """
    clean = _stack([render(scene, hatch=max(p.hatch, CLEAN_HATCH)) for scene, p in sheets])
    images = _stack([render(scene, p.wear, np.random.default_rng(p.seed), p.hatch) for scene, p in sheets])
    blur = torch.tensor([p.blur for _, p in sheets]).view(-1, 1, 1, 1)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.tensor([p.noise for _, p in sheets]).view(-1, 1, 1, 1)
    images = torch.lerp(images, soft, blur) + noise * torch.randn_like(images)
    again = torch.tensor([p.reconstructed for _, p in sheets])
    if again.any():
        mean = autoencoder.encode(2 * images[again].clamp(0, 1) - 1).latent_dist.mean
        images[again] = autoencoder.decode(mean).sample / 2 + 0.5
    images = images.clamp(0, 1)
    return (images * 255).round().byte(), (images - clean).abs().flatten(1).mean(dim=1)


def _stack(pictures: list[Any]) -> Float[Tensor, "b 3 32 32"]:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
