"""A base too large for one device, in shards: each process holds a part of every block's weights (FSDP).

Every forward and backward is collective, although processes have different rows: :class:`Turns` agrees on the next one,
and a process without one of that kind makes an empty one. Adapters stay whole on every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from enum import IntEnum

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flowopd_cli.system.distributed import GROUP, Group


class Turn(IntEnum):
    """The next pass of a process through the base; if processes differ, the greatest goes first."""

    NOTHING = 0
    FORWARD = 1
    BACKWARD = 2


def shard(transformer: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Shard the weights of each block, and those outside the blocks, over the processes.

    They go to ``device`` shard by shard, so that it never holds them whole. Call this before adapters are added.
    """
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nobody writes into it
    GROUP.start()
    mesh = init_device_mesh(device.type, (GROUP.size,))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)


class Turns:
    """The order of forwards among the processes of ``group``, which share one base.

    ``idle(gradients)`` makes an empty forward; with ``gradients`` also a backward through the same parameters.
    """

    def __init__(self, idle: Callable[[bool], None], group: Group) -> None:
        self._idle, self._group, self._busy = idle, group, False
        group.finish = self.finish

    def take(self) -> None:
        """Wait until all processes are ready for a forward of this kind; call it before each forward.

        Raises :class:`FlowOPDError`: another process met an error, see
        :meth:`~flowopd_cli.system.distributed.Group.together`.
        """
        if self._busy:  # the empty forward itself
            return
        mine = Turn.BACKWARD if torch.is_grad_enabled() else Turn.FORWARD
        while (turn := max(self._group.exchange(mine))) != mine:
            self._join(turn)

    def finish(self) -> None:
        """Join the other processes' forwards until none is left."""
        while turn := max(self._group.exchange(Turn.NOTHING)):
            self._join(turn)

    def _join(self, turn: Turn) -> None:
        self._busy = True
        try:
            with torch.set_grad_enabled(turn == Turn.BACKWARD):
                self._idle(turn == Turn.BACKWARD)
        finally:
            self._busy = False
