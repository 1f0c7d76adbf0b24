"""The checks of a recipe that need no weights: names, files, adapters, tasks, settings. No torch.

Every command and ``--dry-run`` stop at the first fault; ``recipes validate`` and ``doctor --recipe`` collect them all.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import cache, partial
from pathlib import Path

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan import Finding
from flowopd_cli.cli.plan.adapters import check_adapters, check_base, check_own_base, check_targets
from flowopd_cli.cli.plan.consent import code_fields
from flowopd_cli.cli.plan.settings import check_guidance, check_step_weight, setting_checks
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, FlowOPDError, MissingDependency, PromptError, RecipeError
from flowopd_cli.prompts.clauses import faulty
from flowopd_cli.prompts.files import SUFFIXES, Row, read_rows, repeats
from flowopd_cli.prompts.targets import parse_target
from flowopd_cli.recipe.tasks import check_tasks, check_weights
from flowopd_cli.reports.track import check_installed
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import is_dir, is_file
from flowopd_cli.system.paths import is_branch, is_hub_id

Check = Callable[[], Iterable[str] | None]  # returns remarks, raises FlowOPDError
Reader = Callable[[recipes.PromptSpec], list[Row]]
RECIPE = "recipe"
# Rewards that need clauses in a prompt's metadata.
CLAUSED = {"geneval", "geneval-hf", "toy-geneval"}


def check(
    recipe: recipes.Recipe,
    *,
    adapters: Adapters | None = None,
    out: Path | None = None,
    dry_run: bool = False,
    recorded: recipes.Recipe | None = None,
    start: recipes.Recipe | None = None,
) -> list[str]:
    """Refuse a recipe that cannot run; returns remarks on probable mistakes.

    ``out`` is where the run will be written; with ``dry_run`` nothing is trained or uploaded, so adapters need not
    exist yet. ``recorded`` is the recipe of a resumed run, which may have settings that are refused by now; ``start``
    is the shipped recipe that the user changed, whose own fields without effect get no remark.

    Raises :class:`FlowOPDError`: a name is unknown, a file or adapter is missing, adapters have different bases, a task
    has no teacher or reward, nothing could be learned, or ``out`` holds an input of the recipe.
    """
    checks = _checks(recipe, adapters or Adapters(), out, dry_run, start=recorded or start)
    remarks = [remark for run in checks for remark in run() or ()]
    check_guidance(recipe, recorded)
    return [*remarks, *check_step_weight(recipe, recorded)]


def check_names(recipe: recipes.Recipe) -> list[str]:
    """The part of :func:`check` that reads no adapter: names, prompt files, tasks, settings."""
    return [remark for run in _name_checks(recipe) for remark in run() or ()]


def findings(recipe: recipes.Recipe) -> Iterator[Finding]:
    """All findings of :func:`check`, and code that needs consent; that code is not imported."""
    checks = _checks(recipe, Adapters(), None, True, consent=False)
    yield from collect([*checks, partial(check_guidance, recipe), partial(check_step_weight, recipe)])
    for field, name in code_fields(recipe):
        yield Finding(RECIPE, "warn", f"{field}: {name} is code", "it runs with --allow-code only")


def collect(checks: Iterable[Check]) -> Iterator[Finding]:
    """The errors of failing checks and the remarks of the others, without duplicates. A missing package is a finding
    about the machine, not the recipe.
    """
    unique: dict[Finding, None] = {}
    for run in checks:
        try:
            unique |= {Finding(RECIPE, "warn", remark): None for remark in run() or ()}
        except MissingDependency as error:
            way_out = f"pip install 'flowopd[{error.extra}]'"
            unique[Finding(f"package {error.package}", "fail", f"{error.package} is not installed", way_out)] = None
        except FlowOPDError as error:
            unique[Finding(RECIPE, "fail", str(error))] = None
    yield from unique


def _checks(
    recipe: recipes.Recipe,
    adapters: Adapters,
    out: Path | None,
    dry_run: bool,
    *,
    consent: bool = True,
    start: recipes.Recipe | None = None,
) -> Iterator[Check]:
    refs = dict(adapter_refs(recipe))
    yield partial(_check_own_bases, recipe, dry_run)
    if isinstance(recipe, recipes.PushRecipe):
        yield partial(_check_push, recipe, dry_run)
    yield partial(_check_adapters, recipe, refs, adapters, dry_run)
    if isinstance(recipe, recipes.EvalRecipe) and dry_run:
        yield partial(_absent_pictures, recipe.eval)
    yield partial(_check_out, out, recipe, refs)
    yield from _name_checks(recipe, start)
    yield from _option_checks(recipe, consent)


def _name_checks(recipe: recipes.Recipe, start: recipes.Recipe | None = None) -> Iterator[Check]:
    yield partial(registry.MODELS.check, recipe.model.family)
    yield partial(check_base, recipe.model)
    for _, spec in recipes.reward_fields(recipe):
        yield partial(registry.REWARDS.check, spec.name)
    for suite in recipe.eval.suites if isinstance(recipe, recipes.EvalRecipe) else ():
        yield partial(registry.SUITES.check, suite)
    if isinstance(recipe, recipes.TrainedRecipe):
        yield partial(check_installed, recipe.train.trackers)
        yield partial(_check_optimizer, recipe.train.optimizer)
        yield partial(check_targets, recipe)
        read: Reader = cache(rows_of)  # pyright: ignore[reportAssignmentType] -- frozen models have a hash
        yield partial(_check_tasks, recipe, read)
        if isinstance(recipe, recipes.DistillRecipe):
            yield partial(_check_weights, recipe, read)
        for prompts, rewards in _scored_prompts(recipe):
            yield partial(_check_prompts, prompts, rewards, read)
    yield from setting_checks(recipe, start)


def _option_checks(recipe: recipes.Recipe, consent: bool) -> Iterator[Check]:
    """Check the options of rewards and suites by their signatures, of code only with consent to import it."""
    for _, spec in recipes.reward_fields(recipe):
        if consent or not registry.REWARDS.is_code(spec.name):
            yield partial(_check_reward_options, spec)
    if isinstance(recipe, recipes.EvalRecipe) and recipe.eval.options:
        yield partial(_check_suite_options, recipe)


def _check_reward_options(spec: recipes.RewardSpec) -> None:
    with redirect_stdout(sys.stderr):
        from flowopd_cli.rewards.catalog import check_options

        check_options(spec.name, spec.options)


def _check_suite_options(recipe: recipes.EvalRecipe) -> None:
    with redirect_stdout(sys.stderr):
        from flowopd_cli.stages.evaluation.suites import check_options

        check_options(recipe)


def _check_adapters(recipe: recipes.Recipe, refs: dict[str, str], adapters: Adapters, dry_run: bool) -> list[str]:
    absent = [role for role, ref in refs.items() if dry_run and AdapterRef.parse(ref).absent]
    there = {role: ref for role, ref in refs.items() if role not in absent}
    own, loads = own_models(recipe), not isinstance(recipe, recipes.MergeRecipe | recipes.PushRecipe)
    for model in dict.fromkeys([recipe.model, *own.values()]):
        shared = {role: ref for role, ref in there.items() if own.get(role, recipe.model) == model}
        check_adapters(model, shared, adapters, fetch=not dry_run, loads=loads)
    return [f"{role}: {refs[role]}: is not there yet{AdapterRef.parse(refs[role]).hub_hint}" for role in absent]


def _absent_pictures(spec: recipes.EvalSpec) -> list[str]:
    """Remarks on pictures, their list, and scores to read that are not there; without a dry run they are refused."""
    paths = spec.model_dump(include={"pictures", "pictures_csv", "import_scores"}, exclude_none=True)
    absent = {name: path for name, path in paths.items() if not is_dir(path) and not is_file(path)}
    return [f"eval.{name}: {path}: is not there yet" for name, path in absent.items()]


def own_models(recipe: recipes.Recipe) -> dict[str, recipes.ModelSpec]:
    """The bases of teachers that have their own, by the fields of :func:`adapter_refs`."""
    teachers = recipe.teachers if isinstance(recipe, recipes.DistillRecipe) else {}
    models = {f"routing.{task}": spec.own_model(recipe.model) for task, spec in teachers.items()}
    return {field: model for field, model in models.items() if model is not None}


def _check_own_bases(recipe: recipes.Recipe, dry_run: bool) -> None:
    for field, model in own_models(recipe).items():
        registry.MODELS.check(model.family)
        check_own_base(field, model, recipe.model, fetch=not dry_run)


def adapter_refs(recipe: recipes.Recipe) -> Iterator[tuple[str, str]]:
    """The fields of a recipe that name an adapter, and the references."""
    if isinstance(recipe, recipes.TrainedRecipe) and recipe.adapter.init is not None:
        yield "adapter.init", recipe.adapter.init
    if isinstance(recipe, recipes.ColdstartRecipe):
        yield from ((f"teachers.{task}", spec.ref) for task, spec in recipe.teachers.items())
    if isinstance(recipe, recipes.DistillRecipe):
        yield from ((f"routing.{task}", spec.ref) for task, spec in recipe.teachers.items())
        if recipe.anchor.beta > 0:
            yield "anchor", recipe.anchor.ref
    if isinstance(recipe, recipes.MergeRecipe):
        yield from ((f"adapters.{index}", ref) for index, ref in enumerate(recipe.adapters))
    if isinstance(recipe, recipes.EvalRecipe) and recipe.adapter is not None:
        yield "adapter", recipe.adapter
    if isinstance(recipe, recipes.PushRecipe):
        yield "run", recipe.run


def rows_of(spec: recipes.PromptSpec) -> list[Row]:
    """The rows of a prompt file, with every line checked; empty for a registered source.

    Raises :class:`PromptError`: the source, file or task does not exist, or a line is invalid.
    """
    path = Path(spec.source)
    if spec.source in registry.PROMPTS.names():
        tasks = registry.PROMPT_TASKS.get(spec.source, ())
        if spec.task and tasks and spec.task not in tasks:
            listed = ", ".join(tasks)
            raise PromptError(f"prompts: {spec.source}: no prompt in it of task {spec.task!r}; it has {listed}")
        return []
    if path.suffix not in SUFFIXES:
        registry.PROMPTS.target(spec.source)
    rows = read_rows(path, spec.task)
    if not rows:
        raise PromptError(f"prompts: {path}: no prompt in it")
    for row in rows:
        if row.task is None:
            raise PromptError(f"{row.place}: has no task: give it with --prompts FILE,task=NAME")
    return rows[: spec.limit]


def tasks_of(spec: recipes.PromptSpec, rows: Sequence[Row] = ()) -> set[str]:
    """The tasks of a prompt source, from its ``rows`` or its name; empty if only its plugin knows them."""
    if rows:
        return {str(row.task) for row in rows}
    return {spec.task} if spec.task else set(registry.PROMPT_TASKS.get(spec.source, ()))


def repeated_prompts(spec: recipes.PromptSpec, read: Reader = rows_of) -> list[str]:
    """Remark on repeated prompts of a source."""
    return list(filter(None, [repeats(read(spec))]))


def _scored_prompts(
    recipe: recipes.TrainedRecipe,
) -> Iterator[tuple[recipes.PromptSpec, tuple[recipes.RewardSpec, ...]]]:
    """The prompt sources of the training and of its watch, each with the rewards that score it."""
    own = () if isinstance(recipe, recipes.DistillRecipe) and not recipe.opd.log_rewards_every else recipe.rewards
    watched = (recipe.watch.rewards or recipe.rewards) if recipe.train.watch_every else ()
    if recipe.watch.prompts is None:
        own = (*own, *watched)
    yield from ((spec, own) for spec in recipe.prompts)
    yield from ((spec, watched) for spec in recipe.watch.prompts or ())


def _check_prompts(prompts: recipes.PromptSpec, rewards: Sequence[recipes.RewardSpec], read: Reader) -> list[str]:
    """Refuse prompts from files whose text shows that one of their rewards cannot score them."""
    rows = read(prompts)
    for spec in rewards:
        for row in rows if spec.name in registry.QUOTED | CLAUSED else ():
            if spec.task is not None and row.task != spec.task:
                continue
            if spec.name in registry.QUOTED:
                parse_target(row.place, row.text, row.metadata)
            fault = faulty(row.metadata) if spec.name in CLAUSED else None
            if fault:
                raise PromptError(f"{row.place}: the reward {spec.name} needs metadata with clauses to judge: {fault}")
    return repeated_prompts(prompts, read)


def _check_tasks(recipe: recipes.TrainedRecipe, read: Reader) -> list[str]:
    """Refuse tasks without a teacher or reward; remark on unused ones if every source names its tasks."""
    tasks = [tasks_of(spec, read(spec)) for spec in recipe.prompts]
    check_tasks(recipe, set().union(*tasks))
    routes = getattr(recipe, "routing", None) or getattr(recipe, "teachers", {})
    if not all(tasks):
        return []
    present = {None, *set().union(*tasks)}
    idle = [f"teacher {task!r} is loaded, but no prompt has its task" for task in sorted(set(routes) - present)]
    others = [spec for spec in recipe.rewards if spec.task not in present]
    return idle + [f"reward {spec.name} scores nothing: no prompt has its task {spec.task!r}" for spec in others]


def _check_weights(recipe: recipes.DistillRecipe, read: Reader) -> None:
    """Refuse prompts from files that lack a weight of their teachers."""
    rows = (row for spec in (*recipe.prompts, *(recipe.watch.prompts or ())) for row in read(spec))
    check_weights(recipe, [Prompt(row.place, row.text, str(row.task), row.metadata) for row in rows])


def _check_out(out: Path | None, recipe: recipes.Recipe, refs: dict[str, str]) -> None:
    """Refuse to write (or empty, with ``--force``) a directory that holds an input of the recipe."""
    if out is None:
        return
    references = [AdapterRef.parse(ref) for ref in refs.values()]
    inputs = [ref.location for ref in references if ref.kind in {"run", "folder"}]
    inputs += recipe.push.evaluations if isinstance(recipe, recipes.PushRecipe) else ()
    target = Path(os.path.realpath(out))
    for text in inputs:
        source = Path(os.path.realpath(text))
        if target == source or target in source.parents:
            raise ArtifactError(f"--out {out}: {text} is an input of this command; give --out another name")


def _check_push(recipe: recipes.PushRecipe, dry_run: bool) -> None:
    RunDir.open(recipe.run, writes=False)
    repo = recipe.push.repo
    if not dry_run and not repo:
        raise RecipeError("push needs a repository (--repo OWNER/NAME), or --dry-run to write the folder only")
    if repo and not is_hub_id(repo):
        raise RecipeError(f"--repo {repo}: is not a Hub repository: write it as OWNER/NAME")
    revision = recipe.push.revision
    if revision is not None and not is_branch(revision):
        raise RecipeError(f"--revision {revision[:80]}: is not a branch name; a push can only go to a branch")
    for path in recipe.push.evaluations:
        RunDir.open(path, writes=False)


def _check_optimizer(name: str) -> None:
    if name == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise MissingDependency("bitsandbytes", extra="int8")
