"""The sections of a recipe: one frozen pydantic model each, whose defaults are the published settings. No torch."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from flowopd_cli.core.queries import Query
from flowopd_cli.system.redact import secret_in_name, secret_in_options
from flowopd_cli.system.text import suggest
from flowopd_cli.system.validation import Checked

ATTENTION_TARGETS = tuple(
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
Attention = Literal[
    "auto", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "flash", "flash3", "flex", "xformers"
]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what PyTorch's generators take
INIT = "init"  # as a reference of a distillation: the adapter of `adapter.init`, frozen
METADATA = "meta:"
ONE, SEVERAL = "<one>", "<several>"  # forms of a route, left out of messages
BETA_LAW = re.compile(r"beta\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")
RANKLESS = ("exact", "factor_average")  # methods of a merge whose rank follows from its adapters
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def _parse_trackers(value: Any) -> Any:
    """Tracker names, as a list or as text with commas, become text with commas; ``none`` if there are none."""
    entries = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
    names = [str(name).strip() for name in entries if name is not None and str(name).strip() not in {"", "none"}]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name[:40]!r}{suggest(name, TRACKERS)}; known: none, {', '.join(TRACKERS)}")
    return ",".join(dict.fromkeys(names)) or "none"


def _refuse_secrets(value: Any) -> Any:
    """Refuse secrets in a reward's name or options, because a recipe is stored and published with its run."""
    secret = secret_in_options(value) if isinstance(value, dict) else secret_in_name(value)
    if secret:
        raise ValueError(secret)
    return value


def _parse_targets(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _one_or_several(value: Any) -> Any:
    """Several different numbers of at least 0, or the only one."""
    numbers = value if isinstance(value, list | tuple) else (value,)
    if not numbers or not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
        raise ValueError(f"{value!r} should be a number of at least 0, or a list of several to compare")
    first, *others = dict.fromkeys(map(float, numbers))
    return (first, *others) if others else first


def _parse_law(value: str) -> str:
    """``beta(A, B)`` in one form, or ``uniform``."""
    match = BETA_LAW.fullmatch(value)
    with suppress(ValueError):
        if match and min(numbers := [float(match[1]), float(match[2])]) > 0 and max(numbers) < math.inf:
            return f"beta({numbers[0]:g}, {numbers[1]:g})"
    if value != "uniform":
        raise ValueError(f"no law {value[:40]!r}: write uniform or beta(A, B), A and B above 0, as in beta(5, 2)")
    return value


def _check_weight(value: float | str) -> float | str:
    """A number above 0, or ``meta:KEY``."""
    if value.startswith(METADATA) and len(value) > len(METADATA) if isinstance(value, str) else value > 0:
        return value
    raise ValueError(f"{value!r} is no weight: write a number above 0, or {METADATA}KEY for an entry of the metadata")


Weight = Annotated[float | str, AfterValidator(_check_weight)]
Law = Annotated[str, AfterValidator(_parse_law)]
Targets = Annotated[tuple[str, ...], BeforeValidator(_parse_targets)]
Trackers = Annotated[str, BeforeValidator(_parse_trackers)]
RewardName = Annotated[str, AfterValidator(_refuse_secrets)]
Options = Annotated[dict[str, Any], AfterValidator(_refuse_secrets)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Guidances = Annotated[float | tuple[float, ...], BeforeValidator(_one_or_several)]


class Spec(Checked):
    """Frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelSpec(Spec):
    """The base model."""

    family: str = "sd3"  #: the kind of pipeline: a name of `MODELS`
    pretrained: str = "stabilityai/stable-diffusion-3.5-medium"  #: `toy`, a diffusers folder or a Hub id
    revision: str | None = None  #: commit, tag or branch of a Hub id; its newest if null
    #: precision of the frozen base; `auto` is bfloat16 on CUDA, float32 elsewhere; adapters are always float32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    resolution: PositiveInt | None = 512  #: side of a picture in pixels; null takes the base's own
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 128  #: tokens of a prompt that T5 reads
    #: what to do if no text encoder reads the whole of a prompt; a text to render that is cut off is always refused
    too_long: Literal["warn", "refuse"] = "warn"
    device: str = "auto"  #: `auto`, `cpu`, `cuda` or `cuda:N`
    cache_prompts: bool = True  #: cache prompt embeddings on disk, so that later runs load no text encoder
    tf32: bool = True  #: let a GPU round the factors of float32 products
    #: the mode of `torch.compile` for the transformer's blocks
    compile: Literal["none", "default", "max-autotune", "aot_eager", "eager"] = "none"
    attention: Attention = "auto"  #: a backend of diffusers; `auto` leaves the choice to PyTorch
    shard: bool = False  #: shard the base over the processes (FSDP), if one device cannot hold it

    @model_validator(mode="after")
    def _compile_needs_whole_base(self) -> ModelSpec:
        if self.shard and self.compile != "none":
            raise ValueError("a sharded base cannot be compiled: set model.compile to none, or model.shard to false")
        return self


class AdapterSpec(Spec):
    """The LoRA that is trained."""

    rank: PositiveInt = 32  #: rank of the LoRA
    alpha: PositiveInt = 64  #: the update is scaled by alpha / rank
    #: linear layers that get a LoRA, by the end of their names; `attention` is all inside attention, `all-linear` all;
    #: the projections of joint attention by default
    targets: Targets = ATTENTION_TARGETS
    init: str | None = None  #: a run, an adapter folder or file, or `hub:REPO@REVISION` to start from; null is the base


class WindowSpec(Spec):
    """Stochastic (and trained) steps only in ``[start, start + size)``; start is drawn once per rollout."""

    size: PositiveInt  #: stochastic steps of a rollout
    start_min: NonNegativeInt = 0  #: the first step that the window may begin at, counted from 0
    start_max: NonNegativeInt = 0  #: the last one

    @model_validator(mode="after")
    def _start_range(self) -> WindowSpec:
        if self.start_max < self.start_min:
            raise ValueError(f"start_max {self.start_max} < start_min {self.start_min}")
        return self


class SamplingSpec(Spec):
    """How trajectories are drawn."""

    steps: PositiveInt = 10  #: sampling steps of a trajectory
    shift: PositiveFloat | None = None  #: time shift of the grid; null takes the scheduler's own
    kernel: Literal["flow_sde", "cps", "ode"] = "flow_sde"  #: sampling step: the flow SDE, CPS, or Euler's ODE
    eta: NonNegativeFloat = 0.7  #: noise of a step in the kernel's own scale; 0 is the ODE
    guidance: NonNegativeFloat = 4.5  #: classifier-free scale of the policy; 1 is no guidance, at half the cost
    window: WindowSpec | None = None  #: stochastic steps in a window only; null is all but the last

    @property
    def deterministic(self) -> bool:
        """Whether no step draws noise."""
        return self.kernel == "ode" or self.eta == 0

    @model_validator(mode="after")
    def _kernel_and_window(self) -> SamplingSpec:
        if self.kernel == "cps" and self.eta > 1:
            raise ValueError(f"eta is {self.eta}: the kernel cps is defined for eta between 0 and 1")
        window = self.window
        if window is None:
            return self
        end = window.start_max + window.size
        if end > self.steps:
            raise ValueError(f"window reaches step {end} of {self.steps}: lower start_max or size")
        if window.start_max == self.steps - 1:
            raise ValueError("window may contain only the last step, which never draws noise: lower start_max")
        if window.start_min < window.start_max and end == self.steps:
            raise ValueError(
                "some windows contain the last step, which never draws noise, and others do not: lower start_max"
            )
        return self


class PromptSpec(Spec):
    """A prompt source."""

    source: str  #: a name of `PROMPTS`, or a `.txt` or `.jsonl` file
    task: str | None = None  #: task of prompts without one; for a named source, use only prompts of this task
    split: Literal["train", "validation", "test"] = "train"  #: split of a named source
    weight: PositiveFloat = 1.0  #: share of the iteration's groups, relative to the other sources
    limit: PositiveInt | None = None  #: use only the first N prompts; null is all
    #: rows of a file without an id are `PREFIX:LINE`; null is `source`; `--resume` sets it for a file that has moved
    id_prefix: str | None = None


class RewardSpec(Spec):
    """A reward with its weight."""

    name: RewardName  #: a name of `REWARDS`, `module:attr`, or `remote:URL`
    weight: float = 1.0  #: factor in the sum of rewards; with 0 it is scored and logged only
    task: str | None = None  #: only for prompts of this task; null is all
    options: Options = Field(default_factory=dict)  #: arguments of the reward


class TeacherSpec(Spec):
    """The teacher of a task."""

    #: a run, an adapter folder or file, `hub:REPO@REVISION` or `base`; in `distill` also `init`, `adapter.init` frozen
    ref: str
    guidance: NonNegativeFloat | None = None  #: the teacher's classifier-free scale; null is `sampling.guidance`
    #: a base of its own, such as a larger one: as `model.pretrained`, with the student's autoencoder; null is the
    #: student's base
    base: str | None = None
    family: str | None = None  #: the kind of its own base; null recognizes it, else takes the student's
    revision: str | None = None  #: of its own base, as `model.revision`
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  #: precision of its own base
    #: `cpu` holds its own base in the host's memory and copies it to the device for each forward
    offload: Literal["none", "cpu"] = "none"

    @model_validator(mode="after")
    def _settings_of_own_base(self) -> TeacherSpec:
        fields = {"family": None, "revision": None, "dtype": "auto", "offload": "none"}
        changed = [name for name, default in fields.items() if getattr(self, name) != default]
        if self.base is None and changed:
            raise ValueError(f"{changed[0]} is for a teacher with a base of its own: name it by base, or leave it out")
        return self

    @property
    def share(self) -> float | str:
        """The weight of a task's only teacher."""
        return 1.0

    def own_model(self, student: ModelSpec) -> ModelSpec | None:
        """Its own base as a ``model`` section, other settings as the student's; ``None`` on the student's base."""
        if self.base is None:
            return None
        own: dict[str, Any] = {"pretrained": self.base, "family": self.family or student.family}
        own |= {"revision": self.revision, "dtype": self.dtype, "shard": False}
        model = student.model_copy(update=own | ({"compile": "none"} if self.offload == "cpu" else {}))
        return None if model == student else model


class MixedTeacherSpec(TeacherSpec):
    """One of several teachers of a task, whose velocities are summed."""

    weight: Weight = 1.0  #: its share, relative to the others'; `meta:KEY` reads it from the prompt's metadata

    @property
    def share(self) -> float | str:
        """The weight, or the key of the metadata that has it."""
        return self.weight.removeprefix(METADATA) if isinstance(self.weight, str) else self.weight


def _route_form(value: Any) -> str:
    return SEVERAL if isinstance(value, list | tuple) else ONE


#: one teacher, or a list of several with weights
RouteSpec = Annotated[
    Annotated[TeacherSpec, Tag(ONE)] | Annotated[tuple[MixedTeacherSpec, ...], Field(min_length=1), Tag(SEVERAL)],
    Discriminator(_route_form),
]


class AnchorSpec(Spec):
    """Manifold Anchor Regularization: an aesthetic teacher that the student is pulled towards on every prompt.

    With ``every`` or ``probability`` the anchor runs at fewer steps and is weighted by the inverse, so that the
    gradient is the same on average. The offset of ``every`` is drawn for each iteration.
    """

    ref: str = "base"  #: as for a teacher
    beta: NonNegativeFloat = 0.02  #: weight of the KL to the anchor; 0 turns it off
    guidance: NonNegativeFloat | None = None  #: the anchor's classifier-free scale; null is `sampling.guidance`
    every: PositiveInt = 1  #: run the anchor at every N-th trained step, weighted by N
    probability: Fraction = 1.0  #: run it at each trained step with this probability, weighted by the inverse


class BestSpec(Spec):
    """The metric of the best checkpoint: its mean over the ``checkpoint_every`` iterations up to the checkpoint."""

    metric: str  #: a key of `metrics.jsonl`
    direction: Literal["max", "min"] = "max"  #: whether high or low is good


class QuerySpec(Spec):
    """The trained steps of a trajectory that an iteration learns, drawn anew for each."""

    steps: PositiveInt | None = None  #: number of steps; null is all
    #: chance of a step: `uniform`, or `beta(A, B)`, the density of that law along the trajectory, from 0 (noise) to 1
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

    levels: PositiveInt | None = None  #: noise levels of each picture; null is all sampling steps but one
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


class MergeSpec(Spec):
    """How adapters are merged."""

    #: merge method; see `flowopd merge --help`
    method: Literal["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"] = "linear"
    weights: tuple[float, ...] | None = None  #: one for each adapter; null is 1 / K each
    #: divide by the sum of the weights, for `ties` and `dare_ties` by that of the adapters that agree on an entry's
    #: sign; null is true for `ties`, false for the others
    normalize: bool | None = None
    rank: PositiveInt | None = None  #: rank of the result; null is the largest input rank
    density: Fraction = 0.5  #: share of entries that TIES and DARE keep

    @model_validator(mode="after")
    def _rank_has_meaning(self) -> MergeSpec:
        if self.method in RANKLESS and self.rank is not None:
            raise ValueError(
                f"rank {self.rank} has no meaning for method {self.method}, whose rank follows from its adapters: "
                "leave it out, or choose linear"
            )
        return self

    @model_validator(mode="after")
    def _weights_can_be_normalized(self) -> MergeSpec:
        electing = self.method in {"ties", "dare_ties"}  # these divide by the sum of |weights|
        weights = self.weights if self.normalize and not electing else None
        if weights and abs(sum(weights)) <= 1e-14 * sum(map(abs, weights)):
            raise ValueError(f"weights {list(weights)} sum to 0 and cannot be normalized: set merge.normalize to false")
        return self


class EvalSpec(Spec):
    """Held-out evaluation."""

    suites: tuple[str, ...] = ("geneval", "ocr")  #: names of `SUITES`
    images: PositiveInt | None = None  #: pictures of each prompt; null is the suite's own number
    limit: PositiveInt | None = None  #: prompts of each suite, evenly spread; null is all
    split: Literal["validation", "test"] = "test"  #: tune on validation, report test
    batch: PositiveInt = 16  #: pictures drawn at once; does not change results
    steps: PositiveInt = 40  #: steps of the deterministic sampler
    guidance: Guidances = 4.5  #: classifier-free scale, or a list of them to compare
    seed: Seed = 42  #: combined with prompt and picture number, seeds each picture
    keep_images: NonNegativeInt = 8  #: pictures in the sheet under `samples/`
    #: arguments of suites and of their rewards, by suite
    options: Annotated[dict[str, dict[str, Any]], AfterValidator(_refuse_secrets)] = Field(default_factory=dict)
    pictures: str | None = None  #: a folder with another program's pictures, to score instead of drawing
    import_scores: str | None = None  #: a folder written by official scorers, to read instead of scoring
    fail_under: dict[str, float] = Field(default_factory=dict)  #: exit code 3 below this mean, by suite

    @property
    def by_guidance(self) -> dict[str, tuple[float, EvalSpec]]:
        """Each guidance, and the protocol with it alone, by a name for its files; a single guidance has no name."""
        if not isinstance(self.guidance, tuple):
            return {"": (self.guidance, self)}
        names = {f"guidance-{str(value).removesuffix('.0')}": value for value in self.guidance}
        return {name: (value, self.model_copy(update={"guidance": value})) for name, value in names.items()}

    @model_validator(mode="after")
    def _several_guidances_are_drawn(self) -> EvalSpec:
        fields = ("pictures", "import_scores", "fail_under")
        one = next((name for name in fields if getattr(self, name)), None)
        if isinstance(self.guidance, tuple) and one is not None:
            listed = ", ".join(f"{value:g}" for value in self.guidance)
            raise ValueError(
                f"guidance is {listed}, but {one} is about one set of pictures: set guidance to one number"
            )
        return self


class PushSpec(Spec):
    """Publication on the Hub."""

    repo: str | None = None  #: `OWNER/NAME` on the Hub; null writes the folder alone
    dry_run: bool = False  #: upload nothing, also on `--resume`; `--dry-run` sets it
    revision: str | None = None  #: the branch, created if missing; null is the main one
    private: bool | None = None  #: null leaves a repository unchanged; a new one gets the account's default
    message: Annotated[str, Field(min_length=1, max_length=200)] = "Upload by flowopd push"  #: commit message
    license: str | None = None  #: license on the card; null is the base's
    evaluations: tuple[str, ...] = ()  #: eval runs for the card; if empty, those beside the run of its adapter or base
    verify_prompt: str = "a photo of a red circle"  #: the prompt of the check
    verify_steps: PositiveInt = 4  #: sampling steps of the check
    verify_guidance: NonNegativeFloat = 4.5  #: classifier-free scale of the check
    tolerance: PositiveFloat = 2 / 255  #: largest difference of a pixel, of 1, between ours and plain diffusers
