"""The runs of a study or demo in processes: parents first, each claimed by a lock, resumed if begun. No torch."""

from __future__ import annotations

import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flowopd_cli.cli import signals
from flowopd_cli.cli.launch import PROGRAM
from flowopd_cli.cli.stage import interruption
from flowopd_cli.cli.study.grid import Node
from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.recipe import dump
from flowopd_cli.reports import watch
from flowopd_cli.runs.inspect import standing
from flowopd_cli.runs.lock import Lock
from flowopd_cli.system.files import atomic_write, storing
from flowopd_cli.system.json_files import read_json

POLL, RECORD = 0.25, 5.0  # seconds between two looks at the processes, and between two records of their CPU time
DONE, SKIPPED = "done", "skipped"
LOG, CPU, RECIPE, LOCK = ".log", ".cpu.json", ".yaml", ".lock"
SUFFIXES = (LOG, CPU, RECIPE, LOCK, f"{LOCK}.flock")  # of the files beside a run
_SET_PDEATHSIG = 1  # of Linux's prctl
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass
class _Process:
    """A node's process. ``before`` are the CPU-seconds of earlier ones, which were interrupted."""

    node: Node
    popen: subprocess.Popen[bytes]
    lock: Lock
    record: Path
    before: list[float]
    recorded: float = field(default_factory=time.monotonic)

    def ended(self) -> bool:
        """Whether it has ended; records its CPU time."""
        pid, status, usage = os.wait4(self.popen.pid, os.WNOHANG)
        if pid:
            self.popen.returncode = os.waitstatus_to_exitcode(status)
            self._write(usage.ru_utime + usage.ru_stime)
        elif time.monotonic() - self.recorded > RECORD:  # for a study that is killed
            self.recorded = time.monotonic()
            with suppress(psutil.Error):
                self._write(sum(psutil.Process(self.popen.pid).cpu_times()[:4]))
        return bool(pid)

    def _write(self, seconds: float) -> None:
        atomic_write(self.record, f'{{"seconds": {[*self.before, round(seconds, 2)]}}}\n')


@dataclass
class Pool:
    """Makes the runs of nodes in the folder ``store``, ``jobs`` at a time; ``note`` gets a line at each change.

    Every ``interval`` seconds it gets a line on the trainings that are running. ``outcomes`` has ``done`` or the fault
    of each node that is finished with, by name.
    """

    store: Path
    jobs: int
    note: Callable[[str], None]
    allow_code: bool = False
    interval: float = math.inf
    outcomes: dict[str, str] = field(default_factory=dict)
    _processes: list[_Process] = field(default_factory=list)
    _awaited: set[str] = field(default_factory=set)
    _reported: float = field(default_factory=time.monotonic)

    def run(self, nodes: Sequence[Node], again: str) -> dict[str, str]:
        """Make the runs of ``nodes``, parents first; returns the outcomes.

        A node that another process makes, here or on another machine, is waited for. On an interruption the processes
        are told to stop, and save their state first.

        Raises :class:`Interrupted`: the user stopped it; the message has ``again``, the command that goes on.
        """
        with signals.terminable() as first:
            try:
                return self._run(nodes)
            except KeyboardInterrupt as error:
                raise interruption(error, first(), again) from error

    def _run(self, nodes: Sequence[Node]) -> dict[str, str]:
        with storing(self.store):
            self.store.mkdir(parents=True, exist_ok=True)
        try:
            while len(self.outcomes) < len(nodes):
                for node in nodes:
                    if node.name not in {*self.outcomes, *(process.node.name for process in self._processes)}:
                        self._advance(node)
                time.sleep(POLL)
                self._collect(len(nodes))
                self._report()
        except BaseException:
            self._stop()
            raise
        return self.outcomes

    def _advance(self, node: Node) -> None:
        """Skip a node, find that it is done, or start it, if its parents allow."""
        failed = next((name for name in node.parents if self.outcomes.get(name, DONE) != DONE), None)
        if failed is not None:
            reason = self.outcomes[failed]
            self.outcomes[node.name] = reason if reason.startswith(SKIPPED) else f"{SKIPPED}, because {failed} failed"
        elif len(self._processes) < self.jobs and all(name in self.outcomes for name in node.parents):
            try:
                if standing(self.store / node.name) == DONE:
                    self.outcomes[node.name] = DONE
                elif not self._start(node) and node.name not in self._awaited:
                    self._awaited.add(node.name)
                    self.note(f"{node.title}: waiting for another process, which makes it")
            except ArtifactError as error:  # its files are damaged
                self.outcomes[node.name] = f"failed: {error}"

    def _start(self, node: Node) -> bool:
        """Start or resume a node; false if another process makes it."""
        path = self.store / node.name
        lock = Lock(_beside(path, LOCK))
        try:
            if lock.taken():
                return False
            lock.acquire()
        except ArtifactError:
            return False
        try:
            status = standing(path)
            if status not in {DONE, "running"}:  # of a process that had the lock until now
                resumed = status not in {"absent", "unbegun"}
                self.note(f"{node.title}: {'resumed' if resumed else 'started'}")
                popen = self._popen(node, path, status, resumed=resumed)
                self._processes.append(_Process(node, popen, lock, _beside(path, CPU), cpu_seconds(path)))
                return True
        except BaseException:
            lock.release()
            raise
        lock.release()
        return False

    def _popen(self, node: Node, path: Path, status: str, *, resumed: bool) -> subprocess.Popen[bytes]:
        recipe = _beside(path, RECIPE)
        atomic_write(recipe, dump(node.recipe_in(self.store)))
        words = ["--resume", path] if resumed else ["--recipe", recipe, "--out", path]
        words += ["--force"] * (status == "unbegun") + ["--allow-code"] * self.allow_code
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // self.jobs))} if self.jobs > 1 else {}
        with log_file(path).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *PROGRAM, node.recipe.stage, *map(str, words)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**threads, **os.environ},
                start_new_session=True,  # Ctrl-C reaches the study alone, which passes it on
                preexec_fn=_end_with_parent,
            )

    def _collect(self, total: int) -> None:
        """Take note of the processes that have ended."""
        for process in self._ended():
            node, path = process.node, self.store / process.node.name
            done = standing(path) == DONE
            self.outcomes[node.name] = DONE if done else _fault(path, process.popen.returncode)
            seconds = math.fsum(cpu_seconds(path))
            count = f"{seconds:.0f} CPU-seconds, {len(self.outcomes)} of {total}"
            self.note(f"{node.title}: {self.outcomes[node.name]} ({count})")

    def _report(self) -> None:
        """Note the iteration and a figure of each training that is running, if ``interval`` has passed."""
        if time.monotonic() - self._reported < self.interval:
            return
        self._reported, texts = time.monotonic(), []
        for name in (process.node.name for process in self._processes):
            with suppress(ArtifactError):
                if text := watch.look(self.store / name).progress:
                    texts.append(f"{name}: {text}")
        if texts:
            self.note("; ".join(texts))

    def _ended(self) -> list[_Process]:
        ended = [process for process in self._processes if process.ended()]
        for process in ended:
            self._processes.remove(process)
            process.lock.release()
        return ended

    def _stop(self) -> None:
        """Stop the processes: the first signal lets them save their state, another interruption stops them at once."""
        while self._processes:
            for process in self._processes:
                os.kill(process.popen.pid, signal.SIGTERM)  # Popen's own method would collect its end
            with suppress(KeyboardInterrupt):
                while self._processes:
                    time.sleep(POLL)
                    self._ended()


def cpu_seconds(path: Path) -> list[float]:
    """The CPU-seconds (user and system) of each process that worked on the run at ``path``; empty if unknown."""
    with suppress(ArtifactError):
        seconds = read_json(_beside(path, CPU), "record of CPU time").get("seconds")
        return [float(value) for value in seconds] if isinstance(seconds, list) else []
    return []


def log_file(path: Path) -> Path:
    """What the processes of the run at ``path`` printed."""
    return _beside(path, LOG)


def failure(faults: Mapping[str, str], store: Path) -> str:
    """The line on runs that failed or were skipped, from their faults by name; names the first and its output."""
    name, fault = next(iter(faults.items()))
    skipped = sum(text.startswith(SKIPPED) for text in faults.values())
    return (
        f"{len(faults) - skipped} runs failed, {skipped} were skipped; the first: {name} {fault} (its output: "
        f"{log_file(store / name)}). Repeat the command to try them again"
    )


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def _fault(path: Path, code: int) -> str:
    text = log_file(path).read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    ending = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return f"failed, {ending}" + (f": {one_line(text)[:300]}" if code > 0 and text else "")


def _end_with_parent() -> None:
    """Have the system stop this process if the study is killed."""
    if _libc is not None:
        _libc.prctl(_SET_PDEATHSIG, signal.SIGTERM)
