"""From a command line to a resolved recipe: which recipe to start from, and what the flags put into it. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from json import dumps
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan.settle import with_full_names
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.models.files.shapes import model_fields
from flowopd_cli.registry import REWARDS, reward_name
from flowopd_cli.runs import provenance
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.runs.layout import go_on
from flowopd_cli.runs.manifest import ADAPTER, is_run
from flowopd_cli.runs.provenance import MAY_CHANGE
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system import yaml_files as safe_yaml
from flowopd_cli.system.redact import secret_in_name
from flowopd_cli.system.text import suggest

TOY = "toy"
RANKLESS = {"exact", "factor_average"}
TEACHERS = {"routing", "teachers"}
# Made by others: no base draws, and the suites are the public ones.
FOREIGN = {"eval.pictures", "eval.import_scores"}
AGAIN = {"eval.fail_under", "push.dry_run"}  # flags that --resume takes: they change nothing of what is made
NEEDED = {
    "teacher": {"rewards": "a reward (--reward NAME)", "prompts": "prompts (--prompts SOURCE)"},
    "coldstart": {"teachers": "a teacher (--teacher TASK=REF)", "prompts": "prompts (--set prompts=...)"},
    "merge": {"adapters": "the runs to merge"},
    "distill": {"routing": "a teacher (--teacher TASK=REF)", "prompts": "prompts (--set prompts=...)"},
    "push": {"run": "the run to publish"},
}


def resolve(stage: str, common: Common, values: Mapping[str, Any], *, refs: Sequence[str] = ()) -> recipes.Recipe:
    """The recipe of a command: a run's own on ``--resume``, else a file under the flags under ``--set``.

    ``values`` are dotted keys (``None`` is left out); ``refs`` are the adapters named on the command line, whose base
    is taken when neither ``--base`` nor ``--recipe`` names one.

    Raises:
        RecipeError, ArtifactError: something in it is unknown, missing or out of range.
    """
    given = {key: value for key, value in values.items() if value not in (None, [], {}, ())}
    if common.resume is not None:
        return _resumed(stage, common, given)
    tree, where = _starting_point(stage, common, given, refs)
    for key, value in _shared(stage, common).items():
        recipes.assign(tree, key, value)
    if "rewards" in given:
        given["rewards"] = _known_rewards(tree.get("rewards"), given["rewards"])
    for key in TEACHERS & given.keys():
        given[key] = _known_teachers(tree.get(key), given[key])
    for key, value in given.items():
        recipes.assign(tree, key, value)
    _refuse_missing(stage, tree, common.overrides)
    if stage == "merge":
        _drop_idle_rank(tree, given, common.overrides)
    return with_full_names(recipes.build(tree, overrides=common.overrides, stage=stage, where=where))


def teacher_spec(text: str) -> tuple[str, dict[str, Any]]:
    """``task=REF[,guidance=G]`` as a task and the fields of its teacher."""
    head, options = split_options(text, "--teacher", ("guidance",))
    task, equals, ref = head.partition("=")
    if not equals or not task or not ref:
        raise RecipeError(f"--teacher {text}: write it as TASK=REF, for example ocr=runs/t-ocr,guidance=4.5")
    return task, {"ref": ref, **options}


def teacher_specs(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Several :func:`teacher_spec`, each task once."""
    found: dict[str, dict[str, Any]] = {}
    for task, spec in map(teacher_spec, texts):
        if task in found:
            raise RecipeError(f"--teacher {task}: named twice; one task has one teacher")
        found[task] = spec
    return found


def reward_spec(text: str) -> dict[str, Any]:
    """``NAME[=WEIGHT][,task=TASK]`` as the fields of a reward."""
    secret = secret_in_name(text)
    if secret:
        raise RecipeError(f"--reward: {secret}")
    head, options = split_options(text, "--reward", ("task",))
    name, equals, weight = head.partition("=")
    spec: dict[str, Any] = {"name": name, **options}
    if equals:
        try:
            spec["weight"] = float(weight)
        except ValueError as error:
            raise RecipeError(f"--reward {text}: the weight {weight!r} is not a number") from error
    return spec


def prompt_spec(text: str) -> dict[str, Any]:
    """``SOURCE[,task=T][,split=S][,weight=W][,limit=N]`` as the fields of a prompt source."""
    head, options = split_options(text, "--prompts", ("task", "split", "weight", "limit"))
    return {"source": head, **options}


def anchor_values(text: str | None, beta: float | None) -> dict[str, Any]:
    """``REF[,guidance=G]`` and a weight as dotted keys."""
    values: dict[str, Any] = {"anchor.beta": beta}
    if text is not None:
        head, options = split_options(text, "--anchor", ("guidance",))
        values |= {"anchor.ref": head, **{f"anchor.{key}": value for key, value in options.items()}}
    return values


def split_options(text: str, flag: str, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """``HEAD,key=value,...`` as the head and its options, whose keys must be known."""
    head, *rest = re.split(r",(?=[a-z_]+=)", text)
    options: dict[str, Any] = {}
    for part in rest:
        key, _, raw = part.partition("=")
        if key not in known:
            raise RecipeError(f"{flag} {text}: no option {key!r}{suggest(key, known)}; known: {', '.join(known)}")
        options[key] = safe_yaml.parse(raw, f"{flag} {head}: {key}")
    return head, options


def numbers(text: str | None, flag: str) -> list[float] | None:
    """``1,2,0.5`` as numbers."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"{flag} {text}: write numbers with commas between them") from error


def _resumed(stage: str, common: Common, given: Mapping[str, Any]) -> recipes.Recipe:
    clashes = {"--recipe": common.recipe, "--base": common.base, "--out": common.out, "--seed": common.seed}
    named = [flag for flag, value in clashes.items() if value is not None] + (["--force"] if common.force else [])
    if named or given.keys() - AGAIN:
        what = ", ".join(named) or "a flag of the recipe"
        raise RecipeError(f"--resume goes on by the run's own recipe: leave out {what} (--set may change a field)")
    run = RunDir.open(Path(str(common.resume)))
    actual = run.manifest().stage
    if actual != stage:
        raise RecipeError(f"{run.path}: is a {actual} run; go on with: {go_on(actual, run.path)}")
    if not run.recipe_file.is_file():
        raise ArtifactError(f"{run.path}: ended before its first write was done; start again with --out and --force")
    again = [f"{key}={dumps(value)}" for key, value in given.items()]
    recipe = with_full_names(run.recipe([*again, *common.overrides]))
    if isinstance(recipe, recipes.TrainedRecipe) and (common.overrides or run.manifest().status != "done"):
        _refuse_other_course(run, recipe, common.overrides)
    if common.processes and isinstance(recipe, recipes.TrainedRecipe):
        return recipe.model_copy(update={"train": recipe.train.model_copy(update={"processes": common.processes})})
    return recipe


def _refuse_other_course(run: RunDir, recipe: recipes.Recipe, overrides: Sequence[str]) -> None:
    """A resumed training follows its own recipe, but for what changes no result beyond rounding, with its own adapters.

    Raises:
        RecipeError: another field was set.
        ArtifactError: its checkpoints were made by another recipe than the run's now is, or with other adapters.
    """
    then, now = run.checkpoints.provenance(), recipe.model_dump(mode="json")
    began = run.recipe() if then is None else recipes.build(then.recipe, where=f"{run.path}: its checkpoint")
    before = with_full_names(began).model_dump(mode="json")
    changed, asked = provenance.other_fields(before, now), [recipes.parse_override(text)[0] for text in overrides]
    wrong = [name for name in asked if any(key == name or key.startswith(f"{name}.") for key in changed)]
    if wrong:
        raise RecipeError(
            f"--set {wrong[0]}: {run.path} goes on as it began; on --resume only {', '.join(sorted(MAY_CHANGE))} may "
            "change; for anything else start a fresh run, from this one with adapter.init"
        )
    if then is not None:
        provenance.refuse(run.path, [*provenance.other_recipe(before, now), *provenance.changed_parents(then)])


def _starting_point(
    stage: str, common: Common, given: Mapping[str, Any], refs: Sequence[str]
) -> tuple[dict[str, Any], str]:
    if common.recipe is not None:
        path = recipes.find(common.recipe)
        return recipes.read(path), str(path)
    model = None if common.base else _model_of(refs)
    base = common.base or (model or {}).get("pretrained") or (None if FOREIGN & given.keys() else TOY)
    tree: dict[str, Any] = {"stage": stage}
    where = f"{stage} without --recipe"
    if base == TOY:
        name = _toy_recipe(stage, given)
        shelf = recipes.shipped()
        if name in shelf:
            tree, where = recipes.read(shelf[name]), str(shelf[name])
        else:
            tree["model"] = {"pretrained": TOY, "resolution": None}
    if model is not None:
        tree["model"] = {**tree.get("model", {}), **model}
    return tree, where


def _toy_recipe(stage: str, given: Mapping[str, Any]) -> str:
    """The shipped toy recipe that fits the flags: each toy reward has its teacher's, any other shares the mixture's."""
    if stage != "teacher":
        return f"toy/{stage}"
    names = [spec["name"] for spec in given.get("rewards", [])]
    if not names:
        raise RecipeError("teacher needs a reward: --reward geneval, ocr or quality, or a --recipe that names one")
    for name in names:
        REWARDS.target(reward_name(name, TOY))
    own = f"toy/teacher-{_short(names[0])}"
    return own if len(names) == 1 and own in recipes.shipped() else "toy/grpo-mix"


def _model_of(refs: Sequence[str]) -> dict[str, Any] | None:
    """The ``model`` section of the adapters named on the command line, as their runs or configurations record it.

    Those that are on the Hub, or are not there at all, are left to later checks.

    Raises:
        ArtifactError: they record different bases, or none.
    """
    named = [reference for reference in map(AdapterRef.parse, refs) if reference.kind != "base"]
    local = [reference for reference in named if reference.kind != "hub" and _is_there(reference)]
    models = {reference.text: _recorded_model(reference) for reference in local}
    unknown = [text for text, model in models.items() if not model]
    unknown += [reference.text for reference in named if reference.kind == "hub" and not local]
    if unknown:
        raise ArtifactError(f"{unknown[0]}: does not record the base it was trained on; name it with --base")
    bases = {str(model["pretrained"]): text for text, model in models.items()}
    if len(bases) > 1:
        listed = ", ".join(f"{text} of {base}" for base, text in bases.items())
        raise ArtifactError(f"adapters of different bases ({listed}): name adapters of one base, or the base by --base")
    return next(iter(models.values()), None)


def _is_there(reference: AdapterRef) -> bool:
    try:
        reference.check()
    except ArtifactError:
        return False
    return True


def _recorded_model(reference: AdapterRef) -> dict[str, Any]:
    """What an adapter's run says about its model, else the base's name in its configuration; empty without either."""
    folder = Path(reference.location).resolve()
    run = folder.parent if folder.name == ADAPTER and is_run(folder.parent) else folder
    if is_run(run):
        return RunDir.open(run, writes=False).recipe().model.model_dump(mode="json")
    base = reference.base()
    return model_fields(base.ref) if base is not None and base.ref else {}


def _shared(stage: str, common: Common) -> dict[str, Any]:
    values: dict[str, Any] = {"seed": common.seed}
    values |= {f"model.{key}": value for key, value in model_fields(common.base).items()} if common.base else {}
    if stage == "eval":
        values["eval.seed"] = common.seed
    if common.processes is not None and stage in {"teacher", "coldstart", "distill"}:
        values["train.processes"] = common.processes
    return {key: value for key, value in values.items() if value is not None}


def _known_rewards(ours: Any, wanted: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The wanted rewards, each with what the starting recipe already says about it."""
    entries = ours if isinstance(ours, list) else []
    recorded = {_short(str(e["name"])): e for e in entries if isinstance(e, dict) and "name" in e}
    return [{**recorded.get(_short(spec["name"]), {}), **spec} for spec in wanted]


def _known_teachers(ours: Any, wanted: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The wanted teachers and no others, each with what the starting recipe already says about its task."""
    recorded = {task: spec for task, spec in ours.items() if isinstance(spec, dict)} if isinstance(ours, dict) else {}
    return {task: {**recorded.get(task, {}), **spec} for task, spec in wanted.items()}


def _refuse_missing(stage: str, tree: Mapping[str, Any], overrides: Sequence[str]) -> None:
    if tree.get("stage", stage) != stage:
        return
    for key, what in NEEDED.get(stage, {}).items():
        if not tree.get(key) and not any(text.startswith(key) for text in overrides):
            raise RecipeError(f"{stage} needs {what}, or a --recipe that has it")


def _drop_idle_rank(tree: dict[str, Any], given: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """A rank that only the starting recipe names goes when the method that was asked for takes none."""
    asked = dict(map(recipes.parse_override, overrides))
    method = asked.get("merge.method", given.get("merge.method"))
    if method in RANKLESS and "merge.rank" not in {*asked, *given}:
        recipes.assign(tree, "merge.rank", None)


def _short(name: str) -> str:
    return name.removeprefix(f"{TOY}-")
