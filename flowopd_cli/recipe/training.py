"""The sections of a training: the loop, what is watched, the objectives. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from flowopd_cli.core.queries import Query
from flowopd_cli.recipe.fields import BETA_LAW, Fraction, Law, Spec, Trackers
from flowopd_cli.recipe.sections import PromptSpec, RewardSpec


class BestSpec(Spec):
    """The metric of the best checkpoint: its mean over the ``checkpoint_every`` iterations up to the checkpoint."""

    metric: str  #: a key of `metrics.jsonl`
    direction: Literal["max", "min"] = "max"  #: whether high or low is good


class QuerySpec(Spec):
    """The trained steps of a trajectory that an iteration learns, drawn anew for each."""

    steps: PositiveInt | None = None  #: number of steps; null is all
    #: chance of a step: `uniform`, or `beta(A, B)`, the density of that law along the trajectory, from 0 (noise) to 1;
    #: A and B are at most 50
    law: Law = "uniform"
    #: weight a step by the inverse of its chance, so that the gradient is on average that of all steps; false makes the
    #: law the weight of the steps
    unbiased: bool = True

    @property
    def query(self) -> Query:
        """The same with the law's numbers."""
        match = BETA_LAW.fullmatch(self.law)
        return Query(self.steps, match and (float(match[1]), float(match[2])), self.unbiased)

    @model_validator(mode="after")
    def _law_has_a_choice(self) -> QuerySpec:
        if self.law != "uniform" and self.steps is None:
            raise ValueError(f"law {self.law} has no choice while all steps are trained: set steps")
        return self


class StopSpec(Spec):
    """Early end of a training, after ``patience`` bad values of a metric in a row.

    A value is bad beyond a bound, or without bounds if it does not improve on the best before it. The adapter is then
    that of the best checkpoint: by ``keep_best``, else by this metric. With bounds, only checkpoints within them count;
    without ``keep_best``, the newest of these is the best.
    """

    metric: str  #: a key of `metrics.jsonl`
    patience: PositiveInt = 3  #: bad values in a row that end the training
    below: float | None = None  #: values below this bound are bad
    above: float | None = None  #: values above this bound are bad
    direction: Literal["max", "min"] = "max"  #: without bounds: whether high or low is good

    @model_validator(mode="after")
    def _leaves_room(self) -> StopSpec:
        if self.below is not None and self.above is not None and self.below > self.above:
            raise ValueError(f"every value is below {self.below:g} or above {self.above:g}: below is the lower bound")
        return self


class TrainSpec(Spec):
    """The loop. One iteration is one rollout of ``groups * group_size`` pictures and its optimizer steps."""

    iterations: PositiveInt = 500  #: rollouts, each with its optimizer steps
    groups: PositiveInt = 48  #: prompts of an iteration, over all processes
    group_size: PositiveInt = 24  #: pictures of each prompt; at least 2 in `teacher`, which compares them
    updates: PositiveInt = 2  #: optimizer steps of an iteration
    query: QuerySpec = QuerySpec()  #: the trained steps of an iteration
    micro: PositiveInt = 8  #: rows of a micro-batch (a row is a picture at a step); does not change results
    rollout_batch: PositiveInt = 32  #: pictures drawn at once; does not change results
    #: draw at most this many fresh groups an iteration, to replace groups whose rewards are all equal
    resample_flat: NonNegativeInt = 0
    #: draw at most this many pictures an iteration again, with other noise, to replace those that could not be scored
    refill: NonNegativeInt = 0
    gradient_checkpointing: bool = False  #: recompute each block in the backward: less memory, more time
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  #: `adamw8bit` holds the moments of large parameters in 8 bits
    lr: PositiveFloat = 3e-4  #: learning rate
    warmup: NonNegativeInt = 0  #: optimizer steps until the full learning rate
    #: the learning rate after that: two fall to 0 at the last planned step
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    weight_decay: NonNegativeFloat = 1e-4  #: weight decay of AdamW
    max_grad_norm: PositiveFloat = 1.0  #: gradients are clipped to this norm
    skip_limit: PositiveInt = 5  #: this many skipped (non-finite) optimizer steps in a row end the run
    #: decay of the adapter's moving average, which is the saved adapter; 0 is none
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    ema_every: PositiveInt = 8  #: optimizer steps between its updates; saving takes in the remaining ones
    checkpoint_every: PositiveInt = 50  #: iterations between checkpoints
    keep_checkpoints: PositiveInt = 2  #: number of newest checkpoints to keep
    keep_best: BestSpec | None = None  #: also keep the checkpoint with the best mean of a metric; null is none
    stop: StopSpec | None = None  #: end early, with the best checkpoint; null is never
    sample_every: NonNegativeInt = 50  #: iterations between sheets of samples; 0 is none
    watch_every: NonNegativeInt = 0  #: iterations between watches (section `watch`), from the start on; 0 is none
    processes: PositiveInt = 1  #: devices of this machine that share an iteration's groups
    track: Trackers = "none"  #: trackers besides `metrics.jsonl`: tensorboard, wandb, mlflow, trackio, with commas

    @model_validator(mode="before")
    @classmethod
    def _read_earlier_field(cls, data: Any) -> Any:
        """``steps_per_rollout`` of earlier versions is ``query.steps``."""
        if not isinstance(data, dict) or "steps_per_rollout" not in data:
            return data
        query, steps = data.get("query") or {}, data["steps_per_rollout"]
        if steps is not None and isinstance(query, dict):
            if query.get("steps") is not None:
                raise ValueError("steps_per_rollout is the earlier name of query.steps: leave it out")
            query = {**query, "steps": steps}
        return {**{key: value for key, value in data.items() if key != "steps_per_rollout"}, "query": query}

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names in ``track``."""
        return () if self.track == "none" else tuple(self.track.split(","))

    @model_validator(mode="after")
    def _watches_its_metrics(self) -> TrainSpec:
        for field, spec in (("keep_best", self.keep_best), ("stop", self.stop)):
            if spec is not None and spec.metric.startswith("watch/") and not self.watch_every:
                raise ValueError(f"{field}.metric {spec.metric} is logged by a watch: set train.watch_every")
        return self


class WatchSpec(Spec):
    """Fixed prompts and seeds, drawn every ``train.watch_every`` iterations by the adapter that would be saved.

    The figures show what a policy loses while its reward rises; nothing is learned from them.
    """

    rewards: tuple[RewardSpec, ...] = ()  #: rewards to score for the log; if empty, the recipe's own
    #: prompt sources; null is the recipe's, in the split `validation` where a source has one
    prompts: Annotated[tuple[PromptSpec, ...], Field(min_length=1)] | None = None
    groups: PositiveInt = 8  #: prompts of a watch, over all processes
    group_size: PositiveInt = 4  #: pictures of each prompt; at least 2 to measure the diversity


class CreditSpec(Spec):
    """How rewards become advantages."""

    adv_clip: PositiveFloat = 5.0  #: advantages are clipped to plus and minus this
    #: advantages are divided by the deviation of their group, or of all pictures of the same task in the iteration
    std: Literal["group", "global"] = "global"
    #: normalize the weighted sum of the rewards, or each reward alone and sum their advantages by weight
    normalize: Literal["total", "each"] = "total"


class GRPOSpec(CreditSpec):
    """Group-relative policy optimization."""

    clip: PositiveFloat = 1e-4  #: clip range of the ratio of probabilities
    #: bound each ratio by `clip`, or drop rows whose KL to the sampling policy reached `tau` and would grow (Flow-DPPO)
    trust: Literal["clip", "mask"] = "clip"
    tau: PositiveFloat = 1e-5  #: for `mask`
    #: the ratio of probabilities; GRPO-Guard's, whose clip range is about 2e-6; or that of the released code of CPS,
    #: without the variance: `docs/method.md` has the formulas
    ratio: Literal["plain", "guarded", "unscaled"] = "plain"
    #: the loss unchanged, or divided by its factor at each noise level, so that all levels learn alike
    level_weight: Literal["none", "equal"] = "none"
    #: weight of the KL to the base, flat groups included; on ten steps 0.0091 is 0.04 of Flow-GRPO, whose KL lacks dt
    beta: NonNegativeFloat = 0.0091

    @property
    def compares_velocities(self) -> bool:
        """Whether the loss needs the velocities of the rollout."""
        return self.trust == "mask" or self.ratio == "guarded"


class ForwardSpec(CreditSpec):
    """What DiffusionNFT and AWM share: final latents are noised again, and velocities learn from their advantages.

    After n optimizer steps, skipped ones included, the policy's slow copy keeps
    ``min(slow_rate * (n - slow_start), slow_most)`` of itself and takes the rest from the policy.
    """

    levels: PositiveInt | None = None  #: noise levels of each picture, at most `sampling.steps`; null is all but one
    base_weight: NonNegativeFloat = 1e-4  #: weight of the squared distance to the base's velocity; 0 turns it off
    slow_start: NonNegativeInt = 0  #: optimizer steps in which the slow copy equals the policy
    slow_rate: NonNegativeFloat = 0.001  #: growth of the share that it keeps, by optimizer step
    slow_most: Annotated[float, Field(ge=0, lt=1)] = 0.5  #: the largest share that it keeps


class NFTSpec(ForwardSpec):
    """DiffusionNFT: the slow copy draws; the policy moves towards good pictures and away from bad ones."""

    beta: PositiveFloat = 1.0  #: how far the two velocities of the loss are from the slow copy's


class AWMSpec(ForwardSpec):
    """Advantage-weighted matching: the policy draws, and is held to its slow copy."""

    levels: PositiveInt | None = 6  #: noise levels of each picture, one in each of as many parts of the grid
    base_weight: NonNegativeFloat = 1e-3  #: weight of the squared distance to the base's velocity; 0 turns it off
    slow_weight: NonNegativeFloat = 1.0  #: weight of the squared distance to the slow copy's velocity
    slow_most: Annotated[float, Field(ge=0, lt=1)] = 0.3  #: the largest share that the slow copy keeps
    power: Fraction = 0.25  #: exponent of the squared error in the likelihood
    clip: PositiveFloat = 1.0  #: clip range of the ratio of likelihoods


class OPDSpec(Spec):
    """On-policy distillation."""

    #: the closed-form KL through the policy's mean, or the policy gradient of the sampled log-ratio
    estimator: Literal["pathwise", "score"] = "pathwise"
    #: the KL unchanged, without dt, or the squared velocity error at every step alike
    step_weight: Literal["kl", "kl_no_dt", "velocity"] = "kl"
    #: factor of the difference between teacher and base in the target, `v_base + factor * (v_teacher - v_base)`; 1 is
    #: the teacher
    extrapolate: PositiveFloat = 1.0
    #: smaller steps in which targets and anchor walk each sampling step from the student's state; the label is their
    #: average velocity. For few `sampling.steps` of `sampling.kernel: ode`; 1 is the velocity at the state itself
    teacher_substeps: PositiveInt = 1
    clip: PositiveFloat = 1e-4  #: clip range of the ratio, for `score`
    adv_clip: PositiveFloat = 5.0  #: clip of the advantages, for `score`
    log_rewards_every: NonNegativeInt = 0  #: iterations between scorings for the log; 0 is never
    #: prompts of all tasks in every optimizer step, or those of one task an iteration, in turn by `prompts[].weight`
    teachers: Literal["mixed", "alternating"] = "mixed"
    #: train each step during the rollout or after it, with the same gradients; null is `fused`
    #: for `pathwise` with one optimizer step a rollout and no window
    schedule: Literal["fused", "replay"] | None = None


class SFTSpec(Spec):
    """Supervised cold start on the best picture of every group of ``train.group_size``."""

    samples: PositiveInt = 512  #: pictures kept in all, the best of each group
    batch: PositiveInt = 64  #: rows of an optimizer step
    logit_mean: float = 0.0  #: mean of sigma's logit-normal distribution
    logit_std: PositiveFloat = 1.0  #: standard deviation of the same
