"""Recipes: one pydantic model per stage, keyed on ``stage``; loading, ``--set``, hashing. No torch here.

A recipe is complete: every default is written out in ``recipe.yaml`` of the run directory. The class defaults
are the published settings for SD3.5-Medium (docs/paper_map.md); ``recipes/toy/*.yaml`` overrides them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError, model_validator

from flowopd_cli.errors import RecipeError

SD3_TARGETS = tuple(
    f"attn.{name}"
    for name in (
        *("to_q", "to_k", "to_v", "to_out.0"),
        *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
    )
)


class Spec(BaseModel):
    """Frozen, and refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelSpec(Spec):
    """The base model. ``pretrained`` is ``toy``, a diffusers folder or a hub id."""

    family: str = "sd3"
    pretrained: str = "stabilityai/stable-diffusion-3.5-medium"
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    resolution: PositiveInt | None = 512
    max_sequence_length: Annotated[int, Field(ge=1, le=512)] = 128
    device: str = "auto"


class AdapterSpec(Spec):
    """The LoRA that is trained. ``init`` starts it from another run's adapter."""

    rank: PositiveInt = 32
    alpha: PositiveInt = 64
    targets: tuple[str, ...] = SD3_TARGETS
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


class TeacherSpec(Spec):
    """A teacher: a run directory, an adapter folder, ``hub:repo@revision`` or ``base``."""

    ref: str
    guidance: Annotated[float, Field(ge=0)] | None = None
    weight: float = 1.0


class AnchorSpec(Spec):
    """Manifold Anchor Regularization: the aesthetic teacher that every prompt is pulled towards."""

    ref: str = "base"
    beta: Annotated[float, Field(ge=0)] = 0.02
    guidance: Annotated[float, Field(ge=0)] | None = None


class TrainSpec(Spec):
    """The loop. One iteration is one rollout of ``groups * group_size`` pictures and its optimizer steps."""

    iterations: PositiveInt = 500
    groups: PositiveInt = 48
    group_size: PositiveInt = 24
    updates: PositiveInt = 2
    micro: PositiveInt = 8
    rollout_batch: PositiveInt = 32
    lr: Annotated[float, Field(gt=0)] = 3e-4
    warmup: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    ema_every: PositiveInt = 8
    checkpoint_every: PositiveInt = 50
    keep_checkpoints: PositiveInt = 2
    sample_every: Annotated[int, Field(ge=0)] = 50
    processes: PositiveInt = 1


class GRPOSpec(Spec):
    """Group-relative policy optimization."""

    clip: Annotated[float, Field(gt=0)] = 1e-4
    adv_clip: Annotated[float, Field(gt=0)] = 5.0
    std: Literal["group", "global"] = "global"
    beta: Annotated[float, Field(ge=0)] = 0.04
    step_weight: Literal["uniform", "guard"] = "uniform"


class OPDSpec(Spec):
    """On-policy distillation."""

    estimator: Literal["pathwise", "score"] = "pathwise"
    step_weight: Literal["kl", "kl_no_dt", "velocity"] = "kl"
    clip: Annotated[float, Field(gt=0)] = 1e-4
    adv_clip: Annotated[float, Field(gt=0)] = 5.0
    log_rewards_every: Annotated[int, Field(ge=0)] = 0


class SFTSpec(Spec):
    """Supervised cold start on the teachers' best pictures."""

    best_of: PositiveInt = 1
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
    """Held-out evaluation: seeds are a function of prompt and image index alone."""

    suites: tuple[str, ...] = ("geneval", "ocr", "quality")
    images: PositiveInt = 4
    limit: PositiveInt | None = None
    split: Literal["validation", "test"] = "test"
    batch: PositiveInt = 16
    steps: PositiveInt = 40
    guidance: Annotated[float, Field(ge=0)] = 4.5
    seed: int = 42
    keep_images: Annotated[int, Field(ge=0)] = 8


class PushSpec(Spec):
    """Publication on the Hub."""

    repo: str | None = None
    private: bool = False
    license: str | None = None
    verify_prompt: str = "a photo of a red circle"
    tolerance: Annotated[float, Field(gt=0)] = 2 / 255


class _Recipe(Spec):
    model: ModelSpec = ModelSpec()
    seed: int = 0


class _Trained(_Recipe):
    adapter: AdapterSpec = AdapterSpec()
    sampling: SamplingSpec = SamplingSpec()
    prompts: tuple[PromptSpec, ...] = Field(min_length=1)
    train: TrainSpec = TrainSpec()


class TeacherRecipe(_Trained):
    """``flowopd teacher``."""

    stage: Literal["teacher"] = "teacher"
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    grpo: GRPOSpec = GRPOSpec()

    @model_validator(mode="after")
    def _policy_must_be_stochastic(self) -> TeacherRecipe:
        if self.sampling.kernel == "ode" or self.sampling.eta == 0:
            raise ValueError("GRPO needs a stochastic policy: set sampling.kernel to flow_sde or cps and eta > 0")
        _check_window(self.sampling)
        return self


class ColdstartRecipe(_Trained):
    """``flowopd coldstart``: SFT on teacher trajectories."""

    stage: Literal["coldstart"] = "coldstart"
    teachers: dict[str, TeacherSpec] = Field(min_length=1)
    rewards: tuple[RewardSpec, ...] = ()
    sft: SFTSpec = SFTSpec()


class MergeRecipe(_Recipe):
    """``flowopd merge``."""

    stage: Literal["merge"] = "merge"
    adapters: tuple[str, ...] = Field(min_length=1)
    merge: MergeSpec = MergeSpec()

    @model_validator(mode="after")
    def _one_weight_each(self) -> MergeRecipe:
        given = self.merge.weights
        if given is not None and len(given) != len(self.adapters):
            raise ValueError(f"merge.weights has {len(given)} values for {len(self.adapters)} adapters")
        return self


class DistillRecipe(_Trained):
    """``flowopd distill``."""

    stage: Literal["distill"] = "distill"
    routing: dict[str, TeacherSpec] = Field(min_length=1)
    anchor: AnchorSpec = AnchorSpec()
    rewards: tuple[RewardSpec, ...] = ()
    opd: OPDSpec = OPDSpec()

    @model_validator(mode="after")
    def _estimator_fits_kernel(self) -> DistillRecipe:
        deterministic = self.sampling.kernel == "ode" or self.sampling.eta == 0
        if self.opd.estimator == "score" and deterministic:
            raise ValueError("opd.estimator score needs a stochastic kernel: flow_sde or cps with eta > 0")
        _check_window(self.sampling)
        return self


class EvalRecipe(_Recipe):
    """``flowopd eval``. ``adapter: null`` evaluates the base."""

    stage: Literal["eval"] = "eval"
    adapter: str | None = None
    eval: EvalSpec = EvalSpec()


class PushRecipe(_Recipe):
    """``flowopd push``."""

    stage: Literal["push"] = "push"
    run: str
    push: PushSpec = PushSpec()


Recipe = TeacherRecipe | ColdstartRecipe | MergeRecipe | DistillRecipe | EvalRecipe | PushRecipe
STAGES: Mapping[str, type[_Recipe]] = {
    "teacher": TeacherRecipe,
    "coldstart": ColdstartRecipe,
    "merge": MergeRecipe,
    "distill": DistillRecipe,
    "eval": EvalRecipe,
    "push": PushRecipe,
}


def _check_window(sampling: SamplingSpec) -> None:
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


def load(path: str | Path, *, overrides: Sequence[str] = (), stage: str | None = None, **values: Any) -> Recipe:
    """Read a YAML recipe, lay ``values`` and then ``--set`` overrides over it, and validate it.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown, a value is out of range.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({_reason(error)})") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields, this is {type(data).__name__}")
    return build(data, overrides=overrides, stage=stage, where=str(path), **values)


def build(
    data: Mapping[str, Any],
    *,
    overrides: Sequence[str] = (),
    stage: str | None = None,
    where: str = "recipe",
    **values: Any,
) -> Recipe:
    """Validate a mapping as the recipe of its ``stage``; see :func:`load`."""
    tree = json.loads(json.dumps(data, default=str))
    for dotted, value in values.items():
        _assign(tree, dotted.replace("__", "."), value)
    for expression in overrides:
        key, value = parse_override(expression)
        _assign(tree, key, value)
    named = tree.get("stage", stage)
    if stage is not None and named != stage:
        raise RecipeError(f"{where}: is a {named} recipe, but the command is {stage}")
    if named not in STAGES:
        raise RecipeError(f"{where}: stage {named!r} is not one of {', '.join(STAGES)}")
    model = STAGES[named]
    try:
        return TypeAdapter(model).validate_python(tree)  # type: ignore[return-value]
    except ValidationError as error:
        raise RecipeError(f"{where}: {_first(error, model)}") from error


def parse_override(expression: str) -> tuple[str, Any]:
    """``a.b=c`` as a dotted key and a YAML value."""
    key, equals, raw = expression.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"--set {expression}: write it as section.field=value")
    try:
        return key.strip(), yaml.safe_load(raw)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {expression}: the value is not YAML") from error


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def digest(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe, 16 hex digits: equal recipes have equal digests."""
    canonical = json.dumps(recipe.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def find(name: str) -> Path:
    """The path of a shipped recipe such as ``toy/distill``, or of the file ``name`` itself.

    Raises:
        RecipeError: there is no such recipe; near names are suggested.
    """
    direct = Path(name)
    if direct.suffix in {".yaml", ".yml"} or direct.is_file():
        return direct
    shelf = shipped()
    if name in shelf:
        return shelf[name]
    raise RecipeError(f"no recipe {name!r}{_suggest(name, list(shelf))}; shipped: {', '.join(sorted(shelf))}")


def shipped() -> dict[str, Path]:
    """Every recipe that came with the program, by name."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_recipes", here.parent / "recipes"):
        if folder.is_dir():
            return {str(p.relative_to(folder).with_suffix("")): p for p in sorted(folder.rglob("*.yaml"))}
    return {}


def _assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node: Any = tree
    for part in parents:
        if isinstance(node, list):
            node = _element(node, part, dotted)
            continue
        if node.get(part) is None:
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {dotted}: {part} is a value, not a section")
    if isinstance(node, list):
        _element(node, leaf, dotted)
        node[int(leaf)] = value
    else:
        node[leaf] = value


def _element(node: list[Any], part: str, dotted: str) -> Any:
    if not part.isdigit() or int(part) >= len(node):
        raise RecipeError(f"--set {dotted}: {part!r} is not an index of a list of {len(node)}")
    return node[int(part)]


def _first(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in words: where, what, and for a misspelt key the nearest real one."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        known = _fields_at(model, path[:-1])
        return f"unknown key {'.'.join(path)!r}{_suggest(path[-1], known)}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{'.'.join(path)}: {message}" if path else message


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    current: Any = model
    for part in path:
        inner = getattr(current, "model_fields", {}).get(part)
        if inner is None:
            continue
        current = _spec_in(inner.annotation)
    return list(getattr(current, "model_fields", {}))


def _spec_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _spec_in(argument)
        if found is not None:
            return found
    return None


def _suggest(word: str, known: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
