"""Whether this machine can run a recipe: memory and the largest micro-batch, packages, weights, workers, prompts."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor.checks import Line, gib, guarded
from flowopd_cli.cli.plan import check as preflight
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import FlowOPDError, MissingDependency
from flowopd_cli.models.files.shapes import BYTES, FULL, Shape, base_weights, shape_of
from flowopd_cli.models.footprint import Needs, counted_dtype, needs, size
from flowopd_cli.recipe.cost import arithmetic
from flowopd_cli.system.paths import is_dir

FRAMEWORK = machine.GIB  # what libraries and a CUDA context take beside what is counted


def examine(recipe: recipes.Recipe) -> Iterator[Line]:
    """What the recipe needs of this machine; nothing is loaded or fetched."""
    yield from guarded("recipe", lambda: _sound(recipe))
    recipe = Plan.of(recipe).recipe
    if _loads_base(recipe):
        yield from guarded("memory needed", lambda: _room(recipe))
        yield from guarded("base", lambda: _base(recipe.model))
    yield from guarded("rewards", lambda: _rewards(recipe))
    yield from guarded("prompts", lambda: _prompts(recipe))


def _loads_base(recipe: recipes.Recipe) -> bool:
    """Whether it works with the base, and not with adapters, pictures or scores alone."""
    if isinstance(recipe, recipes.EvalRecipe):
        return recipe.eval.pictures is None and recipe.eval.import_scores is None
    return not isinstance(recipe, recipes.MergeRecipe)


def _room(recipe: recipes.Recipe) -> Iterator[Line]:
    """The memory that is needed beside that which is there."""
    found = machine.devices()
    if recipe.model.device == "cpu" or (recipe.model.device == "auto" and not found):
        memory = machine.memory()
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": "cpu"})})
        rooms = [] if memory is None else [memory[1] // _processes(recipe)]
    else:
        rooms = [device.free for device in found]
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


def _sound(recipe: recipes.Recipe) -> Iterator[Line]:
    """What ``--dry-run`` would refuse or remark on."""
    try:
        notes = preflight.check(recipe, dry_run=True)
    except MissingDependency as error:
        yield Line("recipe", "fail", f"{error.package} is not installed", f"pip install 'flowopd[{error.extra}]'")
        return
    except FlowOPDError as error:
        yield Line("recipe", "fail", str(error))
        return
    yield Line("recipe", "ok", f"a {recipe.stage} recipe")
    yield from (Line("recipe", "warn", note) for note in notes)


def _memory(recipe: recipes.Recipe, rooms: Sequence[int]) -> Iterator[Line]:
    copies = _processes(recipe)
    if recipe.model.device != "cpu" and len(rooms) < copies:
        told = f"{copies} processes want a CUDA device each, there are {len(rooms)}"
        yield Line("devices", "fail", told, f"set train.processes={max(1, len(rooms))}, or model.device=cpu")
        return
    shape = shape_of(recipe.model.pretrained)
    if shape is None or not rooms:
        yield Line("memory needed", "warn", f"not known for {recipe.model.pretrained}", "give a local folder as base")
        return
    room = min(rooms[:copies]) - FRAMEWORK
    left = f"{gib(room)} are free, with 1 GiB left for libraries"
    if isinstance(recipe, recipes.TrainedRecipe):
        needed = needs(recipe)
        assert needed is not None  # its shape is known
        yield _training(recipe, needed, room, left)
    else:
        yield _drawing(recipe, shape, room, left)


def _drawing(recipe: recipes.Recipe, shape: Shape, room: int, left: str) -> Line:
    """Whether the base fits beside its text encoders, which are there together while prompts are encoded; a push draws
    in float32.
    """
    width = FULL if isinstance(recipe, recipes.PushRecipe) else BYTES[counted_dtype(recipe.model)]
    taken = (base_weights(shape) + shape.encoders) * width
    told = f"{gib(taken)} for the base and its text encoders; {left}"
    return Line("memory needed", "ok", told) if taken <= room else Line("memory needed", "fail", told, _larger(recipe))


def _larger(recipe: recipes.Recipe) -> str:
    return "a larger device" if recipe.model.device == "cpu" else "a larger device, or --set model.device=cpu"


def _training(recipe: recipes.TrainedRecipe, needed: Needs, room: int, left: str) -> Line:
    """Whether a training fits as it is; else the settings with which it would."""
    saving = recipe.train.gradient_checkpointing
    encoding = needed.encoding
    peak = max(needed.peak(checkpointing=saving), encoding)
    most = largest_micro(recipe, room, checkpointing=saving)
    told = f"{size(peak)} at train.micro {recipe.train.micro}; {left}"
    if peak <= room:
        return Line("memory needed", "ok", f"{told}; train.micro up to {most} fits")
    if most and encoding <= room:
        return Line("memory needed", "fail", told, f"--set train.micro={most}")
    most = 0 if saving or encoding > room else largest_micro(recipe, room, checkpointing=True)
    if most:
        way_out = f"--set train.gradient_checkpointing=true --set train.micro={min(most, recipe.train.micro)}"
        return Line("memory needed", "fail", told, way_out)
    way_out = "not even one row fits: a larger device, or several with train.processes and model.shard=true"
    return Line("memory needed", "fail", told, way_out)


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
        names += importlib.import_module("flowopd_cli.stages.evaluation.suites").reward_names(recipe)
    for name in dict.fromkeys(names):
        yield _reward(name)


def _reward(name: str) -> Line:
    label = f"reward {name}"
    if name.startswith(registry.REMOTE):
        return Line(label, "warn", "is asked over HTTP", "its worker has to run: flowopd rewards serve")
    try:
        told = importlib.import_module("flowopd_cli.rewards.catalog").row(name)
    except FlowOPDError as error:
        return Line(label, "fail", str(error))
    extra = told.get("extra")
    if extra and machine.absent(extra):
        return Line(
            label, "fail", f"{', '.join(machine.absent(extra))} not installed", f"pip install 'flowopd[{extra}]'"
        )
    if told["installed"] == "worker":
        return Line(label, "warn", "lives in an environment of its own", f"flowopd rewards serve {name}")
    if told["installed"] == "no" and told.get("note"):
        return Line(label, "fail", str(told["note"]))
    weights = "" if told.get("license", "") == "" else f"; its weights ({told['license']}) are fetched on first use"
    return Line(label, "ok", f"its packages are installed{weights}")


def _prompts(recipe: recipes.Recipe) -> Iterator[Line]:
    from flowopd_cli.prompts.public import SOURCES

    for name in dict.fromkeys(spec.source for spec in getattr(recipe, "prompts", ())):
        source = SOURCES.get(f"{name}-train")
        if source is None or all((source.folder / file.name).is_file() for file in source.files):
            continue
        yield Line(f"prompts {name}", "warn", "are fetched on first use", f"flowopd prompts fetch {source.name}")
