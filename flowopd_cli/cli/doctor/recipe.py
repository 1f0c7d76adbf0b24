"""Whether this machine can run a recipe: memory and the largest micro-batch, packages, weights, workers, prompts."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor.checks import guarded
from flowopd_cli.cli.plan import Finding
from flowopd_cli.cli.plan.check import RECIPE, findings
from flowopd_cli.cli.plan.memory import drawing_needs, footprint, memory_by_precision, training_needs, with_quantize
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import ArtifactError, FlowOPDError, RecipeError
from flowopd_cli.recipe.cost import arithmetic, own_workloads
from flowopd_cli.recipe.fields import Quantize
from flowopd_cli.system.files import is_dir
from flowopd_cli.system.text import GIB, gib

if TYPE_CHECKING:
    from flowopd_cli.models.memory import Footprint

FRAMEWORK = GIB  # memory of libraries and a CUDA context, besides what is counted


def recipe_findings(recipe: recipes.Recipe) -> Iterator[Finding]:
    """Check the machine against the recipe's requirements; nothing is loaded or fetched."""
    yield from guarded(RECIPE, partial(_recipe, recipe))
    recipe = Plan.of(recipe).recipe
    if _loads_base(recipe):
        yield from guarded("memory needed", partial(_memory, recipe))
        own = own_workloads(recipe) if isinstance(recipe, recipes.TrainedRecipe) else {}
        for model in (recipe.model, *own):
            yield from guarded("base", partial(_base, model))
    yield from guarded("rewards", partial(_rewards, recipe))
    yield from guarded("prompts", partial(_prompts, recipe))


def _recipe(recipe: recipes.Recipe) -> Iterator[Finding]:
    results = list(findings(Plan.of(recipe).recipe))
    if all(finding.state == "warn" for finding in results):
        yield Finding(RECIPE, "ok", f"a {recipe.stage} recipe")
    yield from results


def _loads_base(recipe: recipes.Recipe) -> bool:
    if isinstance(recipe, recipes.EvalRecipe):
        return recipe.eval.pictures is None and recipe.eval.import_scores is None
    return not isinstance(recipe, recipes.MergeRecipe)


def _memory(recipe: recipes.Recipe) -> Iterator[Finding]:
    processes = recipe.train.processes if isinstance(recipe, recipes.TrainedRecipe) else 1
    rooms = [device.free for device in machine.devices()]
    if recipe.model.device == "cpu" or (recipe.model.device == "auto" and not rooms):
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": "cpu"})})
        rooms = [machine.memory()[1] // processes] * processes
    if len(rooms) < processes:
        text = f"{processes} processes need a CUDA device each, there are {len(rooms)}"
        yield Finding("devices", "fail", text, f"set train.processes={max(1, len(rooms))}, or model.device=cpu")
        return
    base = footprint(recipe, "float32" if isinstance(recipe, recipes.PushRecipe) else None)
    if base is None:
        text = f"not known for {recipe.model.pretrained}"
        yield Finding("memory needed", "warn", text, "give a local folder as base")
    elif isinstance(recipe, recipes.TrainedRecipe):
        yield _training(recipe, min(rooms[:processes]) - FRAMEWORK)
    else:
        yield _drawing(recipe, base, rooms[0] - FRAMEWORK)
    if base is not None:
        for key, text in memory_by_precision(recipe).items():
            yield Finding(key, "ok", text)


def _drawing(recipe: recipes.Recipe, base: Footprint, room: int) -> Finding:
    """Whether the base fits together with its text encoders, which are both loaded while prompts are encoded."""
    needed = drawing_needs(recipe, base)
    beside = "its text encoders" if needed == base.loaded else "the full model"
    text = f"{gib(needed)} for the base and {beside}; {_free(room)}"
    if needed <= room:
        return Finding("memory needed", "ok", text)
    other = "" if recipe.model.device == "cpu" else ", or --set model.device=cpu"
    return Finding("memory needed", "fail", text, f"a larger device{other}")


def _training(recipe: recipes.TrainedRecipe, room: int) -> Finding:
    """Whether a training fits in memory; if not, settings that would fit."""
    saving, micro = recipe.train.gradient_checkpointing, recipe.train.micro
    needed = peak(recipe, micro, checkpointing=saving)
    text = f"{gib(needed, 2)} at train.micro {micro}; {_free(room)}"
    most = largest_micro(recipe, room, checkpointing=saving)
    if needed <= room:
        return Finding("memory needed", "ok", f"{text}; train.micro up to {most} fits")
    if most:
        return Finding("memory needed", "fail", text, f"--set train.micro={most}")
    for words, smaller in _smaller(recipe):
        if most := largest_micro(smaller, room, checkpointing=True):
            setting = "--set train.gradient_checkpointing=true --set train.micro="
            return Finding("memory needed", "fail", text, f"{words}{setting}{min(most, micro)}")
    full = recipe.adapter.kind == "full"
    alternative = "adapter.kind=lora" if full else "several with train.processes and model.shard=true"
    return Finding("memory needed", "fail", text, f"not even one row fits: a larger device, or {alternative}")


def _smaller(recipe: recipes.TrainedRecipe) -> Iterator[tuple[str, recipes.TrainedRecipe]]:
    """The recipe in ever less memory, and the options that make it so: a quantized base, or of a full model copies in
    the host's memory, then moments of 8 bits.
    """
    if recipe.adapter.kind != "full":
        for kind in get_args(Quantize):
            if kind == "none" or not recipe.model.shard:
                words = "" if kind == recipe.model.quantize else f"--set model.quantize={kind} "
                yield words, with_quantize(recipe, kind)
        return
    words = ""
    yield words, recipe
    if recipe.model.device == "cpu":  # its memory is the host's, and 8 bits need a CUDA device
        return
    if recipe.adapter.copies != "cpu":
        words = "--set adapter.copies=cpu "
        recipe = recipe.model_copy(update={"adapter": recipe.adapter.model_copy(update={"copies": "cpu"})})
        yield words, recipe
    train = recipe.train.model_copy(update={"optimizer": "adamw8bit"})
    yield f"{words}--set train.optimizer=adamw8bit ", recipe.model_copy(update={"train": train})


def refuse_too_large(recipe: recipes.TrainedRecipe) -> None:
    """Raise :class:`RecipeError` if a training does not fit into the free memory of this machine's devices."""
    with suppress(ArtifactError):  # a base of unknown shape may fit
        for finding in _memory(recipe):
            if finding.state == "fail":
                raise RecipeError(f"adapter.kind full: {finding.name}: {finding}")


def _free(room: int) -> str:
    return f"{gib(room)} are free, with 1 GiB left for libraries"


def peak(recipe: recipes.TrainedRecipe, micro: int, *, checkpointing: bool) -> int:
    """The peak bytes of a training with this ``train.micro``."""
    train = recipe.train.model_copy(update={"micro": micro})
    needed = training_needs(recipe.model_copy(update={"train": train}))
    return max(needed.peak(checkpointing=checkpointing), needed.encoding)


def largest_micro(recipe: recipes.TrainedRecipe, room: int, *, checkpointing: bool) -> int:
    """The largest ``train.micro`` that fits into ``room`` bytes, 0 if none fits. It is at most the number of rows of
    one optimizer step.
    """
    most = -(-int(arithmetic(recipe)["rows per optimizer step"]) // recipe.train.processes)
    return bisect_right(range(1, most + 1), room, key=partial(peak, recipe, checkpointing=checkpointing))


def _base(model: recipes.ModelSpec) -> Iterator[Finding]:
    name = model.pretrained
    if name in registry.BASES.names() or is_dir(name):
        yield Finding("base", "ok", f"{name}, on this machine")
        return
    from huggingface_hub import constants, try_to_load_from_cache

    index = try_to_load_from_cache(name, "model_index.json", revision=model.revision)
    if isinstance(index, str) and any((Path(index).parent / "transformer").glob("*.safetensors")):
        yield Finding("base", "ok", f"{name}, in the hub cache")
    elif constants.HF_HUB_OFFLINE:
        yield Finding("base", "fail", f"{name} is not in the hub cache, and the Hub is offline", "unset HF_HUB_OFFLINE")
    else:
        yield Finding("base", "warn", f"{name} is not in the hub cache: it is fetched first", f"hf download {name}")


def _rewards(recipe: recipes.Recipe) -> Iterator[Finding]:
    own = not isinstance(recipe, recipes.DistillRecipe) or recipe.scores
    names = [spec.name for field, spec in recipes.reward_fields(recipe) if own or field.startswith("watch.")]
    if isinstance(recipe, recipes.EvalRecipe):
        from flowopd_cli.stages.evaluation.suites import reward_names

        names += reward_names(recipe)
    yield from (_reward(name) for name in dict.fromkeys(names) if not registry.REWARDS.is_code(name))


def _reward(name: str) -> Finding:
    from flowopd_cli.rewards.catalog import row

    label = f"reward {name}"
    if name.startswith(registry.REMOTE):
        return Finding(label, "warn", "is called over HTTP", "its worker has to run: flowopd rewards serve")
    try:
        info = row(name)
    except FlowOPDError as error:
        return Finding(label, "fail", str(error))
    extra = info.get("extra")
    missing = machine.absent(extra) if extra else []
    if missing:
        return Finding(label, "fail", f"{', '.join(missing)} not installed", f"pip install 'flowopd[{extra}]'")
    if info["installed"] == "worker":
        return Finding(label, "warn", "runs in an environment of its own", f"flowopd rewards serve {name}")
    if info["installed"] == "no" and info.get("note"):
        return Finding(label, "fail", str(info["note"]))
    weights = f"; its weights ({info['license']}) are fetched on first use" if info.get("license") else ""
    return Finding(label, "ok", f"its packages are installed{weights}")


def _prompts(recipe: recipes.Recipe) -> Iterator[Finding]:
    from flowopd_cli.prompts.public import SOURCES

    for name in dict.fromkeys(spec.source for spec in getattr(recipe, "prompts", ())):
        source = SOURCES.get(f"{name}-train")
        if source is not None and not all((source.folder / file.name).is_file() for file in source.files):
            yield Finding(f"prompts {name}", "warn", "are fetched on first use", f"flowopd prompts fetch {source.name}")
