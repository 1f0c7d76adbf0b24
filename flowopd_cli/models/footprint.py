"""What a recipe needs of memory, and a pass of operations, estimated from shapes alone. No torch here.

The activations are counted by what autograd keeps of a block for its backward (:mod:`flowopd_cli.models.shapes`). An
adapter adds the input of each of its modules, which several share where no cast is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from flowopd_cli.models.files.shapes import (
    BYTES,
    FULL,
    Rows,
    Shape,
    adapted,
    adapter_weights,
    base_weights,
    family,
    shape_of,
)
from flowopd_cli.recipe import AdapterSpec, ColdstartRecipe, DistillRecipe, ModelSpec, TeacherRecipe, TrainedRecipe

Figures = dict[str, int | float | str]
GIB = 2**30


def kept(shape: Shape, adapter: AdapterSpec, batch: Rows, *, checkpointing: bool = False) -> int:
    """Bytes that one pass with gradients holds when its backward begins.

    With gradient checkpointing each block keeps its inputs alone, and one block at a time all it needs.
    """
    whole = shape.kept(batch) + _adapter_inputs(shape, adapter, batch)
    if not checkpointing:
        return whole
    return shape.blocks * batch.tokens * shape.width * batch.bytes + whole // max(1, shape.blocks)


def _adapter_inputs(shape: Shape, adapter: AdapterSpec, batch: Rows) -> int:
    """Bytes of the adapters' inputs and of what their first halves make of them, all in float32."""
    seen: set[str] = set()
    total = 0
    for module in adapted(shape, adapter.targets):
        if module.tokens == "row":
            continue
        tokens = batch.of(module.tokens)
        source = (batch.bytes == FULL and module.source) or module.name
        if source not in seen:
            total += tokens * module.inputs * FULL
        seen.add(source)
        total += tokens * adapter.rank * FULL
    return total


def transient(shape: Shape, batch: Rows) -> int:
    """Bytes that one pass without gradients holds at its widest, and one with them beside what is kept."""
    return shape.TRANSIENT * batch.tokens * shape.width * batch.bytes


def forward_operations(shape: Shape, image: int, text: int) -> int:
    """Floating-point operations of one row's forward without adapters: two a weight and token, and attention's."""
    one = Rows(1, image, text, 0)
    products = sum(2 * module.inputs * module.outputs * one.of(module.tokens) for module in shape.linears())
    return products + shape.attention_operations(image, text)


@dataclass(frozen=True)
class Needs:
    """Bytes that a training needs on each device: what is held all the time, and what a pass adds."""

    dtype: str
    holding: Mapping[str, int]
    sampling: int
    kept: int
    kept_checkpointed: int
    transient: int
    encoders: int

    @property
    def encoding(self) -> int:
        """Bytes while prompts are encoded: the text encoders beside the base and the adapters."""
        return self.holding["base"] + self.holding["adapters"] + self.encoders

    def peak(self, *, checkpointing: bool) -> int:
        """Bytes at the widest point of an iteration."""
        learning = (self.kept_checkpointed if checkpointing else self.kept) + self.transient
        return sum(self.holding.values()) + max(self.sampling, learning)


def needs(recipe: TrainedRecipe) -> Needs | None:
    """What a training needs; ``auto`` counts as bfloat16 unless the device is a CPU. ``None`` where the base's shape is
    not at hand.

    Not in it: the autoencoder and rewards where pictures are decoded, the framework itself (CUDA's context and
    libraries take about 1 GiB), fragmentation.
    """
    shape = shape_of(recipe.model.pretrained)
    if shape is None:
        return None
    dtype = counted_dtype(recipe.model)
    one = adapter_weights(shape, recipe.adapter.targets, recipe.adapter.rank) * FULL
    learning, collecting = _rows(recipe, shape, BYTES[dtype])
    holding = {
        "base": base_weights(shape) * BYTES[dtype] // (recipe.train.processes if recipe.model.shard else 1),
        "adapters": one * _adapters(recipe),
        "optimizer": 3 * one,  # AdamW's two moments and the gradient
        "trajectories": _trajectories(recipe, shape, BYTES[dtype]),
    }
    plain, checkpointed = (kept(shape, recipe.adapter, learning, checkpointing=saving) for saving in (False, True))
    passes = transient(shape, collecting), plain, checkpointed, transient(shape, learning)
    return Needs(dtype, holding, *passes, shape.encoders * BYTES[dtype])


def counted_dtype(model: ModelSpec) -> str:
    """The base's dtype; ``auto`` counts as bfloat16 unless the device is a CPU."""
    if model.dtype != "auto":
        return model.dtype
    return "float32" if model.device == "cpu" else "bfloat16"


def footprint(recipe: TrainedRecipe) -> Figures:
    """The rows of ``--dry-run`` about memory, on each device; see :func:`needs`."""
    needed = needs(recipe)
    if needed is None:
        return {"memory": f"not known: the shape of {recipe.model.pretrained} is not at hand (give a local folder)"}
    encoding = {"memory: text encoders, before training": size(needed.encoders)}
    return {
        "memory counted for": f"{needed.dtype} base, float32 adapters, {_learned(recipe)} rows learning at once",
        **{f"memory: {name}": size(value) for name, value in needed.holding.items()},
        "memory: sampling and labels": size(needed.sampling),
        "memory: learning": size(needed.kept),
        "memory: learning, checkpointed": size(needed.kept_checkpointed),
        **(encoding if needed.encoders else {}),
        "memory in all, without and with checkpointing": " / ".join(
            size(needed.peak(checkpointing=saving)) for saving in (False, True)
        ),
    }


def _rows(recipe: TrainedRecipe, shape: Shape, width: int) -> tuple[Rows, Rows]:
    """The batch that learns and the one that samples, with the halves that guidance adds."""
    model, train = recipe.model, recipe.train
    tokens = shape.image_tokens(model.resolution), shape.text_tokens(model.max_sequence_length)
    halves = family(model.family).halves
    own = 1 if isinstance(recipe, ColdstartRecipe) else halves(recipe.sampling.guidance)
    others = [recipe.sampling.guidance, *_guidances(recipe)]
    pictures = min(train.rollout_batch, _pictures(recipe))
    return Rows(_learned(recipe) * own, *tokens, width), Rows(pictures * max(map(halves, others)), *tokens, width)


def _pictures(recipe: TrainedRecipe) -> int:
    """Of one iteration, on one process."""
    return -(-recipe.train.groups // recipe.train.processes) * recipe.train.group_size


def _learned(recipe: TrainedRecipe) -> int:
    """Rows that learn at once: a micro-batch, or all there are; in one pass those of one step."""
    if isinstance(recipe, DistillRecipe) and recipe.fused:
        return min(recipe.train.micro, _pictures(recipe))
    return recipe.train.micro


def _guidances(recipe: TrainedRecipe) -> list[float]:
    specs = list(_teachers(recipe).values())
    if isinstance(recipe, DistillRecipe) and recipe.anchor.beta:
        specs.append(recipe.anchor)
    return [spec.guidance for spec in specs if spec.guidance is not None]


def _teachers(recipe: TrainedRecipe) -> dict:
    if isinstance(recipe, DistillRecipe):
        return recipe.routing
    return recipe.teachers if isinstance(recipe, ColdstartRecipe) else {}


def _adapters(recipe: TrainedRecipe) -> int:
    """Adapters in memory, taken to be of the policy's size: policy, its average, teachers, anchor; ``base`` is none."""
    refs = {spec.ref for spec in _teachers(recipe).values()} - {"base"}
    anchor = isinstance(recipe, DistillRecipe) and recipe.anchor.beta > 0 and recipe.anchor.ref != "base"
    return 2 + len(refs) + anchor


def _trajectories(recipe: TrainedRecipe, shape: Shape, width: int) -> int:
    """Bytes of what collection leaves for learning: latents of every step, its labels, embeddings of the prompts. One
    pass (``opd.schedule: fused``) holds the latents of one step alone.
    """
    model, train, steps = recipe.model, recipe.train, recipe.sampling.steps
    latent = shape.latent_channels * shape.side(model.resolution) ** 2 * FULL
    text = shape.text_tokens(model.max_sequence_length) * shape.joint_attention_dim + shape.pooled_projection_dim
    if isinstance(recipe, ColdstartRecipe):
        return recipe.sft.samples * (latent + text * width)
    pictures = _pictures(recipe)
    if isinstance(recipe, DistillRecipe) and recipe.fused:  # the rows that learn: state, both labels, velocity
        return min(pictures, train.micro) * 4 * latent + pictures * text * width
    labels = 1 + (recipe.anchor.beta > 0) if isinstance(recipe, DistillRecipe) else _references(recipe)
    return pictures * ((1 + steps * (1 + labels)) * latent + text * width)


def _references(recipe: TeacherRecipe) -> int:
    return 1 if recipe.grpo.beta else 0


def size(count: int) -> str:
    """Bytes in GiB, or in MiB below a tenth of one."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.1f} MiB"
