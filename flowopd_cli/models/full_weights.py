"""Whole sets of a transformer's weights beside its adapters: full fine-tuning, and teachers that were trained so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import read_adapter
from flowopd_cli.models.adapters import AdapterBank
from flowopd_cli.models.files.full_weights import WHOLE_BASE, WeightsHeader, is_full, read_weights_header
from flowopd_cli.models.full_files import read_tensor, write_folder

Weights = Mapping[str, Tensor]


class WeightBank(AdapterBank):
    """An adapter bank whose entries may also be sets of all the transformer's weights, which replace the base's.

    The base stays in the transformer, frozen, so that adapters and the bare base work beside a trained set. A set takes
    its place for the time of a forward, cast to the base's precision. A trained set and its copies are float32 (as
    precise as the base at least); a set that is only loaded has the base's precision.

    ``files`` is the folder that the base was loaded from. A trained set starts from the weights there, before they were
    rounded to the base's precision, so that its difference to them is what was learned.
    """

    def __init__(
        self,
        transformer: nn.Module,
        targets: Sequence[str],
        flat: Sequence[str] = (),
        idle: Sequence[str] = (),
        files: Path | None = None,
    ) -> None:
        super().__init__(transformer, targets, flat, idle)
        self._files = files
        self.copies_device: torch.device | None = None  # of copies of a trained set; its own if None
        self.installed: Weights | None = None  # the tensors in the base's places
        self._places = {
            f"{name}.{leaf}".removeprefix("."): (module, leaf)
            for name, module in self._modules.items()
            for leaf, parameter in module._parameters.items()
            if parameter is not None
        }
        self._buffers = transformer.state_dict().keys() - self._places.keys()
        self._sets: dict[str, dict[str, nn.Parameter]] = {}
        self._cast: Weights | None = None  # the active set in the base's precision, if it is frozen

    @property
    def mixes(self) -> bool:
        """Whether rows of several adapters may share a forward: with sets they may not."""
        return super().mixes and not self._sets

    def add_full(self, name: str, source: Path | None = None, *, trainable: bool) -> None:
        """A set that equals the base's weights, those of a transformer's folder, or the base's with an adapter added.

        Raises :class:`ArtifactError`: the folder or adapter is of another base.
        """
        base = {key: self._base(key) for key in self._places}
        if any(type(tensor) is not nn.Parameter or not tensor.is_floating_point() for tensor in base.values()):
            raise ArtifactError(f"a sharded or quantized base {WHOLE_BASE}")
        with torch.no_grad():
            tensors = {key: self._exact(key, t) if trainable else t.clone() for key, t in base.items()}
            if source is not None and is_full(source):
                self._read(source, tensors)
            elif source is not None:
                factors = read_adapter(source)[1]
                self._check(source, factors)
                for module, pair in factors.items():
                    weight = tensors[f"{module}.weight"]
                    weight.add_(pair.delta().to(weight))
        self._register(name, tensors, trainable)

    def load(self, name: str, source: Path | Mapping[str, LoraFactors], *, trainable: bool = False) -> None:
        """An adapter from a folder or from factors; from a transformer's folder a set of weights."""
        if isinstance(source, str | Path) and is_full(Path(source)):
            self.add_full(name, Path(source), trainable=trainable)
        else:
            super().load(name, source, trainable=trainable)

    def copy(self, source: str, target: str) -> None:
        """Make ``target`` a frozen copy of ``source``; of a set on :attr:`copies_device`."""
        if source not in self._sets or target in self._names:
            super().copy(source, target)
            return
        tensors = self._sets[source].items()
        self._register(target, {k: t.detach().to(self.copies_device or t.device, copy=True) for k, t in tensors}, False)

    def ema(self, source: str, target: str, decay: float) -> None:
        """``target = decay * target + (1 - decay) * source``, in place."""
        super().ema(source, target, decay)
        self._cast = None

    def state(self, name: str) -> dict[str, Tensor]:
        """A copy of the tensors of an adapter, or of a set in the host's memory."""
        if name not in self._sets:
            return super().state(name)
        return {key: tensor.detach().to("cpu", copy=True) for key, tensor in self._sets[name].items()}

    def load_state(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite the tensors of an adapter or a set, refusing other names or shapes."""
        super().load_state(name, state)
        self._cast = None

    def fold(self, name: str | None, *, undo: bool = False) -> None:
        """Add a frozen adapter to the base's weights; a set takes their place for good, which frees their memory.

        With ``undo`` a set stays beside them.
        """
        if name not in self._sets or name in self._trainable:
            super().fold(name, undo=undo)
            return
        for key, tensor in self._sets[name].items() if not undo else ():
            self._base(key).data = tensor.data

    def remove(self, name: str) -> None:
        """Remove a frozen adapter or set that is not in use."""
        super().remove(name)
        self._sets.pop(name, None)
        self._cast = None

    def save(self, name: str, folder: Path, base: str, base_sha256: str) -> None:
        """Write an adapter in PEFT form, a set as a transformer's folder of diffusers."""
        if name not in self._sets:
            super().save(name, folder, base, base_sha256)
            return
        state = self.transformer.state_dict()
        buffers = {key: self._exact(key, state[key]) for key in self._buffers}
        config = json.loads(self.transformer.to_json_string())  # pyright: ignore[reportCallIssue]
        write_folder(folder, {**buffers, **self._sets[name]}, config, base, base_sha256)

    @contextmanager
    def mix(self, rows: Sequence[str | None] | None) -> Iterator[None]:
        """As :meth:`AdapterBank.mix`; without ``rows`` the active set is installed, and with sets there are no rows."""
        if rows is not None and self._sets:
            raise ArtifactError("sets of weights cannot share a forward: give each its own")
        with super().mix(rows), self.install(self._active_weights()):
            yield

    @contextmanager
    def install(self, weights: Weights | None) -> Iterator[None]:
        """Inside the block these tensors are the transformer's weights; ``None`` and equal ones change nothing."""
        before = self.installed
        if weights is None or weights is before:
            yield
            return
        originals = {key: self._base(key) for key in weights}
        self._place(weights)
        try:
            yield
        finally:
            self._place(originals)
            self.installed = before

    def _activate(self, name: str | None) -> None:
        super()._activate(name)
        self._cast = None

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        return self._sets[name] if name in self._sets else super()._parameters(name)

    def _register(self, name: str, tensors: Weights, trainable: bool) -> None:
        if name in self._names:
            raise ArtifactError(f"adapter name {name!r} is taken")
        self._sets[name] = {
            key: nn.Parameter(tensor, requires_grad=trainable and not key.startswith(self._idle))
            for key, tensor in tensors.items()
        }
        self._names.append(name)
        self._trainable |= {name} if trainable else set()

    @cached_property
    def _stored(self) -> WeightsHeader | None:
        return self._files and read_weights_header(self._files)

    def _exact(self, key: str, tensor: Tensor) -> Tensor:
        """A copy of a tensor of the base, float32 at least, as it was before it was rounded to the base's precision."""
        if not tensor.is_floating_point():
            return tensor.clone()
        copy, stored = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True), self._stored
        if copy.dtype != tensor.dtype and stored is not None and stored.shapes.get(key) == tuple(tensor.shape):
            copy.copy_(read_tensor(stored, key))
        return copy

    def _read(self, folder: Path, tensors: Weights) -> None:
        """Overwrite all tensors by those of a folder."""
        header = read_weights_header(folder)
        shapes = {key: shape for key, shape in header.shapes.items() if key not in self._buffers}
        for key in {**shapes, **tensors}:
            stored, here = shapes.get(key), tuple(tensors[key].shape) if key in tensors else None
            if stored != here:
                differing = f"is {stored or 'missing'} in it, {here or 'missing'} here"
                raise ArtifactError(f"{folder}: was made for another base: {key} {differing}")
        for key, tensor in tensors.items():
            tensor.copy_(read_tensor(header, key))

    def _place(self, tensors: Weights) -> None:
        for key, tensor in tensors.items():
            module, leaf = self._places[key]
            module._parameters[leaf] = tensor  # pyright: ignore[reportArgumentType]
        self.installed = tensors

    def _base(self, key: str) -> Tensor:
        module, leaf = self._places[key]
        return module._parameters[leaf]  # pyright: ignore[reportReturnType]

    def _active_weights(self) -> Weights | None:
        """The active set on the base's device and in its precision, a function of the set where that is trained."""
        tensors = self._sets.get(self.active or "")
        if tensors is None or self._cast is not None:
            return self._cast
        cast = {}
        for key, tensor in tensors.items():
            base = self._base(key)
            cast[key] = tensor.to(base.device, base.dtype)
        if self.active not in self._trainable:
            self._cast = cast
        return cast
