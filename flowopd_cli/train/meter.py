"""The figures of one iteration: means over the rows of all its optimizer steps and of all processes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from flowopd_cli.core.types import Loss


@dataclass
class Meter:
    """Sums of metrics and their count; those of :class:`flowopd_cli.core.types.Parts` each have one of their own."""

    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    parts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, loss: Loss) -> None:
        """Count one micro-batch."""
        rows = zip(*loss.parts.table.tolist(), strict=True) if loss.parts is not None else ()
        names = loss.parts.names if loss.parts is not None else ()
        sums = {name: float(value) for name, value in loss.metrics.items()}
        self.merge(Meter(sums, loss.count, dict(zip(names, rows, strict=True))))

    def merge(self, other: Meter) -> None:
        """Count what another one has counted."""
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += other.count
        for name, (total, count) in other.parts.items():
            before = self.parts.get(name, (0.0, 0.0))
            self.parts[name] = (before[0] + total, before[1] + count)


def means(meters: Iterable[Meter]) -> dict[str, float]:
    """Over the rows of all processes, of which one may have had none; a part without rows is left out."""
    whole = Meter()
    for own in meters:
        whole.merge(own)
    found = {name: total / max(whole.count, 1) for name, total in whole.sums.items()}
    return found | {name: total / count for name, (total, count) in whole.parts.items() if count}
