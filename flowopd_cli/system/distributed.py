"""The processes of one run; they communicate only through :data:`GROUP`."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from flowopd_cli.errors import FlowOPDError, one_line

T = TypeVar("T")
TIMEOUT = timedelta(days=7)  # scoring may take one process far longer than another
ARRIVAL = timedelta(minutes=10)  # for all processes to start


@dataclass(frozen=True)
class _Fault:
    """Sent by a process instead of a value if it cannot continue."""

    text: str
    exit_code: int


class Group:
    """The processes of one run, numbered by their launcher; a single process without one.

    ``finish`` is called before this process waits for the others.
    """

    def __init__(self) -> None:
        self.finish: Callable[[], None] | None = None

    @property
    def rank(self) -> int:
        """This process's number."""
        return int(os.environ.get("RANK", "0"))

    @property
    def size(self) -> int:
        """The number of processes."""
        return int(os.environ.get("WORLD_SIZE", "1"))

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank; a collective call.

        Raises :class:`FlowOPDError`: another process met an error inside :meth:`together` instead.
        """
        if self.size == 1:
            return [value]
        if self.finish is not None:
            self.finish()
        return self.exchange(value)

    def exchange(self, value: T) -> list[T]:
        """:meth:`gather` without ``finish``."""
        values: list[Any] = [None] * self.size
        self.start().all_gather_object(values, value)
        for other in values:
            if isinstance(other, _Fault):
                error = FlowOPDError(other.text)
                error.exit_code, error.shared = other.exit_code, True
                raise error
        return values

    def sum(self, tensor: T) -> T:
        """Sum a tensor over all processes, in place; a :meth:`gather` comes first, so that all are present."""
        if self.size > 1:
            self.start().all_reduce(tensor)
        return tensor

    @contextmanager
    def together(self) -> Iterator[None]:
        """All processes leave the block in the same way: a :class:`FlowOPDError` of one is raised in the others.

        Any other exception (a bug, no memory) ends its process, and the launcher the others.
        """
        try:
            yield
        except FlowOPDError as error:
            if not error.shared and self.size > 1:
                error.shared = True
                self.start().all_gather_object([None] * self.size, _Fault(str(error), error.exit_code))
            raise
        self.gather(None)

    def start(self) -> Any:
        """Join the other processes on the first call; returns ``torch.distributed``.

        Raises :class:`FlowOPDError`: not all of them arrived within :data:`ARRIVAL`.
        """
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            store = self._meet(dist)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.size, timeout=TIMEOUT)
            # A gloo thread that drops a tensor while the interpreter finalizes aborts the process.
            atexit.register(lambda: dist.destroy_process_group() if dist.is_initialized() else None)
        return dist

    def _meet(self, dist: Any) -> Any:
        """The store of the processes, after all have arrived."""
        host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
        serves = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        names, deadline = [f"arrived/{rank}" for rank in range(self.size)], time.monotonic() + ARRIVAL.total_seconds()
        missing = [] if serves else [0]
        try:
            options = {"timeout": ARRIVAL, "wait_for_workers": False, "multi_tenant": serves}
            server = dist.TCPStore(host, int(port), is_master=serves, **options)
            store = dist.PrefixStore(f"flowopd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", server)
            store.set(names[self.rank], "")
            while missing := [rank for rank, name in enumerate(names) if not store.check([name])]:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"waited {ARRIVAL.total_seconds():.0f} s")
                time.sleep(0.05)
        except (RuntimeError, ValueError, OSError) as error:
            absent = f": missing {', '.join(map(str, missing))}" if missing else ""
            raise FlowOPDError(
                f"process {self.rank} of {self.size} cannot meet the others at {host}:{port}{absent} "
                f"({one_line(error)[:300]}); start all {self.size} with one launcher, or check its address and port"
            ) from error
        store.set_timeout(TIMEOUT)
        return store


GROUP = Group()
