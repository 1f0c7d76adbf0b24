"""T2I-CompBench's spatial, counting and complex categories as rewards over a detector.

The rules are the official ones. Over UniDet, the benchmark's detector, the scores have its names (``spatial``) and
compare with published ones; over another detector they carry its name (``spatial[owlv2]``) and do not compare.
Source: Huang et al. 2023, arXiv 2307.06350, and T2I-CompBench++.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.compbench.blip_vqa import BlipVQA
from flowopd_cli.rewards.compbench.blip_weights import CHECKPOINT
from flowopd_cli.rewards.compbench.depth import DPT_HYBRID, DepthEstimator
from flowopd_cli.rewards.compbench.detectors import Detections, Grounder, load_grounder
from flowopd_cli.rewards.compbench.numeracy import quantities, score_numeracy
from flowopd_cli.rewards.compbench.phrases import approximations, load_parser
from flowopd_cli.rewards.compbench.rules import PARTS, attribute_score, questions, three_in_one, without_adjectives
from flowopd_cli.rewards.compbench.spatial import (
    Pair,
    frame_size,
    outer_nouns,
    related_nouns,
    relation_2d,
    relation_3d,
    score_2d,
    score_3d,
)
from flowopd_cli.rewards.compbench.unidet import UniDet
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import OpenAIClip, paired_cosine
from flowopd_cli.rewards.preference.scoring import declared
from flowopd_cli.rewards.weights import shared, split_digest, weights_id

CLIP_BASE = "openai/clip-vit-base-patch32@3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
NOT_UNIDET = "the official rule over {}, not over UniDet: not comparable with published figures"
DETECTOR = "grounding-dino"
Report = dict[str, Any]


class Scene(NamedTuple):
    """The contents that a prompt asks for, and those that the detector found in its picture."""

    relation: str | None
    pair: Pair
    objects: Detections

    def score_2d(self) -> float:
        """The score in the plane; NaN where the detector failed."""
        return math.nan if self.objects is None else score_2d(self.relation, self.pair, self.objects)

    def score_3d(self, depth: Float[Tensor, "h w"]) -> float:
        """The score in depth; NaN where the detector or the map of depth failed."""
        if self.objects is None or not bool(depth.isfinite().all()):
            return math.nan
        return score_3d(self.relation, self.pair, self.objects, depth)


def _info(name: str, low: float = 0.0, license: str = "Apache-2.0") -> RewardInfo:
    note = NOT_UNIDET.format(DETECTOR)
    return RewardInfo(name, "arXiv 2307.06350", low, 1.0, license=license, exact=False, note=note)


class DetectorReward(Reward):
    """Base of the rewards over a detector, whose name is part of theirs."""

    backbone = "rs200"  #: of UniDet, where that is the detector

    def __init__(self, detector: str = DETECTOR, *, parser: str = "auto", device: str = "auto", batch: int = 8) -> None:
        """``detector`` is ``unidet``, ``grounding-dino`` or ``owlv2``; ``unidet=FILE``, ``owlv2=FOLDER`` name weights.

        Raises :class:`RewardError`: no such detector.
        Raises :class:`ArtifactError`: its weights cannot be read.
        """
        kind, _, source = detector.partition("=")
        self.parser = load_parser(parser)
        self.detector: UniDet | Grounder
        if kind == UniDet.name:
            self.detector = shared(UniDet, self.backbone, source or None, device=device, batch=batch)
            notes = [*self.detector.approximations, *approximations(self.parser)]
            name, exact, note = self.info.name.partition("[")[0], not notes, "; ".join(notes)
        else:
            self.detector = shared(load_grounder, kind, source or None, device=device, batch=batch)
            name = self.info.name.replace(DETECTOR, self.detector.name)
            exact, note = False, NOT_UNIDET.format(self.detector.name)
        self.engine = f"{self.detector.engine}/{self.parser.name}"
        self.weights = {"detector": self.detector.engine}
        self.info = replace(self.info, name=name, exact=exact, note=note)

    def _result(
        self, scores: Sequence[float], details: Sequence[Report], detections: Sequence[Detections]
    ) -> RewardResult:
        total = torch.tensor(list(scores)).float()
        valid = torch.isfinite(total)
        rows: list[Report] = []
        for detail, objects, good in zip(details, detections, valid.tolist(), strict=True):
            boxes = [[d.label, round(d.score, 3), *(round(edge, 1) for edge in d.box)] for d in objects or ()]
            failure = {} if good else {"error": "a score is not a number"}
            rows.append({**detail, "found": boxes, "engine": self.engine, **failure})
        return RewardResult(total, {}, valid, tuple(rows))


class SpatialReward(DetectorReward):
    """The reward ``compbench-spatial``: are the two objects there, in the relation that the prompt names?"""

    info = _info(f"spatial[{DETECTOR}]")
    relation = staticmethod(relation_2d)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without a noun."""
        for prompt in prompts:
            if outer_nouns(self.parser(prompt.text).tokens).first is None:
                raise PromptError(f"prompt {prompt.id!r}: no object to look for in {prompt.text[:80]!r}")

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect and score; ``details`` has the objects and the detections in the 479-pixel frame."""
        self.check(prompts)
        pictures = to_pil(images)
        pairs = [outer_nouns(self.parser(prompt.text).tokens) for prompt in prompts]
        scenes = _scenes(self.detector, pictures, [self.relation(prompt.text) for prompt in prompts], pairs)
        details = [{"objects": list(scene.pair), "relation": scene.relation} for scene in scenes]
        return self._result(self._scores(pictures, scenes), details, [scene.objects for scene in scenes])

    def _scores(self, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> list[float]:
        return [scene.score_2d() for scene in scenes]


class Spatial3DReward(SpatialReward):
    """The reward ``compbench-3d-spatial``: two objects, one in front of, behind or hidden by the other."""

    info = _info(f"3d_spatial[{DETECTOR}+{DepthEstimator.name}]")
    relation = staticmethod(relation_3d)
    backbone = "r50"

    def __init__(
        self,
        detector: str = DETECTOR,
        *,
        depth: str = DPT_HYBRID,
        parser: str = "auto",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        """``depth`` is a DPT model's folder or Hub id; the rest as for ``compbench-spatial``."""
        super().__init__(detector, parser=parser, device=device, batch=batch)
        self.info = declared(self.info, depth == DPT_HYBRID, "float32")
        self.depth = shared(DepthEstimator, depth, device=device, batch=batch)
        self.engine = f"{self.engine}/{self.depth.engine}"
        self.weights = {**self.weights, "depth": weights_id(depth)}

    def _scores(self, pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> list[float]:
        return [scene.score_3d(depth) for scene, depth in zip(scenes, self.depth(pictures), strict=True)]


class NumeracyReward(DetectorReward):
    """The reward ``compbench-numeracy``: are the counted things there, and as many as the prompt says?"""

    info = _info(f"numeracy[{DETECTOR}]")
    backbone = "r50"

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts in which no number word is followed by an object of the benchmark."""
        for prompt in prompts:
            if not quantities(self.parser(prompt.text).tokens):
                raise PromptError(f"prompt {prompt.id!r}: counts no known object: {prompt.text[:80]!r}")

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect and count."""
        self.check(prompts)
        counts = [quantities(self.parser(prompt.text).tokens) for prompt in prompts]
        labels = [list(dict.fromkeys(thing.label for thing in things)) for things in counts]
        detections = in_frame(self.detector, to_pil(images), labels)
        scores = [
            math.nan if objects is None else score_numeracy(things, objects)
            for things, objects in zip(counts, detections, strict=True)
        ]
        return self._result(scores, [{"wanted": [list(thing) for thing in things]} for things in counts], detections)


class ComplexReward(DetectorReward):
    """The reward ``compbench-complex``: the mean of those of attribute, spatial and action that the prompt's kind has.

    ``metadata["relations"]`` of a prompt is ``spatial``, ``action`` or ``both``.
    """

    info = _info(f"complex[{DETECTOR}]", -0.5, "BSD-3-Clause, MIT, Apache-2.0")

    def __init__(
        self,
        detector: str = DETECTOR,
        *,
        blip: str = CHECKPOINT,
        clip: str = CLIP_BASE,
        parser: str = "auto",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        """``blip`` and ``clip`` are those of the attribute and non-spatial categories."""
        super().__init__(detector, parser=parser, device=device, batch=batch)
        self.blip = shared(BlipVQA, blip, device=device, batch=batch)
        self.clip = shared(OpenAIClip.load, clip, device=device, batch=batch)
        official = split_digest(blip)[0] == CHECKPOINT and clip == CLIP_BASE and not self.blip.approximations()
        self.info = declared(self.info, official, "float32")
        self.engine = f"3-in-1/{self.engine}"
        self.weights = {"blip": weights_id(blip), "clip": weights_id(clip), **self.weights}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts whose ``metadata["relations"]`` is missing or unknown."""
        for prompt in prompts:
            if prompt.metadata.get("relations") not in PARTS:
                raise PromptError(f"prompt {prompt.id!r}: metadata.relations must be one of {', '.join(PARTS)}")

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """All three parts and their mean; parts that do not count for a prompt are NaN in ``scores``."""
        self.check(prompts)
        pictures, kinds = to_pil(images), [str(prompt.metadata["relations"]) for prompt in prompts]
        parses = [self.parser(prompt.text) for prompt in prompts]
        texts = [questions(parse.chunks) for parse in parses]
        answers = self.blip.p_yes(pictures, texts)
        pairs = [related_nouns(parse.tokens) for parse in parses]
        scenes = _scenes(self.detector, pictures, [relation_2d(prompt.text) for prompt in prompts], pairs)
        captions = [without_adjectives(parse.tokens) for parse in parses]
        parts = {
            "attribute": [float(attribute_score(row)) for row in answers],
            "spatial": [scene.score_2d() for scene in scenes],
            "action": paired_cosine(self.clip.images(pictures), self.clip.texts(captions)).tolist(),
        }
        totals = [three_in_one(kind, {name: parts[name][i] for name in parts}) for i, kind in enumerate(kinds)]
        details = [
            {"kind": kind, "questions": texts[i], "p_yes": [round(p, 4) for p in answers[i]]}
            | {"objects": list(pairs[i]), "relation": scenes[i].relation}
            for i, kind in enumerate(kinds)
        ]
        columns = {
            name: [value if name in PARTS[kind] else math.nan for value, kind in zip(values, kinds, strict=True)]
            for name, values in parts.items()
        }
        scores = {name: torch.tensor(column).float() for name, column in columns.items()}
        return replace(self._result(totals, details, [scene.objects for scene in scenes]), scores=scores)


def in_frame(
    detector: UniDet | Grounder, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]
) -> list[Detections]:
    """Detections with their boxes in the 479-pixel frame; images without labels are not passed to the detector."""
    rows = [i for i, names in enumerate(labels) if names]
    framed: list[Detections] = [[] for _ in pictures]
    detections = detector([pictures[i] for i in rows], [labels[i] for i in rows]) if rows else []
    for i, objects in zip(rows, detections, strict=True):
        if detector.framed:
            framed[i] = objects
            continue
        size = pictures[i].size
        x, y = (new / old for new, old in zip(frame_size(*size), size, strict=True))
        framed[i] = objects and [
            replace(d, box=(d.box[0] * x, d.box[1] * y, d.box[2] * x, d.box[3] * y)) for d in objects
        ]
    return framed


def _scenes(
    detector: UniDet | Grounder, pictures: Sequence[Image.Image], relations: Sequence[str | None], pairs: Sequence[Pair]
) -> list[Scene]:
    labels = [list(dict.fromkeys(name for name in pair if name is not None)) for pair in pairs]
    return list(map(Scene, relations, pairs, in_frame(detector, pictures, labels)))
