"""Settings that ruin a run, or have no effect, by the numbers of a recipe alone. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from operator import attrgetter
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import RecipeError
from flowopd_cli.models.files.families import family
from flowopd_cli.recipe import cost
from flowopd_cli.system.distributed import GROUP

FULL_RATE = 1e-4


def setting_checks(
    recipe: recipes.Recipe, start: recipes.Recipe | None = None
) -> Iterator[Callable[[], Iterator[str] | None]]:
    """Checks that return remarks, or raise :class:`RecipeError` if nothing could be learned.

    A field without effect is remarked on if it differs from the recipe ``start``, which is all defaults if ``None``.
    """
    if isinstance(recipe, recipes.TrainedRecipe):
        yield partial(_check_groups, recipe)
        if not isinstance(recipe, recipes.DistillRecipe):
            yield partial(_single_step, recipe)
        for remarks in (_nothing_new, _step_counts, _processes, _full_rate):
            yield partial(remarks, recipe)
        yield partial(_no_effect, recipe, start)


def _check_groups(recipe: recipes.TrainedRecipe) -> Iterator[str]:
    """Refuse groups of one in a teacher, remark on groups of one or many that change nothing in a cold start."""
    size = recipe.train.group_size
    if isinstance(recipe, recipes.TeacherRecipe) and size == 1:
        raise RecipeError(
            "train.group_size 1: a teacher compares the pictures of a prompt, so one alone teaches nothing; set it to "
            "2 or more (24 is published)"
        )
    if isinstance(recipe, recipes.ColdstartRecipe):
        if recipe.rewards and size == 1:
            yield "rewards choose nothing with train.group_size 1: every picture is the best of its group"
        if not recipe.rewards and size > 1:
            yield (
                f"train.group_size {size} without rewards: the first picture of each group is kept, the others are "
                "drawn in vain; set it to 1, or add rewards"
            )


def check_guidance(recipe: recipes.Recipe, recorded: recipes.Recipe | None = None) -> None:
    """Refuse scales under 1 where guidance is classifier-free, except those of a resumed run's ``recorded`` recipe.

    Raises :class:`RecipeError`: a scale is under 1.
    """
    before = set(_guidances(recorded)) if recorded is not None else set()
    teachers = recipe.teachers if isinstance(recipe, recipes.DistillRecipe) else {}
    own = {f"routing.{key}.guidance": spec.family for key, spec in teachers.items() if spec.base}
    extrapolates = isinstance(recipe, recipes.DistillRecipe) and recipe.opd.extrapolate != 1
    for field, scale in _guidances(recipe):
        families = [own.get(field) or recipe.model.family]
        families += [recipe.model.family] if extrapolates else []  # the student's base has each teacher's guidance
        classifier_free = any(family(name).classifier_free for name in families)
        if classifier_free and scale < 1 and (field, scale) not in before:
            raise RecipeError(
                f"{field} {scale:g}: classifier-free guidance under 1 weakens the prompt, and 0 draws the empty "
                "prompt's picture, where diffusers draws the conditional one: set it to 1, which is no guidance"
            )


def check_step_weight(recipe: recipes.Recipe, recorded: recipes.Recipe | None = None) -> list[str]:
    """Refuse a distillation whose last noisy step gets nearly all the weight; only remark on it if it is resumed.

    Raises :class:`RecipeError`: says how to spread the weight.
    """
    remarks = list(_single_step(recipe)) if isinstance(recipe, recipes.DistillRecipe) else []
    if remarks and recorded is None:
        raise RecipeError(remarks[0])
    return remarks


def _guidances(recipe: recipes.Recipe) -> Iterator[tuple[str, float]]:
    if isinstance(recipe, recipes.EvalRecipe):
        yield from (("eval.guidance", value) for value, _ in recipe.eval.by_guidance.values())
    if isinstance(recipe, recipes.PushRecipe):
        yield "push.verify_guidance", recipe.push.verify_guidance
    if isinstance(recipe, recipes.TrainedRecipe):
        yield "sampling.guidance", recipe.sampling.guidance
        section = "routing" if isinstance(recipe, recipes.DistillRecipe) else "teachers"
        for task, spec in getattr(recipe, "teachers", {}).items():
            yield f"{section}.{task}.guidance", recipe.sampling.guidance if spec.guidance is None else spec.guidance
    if isinstance(recipe, recipes.DistillRecipe) and recipe.anchor.guidance is not None:
        yield "anchor.guidance", recipe.anchor.guidance


def _single_step(recipe: recipes.TrainedRecipe) -> Iterator[str]:
    """Report CPS where its last noisy step is trained: the noise shrinks with the next sigma, the KL grows."""
    sampling, weight = recipe.sampling, recipe.opd.step_weight if isinstance(recipe, recipes.DistillRecipe) else None
    window, last = sampling.window, sampling.steps - 1
    reached = window is None or window.start_max + window.size >= last
    if sampling.kernel != "cps" or sampling.deterministic or not reached or cost.trained_steps(sampling) == 1:
        return
    if isinstance(recipe, recipes.ColdstartRecipe) or weight == "velocity":
        return
    yield (
        f"sampling.kernel cps{f' with opd.step_weight {weight}' if weight else ''}: step {last} of {sampling.steps} "
        "draws hardly any noise, so it gets nearly all the weight (99.8 % of the KL on SD3.5's grid of 10 steps): "
        f"{'set opd.step_weight to velocity, ' if weight else ''}end sampling.window before it, or choose flow_sde"
    )


def _nothing_new(recipe: recipes.TrainedRecipe) -> Iterator[str]:
    """Remark on weights of 0, and on teachers that are what the policy starts from."""
    for index, spec in enumerate(recipe.rewards):
        if spec.weight == 0:
            yield f"rewards.{index}.weight is 0: {spec.name} is scored, but changes nothing"
    specs = getattr(recipe, "teachers", {})
    start, guidance = recipe.adapter.init or "base", (None, recipe.sampling.guidance)
    selects = isinstance(recipe, recipes.ColdstartRecipe) and recipe.rewards
    if isinstance(recipe, recipes.DistillRecipe):
        selects = (recipe.opd.extrapolate != 1 and start != "base") or recipe.opd.teacher_substeps > 1
    shared = all(spec.own_model(recipe.model) is None for spec in specs.values())
    same = shared and all(spec.ref == start and spec.guidance in guidance for spec in specs.values())
    if specs and not selects and same:
        yield f"every teacher is {start}, which the policy starts from, at the same guidance: they teach nothing"


def _step_counts(recipe: recipes.TrainedRecipe) -> Iterator[str]:
    train, count, updates = recipe.train, cost.trained_steps(recipe.sampling), cost.updates(recipe)
    if updates < train.updates and not isinstance(recipe, recipes.ColdstartRecipe):
        yield (
            f"train.updates {train.updates}: the {train.groups * train.group_size} pictures of an iteration make "
            f"{updates} optimizer steps of equal size"
        )
    if (
        isinstance(recipe, recipes.DistillRecipe)
        and recipe.opd.teacher_substeps > 1
        and recipe.sampling.kernel != "ode"
    ):
        yield (
            f"opd.teacher_substeps {recipe.opd.teacher_substeps}: the average velocity is that of steps without noise, "
            f"and sampling.kernel is {recipe.sampling.kernel}: set it to ode"
        )
    if train.query.steps is not None and train.query.steps > count:
        yield f"train.query.steps {train.query.steps}: only {count} steps of a trajectory can be trained"
    if train.warmup >= train.iterations * updates:
        yield (
            f"train.warmup {train.warmup}: the run makes {train.iterations * updates} optimizer steps, so it never "
            "reaches train.lr"
        )


def _processes(recipe: recipes.TrainedRecipe) -> Iterator[str]:
    """Remark on processes that idle because groups are not split."""
    groups, processes = recipe.train.groups, max(recipe.train.processes, GROUP.size)
    if processes == 1 and recipe.model.shard:
        yield "model.shard has no effect with one process: each of train.processes holds a piece of the base"
    elif groups % processes:
        most = -(-groups // processes)
        yield (
            f"train.groups {groups} over {processes} processes: groups stay whole, so one draws {most} while another "
            f"draws {most - 1} and waits; a multiple of {processes} keeps all busy"
        )


def _full_rate(recipe: recipes.TrainedRecipe) -> Iterator[str]:
    """Remark on a learning rate that suits a LoRA, but not all weights."""
    if recipe.adapter.kind == "full" and recipe.train.lr > FULL_RATE:
        yield (
            f"train.lr {recipe.train.lr:g} is high for adapter.kind full: all weights move, so start with a tenth of a "
            "LoRA's rate or less"
        )


def _no_effect(recipe: recipes.TrainedRecipe, start: recipes.Recipe | None) -> Iterator[str]:
    window, steps = recipe.sampling.window, recipe.sampling.steps
    if window is not None and not recipe.sampling.deterministic and window.start_max + window.size >= steps:
        yield "sampling.window holds the last step, which draws no noise and is not trained"
    for field, reason in _unused(recipe):
        if _is_changed(recipe, field, start):
            yield f"{field}: has no effect, because {reason}"


def _unused(recipe: recipes.TrainedRecipe) -> Iterator[tuple[str, str]]:
    """The fields that other settings leave without effect, and why."""
    sampling, train = recipe.sampling, recipe.train
    if sampling.deterministic:
        yield "sampling.window", "the sampler draws no noise"
    if sampling.kernel == "ode" and sampling.eta:
        yield "sampling.eta", "sampling.kernel is ode"
    if isinstance(recipe, recipes.TeacherRecipe):
        for section in ("grpo", "nft", "awm"):
            names = type(getattr(recipe, section)).model_fields if section != recipe.algorithm else ()
            yield from ((f"{section}.{name}", f"algorithm is {recipe.algorithm}") for name in names)
    else:
        yield "train.resample_flat", f"{recipe.stage} has no use for a group's spread"
        yield "train.refill", f"{recipe.stage} learns no scores"
    if isinstance(recipe, recipes.ColdstartRecipe) and train.updates > 1:
        yield "train.updates", "a cold start makes one optimizer step an iteration"
    kind = recipe.adapter.kind
    fields = ("rank", "alpha", "targets") if kind == "full" else ("copies",)
    yield from ((f"adapter.{name}", f"adapter.kind is {kind}") for name in fields)
    if not train.watch_every:
        yield from ((f"watch.{name}", "train.watch_every is 0") for name in recipes.WatchSpec.model_fields)
    if train.query.law == "uniform":
        yield "train.query.unbiased", "train.query.law is uniform"
    if not train.ema_decay:
        yield "train.ema_every", "train.ema_decay is 0"
    if isinstance(recipe, recipes.DistillRecipe):
        yield from _unused_in_distill(recipe)


def _unused_in_distill(recipe: recipes.DistillRecipe) -> Iterator[tuple[str, str]]:
    if recipe.opd.estimator == "pathwise":
        yield from ((f"opd.{name}", "opd.estimator is pathwise") for name in ("clip", "adv_clip"))
    if recipe.sampling.deterministic and recipe.opd.step_weight != "velocity":
        yield "opd.step_weight", "the sampler draws no noise, so velocities are matched"
    if not recipe.anchor.beta:
        yield from ((f"anchor.{name}", "anchor.beta is 0") for name in ("every", "probability"))
    if not recipe.scores:
        yield "rewards", "opd.log_rewards_every is 0"


def _is_changed(recipe: recipes.TrainedRecipe, field: str, start: recipes.Recipe | None) -> bool:
    """Whether a field differs from its value in ``start``, or from its default."""
    section, _, name = field.rpartition(".")
    spec: Any = attrgetter(section)(recipe) if section else recipe
    same_stage = isinstance(start, type(recipe))
    before = attrgetter(field)(start) if same_stage else type(spec).model_fields[name].default
    return getattr(spec, name) != before
