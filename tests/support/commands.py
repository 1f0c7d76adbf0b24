"""The real command line as processes: started, watched, and all that they start found."""

import atexit
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.forks import ROOT

from flowopd_cli.runs.run import RunDir

PROCESSES = []


@atexit.register
def _end_processes():
    """A failed test must not leave a training running."""
    for process in PROCESSES:
        for pid in descendants(process.pid) if process.poll() is None else ():
            os.kill(pid, signal.SIGKILL)


def started(*argv):
    """``flowopd *argv``, with pipes."""
    command = [sys.executable, "-m", "flowopd_cli", *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    PROCESSES.append(
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    )
    return PROCESSES[-1]


def wait_for_rows(path, process, rows, patience=240):
    """Until a run has logged so many rows."""
    deadline = time.monotonic() + patience
    while len(RunDir(path).rows()) < rows:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def process_state(pid):
    """State and parent of a process as Linux has them; ``None`` when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None


def alive(pid):
    """Whether a process has not ended."""
    return process_state(pid) is not None and process_state(pid)[0] not in {"Z", "X"}


def descendants(pid):
    """A process and all that it started, by their numbers."""
    numbers = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    parents = {number: int(found[1]) for number in numbers if (found := process_state(number))}
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found
