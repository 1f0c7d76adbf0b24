"""Recipes: one pydantic model per stage, keyed on ``stage``. The class defaults are the published settings for
SD3.5-Medium (docs/paper_map.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

from pydantic import Field, model_validator

from flowopd_cli.models.files.families import family
from flowopd_cli.recipe.fields import Seed, Spec
from flowopd_cli.recipe.sections import (
    AdapterSpec,
    AnchorSpec,
    EvalSpec,
    MergeSpec,
    ModelSpec,
    PromptSpec,
    PushSpec,
    RewardSpec,
    RouteSpec,
    SamplingSpec,
    TeacherSpec,
)
from flowopd_cli.recipe.training import AWMSpec, GRPOSpec, NFTSpec, OPDSpec, SFTSpec, TrainSpec, WatchSpec


class _Recipe(Spec):
    model: ModelSpec = ModelSpec()  #: the base
    seed: Seed = 0  #: seed of all random numbers but an evaluation's pictures, below 2^63


class _Trained(_Recipe):
    adapter: AdapterSpec = AdapterSpec()  #: what is trained
    sampling: SamplingSpec = SamplingSpec()  #: how trajectories are drawn
    prompts: tuple[PromptSpec, ...] = Field(min_length=1)  #: prompts to draw
    train: TrainSpec = TrainSpec()  #: the loop
    watch: WatchSpec = WatchSpec()  #: what is measured beside the training

    @model_validator(mode="after")
    def _targets_of_the_family(self) -> _Trained:
        if not self.adapter.targets:
            targets = family(self.model.family).targets
            object.__setattr__(self, "adapter", self.adapter.model_copy(update={"targets": targets}))
        return self

    @model_validator(mode="after")
    def _full_weights_are_whole(self) -> _Trained:
        if self.adapter.kind == "full" and self.model.shard:
            raise ValueError("adapter.kind full trains a whole base in each process: set model.shard to false")
        if self.adapter.kind == "full" and self.model.quantize != "none":
            raise ValueError("adapter.kind full trains the base's own weights: set model.quantize to none")
        return self

    def _require_noise(self, objective: str) -> None:
        if self.sampling.deterministic:
            raise ValueError(
                f"{objective} needs a stochastic kernel: set sampling.kernel to flow_sde or cps, and sampling.eta > 0"
            )
        if self.sampling.steps < 2:
            raise ValueError(
                f"{objective} needs a step that draws noise, but the last never does: set sampling.steps > 1"
            )


class TeacherRecipe(_Trained):
    """``flowopd teacher``."""

    stage: Literal["teacher"] = "teacher"  #: the command that the recipe is for
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)  #: the objective is their weighted sum
    #: GRPO on the steps of stochastic trajectories, or DiffusionNFT or AWM on final latents that are noised again
    algorithm: Literal["grpo", "nft", "awm"] = "grpo"
    grpo: GRPOSpec = GRPOSpec()  #: the objective of `grpo`
    nft: NFTSpec = NFTSpec()  #: that of `nft`
    awm: AWMSpec = AWMSpec()  #: that of `awm`

    @property
    def forward(self) -> NFTSpec | AWMSpec | None:
        """The objective if it is one of the forward process."""
        return {"nft": self.nft, "awm": self.awm}.get(self.algorithm)

    @property
    def levels(self) -> int:
        """Noise levels of a picture for the forward process, at most the sampling steps."""
        default = max(1, self.sampling.steps - 1)
        return min(self.sampling.steps, (self.forward and self.forward.levels) or default)

    @model_validator(mode="after")
    def _sampler_fits_algorithm(self) -> TeacherRecipe:
        if self.forward is None:
            self._require_noise("GRPO")
        elif not self.sampling.deterministic:
            raise ValueError(f"algorithm {self.algorithm} draws without noise: set sampling.kernel to ode")
        elif self.train.query.steps is not None:
            raise ValueError(f"train.query has no use with algorithm {self.algorithm}: set its levels")
        return self


class ColdstartRecipe(_Trained):
    """``flowopd coldstart``: SFT on teacher trajectories."""

    stage: Literal["coldstart"] = "coldstart"  #: the command that the recipe is for
    teachers: dict[str, TeacherSpec] = Field(min_length=1)  #: by task
    rewards: tuple[RewardSpec, ...] = ()  #: choose the best picture of a group
    sft: SFTSpec = SFTSpec()  #: the objective

    @model_validator(mode="after")
    def _learns_whole_pictures(self) -> ColdstartRecipe:
        if self.train.query.steps is not None:
            raise ValueError("train.query has no use here: a cold start learns pictures, not their steps")
        return self

    @model_validator(mode="after")
    def _teachers_share_the_base(self) -> ColdstartRecipe:
        for task, spec in self.teachers.items():
            if spec.base is not None:
                raise ValueError(f"teachers.{task}.base: in a cold start, teachers have the student's base")
        return self


class MergeRecipe(_Recipe):
    """``flowopd merge``."""

    stage: Literal["merge"] = "merge"  #: the command that the recipe is for
    adapters: tuple[str, ...] = Field(min_length=1)  #: runs, adapter folders or `hub:REPO@REVISION`
    merge: MergeSpec = MergeSpec()  #: the method

    @model_validator(mode="after")
    def _adapters_and_weights(self) -> MergeRecipe:
        weights = self.merge.weights
        if "base" in map(str.strip, self.adapters):
            raise ValueError("base is not an adapter: leave it out and lower the other weights instead")
        if weights is not None and len(weights) != len(self.adapters):
            raise ValueError(f"merge.weights has {len(weights)} values for {len(self.adapters)} adapters")
        return self


class DistillRecipe(_Trained):
    """``flowopd distill``."""

    stage: Literal["distill"] = "distill"  #: the command that the recipe is for
    #: the teacher of each task, or a list of teachers with a `weight` each
    routing: dict[str, RouteSpec] = Field(min_length=1)
    anchor: AnchorSpec = AnchorSpec()  #: the adapter that regularizes every prompt
    rewards: tuple[RewardSpec, ...] = ()  #: scored for the log, with `opd.log_rewards_every` or `train.watch_every`
    opd: OPDSpec = OPDSpec()  #: the objective

    @property
    def mixtures(self) -> dict[str, dict[str, TeacherSpec]]:
        """The teachers of each task, by their keys below ``routing``: the task, or ``task.index`` in a list."""
        return {
            task: {f"{task}.{i}": spec for i, spec in enumerate(route)} if isinstance(route, tuple) else {task: route}
            for task, route in self.routing.items()
        }

    @property
    def teachers(self) -> dict[str, TeacherSpec]:
        """All of them."""
        return {key: spec for mixture in self.mixtures.values() for key, spec in mixture.items()}

    @property
    def scores(self) -> bool:
        """Whether the recipe's own rewards score anything: rollouts, or a watch without rewards of its own."""
        return bool(self.opd.log_rewards_every or (self.train.watch_every and not self.watch.rewards))

    @property
    def fused(self) -> bool:
        """Whether each step is trained during the rollout: by ``opd.schedule``, or by default if possible."""
        if self.opd.schedule is not None:
            return self.opd.schedule == "fused"
        return self.opd.estimator == "pathwise" and self.train.updates == 1 and self.sampling.window is None

    @model_validator(mode="after")
    def _objective_is_consistent(self) -> DistillRecipe:
        opd = self.opd
        if opd.estimator == "score":
            self._require_noise("opd.estimator score")
            if opd.schedule == "fused":
                raise ValueError("opd.schedule fused needs opd.estimator pathwise: score reads the whole rollout")
        if opd.schedule == "fused" and self.train.updates > 1:
            raise ValueError(
                f"opd.schedule fused makes one optimizer step of a rollout, train.updates is {self.train.updates}: "
                "set it to 1, or opd.schedule to replay"
            )
        if self.anchor.every > 1 and self.anchor.probability < 1:
            raise ValueError("anchor.every and anchor.probability both thin out the anchor: leave one of them at 1")
        if opd.log_rewards_every and not self.rewards:
            raise ValueError("opd.log_rewards_every has no rewards to log: name some under rewards, or set it to 0")
        return self

    @model_validator(mode="after")
    def _names_of_teachers_differ(self) -> DistillRecipe:
        for task, mixture in self.mixtures.items():
            for key in mixture.keys() & self.routing.keys() - {task}:
                raise ValueError(f"routing.{key}: a teacher of {task} has this name too: give the task another one")
        return self

    @model_validator(mode="after")
    def _each_base_is_loaded_once(self) -> DistillRecipe:
        settings: dict[tuple[str | None, str | None], tuple[str, ...]] = {}
        for task, spec in self.teachers.items():
            own = (spec.family or "", spec.dtype, spec.quantize, spec.offload)
            if settings.setdefault((spec.base, spec.revision), own) != own:
                raise ValueError(f"routing.{task}: another teacher has the base {spec.base} with other settings; it is "
                                 "loaded once, so give both the same family, dtype, quantize and offload")  # fmt: skip
        return self


class EvalRecipe(_Recipe):
    """``flowopd eval``."""

    stage: Literal["eval"] = "eval"  #: the command that the recipe is for
    adapter: str | None = None  #: the adapter to score; null is the base
    eval: EvalSpec = EvalSpec()  #: the protocol


class PushRecipe(_Recipe):
    """``flowopd push``."""

    stage: Literal["push"] = "push"  #: the command that the recipe is for
    run: str  #: the run to publish
    push: PushSpec = PushSpec()  #: where and how


TrainedRecipe = TeacherRecipe | ColdstartRecipe | DistillRecipe
Recipe = TeacherRecipe | ColdstartRecipe | MergeRecipe | DistillRecipe | EvalRecipe | PushRecipe


def reward_fields(recipe: Recipe) -> Iterator[tuple[str, RewardSpec]]:
    """The fields of a recipe that hold a reward, trained or watched, with the reward."""
    watched = recipe.watch.rewards if isinstance(recipe, TrainedRecipe) else ()
    for field, specs in (("rewards", getattr(recipe, "rewards", ())), ("watch.rewards", watched)):
        yield from ((f"{field}.{index}", spec) for index, spec in enumerate(specs))


STAGES: Mapping[str, type[Recipe]] = {kind.model_fields["stage"].default: kind for kind in get_args(Recipe)}
