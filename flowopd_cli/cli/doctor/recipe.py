"""Whether this machine can run a recipe: memory and the largest micro-batch, packages, weights, workers, prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor.checks import Line, gib, guarded
from flowopd_cli.cli.plan.check import checks, collect
from flowopd_cli.cli.plan.consent import code_fields
from flowopd_cli.cli.plan.memory import footprint, needs, size
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import FlowOPDError, MissingDependency
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.system.paths import is_dir

if TYPE_CHECKING:
    from flowopd_cli.models.memory import Needs

FRAMEWORK = machine.GIB  # what libraries and a CUDA context take beside what is counted


def recipe_lines(recipe: recipes.Recipe) -> Iterator[Line]:
    """What the recipe needs of this machine; nothing is loaded or fetched."""
    yield from guarded("recipe", lambda: _checks(recipe))
    recipe = Plan.of(recipe).recipe
    if _loads_base(recipe):
        yield from guarded("memory needed", lambda: _room(recipe))
        yield from guarded("base", lambda: _base(recipe.model))
    yield from guarded("rewards", lambda: _rewards(recipe))
    yield from guarded("prompts", lambda: _prompts(recipe))


def _loads_base(recipe: recipes.Recipe) -> bool:
    if isinstance(recipe, recipes.EvalRecipe):
        return recipe.eval.pictures is None and recipe.eval.import_scores is None
    return not isinstance(recipe, recipes.MergeRecipe)


def _room(recipe: recipes.Recipe) -> Iterator[Line]:
    """The memory that is needed beside the memory that is free."""
    rooms = [device.free for device in machine.devices()]
    if recipe.model.device == "cpu" or (recipe.model.device == "auto" and not rooms):
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": "cpu"})})
        rooms = [machine.memory()[1] // _processes(recipe)]
    yield from _memory(recipe, rooms)


def largest_micro(recipe: recipes.TrainedRecipe, room: int, *, checkpointing: bool) -> int:
    """The largest ``train.micro`` whose peak fits into ``room`` bytes; 0 where not even 1 does. More rows than learn
    at once in a step are of no use, and not counted.
    """

    def fits(micro: int) -> bool:
        needed = needs(_with(recipe, micro=micro))
        return needed is not None and needed.peak(checkpointing=checkpointing) <= room

    rows = arithmetic(recipe)["rows per optimizer step"]
    low, high = 0, -(-int(rows) // recipe.train.processes)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _with(recipe: recipes.TrainedRecipe, **fields: int) -> recipes.TrainedRecipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=fields)})


def _processes(recipe: recipes.Recipe) -> int:
    return recipe.train.processes if isinstance(recipe, recipes.TrainedRecipe) else 1


def _checks(recipe: recipes.Recipe) -> Iterator[Line]:
    """What ``--dry-run`` would refuse or remark on."""
    results = list(collect(checks(Plan.of(recipe).recipe, dry_run=True)))
    if not any(isinstance(result, FlowOPDError) for result in results):
        yield Line("recipe", "ok", f"a {recipe.stage} recipe")
    for result in results:
        if isinstance(result, MissingDependency):
            way_out = f"pip install 'flowopd[{result.extra}]'"
            yield Line("recipe", "fail", f"{result.package} is not installed", way_out)
        else:
            yield Line("recipe", "fail" if isinstance(result, FlowOPDError) else "warn", str(result))
    for field, name in code_fields(recipe):
        yield Line("recipe", "warn", f"{field}: {name} is code of the recipe's own", "run it with --allow-code")


def _memory(recipe: recipes.Recipe, rooms: Sequence[int]) -> Iterator[Line]:
    processes = _processes(recipe)
    if recipe.model.device != "cpu" and len(rooms) < processes:
        text = f"{processes} processes need a CUDA device each, there are {len(rooms)}"
        yield Line("devices", "fail", text, f"set train.processes={max(1, len(rooms))}, or model.device=cpu")
        return
    base = footprint(recipe, "float32" if isinstance(recipe, recipes.PushRecipe) else None)
    if base is None or not rooms:
        yield Line("memory needed", "warn", f"not known for {recipe.model.pretrained}", "give a local folder as base")
        return
    room = min(rooms[:processes]) - FRAMEWORK
    left = f"{gib(room)} are free, with 1 GiB left for libraries"
    if isinstance(recipe, recipes.TrainedRecipe):
        needed = needs(recipe)
        assert needed is not None  # the footprint of its base is known
        yield _training(recipe, needed, room, left)
    else:
        yield _drawing(recipe, (base.parameters + base.encoders) * base.itemsize, room, left)


def _drawing(recipe: recipes.Recipe, taken: int, room: int, left: str) -> Line:
    """Whether the base fits beside its text encoders, which are there together while prompts are encoded."""
    text = f"{gib(taken)} for the base and its text encoders; {left}"
    return Line("memory needed", "ok", text) if taken <= room else Line("memory needed", "fail", text, _larger(recipe))


def _larger(recipe: recipes.Recipe) -> str:
    return "a larger device" if recipe.model.device == "cpu" else "a larger device, or --set model.device=cpu"


def _training(recipe: recipes.TrainedRecipe, needed: Needs, room: int, left: str) -> Line:
    """Whether a training fits as it is; else the settings with which it would."""
    saving = recipe.train.gradient_checkpointing
    encoding = needed.encoding
    peak = max(needed.peak(checkpointing=saving), encoding)
    most = largest_micro(recipe, room, checkpointing=saving)
    text = f"{size(peak)} at train.micro {recipe.train.micro}; {left}"
    if peak <= room:
        return Line("memory needed", "ok", f"{text}; train.micro up to {most} fits")
    if most and encoding <= room:
        return Line("memory needed", "fail", text, f"--set train.micro={most}")
    most = 0 if saving or encoding > room else largest_micro(recipe, room, checkpointing=True)
    if most:
        way_out = f"--set train.gradient_checkpointing=true --set train.micro={min(most, recipe.train.micro)}"
        return Line("memory needed", "fail", text, way_out)
    way_out = "not even one row fits: a larger device, or several with train.processes and model.shard=true"
    return Line("memory needed", "fail", text, way_out)


def _base(model: recipes.ModelSpec) -> Iterator[Line]:
    name = model.pretrained
    if name in registry.BASES.names() or is_dir(name):
        yield Line("base", "ok", f"{name}, on this machine")
        return
    from huggingface_hub import constants, try_to_load_from_cache

    index = try_to_load_from_cache(name, "model_index.json", revision=model.revision)
    folder = Path(index).parent / "transformer" if isinstance(index, str) else None
    if folder is not None and any(folder.glob("*.safetensors")):
        yield Line("base", "ok", f"{name}, in the hub cache")
    elif constants.HF_HUB_OFFLINE:
        yield Line("base", "fail", f"{name} is not in the hub cache, and the Hub is offline", "unset HF_HUB_OFFLINE")
    else:
        yield Line("base", "warn", f"{name} is not in the hub cache: it is fetched first", f"hf download {name}")


def _rewards(recipe: recipes.Recipe) -> Iterator[Line]:
    if isinstance(recipe, recipes.DistillRecipe) and not recipe.opd.log_rewards_every:
        return
    names = [spec.name for spec in getattr(recipe, "rewards", ())]
    if isinstance(recipe, recipes.EvalRecipe):
        from flowopd_cli.stages.evaluation.suites import reward_names

        names += reward_names(recipe)
    yield from (_reward(name) for name in dict.fromkeys(names) if not registry.REWARDS.is_code(name))


def _reward(name: str) -> Line:
    from flowopd_cli.rewards.catalog import row

    label = f"reward {name}"
    if name.startswith(registry.REMOTE):
        return Line(label, "warn", "is called over HTTP", "its worker has to run: flowopd rewards serve")
    try:
        info = row(name)
    except FlowOPDError as error:
        return Line(label, "fail", str(error))
    extra = info.get("extra")
    if extra and machine.absent(extra):
        missing = ", ".join(machine.absent(extra))
        return Line(label, "fail", f"{missing} not installed", f"pip install 'flowopd[{extra}]'")
    if info["installed"] == "worker":
        return Line(label, "warn", "runs in an environment of its own", f"flowopd rewards serve {name}")
    if info["installed"] == "no" and info.get("note"):
        return Line(label, "fail", str(info["note"]))
    weights = f"; its weights ({info['license']}) are fetched on first use" if info.get("license") else ""
    return Line(label, "ok", f"its packages are installed{weights}")


def _prompts(recipe: recipes.Recipe) -> Iterator[Line]:
    from flowopd_cli.prompts.public import SOURCES

    for name in dict.fromkeys(spec.source for spec in getattr(recipe, "prompts", ())):
        source = SOURCES.get(f"{name}-train")
        if source is None or all((source.folder / file.name).is_file() for file in source.files):
            continue
        yield Line(f"prompts {name}", "warn", "are fetched on first use", f"flowopd prompts fetch {source.name}")
