"""What a stopped training leaves of the micro-batch that it could not learn from: enough to compute it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import Conditioning, StepBatch
from flowopd_cli.train.guards import Fault

POLICY, BATCH, WHY = "policy.safetensors", "batch.safetensors", "fault.json"


@dataclass(frozen=True)
class Dump:
    """The policy, the first bad micro-batch (``None``: only their sum was bad), and where it came up."""

    iteration: int
    step: int
    fault: Fault
    policy: Mapping[str, Tensor]
    batch: StepBatch | None

    def save(self, folder: Path) -> None:
        """Write it into a folder that exists."""
        save_file({name: value.detach().cpu().contiguous() for name, value in self.policy.items()}, folder / POLICY)
        prompts: list[dict[str, Any]] = []
        if self.batch is not None:
            save_file(packed(self.batch), folder / BATCH)
            prompts = [{**asdict(p), "metadata": dict(p.metadata)} for p in self.batch.prompts or ()]
        why = {"iteration": self.iteration, "step": self.step, "what": self.fault.what, "prompts": self.fault.prompts}
        (folder / WHY).write_text(json.dumps({**why, "rows": prompts}, default=str, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Dump:
        """Read what :meth:`save` wrote."""
        why = json.loads((folder / WHY).read_text(encoding="utf-8"))
        batch = None
        if (folder / BATCH).is_file():
            rows = tuple(Prompt(**row) for row in why["rows"])
            batch = replace(unpacked(load_file(folder / BATCH)), prompts=rows or None)
        fault = Fault(why["what"], tuple(why["prompts"]))
        return cls(why["iteration"], why["step"], fault, load_file(folder / POLICY), batch)


def packed(batch: StepBatch) -> dict[str, Tensor]:
    """The tensors of a batch on the CPU, those of its conditioning under ``cond/``."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in _tensors(batch).items()}


def unpacked(tensors: Mapping[str, Tensor]) -> StepBatch:
    """The batch that :func:`packed` took apart, without its prompts."""
    cond = {name.removeprefix("cond/"): value for name, value in tensors.items() if name.startswith("cond/")}
    own = {name: value for name, value in tensors.items() if not name.startswith("cond/")}
    return StepBatch(cond=Conditioning(**cond), **own)  # type: ignore[arg-type]


def _tensors(record: Any, prefix: str = "") -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Tensor):
            found[prefix + f.name] = value
        elif isinstance(value, Conditioning):
            found |= _tensors(value, "cond/")
    return found
