"""Recipes: one pydantic model per stage, keyed on ``stage``.

A recipe is complete: every default is written out in ``recipe.yaml`` of the run directory. The class defaults
are the published settings for SD3.5-Medium (docs/paper_map.md); ``recipes/toy/*.yaml`` overrides them. Its
sections live in :mod:`flowopd_cli.recipe.sections`; reading and overrides in :mod:`flowopd_cli.recipe.reading`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from flowopd_cli.recipe.sections import (
    AdapterSpec,
    AnchorSpec,
    EvalSpec,
    GRPOSpec,
    MergeSpec,
    ModelSpec,
    OPDSpec,
    PromptSpec,
    PushSpec,
    RewardSpec,
    SamplingSpec,
    SFTSpec,
    Spec,
    TeacherSpec,
    TrainSpec,
)


class _Recipe(Spec):
    model: ModelSpec = ModelSpec()  #: the base
    seed: int = 0  #: of everything random but an evaluation's pictures


class _Trained(_Recipe):
    adapter: AdapterSpec = AdapterSpec()  #: the LoRA that is trained
    sampling: SamplingSpec = SamplingSpec()  #: how trajectories are drawn
    prompts: tuple[PromptSpec, ...] = Field(min_length=1)  #: what is drawn
    train: TrainSpec = TrainSpec()  #: the loop


class TeacherRecipe(_Trained):
    """``flowopd teacher``."""

    stage: Literal["teacher"] = "teacher"  #: the command that the recipe is for
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)  #: what is learned: their weighted sum
    grpo: GRPOSpec = GRPOSpec()  #: the objective

    @model_validator(mode="after")
    def _policy_must_be_stochastic(self) -> TeacherRecipe:
        if self.sampling.deterministic:
            raise ValueError("GRPO needs a stochastic policy: set sampling.kernel to flow_sde or cps and eta > 0")
        _check_noise("GRPO", self.sampling)
        _check_sampling(self.sampling)
        return self


class ColdstartRecipe(_Trained):
    """``flowopd coldstart``: SFT on teacher trajectories."""

    stage: Literal["coldstart"] = "coldstart"  #: the command that the recipe is for
    teachers: dict[str, TeacherSpec] = Field(min_length=1)  #: by task
    rewards: tuple[RewardSpec, ...] = ()  #: by which the best picture of a group is chosen
    sft: SFTSpec = SFTSpec()  #: the objective

    @model_validator(mode="after")
    def _no_steps_to_choose_from(self) -> ColdstartRecipe:
        if self.train.steps_per_rollout is not None:
            raise ValueError("train.steps_per_rollout is of no use here: a cold start learns pictures, not their steps")
        return self


class MergeRecipe(_Recipe):
    """``flowopd merge``."""

    stage: Literal["merge"] = "merge"  #: the command that the recipe is for
    adapters: tuple[str, ...] = Field(min_length=1)  #: runs, adapter folders or `hub:REPO@REVISION`
    merge: MergeSpec = MergeSpec()  #: the method

    @model_validator(mode="after")
    def _one_weight_each(self) -> MergeRecipe:
        weights = self.merge.weights
        if weights is not None and len(weights) != len(self.adapters):
            raise ValueError(f"merge.weights has {len(weights)} values for {len(self.adapters)} adapters")
        return self


class DistillRecipe(_Trained):
    """``flowopd distill``."""

    stage: Literal["distill"] = "distill"  #: the command that the recipe is for
    routing: dict[str, TeacherSpec] = Field(min_length=1)  #: teachers by task: a prompt is taught by its task's
    anchor: AnchorSpec = AnchorSpec()  #: what every prompt is pulled towards
    rewards: tuple[RewardSpec, ...] = ()  #: scored for the log, with `opd.log_rewards_every`
    opd: OPDSpec = OPDSpec()  #: the objective

    @model_validator(mode="after")
    def _estimator_fits_kernel(self) -> DistillRecipe:
        if self.opd.estimator == "score":
            if self.sampling.deterministic:
                raise ValueError("opd.estimator score needs a stochastic kernel: flow_sde or cps with eta > 0")
            _check_noise("opd.estimator score", self.sampling)
        _check_sampling(self.sampling)
        return self

    @property
    def fused(self) -> bool:
        """Whether each step is learned while the rollout passes it: as ``opd.schedule`` says, or where it can be."""
        if self.opd.schedule is not None:
            return self.opd.schedule == "fused"
        return self.opd.estimator == "pathwise" and self.train.updates == 1 and self.sampling.window is None

    @model_validator(mode="after")
    def _schedule_can_be_kept(self) -> DistillRecipe:
        if self.opd.schedule == "fused" and self.opd.estimator != "pathwise":
            raise ValueError("opd.schedule fused needs opd.estimator pathwise: score looks back at the whole rollout")
        if self.opd.schedule == "fused" and self.train.updates > 1:
            raise ValueError(
                f"opd.schedule fused makes one optimizer step of a rollout, train.updates is {self.train.updates}: "
                "set it to 1, or opd.schedule to replay"
            )
        if self.anchor.every > 1 and self.anchor.probability < 1:
            raise ValueError("anchor.every and anchor.probability both thin out the anchor: leave one of them at 1")
        return self

    @model_validator(mode="after")
    def _logged_rewards_are_named(self) -> DistillRecipe:
        if self.opd.log_rewards_every and not self.rewards:
            raise ValueError("opd.log_rewards_every has no rewards to log: name some under rewards, or set it to 0")
        return self


class EvalRecipe(_Recipe):
    """``flowopd eval``. ``adapter: null`` evaluates the base."""

    stage: Literal["eval"] = "eval"  #: the command that the recipe is for
    adapter: str | None = None  #: what is scored; null is the base
    eval: EvalSpec = EvalSpec()  #: the protocol


class PushRecipe(_Recipe):
    """``flowopd push``."""

    stage: Literal["push"] = "push"  #: the command that the recipe is for
    run: str  #: the run to publish
    push: PushSpec = PushSpec()  #: where and how


TrainedRecipe = TeacherRecipe | ColdstartRecipe | DistillRecipe
Recipe = TeacherRecipe | ColdstartRecipe | MergeRecipe | DistillRecipe | EvalRecipe | PushRecipe
STAGES: Mapping[str, type[_Recipe]] = {
    "teacher": TeacherRecipe,
    "coldstart": ColdstartRecipe,
    "merge": MergeRecipe,
    "distill": DistillRecipe,
    "eval": EvalRecipe,
    "push": PushRecipe,
}


def _check_noise(what: str, sampling: SamplingSpec) -> None:
    if sampling.steps < 2:
        raise ValueError(f"{what} needs steps that draw noise, which the last never does: set sampling.steps above 1")


def _check_sampling(sampling: SamplingSpec) -> None:
    if sampling.kernel == "cps" and sampling.eta > 1:
        raise ValueError(f"sampling.eta is {sampling.eta}: the kernel cps is defined for eta between 0 and 1")
    window = sampling.window
    if window is None:
        return
    if window.start_max < window.start_min:
        raise ValueError(f"sampling.window: start_max {window.start_max} < start_min {window.start_min}")
    if window.start_max + window.size > sampling.steps:
        raise ValueError(
            f"sampling.window reaches step {window.start_max + window.size} of {sampling.steps}: "
            "lower start_max or size"
        )
    if window.start_max > sampling.steps - 2:
        raise ValueError("sampling.window may hold the last step alone, which never draws noise: lower start_max")
    if window.start_min < window.start_max == sampling.steps - window.size:
        raise ValueError(
            "sampling.window holds the last step, which never draws noise, at one of its starts only: lower start_max"
        )
