"""The rewards ``geneval`` and ``geneval-hf``: GenEval's rules over a detector, all three scores at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.prompts.clauses import faulty
from flowopd_cli.rewards.base import Reward, RewardInfo, blank_nonfinite
from flowopd_cli.rewards.geneval.detector import DetectorSettings, Mask2FormerDetector
from flowopd_cli.rewards.geneval.rules import (
    SCORES,
    Detection,
    Detector,
    GenEvalOptions,
    keep,
    training_score,
    verdict,
)

FACEBOOK = "facebook/mask2former-swin-small-coco-instance"
RULES, ENGINE = ({field.name for field in fields(record)} for record in (GenEvalOptions, DetectorSettings))


class GenEvalReward(Reward):
    """GenEval by its own detector, or by another one that is given; ``score`` says which score to train on.

    ``training`` is Flow-GRPO's partial credit, ``official`` the verdict that papers print, ``strict`` the verdict with
    every count exact. Further options are those of ``GenEvalOptions`` (thresholds) and of ``DetectorSettings``
    (``weights``, ``clip``, ``short_side``, ``device``, ``dtype``, ``batch``).
    """

    info = RewardInfo(
        name="geneval",
        paper="arXiv 2310.11513",
        low=-float("inf"),
        high=1.0,
        license="Apache-2.0 (mmdet's Mask2Former), MIT (CLIP)",
        note="official verdict exact; training score as Flow-GRPO's without its stray point, JPEG and swapped channels",
    )
    source: ClassVar[str | None] = None

    def __init__(self, detector: Detector | None = None, score: str = "training", **options: Any) -> None:
        if score not in SCORES:
            raise RewardError(f"{self.info.name}: score {score!r} is not one of {', '.join(SCORES)}")
        unknown = set(options) - RULES - (ENGINE if detector is None else set())
        if unknown:
            raise RewardError(f"{self.info.name}: no option {', '.join(sorted(unknown))}")
        self.score = score
        self.options = GenEvalOptions(**_only(options, RULES))
        settings = {"weights": self.source, **_only(options, ENGINE)}
        self.detector = detector or Mask2FormerDetector(DetectorSettings(**settings), self.options)
        self.engine = self.detector.name
        self.weights = getattr(self.detector, "weights", {"detector": self.detector.name})
        usual = detector is None and "weights" not in options
        exact = getattr(self.detector, "official", False) and self.options == GenEvalOptions() and score == "official"
        self.info = replace(
            self.info,
            low=-float("inf") if score == "training" else 0.0,
            license=self.info.license if usual else "that of the weights",
            exact=exact,
            note=self.info.note if exact or score != "official" else f"{self.detector.name} is not the reference",
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts that do not say what they should show, or that the detector could never satisfy.

        Raises:
            PromptError: no clauses, or one of an unknown form, class or color.
        """
        for prompt in prompts:
            fault = faulty(prompt.metadata)
            if fault:
                raise PromptError(f"prompt {prompt.id!r}: geneval needs metadata with clauses to judge: {fault}")
        check = getattr(self.detector, "check", None)
        if check is not None:
            check(prompts)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect, keep, judge: ``scores`` has ``training``, ``official`` and ``strict``.

        A picture with pixels that are no numbers, or that the detector could not look at, is invalid.
        """
        self.check(prompts)
        images, finite = blank_nonfinite(images)
        found = self.detector(images, prompts)
        columns: dict[str, list[float]] = {name: [] for name in SCORES}
        details: list[dict[str, Any]] = []
        for prompt, detections, is_finite in zip(prompts, found, finite.tolist(), strict=True):
            values, detail = self._judge(prompt, detections if is_finite else None)
            details.append({"tag": str(prompt.metadata.get("tag", "")), **detail, "detector": self.detector.name})
            for name in SCORES:
                columns[name].append(values.get(name, float("nan")))
        scores = {name: torch.tensor(values) for name, values in columns.items()}
        return RewardResult(scores[self.score], scores, ~scores[self.score].isnan(), tuple(details))

    def _judge(
        self, prompt: Prompt, detections: Sequence[Detection] | None
    ) -> tuple[Mapping[str, float], dict[str, Any]]:
        """The three scores of a picture and what to report of it; no scores when it could not be looked at."""
        if detections is None:
            return {}, {"error": "the picture, or what the detector made of it, holds numbers that are not finite"}
        objects = keep(detections, str(prompt.metadata.get("tag", "")), self.options)
        outcome = verdict(prompt.metadata, objects, self.options)
        trained = training_score(prompt.metadata, objects, self.options)
        scores = {"training": trained.score, "official": float(outcome.correct), "strict": float(trained.strict)}
        found = [(d.label, d.color, round(d.score, 3), *d.box) for group in objects.values() for d in group]
        return scores, {"reason": outcome.reason, "found": found}


class GenEvalHFReward(GenEvalReward):
    """GenEval's rules over the detector that its authors at Facebook published: near, but not the published figure."""

    info = RewardInfo(
        name="geneval-hf",
        paper="arXiv 2310.11513",
        low=-float("inf"),
        high=1.0,
        license="CC-BY-NC-4.0 (facebook's Mask2Former: no commercial use), MIT (CLIP)",
        exact=False,
        note="another training run of the detector; not comparable with published figures",
    )
    source = FACEBOOK


def _only(options: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in names}
