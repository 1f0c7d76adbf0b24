"""The sections of a recipe: one frozen pydantic model each, whose defaults are the published settings. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from flowopd_cli.recipe_io import suggest
from flowopd_cli.recipe_secrets import leaves, secret_in_name, secret_in_options

ATTENTION_TARGETS = tuple(
    f"attn.{name}"
    for name in (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
)
Attention = Literal[
    "auto", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "flash", "flash3", "flex", "xformers"
]


TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def _trackers(value: Any) -> Any:
    """Names of trackers, as a list or with commas, as text with commas; ``none`` for none of them."""
    names = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
    known = [str(name).strip() for name in names if name is not None and str(name).strip() not in {"", "none"}]
    for name in known:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name[:40]!r}{suggest(name, TRACKERS)}; known: none, {', '.join(TRACKERS)}")
    return ",".join(dict.fromkeys(known)) or "none"


Trackers = Annotated[str, BeforeValidator(_trackers)]


class Spec(BaseModel):
    """Frozen, and refuses keys it does not know and numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ModelSpec(Spec):
    """The base model. ``pretrained`` is ``toy``, a diffusers folder or a hub id.

    ``dtype: auto`` is bfloat16 on CUDA and float32 elsewhere; adapters are float32 always. ``cache_prompts`` keeps the
    prompts' embeddings on disk, so that no later run with these prompts loads an encoder. ``tf32`` lets a GPU round the
    factors of float32 products. ``compile`` is a way of ``torch.compile`` for the transformer's blocks, ``attention`` a
    backend of diffusers. ``shard`` cuts the base into a piece for each process, where a device cannot hold it (FSDP).
    """

    family: str = "sd3"
    pretrained: str = "stabilityai/stable-diffusion-3.5-medium"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    resolution: PositiveInt | None = 512
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 128
    device: str = "auto"
    cache_prompts: bool = True
    tf32: bool = True
    compile: Literal["none", "default", "max-autotune", "aot_eager", "eager"] = "none"
    attention: Attention = "auto"
    shard: bool = False

    @model_validator(mode="after")
    def _compiled_whole(self) -> ModelSpec:
        if self.shard and self.compile != "none":
            raise ValueError("a base in shards cannot be compiled: set model.compile to none, or model.shard to false")
        return self


class AdapterSpec(Spec):
    """The LoRA that is trained. ``init`` starts it from another run's adapter."""

    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    targets: tuple[str, ...] = ATTENTION_TARGETS
    init: str | None = None


class WindowSpec(Spec):
    """Stochastic (and trained) steps only in ``[start, start + size)``, start drawn once per rollout."""

    size: PositiveInt
    start_min: Annotated[int, Field(ge=0)] = 0
    start_max: Annotated[int, Field(ge=0)] = 0


class SamplingSpec(Spec):
    """How trajectories are drawn. ``shift: null`` takes the scheduler's own."""

    steps: PositiveInt = 10
    shift: Annotated[float, Field(gt=0)] | None = None
    kernel: Literal["flow_sde", "cps", "ode"] = "flow_sde"
    eta: Annotated[float, Field(ge=0)] = 0.7
    guidance: Annotated[float, Field(ge=0)] = 4.5
    window: WindowSpec | None = None

    @property
    def deterministic(self) -> bool:
        """Whether no step draws noise."""
        return self.kernel == "ode" or self.eta == 0


class PromptSpec(Spec):
    """A prompt source: ``toy:geneval`` style names, or a ``.txt`` / ``.jsonl`` file of one task."""

    source: str
    task: str | None = None
    split: Literal["train", "validation", "test"] = "train"
    weight: Annotated[float, Field(gt=0)] = 1.0
    limit: PositiveInt | None = None


class RewardSpec(Spec):
    """A reward of the registry with its weight; ``task`` restricts it to the prompts of one task."""

    name: str
    weight: float = 1.0
    task: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _without_secrets(self) -> RewardSpec:
        """A recipe is kept beside its run and published with it."""
        found = secret_in_name(self.name) or secret_in_options(self.options)
        if found:
            raise ValueError(found)
        return self


class TeacherSpec(Spec):
    """A teacher: a run directory, an adapter folder, ``hub:repo@revision`` or ``base``."""

    ref: str
    guidance: Annotated[float, Field(ge=0)] | None = None


class AnchorSpec(Spec):
    """Manifold Anchor Regularization: the aesthetic teacher that every prompt is pulled towards.

    ``every`` k asks it at every k-th trained step, from an offset that each iteration draws; ``probability`` asks it at
    each with that chance. Either way it counts for the inverse there, so that the gradient is the same on average.
    """

    ref: str = "base"
    beta: Annotated[float, Field(ge=0)] = 0.02
    guidance: Annotated[float, Field(ge=0)] | None = None
    every: PositiveInt = 1
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0


class BestSpec(Spec):
    """What tells the best checkpoint: the mean of a logged metric over the ``checkpoint_every`` iterations up to it."""

    metric: str
    direction: Literal["max", "min"] = "max"


class TrainSpec(Spec):
    """The loop. One iteration is one rollout of ``groups * group_size`` pictures and its optimizer steps.

    ``steps_per_rollout`` of the trained sampling steps teach, drawn anew each iteration; ``null`` takes them all.
    ``resample_flat``: so many fresh groups at most are drawn in an iteration of a teacher in place of groups whose
    rewards are all equal, which teach nothing; 0 lets those groups be. ``processes`` share an iteration's groups.
    ``gradient_checkpointing`` computes each block again in its backward instead of keeping what it computed.
    ``optimizer: adamw8bit`` keeps the moments of large parameters in 8 bits. Optimizer steps whose loss or gradient is
    not finite are skipped; ``skip_limit`` of them in a row end the run.
    The newest ``keep_checkpoints`` are kept, and with ``keep_best`` the best one beside them.
    ``track`` names trackers, several with commas: tensorboard, wandb, mlflow, trackio.
    """

    iterations: PositiveInt = 500
    groups: PositiveInt = 48
    group_size: PositiveInt = 24
    updates: PositiveInt = 2
    steps_per_rollout: PositiveInt | None = None
    micro: PositiveInt = 8
    rollout_batch: PositiveInt = 32
    resample_flat: Annotated[int, Field(ge=0)] = 0
    gradient_checkpointing: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    skip_limit: PositiveInt = 5
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    ema_every: PositiveInt = 8
    checkpoint_every: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2
    keep_best: BestSpec | None = None
    sample_every: Annotated[int, Field(ge=0)] = 50
    processes: PositiveInt = 1
    track: Trackers = "none"

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names that ``track`` holds."""
        return () if self.track == "none" else tuple(self.track.split(","))


class GRPOSpec(Spec):
    """Group-relative policy optimization."""

    clip: Annotated[float, Field(gt=0)] = 1e-4
    adv_clip: Annotated[float, Field(gt=0)] = 5.0
    std: Literal["group", "global"] = "global"
    beta: Annotated[float, Field(ge=0)] = 0.04


class OPDSpec(Spec):
    """On-policy distillation.

    ``schedule: fused`` learns each step while the rollout passes it, ``replay`` after the whole rollout; ``null`` is
    fused for ``pathwise`` with one optimizer step a rollout and no window. Both give the same gradients.
    """

    estimator: Literal["pathwise", "score"] = "pathwise"
    step_weight: Literal["kl", "kl_no_dt", "velocity"] = "kl"
    clip: Annotated[float, Field(gt=0)] = 1e-4
    adv_clip: Annotated[float, Field(gt=0)] = 5.0
    log_rewards_every: Annotated[int, Field(ge=0)] = 0
    schedule: Literal["fused", "replay"] | None = None


class SFTSpec(Spec):
    """Supervised cold start on the best picture of every group of ``train.group_size``."""

    samples: PositiveInt = 512
    batch: PositiveInt = 64
    logit_mean: float = 0.0
    logit_std: Annotated[float, Field(gt=0)] = 1.0


class MergeSpec(Spec):
    """How adapters become one."""

    method: Literal["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"] = "linear"
    weights: tuple[float, ...] | None = None
    rank: PositiveInt | None = None
    density: Annotated[float, Field(gt=0, le=1)] = 0.5


class EvalSpec(Spec):
    """Held-out evaluation: seeds are a function of prompt and image index alone.

    ``images`` a prompt are the suite's own number when left out. ``options`` go to the suite of that name.
    ``pictures`` is a folder that another program drew, ``import_scores`` one that official scorers wrote.
    """

    suites: tuple[str, ...] = ("geneval", "ocr")
    images: PositiveInt | None = None
    limit: PositiveInt | None = None
    split: Literal["validation", "test"] = "test"
    batch: PositiveInt = 16
    steps: PositiveInt = 40
    guidance: Annotated[float, Field(ge=0)] = 4.5
    seed: int = 42
    keep_images: Annotated[int, Field(ge=0)] = 8
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pictures: str | None = None
    import_scores: str | None = None
    fail_under: dict[str, float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _without_secrets(self) -> EvalSpec:
        """The options of suites may name workers too."""
        addresses = [value for _, value in leaves(self.options) if isinstance(value, str)]
        found = secret_in_options(self.options) or next(filter(None, map(secret_in_name, addresses)), None)
        if found:
            raise ValueError(found)
        return self


class PushSpec(Spec):
    """Publication on the Hub. ``evaluations`` empty: those beside the run that scored its adapter or its base."""

    repo: str | None = None
    private: bool = False
    license: str | None = None
    evaluations: tuple[str, ...] = ()
    verify_prompt: str = "a photo of a red circle"
    verify_steps: PositiveInt = 4
    verify_guidance: Annotated[float, Field(ge=0)] = 4.5
    tolerance: Annotated[float, Field(gt=0)] = 2 / 255
