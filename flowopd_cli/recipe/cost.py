"""The cost of a recipe, counted from the recipe alone: pictures, batches, steps, forwards. No torch here."""

from __future__ import annotations

from math import ceil

from flowopd_cli import recipe as recipes
from flowopd_cli.core.queries import mean_last
from flowopd_cli.models.files.families import family
from flowopd_cli.models.files.workload import NOTHING, AtHand, Workload

Figures = dict[str, int | float | str]


def arithmetic(recipe: recipes.Recipe) -> Figures:
    """The figures of a recipe in reading order. A forward is one picture through the transformer once; classifier-free
    guidance takes two.
    """
    if isinstance(recipe, recipes.TeacherRecipe | recipes.DistillRecipe):
        return _on_policy(recipe)
    if isinstance(recipe, recipes.ColdstartRecipe):
        return _supervised(recipe)
    if isinstance(recipe, recipes.EvalRecipe):
        return _evaluation(recipe)
    adapters: Figures = {"adapters": len(recipe.adapters)} if isinstance(recipe, recipes.MergeRecipe) else {}
    return adapters | {"optimizer steps": 0}


def trained_steps(sampling: recipes.SamplingSpec) -> int:
    """Trained steps of a trajectory: those of the window or all, but never the last, which draws no noise. A
    deterministic sampler trains all steps but the last.
    """
    noisy = sampling.steps - 1
    if sampling.window is None or sampling.deterministic:
        return max(1, noisy)
    return max(1, min(sampling.window.size, noisy - sampling.window.start_max))


def optimizer_steps(pictures: int, updates: int) -> tuple[int, int]:
    """``pictures`` in at most ``updates`` optimizer steps of equal size: how many steps, pictures in each."""
    share = ceil(pictures / updates)
    return ceil(pictures / share), share


def updates(recipe: recipes.TrainedRecipe) -> int:
    """Optimizer steps of an iteration, those included that are skipped; a cold start makes one."""
    train = recipe.train
    if isinstance(recipe, recipes.ColdstartRecipe):
        return 1
    return optimizer_steps(train.groups * train.group_size, train.updates)[0]


def workload(recipe: recipes.TrainedRecipe, at_hand: AtHand = NOTHING) -> Workload:
    """The counts that determine the memory of a training, for one process."""
    train, anchors = recipe.train, _anchors(recipe)
    teachers = [spec for spec in _teachers(recipe) if spec.own_model(recipe.model) is None]
    policy = _learning_forwards(recipe)
    extrapolates = isinstance(recipe, recipes.DistillRecipe) and recipe.opd.extrapolate != 1
    labelers = [*(_teachers(recipe) if extrapolates else teachers), *anchors]  # the base has each teacher's guidance
    most = max(_forwards(recipe, guidance) for guidance in (None, *(spec.guidance for spec in labelers)))
    latents, prompts = _held(recipe)
    frozen = [*({spec.ref for spec in teachers} - {"base"}), *(spec.ref for spec in anchors if spec.ref != "base")]
    unknown, known, models = at_hand.counts(frozen)
    roles = 3 if _forward(recipe) else 2  # the policy, its average, its slow copy
    whole = recipe.adapter.kind == "full"
    hosted = roles - 1 if whole and recipe.adapter.copies == "cpu" and recipe.model.device != "cpu" else 0
    return Workload(
        adapters=unknown + (0 if whole else roles),
        known=known,
        models=models,
        trained=roles - hosted if whole else 0,
        hosted=hosted,
        moments=2 if train.optimizer == "adamw8bit" else 8,
        learning_rows=learning_rows(recipe) * policy,
        sampling_rows=min(train.rollout_batch, _local_pictures(train)) * most,
        latents=latents,
        prompts=prompts,
        shards=train.processes if recipe.model.shard else 1,
    )


def own_workloads(recipe: recipes.TrainedRecipe, at_hand: AtHand = NOTHING) -> dict[recipes.ModelSpec, Workload]:
    """The counts of each base that teachers have of their own, which only labels; for one process as above."""
    rows, works = min(recipe.train.rollout_batch, _local_pictures(recipe.train)), {}
    own = [(spec.own_model(recipe.model), spec) for spec in _teachers(recipe)]
    for model in dict.fromkeys(model for model, _ in own if model is not None):
        specs = [spec for base, spec in own if base == model]
        unknown, known, models = at_hand.counts({spec.ref for spec in specs} - {"base"})
        works[model] = Workload(
            adapters=unknown,
            known=known,
            models=models,
            learning_rows=0,
            sampling_rows=rows * max(_teacher_forwards(recipe, spec) for spec in specs),
            latents=0,
            prompts=ceil(recipe.train.groups / recipe.train.processes),
            offload=any(spec.offload == "cpu" for spec in specs),
        )
    return works


def learning_rows(recipe: recipes.TrainedRecipe) -> int:
    """Rows of one micro-batch; in the fused schedule at most the pictures of one step."""
    if isinstance(recipe, recipes.DistillRecipe) and recipe.fused:
        return min(recipe.train.micro, _local_pictures(recipe.train))
    return recipe.train.micro


def _on_policy(recipe: recipes.TeacherRecipe | recipes.DistillRecipe) -> Figures:
    train, sampling, policy = recipe.train, recipe.sampling, _forwards(recipe)
    fused = isinstance(recipe, recipes.DistillRecipe) and recipe.fused
    pictures = train.groups * train.group_size
    learned = _learned_steps(recipe)
    updates, share = optimizer_steps(pictures, train.updates)
    steps = _steps_between(recipe) if isinstance(recipe, recipes.DistillRecipe) and fused else sampling.steps
    rollout, labels = steps * policy, learned * _label_cost(recipe)
    learning = learned * _learning_forwards(recipe)
    forwards = rollout + labels + learning
    own = [_teacher_forwards(recipe, spec) for spec in _teachers(recipe) if spec.own_model(recipe.model)]
    substeps = recipe.opd.teacher_substeps if isinstance(recipe, recipes.DistillRecipe) else 1
    return {
        "iterations": train.iterations,
        **({"schedule": "fused" if fused else "replay"} if isinstance(recipe, recipes.DistillRecipe) else {}),
        "pictures per iteration": pictures,
        "groups x group size": f"{train.groups} x {train.group_size}",
        "processes": train.processes,
        "rollout batches per process": 0 if fused else ceil(_local_pictures(train) / train.rollout_batch),
        "sampling steps": sampling.steps,
        f"{'noise levels' if _forward(recipe) else 'trained steps'} per picture": learned,
        "optimizer steps per iteration": updates,
        "rows per optimizer step": share * learned,
        "micro-batches per optimizer step": _micro_batches(share, learned, fused, train),
        "optimizer steps": train.iterations * updates,
        "transformer forwards per picture": _short(forwards),
        "of these rollout / labels / learning": f"{_short(rollout)} / {_short(labels)} / {learning}",
        **({"of the labels by teachers' own bases, at most": learned * substeps * max(own)} if own else {}),
        "transformer forwards in all": _short(forwards * pictures * train.iterations),
        "pictures in all": pictures * train.iterations,
        **_watched(recipe),
    }


def _supervised(recipe: recipes.ColdstartRecipe) -> Figures:
    train, sft, steps = recipe.train, recipe.sft, recipe.sampling.steps
    rounds = ceil(sft.samples / train.groups)
    pictures = rounds * train.groups * train.group_size
    dearest = max(_forwards(recipe, spec.guidance) for spec in recipe.teachers.values())
    return {
        "teacher pictures drawn": pictures,
        "teacher pictures kept": rounds * train.groups,
        "processes": train.processes,
        "sampling steps": steps,
        "transformer forwards to draw": pictures * steps * dearest,
        "iterations": train.iterations,
        "optimizer steps per iteration": 1,
        "rows per optimizer step": sft.batch,
        "micro-batches per optimizer step": ceil(ceil(sft.batch / train.processes) / train.micro),
        "optimizer steps": train.iterations,
        **_watched(recipe),
    }


def _watched(recipe: recipes.TrainedRecipe) -> Figures:
    """Pictures drawn for the log alone: at the start, every ``train.watch_every`` iterations, and after the last."""
    every, pictures = recipe.train.watch_every, recipe.watch.groups * recipe.watch.group_size
    return {"pictures watched": pictures * (1 + ceil(recipe.train.iterations / every))} if every else {}


def _evaluation(recipe: recipes.EvalRecipe) -> Figures:
    spec, halves = recipe.eval, family(recipe.model.family).halves
    forwards = [spec.steps * halves(guidance) for guidance, _ in spec.by_guidance.values()]
    return {
        "suites": len(spec.suites),
        "prompts per suite": "all" if spec.limit is None else f"at most {spec.limit}",
        "images per prompt": spec.images or "the suite's own",
        "batch": spec.batch,
        "sampling steps": spec.steps,
        "transformer forwards per picture": forwards[0] if len(forwards) == 1 else " + ".join(map(str, forwards)),
        "optimizer steps": 0,
    }


def _learned_steps(recipe: recipes.TrainedRecipe) -> int:
    if isinstance(recipe, recipes.TeacherRecipe) and recipe.forward:
        return recipe.levels
    return min(trained_steps(recipe.sampling), recipe.train.query.steps or recipe.sampling.steps)


def _micro_batches(pictures: int, learned: int, fused: bool, train: recipes.TrainSpec) -> int | str:
    """Micro-batches of one process; with several, each has its own pictures, whose number is random. In the replay
    schedule one mixes pictures and steps; in the fused schedule all its rows are at one step.
    """
    own = pictures / train.processes
    count = learned * ceil(own / train.micro) if fused else ceil(own * learned / train.micro)
    return count if train.processes == 1 else f"about {count} per process"


def _steps_between(recipe: recipes.DistillRecipe) -> float:
    """Untrained steps of a fused rollout, averaged over iterations: those before the last trained one, and the rest if
    rewards are logged.
    """
    sampling, every = recipe.sampling, recipe.opd.log_rewards_every
    trained, learned = trained_steps(sampling), _learned_steps(recipe)
    window = None if sampling.deterministic else sampling.window
    start = 0 if window is None else (window.start_min + window.start_max) / 2
    before = start + mean_last(recipe.train.query.query, trained) + 1 - learned
    logged = 1 / every if every else 0
    return (1 - logged) * before + logged * (sampling.steps - learned)


def _label_cost(recipe: recipes.TeacherRecipe | recipes.DistillRecipe) -> float:
    """Forwards that label a trained step: the base's for the KL, or those of the costliest target and the anchor; at a
    noise level those of the slow copy and the base, and the policy's where AWM's likelihoods are kept for updates.
    """
    if forward := _forward(recipe):
        several = recipe.train.updates > 1  # without it a copy that keeps nothing of itself equals the policy
        slow = several or min(forward.slow_rate, forward.slow_most) > 0
        return slow + (forward.base_weight > 0) + (several and isinstance(forward, recipes.AWMSpec))
    if isinstance(recipe, recipes.TeacherRecipe):
        return _forwards(recipe) if recipe.grpo.beta > 0 else 0
    used = {_labeler(recipe, spec): spec.probability / spec.every for spec in _anchors(recipe)}
    anchored = sum(share * _forwards(recipe, key[2]) for key, share in used.items())
    if (substeps := recipe.opd.teacher_substeps) > 1:  # target and anchor part after the first
        return substeps * (max(sum(target.values()) for target in _targets(recipe)) + anchored)
    targets = (sum(cost * (1 - used.get(key, 0)) for key, cost in target.items()) for target in _targets(recipe))
    return max(targets) + anchored


Labeler = tuple[recipes.ModelSpec | None, str, float]  # own base, reference and guidance: equal ones share a forward


def _labeler(recipe: recipes.DistillRecipe, spec: recipes.TeacherSpec | recipes.AnchorSpec) -> Labeler:
    own = spec.own_model(recipe.model) if isinstance(spec, recipes.TeacherSpec) else None
    return own, spec.ref, recipe.sampling.guidance if spec.guidance is None else spec.guidance


def _targets(recipe: recipes.DistillRecipe) -> list[dict[Labeler, int]]:
    """The forwards of each labeler of each task's target, the student's base for extrapolation included."""
    targets = [
        {_labeler(recipe, spec): _teacher_forwards(recipe, spec) for spec in mixture.values()}
        for mixture in recipe.mixtures.values()
    ]
    if recipe.opd.extrapolate != 1:
        bases = ({(None, "base", g): _forwards(recipe, g) for _, _, g in target} for target in targets)
        targets = [target | base for target, base in zip(targets, bases, strict=True)]
    return targets


def _forwards(recipe: recipes.TrainedRecipe, guidance: float | None = None) -> int:
    """Forwards of one velocity; ``None`` is the recipe's own guidance."""
    return family(recipe.model.family).halves(recipe.sampling.guidance if guidance is None else guidance)


def _teacher_forwards(recipe: recipes.TrainedRecipe, spec: recipes.TeacherSpec) -> int:
    """Forwards of one velocity of a teacher, on its own base if it has one."""
    model = spec.own_model(recipe.model) or recipe.model
    return family(model.family).halves(recipe.sampling.guidance if spec.guidance is None else spec.guidance)


def _learning_forwards(recipe: recipes.TrainedRecipe) -> int:
    """Forwards of a row that learns: without classifier-free guidance for flow matching and the forward process."""
    return 1 if _forward(recipe) or isinstance(recipe, recipes.ColdstartRecipe) else _forwards(recipe)


def _forward(recipe: recipes.TrainedRecipe) -> recipes.NFTSpec | recipes.AWMSpec | None:
    """The objective of the forward process, if it is that of the recipe."""
    return recipe.forward if isinstance(recipe, recipes.TeacherRecipe) else None


def _teachers(recipe: recipes.TrainedRecipe) -> list[recipes.TeacherSpec]:
    if isinstance(recipe, recipes.TeacherRecipe):
        return []
    return list(recipe.teachers.values())


def _anchors(recipe: recipes.TrainedRecipe) -> list[recipes.AnchorSpec]:
    """The anchor if its weight is not 0."""
    return [recipe.anchor] if isinstance(recipe, recipes.DistillRecipe) and recipe.anchor.beta > 0 else []


def _held(recipe: recipes.TrainedRecipe) -> tuple[int, int]:
    """Latents and prompts that collection keeps for learning: every step with its labels, or in the fused schedule the
    state, its labels and the velocity of the micro-batch. A target of several labelers holds all of theirs.
    """
    if isinstance(recipe, recipes.ColdstartRecipe):
        return recipe.sft.samples, recipe.sft.samples
    pictures = _local_pictures(recipe.train)
    if _forward(recipe):
        return pictures + 4 * learning_rows(recipe), pictures
    if isinstance(recipe, recipes.TeacherRecipe):
        labels = (recipe.grpo.beta > 0) + recipe.grpo.compares_velocities
    else:
        parts = max(map(len, _targets(recipe)))
        if recipe.fused:
            walks = 4 if recipe.opd.teacher_substeps > 1 else 0  # states and sums of velocities, target's and anchor's
            return (3 + parts + walks) * learning_rows(recipe), pictures
        labels = parts + len(_anchors(recipe))
    return pictures * (1 + recipe.sampling.steps * (1 + labels)), pictures


def _local_pictures(train: recipes.TrainSpec) -> int:
    return ceil(train.groups / train.processes) * train.group_size


def _short(number: float) -> int | float:
    return int(number) if number == int(number) else round(number, 2)
