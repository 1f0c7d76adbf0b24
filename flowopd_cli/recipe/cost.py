"""What a recipe will cost, counted exactly from the recipe alone: pictures, batches, steps, forwards. No torch here."""

from __future__ import annotations

from math import ceil

from flowopd_cli.models.files.families import family
from flowopd_cli.models.files.workload import Workload
from flowopd_cli.recipe import (
    AnchorSpec,
    ColdstartRecipe,
    DistillRecipe,
    EvalRecipe,
    MergeRecipe,
    Recipe,
    SamplingSpec,
    TeacherRecipe,
    TeacherSpec,
    TrainedRecipe,
    TrainSpec,
)

Figures = dict[str, int | float | str]


def arithmetic(recipe: Recipe) -> Figures:
    """The figures of a recipe in reading order. A forward is one picture through the
    transformer once; classifier-free guidance takes two.
    """
    if isinstance(recipe, TeacherRecipe | DistillRecipe):
        return _on_policy(recipe)
    if isinstance(recipe, ColdstartRecipe):
        return _supervised(recipe)
    if isinstance(recipe, EvalRecipe):
        return _evaluation(recipe)
    return _no_loop(recipe)


def trained_steps(sampling: SamplingSpec) -> int:
    """Steps of a trajectory that are trained: those that draw noise, which are the window's or all, but never the last,
    which arrives at sigma 0. A deterministic sampler trains every step but that one.
    """
    noisy = sampling.steps - 1
    if sampling.window is None or sampling.deterministic:
        return max(1, noisy)
    return max(1, min(sampling.window.size, noisy - sampling.window.start_max))


def optimizer_steps(pictures: int, updates: int) -> tuple[int, int]:
    """``pictures`` dealt to at most ``updates`` optimizer steps in equal shares: how many steps, pictures in each."""
    share = ceil(pictures / updates)
    return ceil(pictures / share), share


def taught_steps(sampling: SamplingSpec, train: TrainSpec) -> int:
    """Trained steps that teach in one iteration: ``train.steps_per_rollout`` of them, or all."""
    return min(trained_steps(sampling), train.steps_per_rollout or sampling.steps)


def _on_policy(recipe: TeacherRecipe | DistillRecipe) -> Figures:
    train, sampling = recipe.train, recipe.sampling
    fused = isinstance(recipe, DistillRecipe) and recipe.fused
    pictures = train.groups * train.group_size
    local = _local_pictures(train)
    learned = taught_steps(sampling, train)
    updates, share = optimizer_steps(pictures, train.updates)
    policy = family(recipe.model.family).halves(sampling.guidance)
    rollout = policy * (_steps_between(recipe) if isinstance(recipe, DistillRecipe) and fused else sampling.steps)
    learning, labels = learned * policy, learned * _label_cost(recipe)
    forwards = rollout + labels + learning
    return {
        "iterations": train.iterations,
        **({"schedule": "fused" if fused else "replay"} if isinstance(recipe, DistillRecipe) else {}),
        "pictures per iteration": pictures,
        "groups x group size": f"{train.groups} x {train.group_size}",
        "processes": train.processes,
        "rollout batches per process": 0 if fused else ceil(local / train.rollout_batch),
        "sampling steps": sampling.steps,
        "trained steps per picture": learned,
        "optimizer steps per iteration": updates,
        "rows per optimizer step": share * learned,
        "micro-batches per optimizer step": _micro_batches(share, learned, fused, train),
        "optimizer steps": train.iterations * updates,
        "transformer forwards per picture": _short(forwards),
        "of these rollout / labels / learning": f"{_short(rollout)} / {_short(labels)} / {learning}",
        "transformer forwards in all": _short(forwards * pictures * train.iterations),
        "pictures in all": pictures * train.iterations,
    }


def _micro_batches(pictures: int, learned: int, fused: bool, train: TrainSpec) -> int | str:
    """Those of one process; of several each has the rows of its own pictures, whose number chance decides.

    One of replay mixes pictures and steps, one of the fused schedule has its pictures at one step.
    """
    own = pictures / train.processes
    count = learned * ceil(own / train.micro) if fused else ceil(own * learned / train.micro)
    return count if train.processes == 1 else f"about {count} per process"


def _steps_between(recipe: DistillRecipe) -> float:
    """Steps of a fused rollout that do not teach, on average over iterations: those before the last that does, and the
    rest where rewards are logged. The last of k among n equally likely ones is the k (n + 1) / (k + 1)-th on average.
    """
    sampling, every = recipe.sampling, recipe.opd.log_rewards_every
    trained, taught = trained_steps(sampling), taught_steps(sampling, recipe.train)
    window = None if sampling.deterministic else sampling.window
    start = 0 if window is None else (window.start_min + window.start_max) / 2
    before = start + taught * (trained + 1) / (taught + 1) - taught
    logged = 1 / every if every else 0
    return (1 - logged) * before + logged * (sampling.steps - taught)


def _label_cost(recipe: TeacherRecipe | DistillRecipe) -> float:
    """Forwards per trained step that label it: a teacher's reference velocity, or teacher and, on average, anchor."""
    own, cost = recipe.sampling.guidance, family(recipe.model.family).halves
    if isinstance(recipe, TeacherRecipe):
        return cost(own) if recipe.grpo.beta > 0 else 0
    teachers = [spec.guidance if spec.guidance is not None else own for spec in recipe.routing.values()]
    anchor = recipe.anchor.guidance if recipe.anchor.guidance is not None else own
    frequency = recipe.anchor.probability / recipe.anchor.every if recipe.anchor.beta > 0 else 0
    return max(map(cost, teachers)) + frequency * cost(anchor)


def workload(recipe: TrainedRecipe) -> Workload:
    """What the memory of a training depends on, counted for one process."""
    train, sampling, halves = recipe.train, recipe.sampling, family(recipe.model.family).halves
    teachers, anchor = _roles(recipe)
    guidances = [spec.guidance for spec in (*teachers, *anchor) if spec.guidance is not None]
    policy = 1 if isinstance(recipe, ColdstartRecipe) else halves(sampling.guidance)
    most = max(map(halves, [sampling.guidance, *guidances]))
    latents, prompts = _held(recipe)
    return Workload(
        adapters=2 + len({spec.ref for spec in teachers} - {"base"}) + len([s for s in anchor if s.ref != "base"]),
        learning_rows=learning_rows(recipe) * policy,
        sampling_rows=min(train.rollout_batch, _local_pictures(train)) * most,
        latents=latents,
        prompts=prompts,
        shards=train.processes if recipe.model.shard else 1,
    )


def learning_rows(recipe: TrainedRecipe) -> int:
    """Rows that learn at once: a micro-batch; in the fused schedule at most the pictures of one step."""
    if isinstance(recipe, DistillRecipe) and recipe.fused:
        return min(recipe.train.micro, _local_pictures(recipe.train))
    return recipe.train.micro


def _local_pictures(train: TrainSpec) -> int:
    return ceil(train.groups / train.processes) * train.group_size


def _roles(recipe: TrainedRecipe) -> tuple[list[TeacherSpec], list[AnchorSpec]]:
    """Teachers, taken to be adapters of the policy's size, and the anchor if it has a weight."""
    if isinstance(recipe, DistillRecipe):
        return list(recipe.routing.values()), [recipe.anchor] if recipe.anchor.beta else []
    return list(recipe.teachers.values()) if isinstance(recipe, ColdstartRecipe) else [], []


def _held(recipe: TrainedRecipe) -> tuple[int, int]:
    """Latents and prompts that collection leaves for learning: every step with its labels, or in the fused schedule
    the state, both labels and the velocity of the rows that learn.
    """
    if isinstance(recipe, ColdstartRecipe):
        return recipe.sft.samples, recipe.sft.samples
    pictures = _local_pictures(recipe.train)
    if isinstance(recipe, DistillRecipe):
        if recipe.fused:
            return 4 * learning_rows(recipe), pictures
        labels = 1 + (recipe.anchor.beta > 0)
    else:
        labels = 1 if recipe.grpo.beta else 0
    return pictures * (1 + recipe.sampling.steps * (1 + labels)), pictures


def _short(number: float) -> int | float:
    return int(number) if number == int(number) else round(number, 2)


def _supervised(recipe: ColdstartRecipe) -> Figures:
    train, sft, steps = recipe.train, recipe.sft, recipe.sampling.steps
    rounds = ceil(sft.samples / train.groups)
    drawn = rounds * train.groups * train.group_size
    own, cost = recipe.sampling.guidance, family(recipe.model.family).halves
    dearest = max(cost(own if spec.guidance is None else spec.guidance) for spec in recipe.teachers.values())
    return {
        "teacher pictures drawn": drawn,
        "teacher pictures kept": rounds * train.groups,
        "processes": train.processes,
        "sampling steps": steps,
        "transformer forwards to draw": drawn * steps * dearest,
        "iterations": train.iterations,
        "optimizer steps per iteration": 1,
        "rows per optimizer step": sft.batch,
        "micro-batches per optimizer step": ceil(ceil(sft.batch / train.processes) / train.micro),
        "optimizer steps": train.iterations,
    }


def _evaluation(recipe: EvalRecipe) -> Figures:
    spec = recipe.eval
    return {
        "suites": len(spec.suites),
        "prompts per suite": "all" if spec.limit is None else f"at most {spec.limit}",
        "images per prompt": spec.images or "the suite's own",
        "batch": spec.batch,
        "sampling steps": spec.steps,
        "transformer forwards per picture": spec.steps * family(recipe.model.family).halves(spec.guidance),
        "optimizer steps": 0,
    }


def _no_loop(recipe: Recipe) -> Figures:
    if isinstance(recipe, MergeRecipe):
        return {"adapters": len(recipe.adapters), "optimizer steps": 0}
    return {"optimizer steps": 0}
