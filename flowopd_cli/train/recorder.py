"""The interface for reports of the training loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.faults import Dump, Fault


@runtime_checkable
class Recorder(Protocol):
    """Takes the reports of the loop; every process calls it alike."""

    def row(self, row: dict[str, float]) -> None:
        """Take the metrics of a finished iteration."""

    def ends(self) -> bool:
        """Whether the rows so far end the training early; it does if one process says so."""
        return False

    def watch(self, iteration: int, step: int, *, last: bool) -> Mapping[str, float]:
        """Figures to log of the policy after ``step`` optimizer steps, if a watch is due; 0 is the start."""
        return {}

    def checkpoint(self, iteration: int, state: TrainState) -> None:
        """Save the state."""

    def sample(self, iteration: int, *, last: bool, resumed: bool = False) -> None:
        """Draw sample pictures if they are due; of a resumed iteration only if they are missing."""

    def fault(self, iteration: int, fault: Fault, dump: Dump | None) -> str:
        """Take an optimizer step that is skipped; the last one before the training ends has a ``dump``.

        Returns a clause for the error message: where the dump is.
        """
        return "not saved"


class NullRecorder(Recorder):
    """A recorder that does nothing."""
