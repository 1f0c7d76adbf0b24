"""The memory that a recipe needs on each device. torch is imported when a function is called."""

from __future__ import annotations

import gc
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, get_args

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family
from flowopd_cli.models.files.workload import AtHand, Workload
from flowopd_cli.recipe import AdapterSpec, DistillRecipe, EvalRecipe, ModelSpec, Recipe, TrainedRecipe
from flowopd_cli.recipe.cost import learning_rows, own_workloads, workload
from flowopd_cli.recipe.fields import Quantize
from flowopd_cli.runs.adapter_ref import AdapterRef
from flowopd_cli.system.text import gib

if TYPE_CHECKING:
    from flowopd_cli.models.memory import Footprint, Needs

AnyRecipe = TypeVar("AnyRecipe", bound=Recipe)


def footprint(recipe: Recipe, dtype: str | None = None) -> Footprint | None:
    """The footprint of a recipe's base, with its adapter if it trains one; ``None`` if the base's shape is unknown.

    Raises :class:`ArtifactError`: the configuration of the base is damaged.
    """
    adapter = recipe.adapter if isinstance(recipe, TrainedRecipe) else None
    return _footprint(recipe.model, adapter, dtype)


def _footprint(model: ModelSpec, adapter: AdapterSpec | None, dtype: str | None = None) -> Footprint | None:
    gc.disable()  # collections would take a third of the time of these imports
    try:
        from flowopd_cli.models.loading import LoadOptions
        from flowopd_cli.models.memory import measure

        options = LoadOptions(
            dtype=dtype or _dtype(model),
            resolution=model.resolution,
            max_sequence_length=model.max_sequence_length,
            targets=adapter.targets if adapter else (),
        )
        full = adapter is not None and adapter.kind == "full"
        base = measure(model.family, model.pretrained, options, adapter.rank if adapter else 0, full=full)
        return base and replace(base, quantize=model.quantize)
    finally:
        gc.enable()


def figures(recipe: Recipe) -> dict[str, str]:
    """The rows of ``--dry-run`` about memory; none for a recipe that loads no base."""
    try:
        if not isinstance(recipe, TrainedRecipe):
            return memory_by_precision(recipe)
        needed = training_needs(recipe)
    except ArtifactError as error:
        return {"memory": f"not known: {error}"}
    encoding = {"memory: text encoders, before training": needed.encoders} if needed.encoders else {}
    rows = {
        **{f"memory: {name}": value for name, value in needed.holding.items()},
        "memory: sampling and labels": needed.sampling,
        "memory: learning": needed.activations,
        "memory: learning, checkpointed": needed.activations_checkpointed,
        **encoding,
        **({"memory of the host: copies": needed.host} if needed.host else {}),
    }
    peaks = [gib(needed.peak(checkpointing=saving), 2) for saving in (False, True)]
    dtype, quantize = _dtype(recipe.model), recipe.model.quantize
    precision = dtype if quantize == "none" else f"{quantize} and {dtype}"
    trained = "weights, gradients and moments" if recipe.adapter.kind == "full" else "adapters"
    return {
        "memory counted for": f"{precision} base, float32 {trained}, {learning_rows(recipe)} rows learning at once",
        **{name: gib(value, 2) for name, value in rows.items()},
        "memory in all, without and with checkpointing": " / ".join(peaks),
        **({"memory in all, while prompts are encoded": gib(needed.encoding, 2)} if needed.encoders else {}),
        **memory_by_precision(recipe),
    }


def memory_by_precision(recipe: Recipe) -> dict[str, str]:
    """The memory of a recipe by ``model.quantize``: of a training without and with checkpointing, else of the base with
    its text encoders. Empty for a recipe that loads no base, or one of unknown shape.
    """
    texts = {}
    whole = recipe.adapter.kind == "full" if isinstance(recipe, TrainedRecipe) else _draws_full(recipe)
    for kind in ("none",) if whole else get_args(Quantize):
        other = with_quantize(recipe, kind)
        if isinstance(other, TrainedRecipe):
            needed = training_needs(other)
            text = " / ".join(gib(needed.peak(checkpointing=saving), 2) for saving in (False, True))
        elif isinstance(other, EvalRecipe) and not (other.eval.pictures or other.eval.import_scores):
            base = footprint(other)
            if base is None:
                return {}
            text = gib(drawing_needs(other, base), 2)
        else:
            return {}
        texts[f"memory, model.quantize {kind}"] = text if kind == "none" or not recipe.model.shard else "not sharded"
    return texts


def drawing_needs(recipe: Recipe, base: Footprint) -> int:
    """Bytes of a base with its text encoders; or with a full model's weights, before they take the base's place."""
    weights = base.itemsize * base.trainable if _draws_full(recipe) else 0
    return max(base.loaded, base.weights + weights)


def _draws_full(recipe: Recipe) -> bool:
    ref = recipe.adapter if isinstance(recipe, EvalRecipe) else None
    return ref is not None and AdapterRef.parse(ref).shape().get("kind") == "full"


def with_quantize(recipe: AnyRecipe, kind: str) -> AnyRecipe:
    """The recipe with another ``model.quantize``."""
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"quantize": kind})})


def training_needs(recipe: TrainedRecipe) -> Needs:
    """The memory of a training; LoRAs whose files are not on this machine count as large as the recipe's.

    Raises :class:`ArtifactError`: the configuration of a base is damaged, or not on this machine.
    """
    parts: list[tuple[Footprint, Workload]] = []
    at_hand = _at_hand(recipe)
    works = [(recipe.model, recipe.adapter, workload(recipe, at_hand))]
    works += [(model, _lora(recipe, model), work) for model, work in own_workloads(recipe, at_hand).items()]
    for model, adapter, work in works:
        base = _footprint(model, adapter)
        if base is None:
            raise ArtifactError(f"the shape of {model.pretrained} is not at hand (give a local folder)")
        if adapter.kind == "full" and work.adapters:
            lora = _footprint(model, _lora(recipe, model))
            base = replace(base, adapter=lora.adapter if lora else 0)
        parts.append((base, work))
    from flowopd_cli.models.memory import needs

    return needs(*parts[0], parts[1:])


def _lora(recipe: TrainedRecipe, model: ModelSpec) -> AdapterSpec:
    """The recipe's adapter as a LoRA on a base, on the family's own targets if it is another one."""
    targets = recipe.adapter.targets if model.family == recipe.model.family else family(model.family).targets
    return recipe.adapter.model_copy(update={"kind": "lora", "targets": targets})


def _at_hand(recipe: TrainedRecipe) -> AtHand:
    """What is known of the adapters of teachers and anchor from files on this machine."""
    refs = [spec.ref for spec in getattr(recipe, "teachers", {}).values()]
    refs += [recipe.anchor.ref] if isinstance(recipe, DistillRecipe) else []
    parsed = {ref: AdapterRef.parse(ref) for ref in refs}
    headers = {ref: header for ref, reference in parsed.items() if (header := reference.header())}
    return AtHand(
        {ref: sum(p.rank * (p.inputs + p.outputs) for p in h.pairs.values()) for ref, h in headers.items()},
        frozenset(ref for ref, reference in parsed.items() if reference.shape().get("kind") == "full"),
    )


def _dtype(model: ModelSpec) -> str:
    """The base's dtype; ``auto`` counts as bfloat16 unless the device is a CPU."""
    if model.dtype != "auto":
        return model.dtype
    return "float32" if model.device == "cpu" else "bfloat16"
