"""The sections of a recipe: one frozen pydantic model each, whose defaults are the published settings. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from flowopd_cli.system.redact import leaves, secret_in_name, secret_in_options
from flowopd_cli.system.text import suggest

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


def _parse_trackers(value: Any) -> Any:
    """Tracker names, as a list or as text with commas, become text with commas; ``none`` if there are none."""
    entries = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
    names = [str(name).strip() for name in entries if name is not None and str(name).strip() not in {"", "none"}]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name[:40]!r}{suggest(name, TRACKERS)}; known: none, {', '.join(TRACKERS)}")
    return ",".join(dict.fromkeys(names)) or "none"


Trackers = Annotated[str, BeforeValidator(_parse_trackers)]


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

    family: str = "sd3"  #: what kind of pipeline it is: a name of `MODELS`
    pretrained: str = "stabilityai/stable-diffusion-3.5-medium"  #: `toy`, a diffusers folder or a Hub id
    revision: str | None = None  #: commit, tag or branch of a Hub id; its newest if null
    #: precision of the frozen base; `auto` is bfloat16 on CUDA, float32 elsewhere; adapters are float32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    resolution: PositiveInt | None = 512  #: side of a picture in pixels; null takes the base's own
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 128  #: tokens of a prompt that T5 reads
    device: str = "auto"  #: `auto`, `cpu`, `cuda` or `cuda:N`
    cache_prompts: bool = True  #: keep the prompts' embeddings on disk, for later runs to load no encoder
    tf32: bool = True  #: let a GPU round the factors of float32 products
    #: a way of `torch.compile` for the transformer's blocks
    compile: Literal["none", "default", "max-autotune", "aot_eager", "eager"] = "none"
    attention: Attention = "auto"  #: a backend of diffusers; `auto` leaves the choice to PyTorch
    shard: bool = False  #: cut the base into a piece for each process (FSDP), where a device cannot hold it

    @model_validator(mode="after")
    def _compiled_whole(self) -> ModelSpec:
        if self.shard and self.compile != "none":
            raise ValueError("a base in shards cannot be compiled: set model.compile to none, or model.shard to false")
        return self


class AdapterSpec(Spec):
    """The LoRA that is trained. ``init`` starts it from another run's adapter."""

    rank: PositiveInt = 32  #: of the LoRA's factors
    alpha: PositiveInt = 64  #: the update is scaled by alpha / rank
    #: modules that get a LoRA, by the end of their names; all attention projections by default
    targets: tuple[str, ...] = ATTENTION_TARGETS
    init: str | None = None  #: a run, an adapter folder or `hub:REPO@REVISION` to start from; null starts from the base


class WindowSpec(Spec):
    """Stochastic (and trained) steps only in ``[start, start + size)``, start drawn once per rollout."""

    size: PositiveInt  #: stochastic steps of a rollout
    start_min: Annotated[int, Field(ge=0)] = 0  #: the first step that the window may begin at, counted from 0
    start_max: Annotated[int, Field(ge=0)] = 0  #: the last one


class SamplingSpec(Spec):
    """How trajectories are drawn. ``shift: null`` takes the scheduler's own."""

    steps: PositiveInt = 10  #: sampling steps of a trajectory
    shift: Annotated[float, Field(gt=0)] | None = None  #: time shift of the grid; null takes the scheduler's own
    #: how a velocity becomes a step: the flow SDE, CPS, or Euler's ODE
    kernel: Literal["flow_sde", "cps", "ode"] = "flow_sde"
    eta: Annotated[float, Field(ge=0)] = 0.7  #: noise of a step in the kernel's own scale; 0 is the ODE
    #: classifier-free scale of the policy; 1 is without, at half the cost
    guidance: Annotated[float, Field(ge=0)] = 4.5
    window: WindowSpec | None = None  #: stochastic steps in a window only; null is all but the last

    @property
    def deterministic(self) -> bool:
        """Whether no step draws noise."""
        return self.kernel == "ode" or self.eta == 0


class PromptSpec(Spec):
    """A prompt source: ``toy:geneval`` style names, or a ``.txt`` / ``.jsonl`` file of one task."""

    source: str  #: a name of `PROMPTS`, or a `.txt` or `.jsonl` file
    task: str | None = None  #: the task of prompts whose rows name none; of a named source, only prompts of this task
    split: Literal["train", "validation", "test"] = "train"  #: of a named source
    weight: Annotated[float, Field(gt=0)] = 1.0  #: share of the iteration's groups, relative to the other sources
    limit: PositiveInt | None = None  #: the first so many prompts only; null is all


class RewardSpec(Spec):
    """A reward of the registry with its weight; ``task`` restricts it to the prompts of one task."""

    name: str  #: a name of `REWARDS`, `module:attr`, or `remote:URL`
    weight: float = 1.0  #: factor in the sum of rewards
    task: str | None = None  #: only for prompts of this task; null is all
    options: dict[str, Any] = Field(default_factory=dict)  #: arguments of the reward

    @model_validator(mode="after")
    def _without_secrets(self) -> RewardSpec:
        """A recipe is stored with its run and published with it."""
        secret = secret_in_name(self.name) or secret_in_options(self.options)
        if secret:
            raise ValueError(secret)
        return self


class TeacherSpec(Spec):
    """A teacher: a run directory, an adapter folder, ``hub:repo@revision`` or ``base``."""

    ref: str  #: a run, an adapter folder, `hub:REPO@REVISION` or `base`
    #: the teacher's classifier-free scale; null is `sampling.guidance`
    guidance: Annotated[float, Field(ge=0)] | None = None


class AnchorSpec(Spec):
    """Manifold Anchor Regularization: the aesthetic teacher that every prompt is pulled towards.

    ``every`` k asks it at every k-th trained step, from an offset that each iteration draws; ``probability`` asks it at
    each with that chance. Either way it counts for the inverse there, so that the gradient is the same on average.
    """

    ref: str = "base"  #: as of a teacher
    beta: Annotated[float, Field(ge=0)] = 0.02  #: weight of the KL to the anchor; 0 turns it off
    #: the anchor's classifier-free scale; null is `sampling.guidance`
    guidance: Annotated[float, Field(ge=0)] | None = None
    every: PositiveInt = 1  #: ask the anchor at every so many trained steps, and count it as often
    #: ask it at each trained step with this chance, and count it for the inverse
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0


class BestSpec(Spec):
    """What tells the best checkpoint: the mean of a logged metric over the ``checkpoint_every`` iterations up to it."""

    metric: str  #: a key of `metrics.jsonl`
    direction: Literal["max", "min"] = "max"  #: whether high or low is good


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

    iterations: PositiveInt = 500  #: rollouts, each with its optimizer steps
    groups: PositiveInt = 48  #: prompts of an iteration, over all processes
    group_size: PositiveInt = 24  #: pictures of each prompt
    updates: PositiveInt = 2  #: optimizer steps of an iteration
    #: trained sampling steps of an iteration, drawn anew each time; null is all
    steps_per_rollout: PositiveInt | None = None
    micro: PositiveInt = 8  #: rows of a micro-batch, a picture at a step being one; changes no result
    rollout_batch: PositiveInt = 32  #: pictures drawn at once; changes no result
    #: fresh groups at most of an iteration, in place of groups whose rewards are all equal
    resample_flat: Annotated[int, Field(ge=0)] = 0
    gradient_checkpointing: bool = False  #: compute each block again in its backward: less memory, more time
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"  #: `adamw8bit` keeps the moments of large parameters in 8 bits
    lr: Annotated[float, Field(gt=0)] = 3e-4  #: learning rate
    warmup: Annotated[int, Field(ge=0)] = 0  #: optimizer steps until the full learning rate
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  #: of AdamW
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0  #: gradients are clipped to this norm
    skip_limit: PositiveInt = 5  #: so many optimizer steps in a row that are not finite end the run
    #: of the adapter's moving average, which is what is saved; 0 is none
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    ema_every: PositiveInt = 8  #: optimizer steps between its updates
    checkpoint_every: PositiveInt = 50  #: iterations between checkpoints
    keep_checkpoints: PositiveInt = 2  #: how many of the newest checkpoints are kept
    keep_best: BestSpec | None = None  #: keep the checkpoint with the best mean of a metric beside them; null is none
    sample_every: Annotated[int, Field(ge=0)] = 50  #: iterations between sheets of samples; 0 is none
    processes: PositiveInt = 1  #: devices of this machine that share an iteration's groups
    track: Trackers = "none"  #: where curves go besides `metrics.jsonl`, several with commas

    @property
    def trackers(self) -> tuple[str, ...]:
        """The names that ``track`` holds."""
        return () if self.track == "none" else tuple(self.track.split(","))


class GRPOSpec(Spec):
    """Group-relative policy optimization."""

    clip: Annotated[float, Field(gt=0)] = 1e-4  #: clip range of the ratio of probabilities
    adv_clip: Annotated[float, Field(gt=0)] = 5.0  #: advantages are clipped to plus and minus this
    #: whose deviation divides the advantages: each group's, or that of the iteration
    std: Literal["group", "global"] = "global"
    beta: Annotated[float, Field(ge=0)] = 0.04  #: weight of the KL to the base


class OPDSpec(Spec):
    """On-policy distillation.

    ``schedule: fused`` learns each step while the rollout passes it, ``replay`` after the whole rollout; ``null`` is
    fused for ``pathwise`` with one optimizer step a rollout and no window. Both give the same gradients.
    """

    #: the closed-form KL through the policy's mean, or the policy gradient of the sampled log-ratio
    estimator: Literal["pathwise", "score"] = "pathwise"
    #: the KL as it is, without dt, or the squared velocity error at every step alike
    step_weight: Literal["kl", "kl_no_dt", "velocity"] = "kl"
    clip: Annotated[float, Field(gt=0)] = 1e-4  #: clip range of the ratio, of `score`
    adv_clip: Annotated[float, Field(gt=0)] = 5.0  #: clip of the advantages, of `score`
    log_rewards_every: Annotated[int, Field(ge=0)] = 0  #: iterations between scorings for the log; 0 is never
    #: learn each step as the rollout passes it, or after it; null is `fused` where it can be
    schedule: Literal["fused", "replay"] | None = None


class SFTSpec(Spec):
    """Supervised cold start on the best picture of every group of ``train.group_size``."""

    samples: PositiveInt = 512  #: pictures kept in all, the best of each group
    batch: PositiveInt = 64  #: rows of an optimizer step
    logit_mean: float = 0.0  #: of the logit-normal law of sigma
    logit_std: Annotated[float, Field(gt=0)] = 1.0  #: of the same law


class MergeSpec(Spec):
    """How adapters become one."""

    #: how updates become one; see `flowopd merge --help`
    method: Literal["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"] = "linear"
    weights: tuple[float, ...] | None = None  #: one for each adapter, used as given; null is 1 / K each
    rank: PositiveInt | None = None  #: of the result; null is the largest of the parts
    density: Annotated[float, Field(gt=0, le=1)] = 0.5  #: share of entries that TIES and DARE keep


class EvalSpec(Spec):
    """Held-out evaluation: seeds are a function of prompt and image index alone.

    ``images`` a prompt are the suite's own number when left out. ``options`` go to the suite of that name.
    ``pictures`` is a folder that another program drew, ``import_scores`` one that official scorers wrote.
    """

    suites: tuple[str, ...] = ("geneval", "ocr")  #: names of `SUITES`
    images: PositiveInt | None = None  #: pictures of each prompt; null is the suite's own number
    limit: PositiveInt | None = None  #: prompts of each suite, evenly spread; null is all
    split: Literal["validation", "test"] = "test"  #: tune on validation, report test
    batch: PositiveInt = 16  #: pictures drawn at once; changes no result
    steps: PositiveInt = 40  #: of the deterministic sampler
    guidance: Annotated[float, Field(ge=0)] = 4.5  #: classifier-free scale
    seed: int = 42  #: with prompt and picture number, the seed of a picture
    keep_images: Annotated[int, Field(ge=0)] = 8  #: pictures in the sheet under `samples/`
    #: arguments of suites and of their rewards, by suite
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    pictures: str | None = None  #: a folder that another program drew, to score instead of drawing
    import_scores: str | None = None  #: a folder that official scorers wrote, to read instead of scoring
    fail_under: dict[str, float] = Field(default_factory=dict)  #: exit code 3 below this mean, by suite

    @model_validator(mode="after")
    def _without_secrets(self) -> EvalSpec:
        """The options of suites may name workers too."""
        addresses = [value for _, value in leaves(self.options) if isinstance(value, str)]
        secret = secret_in_options(self.options) or next(filter(None, map(secret_in_name, addresses)), None)
        if secret:
            raise ValueError(secret)
        return self


class PushSpec(Spec):
    """Publication on the Hub. ``evaluations`` empty: those beside the run that scored its adapter or its base;
    ``private`` null: as the repository is, of a new one as the account's default says; ``license`` null: the base's.
    """

    repo: str | None = None  #: `OWNER/NAME` on the Hub; null writes the folder alone
    dry_run: bool = False  #: nothing is uploaded, on `--resume` neither; `--dry-run` sets it
    revision: str | None = None  #: branch; one that is missing is made; null is the main one
    private: bool | None = None  #: true or false; null leaves a repository as it is
    message: Annotated[str, Field(min_length=1, max_length=200)] = "Upload by flowopd push"  #: of the commit
    license: str | None = None  #: of the card; null is the base's
    evaluations: tuple[str, ...] = ()  #: eval runs for the card; those beside the run if empty
    verify_prompt: str = "a photo of a red circle"  #: what the check draws
    verify_steps: PositiveInt = 4  #: sampling steps of the check
    verify_guidance: Annotated[float, Field(ge=0)] = 4.5  #: classifier-free scale of the check
    #: largest difference of a pixel, of 1, between ours and plain diffusers
    tolerance: Annotated[float, Field(gt=0)] = 2 / 255
