"""From a command line to a resolved recipe: the recipe to start from, and the fields that flags set. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan.consent import check_consent
from flowopd_cli.cli.plan.keep import keep_tasks
from flowopd_cli.errors import ArtifactError, PromptError, RecipeError
from flowopd_cli.models.files.families import family_of, model_fields
from flowopd_cli.recipe.fields import INIT, RANKLESS
from flowopd_cli.registry import PROMPTS, REWARDS, SUITES
from flowopd_cli.runs import provenance
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters, recorded_base, run_of
from flowopd_cli.runs.layout import resume_command
from flowopd_cli.runs.provenance import MAY_CHANGE
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import is_dir, is_file
from flowopd_cli.system.paths import is_hub_id

if TYPE_CHECKING:  # it needs torch
    from flowopd_cli.stages.evaluation.shared import Shared

TOY = "toy"
TEACHERS = {"routing", "teachers"}
# Pictures and scores of other programs: no base is loaded, and the suites are the public ones.
FOREIGN = {"eval.pictures", "eval.import_scores"}
AGAIN = {"eval.fail_under", "push.dry_run"}  # fields whose flags --resume takes: they change no result
NEEDED = {
    "teacher": {"rewards": "a reward (--reward NAME)", "prompts": "prompts (--prompts SOURCE)"},
    "coldstart": {"teachers": "a teacher (--teacher TASK=REF)", "prompts": "prompts (--set prompts=...)"},
    "merge": {"adapters": "the runs to merge"},
    "distill": {"routing": "a teacher (--teacher TASK=REF)", "prompts": "prompts (--prompts SOURCE)"},
    "push": {"run": "the run to publish"},
}


@dataclass(frozen=True)
class Plan:
    """The plan of a command: its recipe with complete names, remarks on changed fields, the adapters resolved so far,
    the suites and pictures of an evaluation with what several share, and the shipped recipe that the flags changed.
    """

    recipe: recipes.Recipe
    remarks: tuple[str, ...] = ()
    adapters: Adapters = field(default_factory=Adapters, compare=False)
    shared: Shared | None = field(default=None, compare=False)
    start: recipes.Recipe | None = field(default=None, compare=False)

    @classmethod
    def of(cls, recipe: recipes.Recipe, overrides: Sequence[str] = (), adapters: Adapters | None = None) -> Plan:
        """Complete the names of a recipe; a policy that starts from a local adapter takes that adapter's shape.

        Raises :class:`RecipeError`: an override of the adapter's shape contradicts the adapter.
        """
        recipe, adapters = complete_names(recipe), adapters or Adapters()
        if not isinstance(recipe, recipes.TrainedRecipe) or recipe.adapter.init is None:
            return cls(recipe, adapters=adapters)
        init, remarks = recipe.adapter.init, []
        shape = AdapterRef.parse(init).shape()
        if recipe.adapter.kind == "full":  # all weights may start from any adapter
            return cls(recipe, adapters=adapters)
        fields = _set_fields(overrides)
        for key, value in shape.items():
            if getattr(recipe.adapter, key) == value:
                continue
            text = ", ".join(value) if isinstance(value, tuple) else value
            if fields & {"adapter", f"adapter.{key}"}:
                raise RecipeError(
                    f"--set adapter.{key}: the policy starts from {init}, whose {key} is {text} and cannot change; "
                    "leave it out, or start without adapter.init"
                )
            remarks.append(f"adapter.{key} is {text}, as in {init}")
        adapter = recipe.adapter.model_copy(update=shape)
        return cls(recipe.model_copy(update={"adapter": adapter}), tuple(remarks), adapters)


def resolve(stage: str, common: Common, values: Mapping[str, Any], *, refs: Sequence[str] = ()) -> Plan:
    """The plan of a command: the run's own recipe on ``--resume``, otherwise a file, overridden by flags, then by
    ``--set``.

    ``values`` are dotted keys (``None`` is left out); ``refs`` are the adapters named on the command line, whose base
    is used if neither ``--base`` nor ``--recipe`` names one.

    Raises :class:`RecipeError` or :class:`ArtifactError`: a value is unknown, missing or out of range, or is code
    without consent.
    """
    adapters, remarks, start = Adapters(), list[str](), None
    flags = {key: value for key, value in values.items() if value not in (None, [], {}, ())}
    rewards = [spec["name"] for spec in flags.get("rewards", ())]
    if common.resume is not None:
        recipe, where = _resumed(stage, common, flags, adapters), str(common.resume)
    else:
        tree, where = _starting_point(stage, common, flags, refs, adapters)
        if Path(where) in recipes.shipped().values():
            start = complete_names(recipes.build(tree, where=where))
        keep = flags.pop("keep", None)
        _assign_flags(tree, stage, common, flags)
        recipe = recipes.build(tree, overrides=common.overrides, stage=stage, where=where)
        if keep is not None and isinstance(recipe, recipes.DistillRecipe):
            recipe, remark = keep_tasks(recipe, keep)
            remarks.append(remark)
        remarks += [*_assumed_family(recipe, common), *_default_protocol(recipe, common, flags)]
    if not common.allow_code:
        check_consent(recipe, where, rewards, common.overrides)
    plan = Plan.of(recipe, common.overrides, adapters)
    return replace(plan, remarks=(*remarks, *plan.remarks), start=start)


def complete_names(recipe: recipes.Recipe) -> recipes.Recipe:
    """The recipe with rewards and suites under their registry names, and with the adapter that ``init`` stands for, as
    the run records it.
    """
    base = recipe.model.pretrained
    if isinstance(recipe, recipes.EvalRecipe):
        update = {
            "suites": tuple(SUITES.on_base(name, base) for name in recipe.eval.suites),
            "options": {SUITES.on_base(name, base): value for name, value in recipe.eval.options.items()},
        }
        return recipe.model_copy(update={"eval": recipe.eval.model_copy(update=update)})

    def named(specs: Sequence[recipes.RewardSpec]) -> tuple[recipes.RewardSpec, ...]:
        return tuple(spec.model_copy(update={"name": REWARDS.on_base(spec.name, base)}) for spec in specs)

    if not isinstance(recipe, recipes.TrainedRecipe):
        return recipe
    if isinstance(recipe, recipes.DistillRecipe):
        recipe = _with_references(recipe)
    watch = recipe.watch.model_copy(update={"rewards": named(recipe.watch.rewards)})
    return recipe.model_copy(update={"rewards": named(recipe.rewards), "watch": watch})


def _with_references(recipe: recipes.DistillRecipe) -> recipes.DistillRecipe:
    """The recipe with ``adapter.init``, or the base without one, in place of the reference ``init``."""
    start = {"ref": recipe.adapter.init or "base"}

    def named(spec: Any) -> Any:
        return spec.model_copy(update=start) if spec.ref == INIT else spec

    def of_route(route: recipes.RouteSpec) -> object:
        one = isinstance(route, recipes.TeacherSpec)
        return _with_family(named(route)) if one else tuple(_with_family(named(spec)) for spec in route)

    routing = {task: of_route(route) for task, route in recipe.routing.items()}
    return recipe.model_copy(update={"routing": routing, "anchor": named(recipe.anchor)})


def _with_family(spec: recipes.TeacherSpec) -> recipes.TeacherSpec:
    """The teacher with the family of its own base, if that is recognized."""
    family = None if spec.base is None or spec.family else family_of(spec.base)
    return spec.model_copy(update={"family": family}) if family else spec


def _resumed(stage: str, common: Common, flags: Mapping[str, Any], adapters: Adapters) -> recipes.Recipe:
    names = ("recipe", "base", "out", "seed")
    clashes = [f"--{name}" for name in names if getattr(common, name) is not None] + ["--force"] * common.force
    if clashes or flags.keys() - AGAIN - {"prompts"}:
        what = ", ".join(clashes) or "a flag of the recipe"
        raise RecipeError(f"--resume uses the run's own recipe: leave out {what} (--set may change a field)")
    run = RunDir.open(Path(str(common.resume)))
    actual = run.manifest().stage
    if actual != stage:
        raise RecipeError(f"{run.path}: is a {actual} run; resume with: {resume_command(actual, run.path)}")
    if not run.recipe_file.is_file():
        raise ArtifactError(f"{run.path}: stopped before its first write ended; start again with --out and --force")
    fields = {key: value for key, value in flags.items() if key != "prompts"} | _moved_prompts(run, flags)
    recipe = run.recipe([*(f"{key}={dumps(value)}" for key, value in fields.items()), *common.overrides])
    if not isinstance(recipe, recipes.TrainedRecipe):
        return recipe
    recipe = _with_recorded_ids(recipe, run.recipe())
    if common.overrides or run.manifest().status != "done":
        _refuse_other_course(run, complete_names(recipe), common.overrides, adapters)
    if common.processes:
        return recipe.model_copy(update={"train": recipe.train.model_copy(update={"processes": common.processes})})
    return recipe


def _moved_prompts(run: RunDir, flags: Mapping[str, Any]) -> dict[str, str]:
    """The fields that ``--prompts`` sets on ``--resume``: each names the new place of a prompt file that is gone.

    Raises :class:`RecipeError`: it names more, or not as many, or other settings of the prompts.
    """
    recorded = [spec.source for spec in getattr(run.recipe(), "prompts", ())]
    gone = [index for index, source in enumerate(recorded) if _is_gone(source)]
    moved = [spec for spec in flags.get("prompts", ()) if spec["source"] not in recorded]
    if moved and (len(moved) != len(gone) or any(len(spec) > 1 for spec in moved)):
        listed = ", ".join(recorded[index] for index in gone)
        way_out = f"give the new place of {listed} alone" if gone else "leave it out, its prompts are where they were"
        raise RecipeError(f"--prompts {moved[0]['source']}: {run.path} keeps its prompts: {way_out}")
    return {f"prompts.{index}.source": spec["source"] for index, spec in zip(gone, moved, strict=False)}


def _with_recorded_ids(recipe: recipes.TrainedRecipe, recorded: recipes.Recipe) -> recipes.TrainedRecipe:
    """The recipe with the recorded ids for prompts whose file has moved: they seed the sample pictures.

    Raises :class:`PromptError`: a prompt file of the run is gone.
    """
    prompts = list(recipe.prompts)
    for index, (new, old) in enumerate(zip(recipe.prompts, getattr(recorded, "prompts", ()), strict=False)):
        if new.source != old.source:
            prompts[index] = new.model_copy(update={"id_prefix": old.id_prefix or str(Path(old.source))})
        elif _is_gone(new.source):
            way_out = f"if it has moved, name its new place with --set prompts.{index}.source=PATH"
            raise PromptError(f"prompts: {new.source}: no such file; {way_out}")
    return recipe.model_copy(update={"prompts": tuple(prompts)})


def _is_gone(source: str) -> bool:
    return source not in PROMPTS.names() and not is_file(source)


def _refuse_other_course(run: RunDir, recipe: recipes.Recipe, overrides: Sequence[str], adapters: Adapters) -> None:
    """Refuse a resumed training that changes its adapters, or fields that affect results by more than rounding.

    Raises :class:`RecipeError`: another field was set.
    Raises :class:`ArtifactError`: its checkpoints were made with another recipe or other adapters.
    """
    recorded, now = run.checkpoints.provenance(), recipe.model_dump(mode="json")
    first = run.recipe() if recorded is None else recipes.build(recorded.recipe, where=f"{run.path}: its checkpoint")
    before = complete_names(first).model_dump(mode="json")
    changed, fields = provenance.changed_fields(before, now), [recipes.parse_override(text)[0] for text in overrides]
    wrong = [name for name in fields if any(key == name or key.startswith(f"{name}.") for key in changed)]
    if wrong:
        raise RecipeError(
            f"--set {wrong[0]}: {run.path} keeps its settings; on --resume only {', '.join(sorted(MAY_CHANGE))} may "
            "change; for anything else start a fresh run, from this one with adapter.init"
        )
    if recorded is not None:
        differences = [*changed.values(), *provenance.changed_parents(recorded, adapters)]
        provenance.refuse(run.path, differences)


def _starting_point(
    stage: str, common: Common, flags: Mapping[str, Any], refs: Sequence[str], adapters: Adapters
) -> tuple[dict[str, Any], str]:
    """The tree of fields that flags override, and its name for errors."""
    if common.recipe is not None:
        path = recipes.find(common.recipe)
        return recipes.read(path), str(path)
    model = {} if common.base else _model_of(refs, adapters)
    if stage == "eval" and model:
        model["quantize"] = "none"  # an adapter is scored on the base itself, whatever it was trained on
    base = common.base or model.get("pretrained") or (None if FOREIGN & flags.keys() else TOY)
    tree: dict[str, Any] = {"stage": stage}
    where = f"{stage} without --recipe"
    if base == TOY:
        path = recipes.shipped().get(_toy_recipe(stage, flags))
        if path is not None:
            tree, where = recipes.read(path), str(path)
        else:
            tree["model"] = {"pretrained": TOY, "resolution": None}
    return (tree | {"model": {**tree.get("model", {}), **model}} if model else tree), where


def _toy_recipe(stage: str, flags: Mapping[str, Any]) -> str:
    """The shipped toy recipe for the flags: a toy reward has its own teacher recipe, any other uses the mixture's."""
    if stage != "teacher":
        return f"toy/{stage}"
    names = [spec["name"] for spec in flags.get("rewards", [])]
    if not names:
        raise RecipeError("teacher needs a reward: --reward geneval, ocr or quality, or a --recipe that names one")
    for name in names:
        REWARDS.target(REWARDS.on_base(name, TOY))
    variant = "-grpo" if flags.get("algorithm") == "grpo" else ""
    recipe = f"toy/teacher-{_short(names[0])}{variant}"
    return recipe if len(names) == 1 and recipe in recipes.shipped() else "toy/grpo-mix"


def _model_of(refs: Sequence[str], adapters: Adapters) -> dict[str, Any]:
    """The ``model`` section of the adapters named on the command line, as their runs or configurations record it;
    empty if there are none. Those that are on the Hub, or do not exist, are left to later checks.

    Raises :class:`ArtifactError`: they record different bases, or none.
    """
    references = [reference for reference in map(AdapterRef.parse, refs) if reference.text not in {"base", INIT}]
    models: dict[str, dict[str, Any]] = {}
    for reference in references:
        if reference.kind != "hub":
            with suppress(ArtifactError):
                _ = adapters[reference.text]
                models[reference.text] = {}
    for text in models:
        models[text] = _recorded_model(Path(AdapterRef.parse(text).location))
    unknown = [text for text, model in models.items() if not model]
    unknown += [reference.text for reference in references if reference.kind == "hub" and not models]
    if unknown:
        raise ArtifactError(f"{unknown[0]}: does not record the base it was trained on; name it with --base")
    bases = {str(model["pretrained"]): text for text, model in models.items()}
    if len(bases) > 1:
        listed = ", ".join(f"{text} of {base}" for base, text in bases.items())
        raise ArtifactError(
            f"adapters of different bases ({listed}): name adapters of one base, or the base by --base; a "
            "teacher may have its own: --teacher TASK=REF,base=BASE"
        )
    return next(iter(models.values()), {})


def _recorded_model(folder: Path) -> dict[str, Any]:
    """The model of an adapter's run, else the base's name in its configuration; empty if neither is recorded."""
    run = run_of(folder)
    if run is not None:
        return RunDir.open(run, writes=False).recipe().model.model_dump(mode="json")
    base = recorded_base(folder)
    return model_fields(base.ref) if base is not None and base.ref else {}


def _assumed_family(recipe: recipes.Recipe, common: Common) -> list[str]:
    """A remark on a base of the Hub whose family ``--dry-run``, which fetches nothing, cannot know."""
    fields = _set_fields(common.overrides)
    if not common.dry_run or not common.base or "model.family" in fields or family_of(common.base) is not None:
        return []
    if not is_hub_id(common.base) or is_dir(Path(common.base)):
        return []
    way_out = "name it with --set model.family=NAME"
    return [f"{common.base}: its family is not known before it is fetched; {recipe.model.family} is assumed: {way_out}"]


def _set_fields(overrides: Sequence[str]) -> set[str]:
    """The fields that ``--set`` names."""
    return {recipes.parse_override(text)[0] for text in overrides}


def _default_protocol(recipe: recipes.Recipe, common: Common, flags: Mapping[str, Any]) -> list[str]:
    """A remark on pictures of another family that are drawn by the default steps and guidance, those of SD3.5."""
    if not isinstance(recipe, recipes.EvalRecipe) or common.recipe or recipe.model.family == "sd3":
        return []
    fields = {*flags, *_set_fields(common.overrides)}
    unset = [name for name in ("steps", "guidance") if f"eval.{name}" not in fields]
    if not unset or FOREIGN & fields:
        return []
    values = " and ".join(f"eval.{name} {recipe.eval.model_dump()[name]:g}" for name in unset)
    way_out = "set this model's own with --set eval.steps=N, --guidance G"
    return [f"{values} suit Stable Diffusion 3.5, not every {recipe.model.family} model: {way_out}"]


def _assign_flags(tree: dict[str, Any], stage: str, common: Common, flags: dict[str, Any]) -> None:
    shared = {"seed": common.seed, "eval.seed": common.seed if stage == "eval" else None}
    shared["train.processes"] = common.processes if stage in {"teacher", "coldstart", "distill"} else None
    base = model_fields(common.base, fetch=not common.dry_run) if common.base else {}
    shared |= {f"model.{key}": value for key, value in base.items()}
    if "rewards" in flags:
        flags["rewards"] = _merge_rewards(tree.get("rewards"), flags["rewards"])
    for key in TEACHERS & flags.keys():
        flags[key] = _merge_teachers(tree.get(key), flags[key])
    for key, value in (shared | flags).items():
        if value is not None:
            recipes.assign(tree, key, value)
    for key, what in NEEDED.get(stage, {}).items() if tree.get("stage", stage) == stage else ():
        if not tree.get(key) and not any(text.startswith(key) for text in common.overrides):
            raise RecipeError(f"{stage} needs {what}, or a --recipe that has it")
    fields = {**flags, **dict(map(recipes.parse_override, common.overrides))}
    if stage == "merge" and fields.get("merge.method") in RANKLESS and "merge.rank" not in fields:
        recipes.assign(tree, "merge.rank", None)  # the starting recipe's rank, which this method does not take


def _merge_rewards(recorded: Any, specs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    entries = recorded if isinstance(recorded, list) else []
    by_name = {_short(str(e["name"])): e for e in entries if isinstance(e, dict) and "name" in e}
    return [{**by_name.get(_short(spec["name"]), {}), **spec} for spec in specs]


def _merge_teachers(recorded: Any, specs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The teachers of the flags only, each merged over the starting recipe's entry for its task, but for ``init``."""
    entries = recorded if isinstance(recorded, dict) else {}
    by_task = {task: spec for task, spec in entries.items() if isinstance(spec, dict)}
    return {t: {**(by_task.get(t, {}) if spec["ref"] != INIT else {}), **spec} for t, spec in specs.items()}


def _short(name: str) -> str:
    return name.removeprefix(f"{TOY}-")
