"""Named adapters over one frozen transformer, by PEFT; independent of the model family."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import AdapterConfig, read_adapter, write_adapter
from flowopd_cli.models.files.targets import anchored, match_exactly, short_names, target_layers


class Shape(NamedTuple):
    """An adapter's rank and alpha on one layer; its product is scaled by alpha / rank."""

    rank: int
    alpha: float


class AdapterBank:
    """Adapters on one base. Only ``policy`` is ever trainable; ``use`` activates one inside a block.

    ``flat`` are beginnings of names of modules whose first dimension is not the batch's, ``idle`` of those that no
    output depends on: what is trainable has no weight of these.
    """

    def __init__(
        self, transformer: nn.Module, targets: Sequence[str], flat: Sequence[str] = (), idle: Sequence[str] = ()
    ) -> None:
        self.transformer = transformer.requires_grad_(False)
        self.targets = tuple(targets)
        self._modules = dict(transformer.named_modules())
        self._names: list[str] = []
        self._trainable: set[str] = set()
        self.active: str | None = None  # the adapter in use, or the bare base
        self._adapted: dict[str, Any] = {}  # PEFT's layers, LoraLayer and nn.Module in one
        self._unfolded: dict[str, Tensor] = {}  # weights of layers before an adapter was folded into them
        self._flat, self._idle = tuple(flat), tuple(idle)
        self.hooks_work = True  # not so in compiled code

    @property
    def mixes(self) -> bool:
        """Whether rows of several adapters may share a forward."""
        return self.hooks_work and not any(name.startswith(self._flat) for name in self._adapted)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters in the order of their addition."""
        return tuple(self._names)

    def add(self, name: str, rank: int, alpha: float, *, seed: int, trainable: bool) -> None:
        """A fresh adapter on the targets: Gaussian A of standard deviation 1 / rank, B zero; a function of ``seed``.

        Raises :class:`RecipeError`: a target matches no linear layer.
        """
        linear = [module for module, layer in self._modules.items() if isinstance(layer, nn.Linear)]
        self._inject(name, dict.fromkeys(target_layers(self.targets, linear), Shape(rank, alpha)), trainable)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for layer in self._layers(name).values():
                a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
                if a.is_meta:
                    continue
                a.copy_(torch.randn(a.shape, generator=generator) / rank)
                b.zero_()

    def load(self, name: str, source: Path | Mapping[str, LoraFactors], *, trainable: bool = False) -> None:
        """An adapter from a folder or from factors, whose ranks may differ.

        Raises :class:`ArtifactError`: a module is not in the base, or has another shape there.
        """
        factors = read_adapter(Path(source))[1] if isinstance(source, str | Path) else source
        self._check(source, factors)
        ranks = {module: pair.a.shape[0] for module, pair in factors.items()}
        self._inject(name, {m: Shape(ranks[m], pair.scale * ranks[m]) for m, pair in factors.items()}, trainable)
        self.load_state(
            name, {f"{m}.{s}": t for m, p in factors.items() for s, t in (("lora_A", p.a), ("lora_B", p.b))}
        )

    def copy(self, source: str, target: str) -> None:
        """Make ``target`` a frozen copy of ``source``."""
        if target in self._names:
            self.load_state(target, self.state(source))
        else:
            self.load(target, self.factors(source))

    @torch.no_grad()
    def ema(self, source: str, target: str, decay: float) -> None:
        """``target = decay * target + (1 - decay) * source``, in place."""
        old, new = self._parameters(target), self._parameters(source)
        for key, tensor in old.items():
            tensor.lerp_(new[key].to(tensor.device), 1 - decay)

    def fold(self, name: str | None, *, undo: bool = False) -> None:
        """Add a frozen adapter to the base's weights, so that drawing with it is a third cheaper.

        Not in half precision, which would round the sum, nor for a sharded base. With ``undo`` the layers' weights are
        kept beside the sum, so that :meth:`remove` can bring them back.
        """
        layers = self._layers(name) if name is not None and name not in self._trainable else {}
        if all(type(layer.weight) is nn.Parameter and layer.weight.dtype == torch.float32 for layer in layers.values()):
            for module, layer in layers.items():
                if undo:
                    self._unfolded[module] = layer.weight.detach().clone()
                layer.merge(adapter_names=[name])

    @torch.no_grad()
    def remove(self, name: str) -> None:
        """Remove a frozen adapter that is not in use; weights it was folded into are as before, bit for bit.

        Of an adapter that was folded without ``undo`` the sum stays.
        """
        for module, layer in self._layers(name).items():
            if module in self._unfolded:
                layer.weight.copy_(self._unfolded.pop(module))
                layer.merged_adapters.clear()
            layer.delete_adapter(name)
        self._names.remove(name)

    @contextmanager
    def use(self, name: str | None) -> Iterator[None]:
        """Activate an adapter (``None``: the bare base) inside the block; restore the previous one after it."""
        before = self.active
        if name != before:
            self._activate(name)
        try:
            yield
        finally:
            if name != before:
                self._activate(before)

    @contextmanager
    def mix(self, rows: Sequence[str | None] | None) -> Iterator[None]:
        """Inside the block, row i of every batch uses adapter ``rows[i]`` (``None``: the bare base).

        Without ``rows`` all use the active adapter. For forwards of ``len(rows)`` rows without gradients. Equals PEFT's
        ``adapter_names``, but with slices of equal names instead of gathers and scatters of single rows.

        Raises :class:`ArtifactError`: there is no such adapter; the model is compiled, which ignores hooks; or an
        adapted module is given the tokens of all rows in one dimension.
        """
        if rows is None:
            yield
            return
        if not self.mixes:
            reason = "an adapted module takes all rows at once" if self.hooks_work else "model.compile is not none"
            raise ArtifactError(f"this model cannot mix adapters in one batch: {reason}")
        spans: list[tuple[str | None, slice]] = []
        for name, run in groupby(range(len(rows)), key=rows.__getitem__):
            self._check_name(name)
            numbers = list(run)
            spans.append((name, slice(numbers[0], numbers[-1] + 1)))
        with self.use(None):
            hooks = [layer.register_forward_hook(partial(_add_rows, spans)) for layer in self._adapted.values()]
            try:
                yield
            finally:
                for hook in hooks:
                    hook.remove()

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        parameters = (item for name in self._trainable for item in self._parameters(name).items())
        return {key: parameter for key, parameter in parameters if not key.startswith(self._idle)}

    def state(self, name: str) -> dict[str, Tensor]:
        """A copy of one adapter's tensors."""
        return {key: tensor.detach().clone() for key, tensor in self._parameters(name).items()}

    @torch.no_grad()
    def load_state(self, name: str, state: Mapping[str, Tensor]) -> None:
        """Overwrite one adapter's tensors, refusing other names or shapes."""
        parameters = self._parameters(name)
        shapes, stored = ({key: t.shape for key, t in tensors.items()} for tensors in (parameters, state))
        differing = sorted(key for key in {*shapes, *stored} if shapes.get(key) != stored.get(key))
        if differing:
            more = len(differing) - 1
            raise ArtifactError(f"adapter {name}: the stored state does not fit ({differing[0]} and {more} more)")
        for key, parameter in parameters.items():
            parameter.copy_(state[key])

    def factors(self, name: str) -> dict[str, LoraFactors]:
        """One adapter as low-rank factors, on the CPU."""
        state = {key: tensor.cpu() for key, tensor in self.state(name).items()}
        return {
            module: LoraFactors(state[f"{module}.lora_A"], state[f"{module}.lora_B"], float(layer.scaling[name]))
            for module, layer in self._layers(name).items()
        }

    def save(self, name: str, folder: Path, base: str, base_sha256: str) -> None:
        """Write one adapter in PEFT form; short targets stand in its configuration if they match it exactly."""
        factors = self.factors(name)
        rank = max(pair.a.shape[0] for pair in factors.values())
        alpha = max(pair.scale * pair.a.shape[0] for pair in factors.values())
        choices = (self.targets, short_names(factors))
        targets = next((t for t in choices if match_exactly(t, factors, self._modules)), ())
        write_adapter(folder, factors, AdapterConfig(rank, alpha, targets, base, base_sha256))

    def digest(self, name: str | None) -> str:
        """SHA-256 of an adapter's tensors, or with ``None`` of the base's."""
        base = ((key, t) for key, t in self.transformer.state_dict().items() if ".lora_" not in key)
        tensors: Mapping[str, Tensor] = dict(base) if name is None else self._parameters(name)
        digest = hashlib.sha256()
        for key in sorted(tensors):
            digest.update(key.encode())
            digest.update(tensors[key].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _inject(self, name: str, shapes: Mapping[str, Shape], trainable: bool) -> None:
        """Adapt these layers and no others, each with its own rank and scale, whatever their names end with."""
        if name in self._names or "." in name:
            raise ArtifactError(f"adapter name {name!r} is taken or has a dot in it")
        (common, _), *_ = Counter(shapes.values()).most_common()
        alpha: Any = common.alpha  # PEFT takes any number
        others = {value: anchored(m for m, shape in shapes.items() if shape == value) for value in {*shapes.values()}}
        del others[common]
        config = LoraConfig(
            r=common.rank,
            lora_alpha=alpha,
            target_modules=anchored(shapes),
            rank_pattern={pattern: shape.rank for shape, pattern in others.items()},
            alpha_pattern={pattern: shape.alpha for shape, pattern in others.items()},
            init_lora_weights=False,
        )
        inject_adapter_in_model(config, self.transformer, adapter_name=name)
        self._names.append(name)
        self._adapted = {key: layer for key, layer in self.transformer.named_modules() if isinstance(layer, LoraLayer)}
        if trainable:
            self._trainable.add(name)
        for module, layer in self._adapted.items():
            for side in (layer.lora_A, layer.lora_B):
                for adapter, factor in side.items():
                    factor.float().requires_grad_(adapter in self._trainable and not module.startswith(self._idle))
        layers = self._layers(name)
        for module in sorted({*layers, *shapes}):
            actual = (layers[module].r[name], layers[module].scaling[name]) if module in layers else None
            shape = shapes.get(module)
            if shape is None or actual != (shape.rank, shape.alpha / shape.rank):
                raise ArtifactError(
                    f"adapter {name}: PEFT gave {module} rank and scale {actual}, not those of {shape}: install "
                    "another version of PEFT"
                )
        self._activate(self.active)

    def _activate(self, name: str | None) -> None:
        self._check_name(name)
        for layer in self._adapted.values():
            _switch(layer, name)
        self.active = name

    def _check_name(self, name: str | None) -> None:
        if name is not None and name not in self._names:
            raise ArtifactError(f"no adapter {name!r}; there are: {', '.join(self._names) or 'none'}")

    def _layers(self, name: str) -> dict[str, Any]:
        return {module: layer for module, layer in self._adapted.items() if name in layer.lora_A}

    def _parameters(self, name: str) -> dict[str, nn.Parameter]:
        return {
            f"{module}.{side}": getattr(layer, side)[name].weight
            for module, layer in self._layers(name).items()
            for side in ("lora_A", "lora_B")
        }

    def _check(self, source: object, factors: Mapping[str, LoraFactors]) -> None:
        place = source if isinstance(source, str | Path) else "adapter"
        for name, pair in factors.items():
            module = self._modules.get(name)
            if not isinstance(module, nn.Linear):
                kind = "no module" if module is None else f"no linear layer, but a {type(module).__name__},"
                raise ArtifactError(f"{place}: was made for another base: this one has {kind} {name}")
            shape, expected = (module.out_features, module.in_features), (pair.b.shape[0], pair.a.shape[1])
            if shape != expected:
                text = f"{name} is {shape} here, the adapter expects {expected}"
                raise ArtifactError(f"{place}: is of another base: {text}")


def _switch(layer: Any, name: str | None) -> None:
    """Activate a layer's adapter by PEFT's private flags; PEFT's public switch also changes gradient flags."""
    disabled = name is None or name not in layer.lora_A
    layer._disable_adapters, layer._active_adapter = disabled, [] if disabled else [name]
    if layer.disable_adapters != disabled or layer.active_adapters != layer._active_adapter:
        raise RuntimeError("this version of PEFT switches adapters in another way: install an older one")


def _add_rows(
    spans: Sequence[tuple[str | None, slice]], layer: Any, inputs: tuple[Tensor, ...], output: Tensor
) -> Tensor:
    """The base's output of one layer plus each span's adapter update, in PEFT's precision."""
    if len(output) != spans[-1][1].stop:
        raise RuntimeError(f"a mixed batch of {spans[-1][1].stop} rows came to an adapted module as {len(output)}")
    for name, rows in spans:
        if name is not None and name in layer.lora_A:
            down, up = layer.lora_A[name], layer.lora_B[name]
            added = up(down(inputs[0][rows].to(down.weight.dtype))) * layer.scaling[name]
            output[rows].add_(added)
    return output
