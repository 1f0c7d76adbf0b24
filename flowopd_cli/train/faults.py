"""The non-finite micro-batch of a stopped training, saved so that it can be recomputed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import Conditioning, StepBatch

POLICY, BATCH, WHY = "policy.safetensors", "batch.safetensors", "fault.json"
COND = "cond/"


@dataclass(frozen=True)
class Fault:
    """Why an optimizer step was skipped: a non-finite ``loss`` or ``gradient``, and its prompts."""

    what: str
    prompts: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = ", ".join(repr(prompt) for prompt in self.prompts[:3])
        more = f" and {len(self.prompts) - 3} more" if len(self.prompts) > 3 else ""
        return f"the {self.what} is not finite" + (f" (prompts: {shown}{more})" if shown else "")


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
            tensors = {name: value.detach().cpu().clone().contiguous() for name, value in _tensors(self.batch).items()}
            save_file(tensors, folder / BATCH)
            prompts = [{**asdict(p), "metadata": dict(p.metadata)} for p in self.batch.prompts or ()]
        why = {"iteration": self.iteration, "step": self.step, "what": self.fault.what, "prompts": self.fault.prompts}
        (folder / WHY).write_text(json.dumps({**why, "rows": prompts}, default=str, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Dump:
        """Read what :meth:`save` wrote."""
        why = json.loads((folder / WHY).read_text(encoding="utf-8"))
        batch = None
        if (folder / BATCH).is_file():
            cond, columns = {}, {}
            for name, value in load_file(folder / BATCH).items():
                (cond if name.startswith(COND) else columns)[name.removeprefix(COND)] = value
            rows = tuple(Prompt(**row) for row in why["rows"])
            batch = StepBatch(cond=Conditioning(**cond), **columns, prompts=rows or None)
        fault = Fault(why["what"], tuple(why["prompts"]))
        return cls(why["iteration"], why["step"], fault, load_file(folder / POLICY), batch)


def _tensors(record: StepBatch | Conditioning, prefix: str = "") -> dict[str, Tensor]:
    values = {f.name: getattr(record, f.name) for f in fields(record)}
    tensors = {prefix + name: value for name, value in values.items() if isinstance(value, Tensor)}
    return tensors if isinstance(record, Conditioning) else tensors | _tensors(record.cond, COND)
