"""The state from which a run resumes exactly: policy, EMA, optimizer, counters; safetensors, never pickle.

Every random draw is a function of the recipe's seed and the iteration, so no generator state is saved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flowopd_cli.models.base import FlowModel
from flowopd_cli.system.tensor_files import write_tensors

ROLES = ("policy", "policy_ema", "policy_slow")  # the last one for some objectives only
TENSORS, COUNTERS = "state.safetensors", "state.json"


@dataclass
class TrainState:
    """Counters of finished work and the tensors that go with them."""

    iteration: int = 0
    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    skipped: int = 0

    @classmethod
    def fresh(cls, model: FlowModel) -> TrainState:
        """The state before the first iteration: the EMA starts as a copy of the policy."""
        model.adapters.copy("policy", "policy_ema")
        return cls()

    def capture(self, model: FlowModel, optimizer: torch.optim.Optimizer) -> None:
        """Copy adapters and optimizer moments into ``tensors``."""
        self.tensors = {}  # their memory, before as much is needed again
        roles = [role for role in ROLES if role in model.adapters.names]
        tensors = {f"{role}/{name}": value for role in roles for name, value in model.adapters.state(role).items()}
        for index, moments in optimizer.state_dict()["state"].items():
            values = {name: torch.as_tensor(value).detach() for name, value in _flat(moments)}
            tensors |= {f"optimizer/{index}/{name}": value.to("cpu", copy=True) for name, value in values.items()}
        self.tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}

    def restore(self, model: FlowModel, optimizer: torch.optim.Optimizer) -> None:
        """Put ``tensors`` back; nothing to do for a fresh state."""
        if not self.tensors:
            return
        self.restore_adapters(model)
        moments: dict[int, dict[str, Tensor | int]] = {}
        for name, value in self._under("optimizer/").items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = _number(value.clone())
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})

    def restore_adapters(self, model: FlowModel) -> None:
        """Put the adapters among ``tensors`` back."""
        if "policy_ema" not in model.adapters.names:
            model.adapters.copy("policy", "policy_ema")
        for role in ROLES:
            if role in model.adapters.names:
                model.adapters.load_state(role, self._under(f"{role}/"))

    def _under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in self.tensors.items() if name.startswith(prefix)}

    def save(self, folder: Path) -> None:
        """Write the two files of a checkpoint."""
        write_tensors(folder / TENSORS, self.tensors)
        counters = {"iteration": self.iteration, "step": self.step, "skipped": self.skipped}
        (folder / COUNTERS).write_text(json.dumps(counters), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> TrainState:
        """Read what :meth:`save` wrote."""
        counters = json.loads((folder / COUNTERS).read_text(encoding="utf-8"))
        return cls(**counters, tensors=load_file(folder / TENSORS))


def _flat(moments: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of an optimizer's state, including those of a nested mapping, which bitsandbytes uses."""
    for name, value in moments.items():
        yield from _flat(value) if isinstance(value, Mapping) else ((name, value),)


def _number(value: Tensor) -> Tensor | int:
    """A number as stored: bitsandbytes counts steps with an integer, PyTorch with a float32 tensor."""
    return int(value) if value.ndim == 0 and value.dtype == torch.int64 else value
