"""Memory, parameters and operations of a base, measured on modules of torch's meta device: shapes without numbers.

A forward on the meta device runs a family's own code, and autograd keeps there what it keeps on a real device, so a new
family needs nothing here. Results are those of one row; they grow with the number of rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import base_folder, known_shape
from flowopd_cli.models.files.workload import Workload
from flowopd_cli.models.loading import DTYPES, LoadOptions
from flowopd_cli.models.pipeline import Modules, PipelineModel
from flowopd_cli.models.random_weights import empty_transformer, skeleton
from flowopd_cli.registry import MODELS

META = torch.device("meta")
FLOAT32 = 4  # bytes
BLOCK_COUNTS, MOST_BLOCKS = ("num_layers", "num_single_layers"), 1000
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Footprint:
    """A base with one adapter. Bytes and operations are those of one row without a negative half.

    ``kept`` is what autograd holds when the backward begins, ``kept_checkpointed`` the same with gradient checkpoints,
    ``transient`` the peak of a forward without gradients, ``operations`` those of a forward without adapters.
    """

    parameters: int
    adapter: int
    encoders: int
    kept: int
    kept_checkpointed: int
    transient: int
    operations: int
    latent: int
    conditioning: int
    itemsize: int


@dataclass(frozen=True)
class Needs:
    """Bytes that a training needs on each device: what is held all the time, and what a pass adds."""

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


def needs(footprint: Footprint, work: Workload) -> Needs:
    """What a training needs.

    Not in it: the autoencoder and rewards where pictures are decoded, the framework itself (CUDA's context and
    libraries take about 1 GiB), fragmentation.
    """
    one = footprint.adapter * FLOAT32
    holding = {
        "base": footprint.parameters * footprint.itemsize // work.shards,
        "adapters": one * work.adapters,
        "optimizer": 3 * one,  # AdamW's two moments and the gradient
        "trajectories": work.latents * footprint.latent + work.prompts * footprint.conditioning,
    }
    return Needs(
        holding,
        sampling=work.sampling_rows * footprint.transient,
        kept=work.learning_rows * footprint.kept,
        kept_checkpointed=work.learning_rows * footprint.kept_checkpointed,
        transient=work.learning_rows * footprint.transient,
        encoders=footprint.encoders * footprint.itemsize,
    )


@lru_cache(maxsize=16)
def measure(family: str, pretrained: str, options: LoadOptions, rank: int) -> Footprint | None:
    """The footprint of a base with adapters of ``rank`` on ``options.targets``; nothing is fetched or allocated.

    With ``rank`` 0 there is no adapter; ``options.dtype`` is not ``auto``. ``None`` if the configuration of the base is
    not on this machine or is damaged, or the family is not made of a diffusers pipeline.
    """
    model_class, shape, folder = MODELS.load(family), known_shape(pretrained), base_folder(pretrained)
    if not issubclass(model_class, PipelineModel) or (shape is None and not folder.is_dir()):
        return None
    try:
        if shape is None:
            return _measure(_meta_model(model_class, folder, options), rank, 0)
        with skeleton(model_class, shape) as folder:
            return _measure(_meta_model(model_class, folder, options), rank, shape.encoders)
    except Exception:  # whatever a damaged configuration makes of diffusers' modules
        return None


def _meta_model(family: type[PipelineModel], folder: Any, options: LoadOptions) -> PipelineModel:
    config = family.transformer_class.load_config(folder, subfolder="transformer")
    if not all(0 <= count <= MOST_BLOCKS for name, count in config.items() if name in BLOCK_COUNTS):
        raise ArtifactError(f"{folder}: no sound number of blocks")
    transformer = empty_transformer(family, folder, META, DTYPES[options.dtype])
    return family(folder, META, options, Modules(transformer))


def _measure(model: PipelineModel, rank: int, encoders: int) -> Footprint:
    parameters = sum(tensor.numel() for tensor in (*model.transformer.parameters(), *model.transformer.buffers()))
    if rank:
        with META:
            model.adapters.add("policy", rank, rank, seed=0, trainable=True)
    kept, inputs = _kept(model)
    transient, operations = _forward_costs(model)
    config, (channels, height, width) = model.transformer.config, model.latent_shape
    conditioning = model.text_tokens * config.joint_attention_dim + config.pooled_projection_dim
    return Footprint(
        parameters=parameters,
        adapter=sum(tensor.numel() for tensor in model.adapters.trainable().values()),
        encoders=encoders,
        kept=kept,
        kept_checkpointed=inputs + kept // len(model.blocks),
        transient=transient,
        operations=operations,
        latent=channels * height * width * FLOAT32,
        conditioning=conditioning * model.dtype.itemsize,
        itemsize=model.dtype.itemsize,
    )


def _velocity(model: PipelineModel, adapter: str | None) -> Tensor:
    """One row through the transformer, its attention by a kernel that keeps no matrix of scores."""
    config = model.transformer.config
    latents, sigma = torch.empty(1, *model.latent_shape, device=META), torch.empty(1, device=META)
    embeds = torch.empty(1, model.text_tokens, config.joint_attention_dim, device=META, dtype=model.dtype)
    pooled = torch.empty(1, config.pooled_projection_dim, device=META, dtype=model.dtype)
    with model.adapters.use(adapter), _fused_attention():
        return model.velocity(latents, sigma, Conditioning(embeds, pooled), guidance=1.0)


def _kept(model: PipelineModel) -> tuple[int, int]:
    """Bytes that autograd keeps of a forward with gradients, weights left out, and those of the blocks' inputs."""
    weights = _weights(model)
    saved: dict[int, Tensor] = {}
    inputs: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            saved.setdefault(_storage(tensor), tensor)
        return tensor

    def note_inputs(module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        states = (*arguments[:2], named.get("hidden_states"), named.get("encoder_hidden_states"))
        inputs.update({_storage(tensor): tensor for tensor in states if isinstance(tensor, Tensor)})

    hooks = [block.register_forward_pre_hook(note_inputs, with_kwargs=True) for block in model.blocks]
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        _velocity(model, "policy" if model.adapters.names else None)
    for hook in hooks:
        hook.remove()
    return _bytes(saved), _bytes(inputs)


def _forward_costs(model: PipelineModel) -> tuple[int, int]:
    """The peak bytes and the operations of a forward without gradients and adapters."""
    costs = _Costs(_weights(model))
    with torch.no_grad(), costs:
        _velocity(model, None)
    return costs.peak, costs.operations


def _weights(model: PipelineModel) -> set[int]:
    return {_storage(tensor) for tensor in (*model.transformer.parameters(), *model.transformer.buffers())}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensors: Mapping[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Attention by a fused kernel; on the meta device torch would choose the one that keeps the matrix of scores."""

    def fused(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _ATTENTION(query, key, value)[0]

    functional = torch.nn.functional
    original, functional.scaled_dot_product_attention = functional.scaled_dot_product_attention, fused
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = original


class _Costs(TorchDispatchMode):
    """Operations, and the peak of the bytes of tensors that exist at a time, ``known`` storages left out."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._known = set(known)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet is _ATTENTION:
            query, key = args[:2]
            self.operations += 4 * query.numel() * key.shape[-2]
        elif packet in flop_registry:
            self.operations += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and _storage(tensor) not in self._known:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size
