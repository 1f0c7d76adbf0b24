"""The rewards ``geneval`` and ``geneval-hf``: GenEval's rules over a detector, all three scores at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.prompts.clauses import faulty
from flowopd_cli.rewards.base import Reward, RewardInfo, blank_nonfinite
from flowopd_cli.rewards.geneval.detector import DetectorSettings, Mask2FormerDetector
from flowopd_cli.rewards.geneval.rules import SCORES, Detection, Detector, GenEvalOptions, keep, training_score, verdict
from flowopd_cli.system.arguments import OptionsOf

FACEBOOK = "facebook/mask2former-swin-small-coco-instance"
RULES, ENGINE = ({field.name for field in fields(record)} for record in (GenEvalOptions, DetectorSettings))


class GenEvalReward(Reward):
    """GenEval by its own detector or by the given one; ``score`` selects the score to train on.

    ``training`` is Flow-GRPO's partial credit, ``official`` the verdict that papers report, ``strict`` the verdict with
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

    def __init__(
        self,
        detector: Detector | None = None,
        score: Literal["training", "official", "strict"] = "training",
        **options: Annotated[Any, OptionsOf(GenEvalOptions, DetectorSettings)],
    ) -> None:
        if score not in SCORES:
            raise RewardError(f"{self.info.name}: score {score!r} is not one of {', '.join(SCORES)}")
        unknown = set(options) - RULES - (ENGINE if detector is None else set())
        if unknown:
            raise RewardError(f"{self.info.name}: no option {', '.join(sorted(unknown))}")
        self.score = score
        self.options = GenEvalOptions(**{name: options.pop(name) for name in RULES & options.keys()})
        default_weights = detector is None and "weights" not in options
        settings = DetectorSettings(**{"weights": self.source, **options})
        self.detector = detector or Mask2FormerDetector(settings, self.options)
        self.engine = self.detector.name
        self.weights = self.detector.weights or {"detector": self.detector.name}
        exact = self.detector.official and self.options == GenEvalOptions() and score == "official"
        self.info = replace(
            self.info,
            low=-float("inf") if score == "training" else 0.0,
            license=self.info.license if default_weights else "that of the weights",
            exact=exact,
            note=self.info.note if exact or score != "official" else f"{self.detector.name} is not the reference",
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Refuse prompts without valid clauses, or with clauses that the detector can never satisfy."""
        for prompt in prompts:
            fault = faulty(prompt.metadata)
            if fault:
                raise PromptError(f"prompt {prompt.id!r}: geneval needs metadata with clauses to judge: {fault}")
        self.detector.check(prompts)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Detect and judge: ``scores`` has ``training``, ``official`` and ``strict``.

        A picture with non-finite pixels, or that the detector could not process, is invalid.
        """
        self.check(prompts)
        images, finite = blank_nonfinite(images)
        rows = zip(prompts, self.detector(images, prompts), finite.tolist(), strict=True)
        judged = [self._judge(prompt, detections if is_finite else None) for prompt, detections, is_finite in rows]
        scores = {name: torch.tensor([values[name] for values, _ in judged]) for name in SCORES}
        total = scores[self.score]
        return RewardResult(total, scores, ~total.isnan(), tuple(details for _, details in judged))

    def _judge(
        self, prompt: Prompt, detections: Sequence[Detection] | None
    ) -> tuple[Mapping[str, float], dict[str, Any]]:
        tag = str(prompt.metadata.get("tag", ""))
        details: dict[str, Any] = {"tag": tag, "detector": self.detector.name}
        if detections is None:
            details["error"] = "the picture, or the detector's output, has numbers that are not finite"
            return dict.fromkeys(SCORES, float("nan")), details
        objects = keep(detections, tag, self.options)
        outcome = verdict(prompt.metadata, objects, self.options)
        trained = training_score(prompt.metadata, objects, self.options)
        scores = {"training": trained.score, "official": float(outcome.correct), "strict": float(trained.strict)}
        boxes = [(d.label, d.color, round(d.score, 3), *d.box) for group in objects.values() for d in group]
        return scores, {**details, "reason": outcome.reason, "found": boxes}


class GenEvalHFReward(GenEvalReward):
    """GenEval's rules over Facebook's own release of the detector: near the published figure, not equal to it."""

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
