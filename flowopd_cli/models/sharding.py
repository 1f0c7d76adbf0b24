"""A base too large for one device, cut in pieces: each process keeps its share of every block's weights (FSDP).

A block's weights come together for as long as it works and are let go again. So every forward, and the backward behind
it, is work of all processes, however different their own is: :class:`Turns` agrees on the next one, and who has none to
make, or another kind, makes one of nothing. Adapters are small, stay whole everywhere and are none of FSDP's business.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from enum import IntEnum

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from flowopd_cli.system.distributed import before_everyone, exchange, rank_and_world, start


class Turn(IntEnum):
    """What a process is about to do with the base: of several wishes the greatest comes first."""

    NOTHING = 0
    FORWARD = 1
    BACKWARD = 2


def shard(transformer: nn.Module, blocks: Iterable[nn.Module], device: torch.device) -> None:
    """Cut the weights of each block, and those outside them, in as many pieces as there are processes.

    They go to ``device`` piece by piece, so that it never holds them whole. Do this before adapters are added.
    """
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # nobody writes into it
    start()
    mesh = init_device_mesh(device.type, (rank_and_world()[1],))
    for block in blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(transformer, mesh=mesh)


class Turns:
    """Whose forward comes next, among processes that share one base.

    ``idle(gradients)`` makes a forward of nothing; with ``gradients`` a backward too, through the same parameters as
    a true one.
    """

    def __init__(self, idle: Callable[[bool], None]) -> None:
        self._idle, self._busy = idle, False
        before_everyone(self.finish)

    def take(self) -> None:
        """Call this before a forward: it returns when all processes make one of this kind.

        Raises:
            FlowOPDError: another process met an error, see :func:`~flowopd_cli.system.distributed.together`.
        """
        if self._busy:  # the forward of nothing itself
            return
        mine = Turn.BACKWARD if torch.is_grad_enabled() else Turn.FORWARD
        while (turn := max(exchange(mine))) != mine:
            self._make_up(turn)

    def finish(self) -> None:
        """Take part in the others' forwards until none of them has any left."""
        while turn := max(exchange(Turn.NOTHING)):
            self._make_up(turn)

    def _make_up(self, turn: Turn) -> None:
        self._busy = True
        try:
            with torch.set_grad_enabled(turn == Turn.BACKWARD):
                self._idle(turn == Turn.BACKWARD)
        finally:
            self._busy = False
