"""Memory, parameters and operations of a base, measured on modules of torch's meta device: shapes without numbers.

A forward on the meta device runs a family's own code, and autograd saves there what it saves on a real device, so a new
family needs nothing here. Results are those of one row; they grow with the number of rows.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.families import base_folder, known_shape
from flowopd_cli.models.files.workload import Workload
from flowopd_cli.models.loading import BROKEN, DTYPES, LoadOptions
from flowopd_cli.models.pipeline import Modules, PipelineModel
from flowopd_cli.models.quantization import coded_bytes, decoding_bytes, linear_layers
from flowopd_cli.models.random_weights import empty_transformer, skeleton
from flowopd_cli.registry import MODELS

OWN, CAST = "teachers' own bases", "weights in the base's precision"
META = torch.device("meta")
FLOAT32 = 4  # bytes
FULL = -1  # in place of a rank: all weights are trained
BLOCK_COUNTS = ("num_layers", "num_single_layers", "num_refiner_layers", "n_layers", "n_refiner_layers")
MOST_BLOCKS = 1000
OWN_NUMBERS = {"layer_id"}  # a block's place among its equals
_Tensors = dict[int, tuple[Tensor, int]]
_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


@dataclass(frozen=True)
class Footprint:
    """A base with one adapter, or trained as a whole; bytes and operations of one row without a negative half.

    ``parameters`` include buffers, ``trainable`` ones do not. Of the parameters, ``linear`` can be quantized,
    ``largest`` of them in one layer. ``activations`` is what autograd holds when the backward begins, ``transient`` the
    peak of a forward without gradients, ``operations`` those of a forward without adapters; all three do not depend on
    ``quantize``.
    """

    parameters: int
    trainable: int
    linear: int
    largest: int
    adapter: int
    encoders: int
    activations: int
    activations_checkpointed: int
    transient: int
    operations: int
    latent: int
    conditioning: int
    itemsize: int
    quantize: str = "none"

    @property
    def weights(self) -> int:
        """Bytes of the base."""
        linear = self.linear * self.itemsize
        if self.quantize != "none":
            linear = coded_bytes(self.linear, self.quantize, self.itemsize)
        return (self.parameters - self.linear) * self.itemsize + linear

    @property
    def loaded(self) -> int:
        """Bytes of the base and its text encoders."""
        return self.weights + self.encoders * self.itemsize

    @property
    def decoding(self) -> int:
        """Bytes that are added while a quantized layer is decoded."""
        return 0 if self.quantize == "none" else decoding_bytes(self.largest, self.quantize, self.itemsize)


@dataclass(frozen=True)
class Needs:
    """Bytes that a training needs on each device: permanently, and additionally during a pass; ``host`` beside it."""

    holding: Mapping[str, int]
    sampling: int
    activations: int
    activations_checkpointed: int
    transient: int
    encoders: int
    host: int = 0

    @property
    def encoding(self) -> int:
        """Bytes while prompts are encoded: the text encoders beside the bases and the adapters."""
        later = ("optimizer", "trajectories", CAST)
        return sum(size for name, size in self.holding.items() if name not in later) + self.encoders

    def peak(self, *, checkpointing: bool) -> int:
        """Bytes at the widest point of an iteration."""
        learning = (self.activations_checkpointed if checkpointing else self.activations) + self.transient
        return sum(self.holding.values()) + max(self.sampling, learning)


def needs(footprint: Footprint, work: Workload, own: Sequence[tuple[Footprint, Workload]] = ()) -> Needs:
    """The memory of a training, excluding autoencoder, rewards, CUDA's context (about 1 GiB) and fragmentation.

    ``own`` are the bases that teachers have of their own.
    """
    learning = footprint.trainable if work.trained else footprint.adapter
    holding = {
        "base": footprint.weights // work.shards,
        "adapters": _frozen(footprint, work),
        "optimizer": learning * (FLOAT32 + work.moments),  # the gradient and AdamW's two moments
        "trajectories": work.latents * footprint.latent + work.prompts * footprint.conditioning,
    }
    if work.trained:
        holding["trained weights and copies"] = learning * FLOAT32 * work.trained
        if footprint.itemsize < FLOAT32 or work.hosted:  # of the policy, or of a copy that draws
            holding[CAST] = learning * footprint.itemsize
    if own:
        holding[OWN] = sum(_held(base, other) for base, other in own)
    return Needs(
        holding,
        sampling=max(
            [work.sampling_rows * footprint.transient + footprint.decoding]
            + [
                other.sampling_rows * base.transient + base.decoding + other.offload * base.weights
                for base, other in own
            ]
        ),
        activations=work.learning_rows * footprint.activations,
        activations_checkpointed=work.learning_rows * footprint.activations_checkpointed,
        transient=work.learning_rows * footprint.transient + footprint.decoding,
        encoders=max(base.encoders * base.itemsize for base in (footprint, *(base for base, _ in own))),
        host=learning * FLOAT32 * work.hosted,
    )


def _held(base: Footprint, work: Workload) -> int:
    """Bytes of a teacher's own base on the device between its forwards: all of it, unless it is offloaded."""
    weights = 0 if work.offload else base.weights + _frozen(base, work)
    return weights + work.prompts * base.conditioning


def _frozen(base: Footprint, work: Workload) -> int:
    """Bytes of LoRAs, which are float32, and of frozen sets of all weights."""
    loras = FLOAT32 * (base.adapter * work.adapters + work.known)
    return loras + base.itemsize * base.trainable * work.models


@lru_cache(maxsize=16)
def measure(family: str, pretrained: str, options: LoadOptions, rank: int, *, full: bool = False) -> Footprint | None:
    """The footprint of a base with adapters of ``rank`` on ``options.targets``; nothing is fetched or allocated.

    With ``full`` all its weights are trained, with ``rank`` 0 there is no adapter; ``options.dtype`` is not ``auto``,
    ``options.quantize`` has no effect.
    ``None`` if the configuration of the base is not on this machine, or the family is not made of a diffusers pipeline.

    Raises :class:`ArtifactError`: the configuration is damaged.
    """
    model_class, shape, folder = MODELS.load(family), known_shape(pretrained), base_folder(pretrained)
    if not issubclass(model_class, PipelineModel) or (shape is None and not folder.is_dir()):
        return None
    with skeleton(model_class, shape) if shape else nullcontext(folder) as folder:
        try:
            encoders = shape.encoders if shape else 0
            return _measure(model_class, folder, options, FULL if full else rank, encoders)
        except BROKEN as error:
            reason = one_line(error)[:200]
            raise ArtifactError(f"{folder}: no model can be made of its configuration ({reason})") from error


def _measure(family: type[PipelineModel], folder: Path, options: LoadOptions, rank: int, encoders: int) -> Footprint:
    config = family.transformer_class.load_config(folder, subfolder="transformer")
    if not all(0 <= count <= MOST_BLOCKS for name, count in config.items() if name in BLOCK_COUNTS):
        raise ArtifactError(f"{folder}: no sound number of blocks")
    transformer = empty_transformer(family, folder, META, DTYPES[options.dtype])
    parameters = sum(tensor.numel() for tensor in chain(transformer.parameters(), transformer.buffers()))
    trainable = sum(tensor.numel() for tensor in transformer.parameters())
    blocks = [block for name in family.block_lists for block in getattr(transformer, name)]
    linear = [layer.weight.numel() for _, _, layer in linear_layers(blocks)]
    repeats = _shorten(transformer, family.block_lists)
    model = family(folder, META, replace(options, quantize="none"), Modules(transformer))
    idle = (tensor for name, tensor in transformer.named_parameters() if name.startswith(model.idle_modules))
    trainable -= sum(tensor.numel() for tensor in idle)
    if rank == FULL:
        model.adapters.add_full("policy", trainable=True)
    elif rank:
        with META:
            model.adapters.add("policy", rank, rank, seed=0, trainable=True)
    adapters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    adapter = sum(parameter.numel() for parameter in adapters)
    for block, number in repeats.items():
        adapter += number * sum(parameter.numel() for parameter in block.parameters() if parameter.requires_grad)
    multiplier = _Multiplier(repeats)
    costs = _Costs(_weights(model), multiplier)
    with torch.no_grad(), costs:
        _velocity(model, None)
    activations, inputs = _activations(model, multiplier)
    channels, height, width = model.latent_shape
    text = vars(model.blank(model.text_tokens)).values()
    return Footprint(
        parameters=parameters,
        trainable=trainable,
        linear=sum(linear),
        largest=max(linear, default=0),
        adapter=adapter,
        encoders=encoders,
        activations=activations,
        activations_checkpointed=inputs + activations // len(blocks),
        transient=costs.peak,
        operations=costs.operations,
        latent=channels * height * width * FLOAT32,
        conditioning=sum(part.nbytes for part in text if part is not None),
        itemsize=model.dtype.itemsize,
    )


def _shorten(transformer: nn.Module, block_lists: Iterable[str]) -> dict[nn.Module, int]:
    """Drop all but two and the last of equal successive blocks; return how many others each second one represents.

    The first block of a kind may save what later ones share, and the last may have modules that are not trained, so the
    second one is representative.
    """
    repeats: dict[nn.Module, int] = {}
    for name in block_lists:
        runs = [list(run) for _, run in groupby(getattr(transformer, name), key=_structure)]
        repeats |= {run[1]: len(run) - 3 for run in runs if len(run) > 3}
        setattr(transformer, name, nn.ModuleList(block for run in runs for block in [*run[:2], *run[2:][-1:]]))
    return repeats


def _structure(block: nn.Module) -> list[Any]:
    """A key that equal blocks share: classes, settings and shapes of parameters."""
    settings = [
        (type(module), [item for item in vars(module).items() if _is_setting(*item)]) for module in block.modules()
    ]
    return [settings, [parameter.shape for parameter in block.parameters()]]


def _is_setting(name: str, value: object) -> bool:
    return isinstance(value, bool | int | float | str | tuple) and name not in OWN_NUMBERS


class _Multiplier:
    """``value`` is the number of blocks that the running block represents, 1 outside of blocks."""

    def __init__(self, repeats: Mapping[nn.Module, int]) -> None:
        self.value = 1
        for block, number in repeats.items():
            block.register_forward_pre_hook(partial(self._set, 1 + number))
            block.register_forward_hook(partial(self._set, 1))

    def _set(self, value: int, *_: Any) -> None:
        self.value = value


def _velocity(model: PipelineModel, adapter: str | None) -> Tensor:
    """One row through the transformer, its attention by a kernel that keeps no matrix of scores."""
    latents, sigma = torch.empty(1, *model.latent_shape, device=META), torch.empty(1, device=META)
    with model.adapters.use(adapter), _fused_attention():
        return model.velocity(latents, sigma, model.blank(model.text_tokens), guidance=1.0)


def _activations(model: PipelineModel, multiplier: _Multiplier) -> tuple[int, int]:
    """Bytes that autograd saves in a forward with gradients, excluding weights; and bytes of the blocks' inputs."""
    weights = _weights(model)
    saved, inputs = _Tensors(), _Tensors()  # they hold the tensors, so that no storage's number is used again

    def add(tensors: _Tensors, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            tensors.setdefault(_storage(tensor), (tensor, multiplier.value * tensor.untyped_storage().nbytes()))
        return tensor

    def note_inputs(_: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        for tensor in (*arguments, *named.values()):
            if isinstance(tensor, Tensor):
                add(inputs, tensor)

    def note_weights(*_: Any) -> None:
        weights.update(map(_storage, (model.adapters.installed or {}).values()))

    model.transformer.register_forward_pre_hook(note_weights)
    for block in model.blocks:
        block.register_forward_pre_hook(note_inputs, with_kwargs=True)
    with torch.autograd.graph.saved_tensors_hooks(partial(add, saved), lambda tensor: tensor):
        _velocity(model, "policy" if model.adapters.names else None)
    return sum(size for _, size in saved.values()), sum(size for _, size in inputs.values())


def _weights(model: PipelineModel) -> set[int]:
    return {_storage(tensor) for tensor in (*model.transformer.parameters(), *model.transformer.buffers())}


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


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
    """Operations, and the peak of the bytes of tensors that exist at a time, ``weights`` left out."""

    def __init__(self, weights: set[int], multiplier: _Multiplier) -> None:
        super().__init__()
        self.live = self.peak = self.operations = 0
        self._known, self._multiplier = weights, multiplier

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        packet = function._overloadpacket
        if packet is _ATTENTION:
            query, key = args[:2]
            self.operations += self._multiplier.value * 4 * query.numel() * key.shape[-2]
        elif packet in flop_registry:
            self.operations += self._multiplier.value * flop_registry[packet](*args, **(kwargs or {}), out_val=result)
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
