"""T2I-CompBench's spatial, counting and complex categories as rewards, over an open-vocabulary detector.

The rules are the official ones; the detector is not UniDet, so scores carry its name (``spatial[owlv2]``) and are not
comparable with published ones. Source: Huang et al. 2023, arXiv 2307.06350, and T2I-CompBench++.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

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
from flowopd_cli.rewards.compbench.detectors import Found, Grounder, load_grounder
from flowopd_cli.rewards.compbench.numeracy import counted, score_numeracy
from flowopd_cli.rewards.compbench.phrases import load_parser
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
from flowopd_cli.rewards.geneval.rules import Detection
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import ClipEncoder, paired_cosine
from flowopd_cli.rewards.weights import shared, weights_id

PAPER = "arXiv 2307.06350"
CLIP_BASE = "openai/clip-vit-base-patch32@3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
NOT_UNIDET = "the official rule over {}, not over UniDet: not comparable with published figures"
DETECTOR = "grounding-dino"
Report = dict[str, Any]


class OverDetector(Reward):
    """Base of the rewards over a detector: it, the parser of prompts, and a name that includes the detector's."""

    info: RewardInfo

    def __init__(self, detector: str = DETECTOR, *, parser: str = "auto", device: str = "auto", batch: int = 8) -> None:
        """``detector`` is ``grounding-dino`` or ``owlv2``, or ``NAME=FOLDER`` for other weights.

        Raises:
            RewardError: no such detector.
            ArtifactError: its weights cannot be read.
        """
        self.parser, self.detector = load_parser(parser), load_detector(detector, device, batch)
        self.engine = f"{self.detector.engine}/{self.parser.name}"
        self.weights = {"detector": self.detector.engine}
        self.info = _named(self.info, self.info.name.partition("[")[0], self.detector.name)


class SpatialReward(OverDetector):
    """The reward ``compbench-spatial``: are the two objects there, and does one stand as the prompt says?"""

    info = RewardInfo(f"spatial[{DETECTOR}]", PAPER, 0.0, 1.0, license="Apache-2.0", exact=False,
                      note=NOT_UNIDET.format(DETECTOR))  # fmt: skip

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without a noun.

        Raises:
            PromptError: there is nothing to look for.
        """
        for prompt in prompts:
            if outer_nouns(self.parser(prompt.text).tokens).first is None:
                raise PromptError(f"prompt {prompt.id!r}: no object to look for in {prompt.text[:80]!r}")

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect and score; ``details`` has the objects and the detections in the 479-pixel frame."""
        self.check(prompts)
        pairs = [outer_nouns(self.parser(prompt.text).tokens) for prompt in prompts]
        detections = in_frame(self.detector, to_pil(images), [names(pair) for pair in pairs])
        relations = [relation_2d(prompt.text) for prompt in prompts]
        rules = [partial(score_2d, *row) for row in zip(relations, pairs, strict=True)]
        details = [{"objects": list(p), "relation": r} for p, r in zip(pairs, relations, strict=True)]
        return _result(list(map(judged, rules, detections)), details, detections, self.engine)


class Spatial3DReward(Reward):
    """The reward ``compbench-3d-spatial``: two objects, one in front of, behind or hidden by the other."""

    info = RewardInfo(f"3d_spatial[{DETECTOR}+{DepthEstimator.name}]", PAPER, 0.0, 1.0, license="Apache-2.0",
                      exact=False, note=NOT_UNIDET.format(DETECTOR))  # fmt: skip

    def __init__(
        self,
        detector: str = DETECTOR,
        *,
        depth: str = DPT_HYBRID,
        parser: str = "auto",
        device: str = "auto",
        batch: int = 8,
    ) -> None:
        """``depth`` is a DPT model's folder or Hub id; the rest as for ``compbench-spatial``.

        Raises:
            RewardError: no such detector.
            ArtifactError: weights cannot be read.
        """
        self.plane = SpatialReward(detector, parser=parser, device=device, batch=batch)
        self.depth = shared(DepthEstimator.load, depth, device=device, batch=batch)
        self.engine = f"{self.plane.engine}/{self.depth.engine}"
        self.weights = {**self.plane.weights, "depth": weights_id(depth)}
        self.info = _named(self.info, "3d_spatial", self.plane.detector.name, f"+{self.depth.name}")

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without a noun, as ``compbench-spatial`` does.

        Raises:
            PromptError: there is nothing to look for.
        """
        self.plane.check(prompts)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect, estimate depth and score."""
        self.check(prompts)
        pictures = to_pil(images)
        pairs = [outer_nouns(self.plane.parser(prompt.text).tokens) for prompt in prompts]
        detections = in_frame(self.plane.detector, pictures, [names(pair) for pair in pairs])
        relations = [relation_3d(prompt.text) for prompt in prompts]
        maps = self.depth(pictures)
        sound = [seen if bool(depth.isfinite().all()) else None for seen, depth in zip(detections, maps, strict=True)]
        rules = [partial(score_3d, r, p, depth=d) for r, p, d in zip(relations, pairs, maps, strict=True)]
        details = [{"objects": list(p), "relation": r} for p, r in zip(pairs, relations, strict=True)]
        return _result(list(map(judged, rules, sound)), details, detections, self.engine)


class NumeracyReward(OverDetector):
    """The reward ``compbench-numeracy``: are the counted things there, and as many as the prompt says?"""

    info = RewardInfo(f"numeracy[{DETECTOR}]", PAPER, 0.0, 1.0, license="Apache-2.0", exact=False,
                      note=NOT_UNIDET.format(DETECTOR))  # fmt: skip

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that count nothing.

        Raises:
            PromptError: no number word is followed by an object of the benchmark.
        """
        for prompt in prompts:
            if not counted(self.parser(prompt.text).tokens):
                raise PromptError(f"prompt {prompt.id!r}: counts no known object: {prompt.text[:80]!r}")

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect and count."""
        self.check(prompts)
        counts = [counted(self.parser(prompt.text).tokens) for prompt in prompts]
        texts = [list(dict.fromkeys(thing.label for thing in things)) for things in counts]
        detections = in_frame(self.detector, to_pil(images), texts)
        rules = [partial(score_numeracy, things) for things in counts]
        details = [{"wanted": [[thing.label, thing.count] for thing in things]} for things in counts]
        return _result(list(map(judged, rules, detections)), details, detections, self.engine)


class ComplexReward(OverDetector):
    """The reward ``compbench-complex``: the mean of attribute, spatial and action scores, as the prompt's kind asks.

    ``metadata["relations"]`` of a prompt is ``spatial``, ``action`` or ``both``.
    """

    info = RewardInfo(f"complex[{DETECTOR}]", PAPER, -0.5, 1.0, license="BSD-3-Clause, MIT, Apache-2.0",
                      exact=False, note=NOT_UNIDET.format(DETECTOR))  # fmt: skip

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
        """``blip`` and ``clip`` are those of the attribute and non-spatial categories.

        Raises:
            RewardError: no such detector.
            ArtifactError: weights cannot be read.
        """
        super().__init__(detector, parser=parser, device=device, batch=batch)
        self.blip = shared(BlipVQA.load, blip, device=device, batch=batch)
        self.clip = shared(ClipEncoder.load, clip, device=device, batch=batch)
        self.engine = f"3-in-1/{self.engine}"
        self.weights = {"blip": weights_id(blip), "clip": weights_id(clip), **self.weights}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that do not say which relations they have.

        Raises:
            PromptError: ``metadata["relations"]`` is missing or unknown.
        """
        for prompt in prompts:
            if prompt.metadata.get("relations") not in PARTS:
                raise PromptError(f"prompt {prompt.id!r}: metadata.relations must be one of {', '.join(PARTS)}")

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """All three parts and their mean; parts that do not count for a prompt are NaN in ``scores``."""
        self.check(prompts)
        pictures, kinds = to_pil(images), [str(prompt.metadata["relations"]) for prompt in prompts]
        parsed = [self.parser(prompt.text) for prompt in prompts]
        texts = [questions(parse.chunks) for parse in parsed]
        answers = self.blip.p_yes(pictures, texts)
        pairs = [related_nouns(parse.tokens) for parse in parsed]
        detections = in_frame(self.detector, pictures, [names(pair) for pair in pairs])
        relations = [relation_2d(prompt.text) for prompt in prompts]
        action = paired_cosine(
            self.clip.images(pictures), self.clip.texts([without_adjectives(p.tokens) for p in parsed])
        )
        rows: list[Report] = []
        details: list[Report] = []
        for i, kind in enumerate(kinds):
            parts = {
                "attribute": float(attribute_score(answers[i])),
                "spatial": judged(partial(score_2d, relations[i], pairs[i]), detections[i]),
                "action": float(action[i]),
            }
            rows.append({name: parts[name] if name in PARTS[kind] else math.nan for name in parts})
            rows[-1]["total"] = three_in_one(kind, parts)
            detail = {"kind": kind, "questions": texts[i], "p_yes": [round(p, 4) for p in answers[i]]}
            details.append({**detail, "objects": list(pairs[i]), "relation": relations[i]})
        result = _result([row["total"] for row in rows], details, detections, self.engine)
        figures = ("attribute", "spatial", "action")
        return replace(result, scores={name: torch.tensor([row[name] for row in rows]).float() for name in figures})


def load_detector(spec: str, device: str, batch: int) -> Grounder:
    """A detector from ``kind`` or ``kind=source``.

    Raises:
        RewardError: no such detector.
        ArtifactError: its weights cannot be read.
    """
    kind, _, source = spec.partition("=")
    return shared(load_grounder, kind, source or None, device=device, batch=batch)


def names(pair: Pair) -> list[str]:
    """The names of a pair, each once."""
    return list(dict.fromkeys(name for name in pair if name is not None))


def in_frame(detector: Grounder, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[Found]:
    """Detections with their boxes in the 479-pixel frame; images without labels are not passed to the detector."""
    rows = [i for i, names in enumerate(labels) if names]
    framed: list[Found] = [[] for _ in pictures]
    detections = detector([pictures[i] for i in rows], [labels[i] for i in rows]) if rows else []
    for i, mine in zip(rows, detections, strict=True):
        width, height = pictures[i].size
        x, y = (new / old for new, old in zip(frame_size(width, height), (width, height), strict=True))
        framed[i] = mine and [replace(d, box=(d.box[0] * x, d.box[1] * y, d.box[2] * x, d.box[3] * y)) for d in mine]
    return framed


def judged(rule: Callable[[list[Detection]], float], seen: Found) -> float:
    """The score of an image by a rule; NaN where the detector failed."""
    return math.nan if seen is None else rule(seen)


def _result(
    scores: Sequence[float], details: Sequence[Report], detections: Sequence[Found], engine: str
) -> RewardResult:
    total = torch.tensor(list(scores)).float()
    valid = torch.isfinite(total)
    rows: list[Report] = []
    for detail, seen, good in zip(details, detections, valid.tolist(), strict=True):
        boxes = [[d.label, round(d.score, 3), *(round(edge, 1) for edge in d.box)] for d in seen or ()]
        failure = {} if good else {"error": "a score is not a number"}
        rows.append({**detail, "found": boxes, "engine": engine, **failure})
    return RewardResult(total, {}, valid, tuple(rows))


def _named(info: RewardInfo, category: str, detector: str, more: str = "") -> RewardInfo:
    """The declaration under the detector's name."""
    return replace(info, name=f"{category}[{detector}{more}]", note=NOT_UNIDET.format(detector))
