"""The sections of a recipe: one frozen pydantic model each, whose defaults are the published settings. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from flowopd_cli.models.files.families import GUIDANCE_RULES, family
from flowopd_cli.recipe.fields import (
    METADATA,
    ONE,
    RANKLESS,
    SEVERAL,
    Attention,
    Base,
    Fraction,
    Guidances,
    Options,
    Quantize,
    RewardName,
    Seed,
    Spec,
    Targets,
    Weight,
    refuse_secrets,
)


class ModelSpec(Spec):
    """The base model."""

    family: str = "sd3"  #: the kind of pipeline: a name of `MODELS`
    pretrained: Base = "stabilityai/stable-diffusion-3.5-medium"  #: `toy`, a diffusers folder or a Hub id
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
    #: bits of the frozen base: its blocks' weights in 8 bits (`int8`) or 4 bits (`nf4`); adapters and steps are float32
    quantize: Quantize = "none"
    #: the largest norm of a guided velocity, relative to that of the prompt's own; null is no limit (Z-Image alone)
    guidance_limit: PositiveFloat | None = None
    #: the first part of the path, from the noise, that is guided; null is all of it (Z-Image alone)
    guidance_until: Fraction | None = None
    shard: bool = False  #: shard the base over the processes (FSDP), if one device cannot hold it

    @model_validator(mode="after")
    def _guidance_is_the_pipelines(self) -> ModelSpec:
        known = family(self.family).guidance_arguments
        other = next((name for name in GUIDANCE_RULES if getattr(self, name) is not None and name not in known), None)
        if other is not None:
            raise ValueError(f"{other}: the pipeline of the family {self.family} has no such rule: leave it out")
        return self

    @model_validator(mode="after")
    def _compile_needs_whole_base(self) -> ModelSpec:
        if self.shard and self.compile != "none":
            raise ValueError("a sharded base cannot be compiled: set model.compile to none, or model.shard to false")
        return self

    @model_validator(mode="after")
    def _quantized_base_is_whole(self) -> ModelSpec:
        if self.shard and self.quantize != "none":
            raise ValueError(
                f"a base in {self.quantize} cannot be sharded: set model.quantize to none, or model.shard to false"
            )
        return self


class AdapterSpec(Spec):
    """What is trained: a LoRA, or all weights of the transformer."""

    #: `lora`, or `full` for all weights of the transformer, which needs several times the memory and a learning rate
    #: about ten times lower; a full model as `init` sets it
    kind: Literal["lora", "full"] = "lora"
    #: where the average and the slow copy of fully trained weights are: `cpu` saves memory of the device, and copies
    #: them to it when they draw
    copies: Literal["device", "cpu"] = "device"
    rank: PositiveInt = 32  #: rank of the LoRA
    alpha: PositiveInt = 64  #: the update is scaled by alpha / rank
    #: linear layers that get a LoRA, by the end of their names; `attention` is all inside attention, `all-linear` all;
    #: the family's own if empty
    targets: Targets = ()
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
    base: Base | None = None
    family: str | None = None  #: the kind of its own base; null recognizes it, else takes the student's
    revision: str | None = None  #: of its own base, as `model.revision`
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  #: precision of its own base
    quantize: Quantize = "none"  #: bits of its own base, as `model.quantize`
    #: `cpu` holds its own base in the host's memory and copies it to the device for each forward
    offload: Literal["none", "cpu"] = "none"

    @model_validator(mode="after")
    def _settings_of_own_base(self) -> TeacherSpec:
        fields = {"family": None, "revision": None, "dtype": "auto", "quantize": "none", "offload": "none"}
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
        own |= {"revision": self.revision, "dtype": self.dtype, "quantize": self.quantize, "shard": False}
        if own["family"] != student.family:
            own |= dict.fromkeys(GUIDANCE_RULES)
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
    options: Annotated[dict[str, dict[str, Any]], AfterValidator(refuse_secrets)] = Field(default_factory=dict)
    pictures: str | None = None  #: a folder with another program's pictures, to score instead of drawing
    #: a CSV file that lists these pictures, in any layout, with their prompts: columns file, prompt, metadata
    pictures_csv: str | None = None
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
    def _a_list_has_its_folder(self) -> EvalSpec:
        if self.pictures_csv is not None and self.pictures is None:
            raise ValueError(
                f"pictures_csv {self.pictures_csv} lists the pictures of a folder: name it by --images DIR"
            )
        return self

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
