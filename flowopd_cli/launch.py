"""Several processes: run the same command again under ``accelerate launch``, one copy a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from flowopd_cli.errors import RecipeError

EXIT_FILE = "FLOWOPD_EXIT_FILE"


def rank() -> int:
    """This process's number among all; 0 when it is alone."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def launched() -> bool:
    """Whether a launcher has already started this process."""
    return "LOCAL_RANK" in os.environ


def should_launch(processes: int) -> bool:
    """Whether the command must be run again under the launcher."""
    return processes > 1 and not launched()


def command(argv: Sequence[str], processes: int, *, cuda: bool) -> list[str]:
    """The command line that starts ``processes`` copies of ``flowopd *argv``.

    ``accelerate launch`` starts one process only when told ``--cpu``, so there its own back end does it.
    """
    if cuda:
        launcher = ["accelerate.commands.launch", "--num_processes", str(processes), "--multi_gpu"]
        return [sys.executable, "-m", *launcher, "--num_machines", "1", "-m", "flowopd_cli", *argv]
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, "-m", *launcher, "-m", "flowopd_cli", *argv]


def relaunch(argv: Sequence[str], processes: int, device: str) -> int:
    """Run ``flowopd *argv`` in ``processes`` copies and return the exit code of the first."""
    cuda = device != "cpu" and _cuda_devices() > 0
    if cuda and _cuda_devices() < processes:
        raise RecipeError(f"--processes {processes}: this machine has {_cuda_devices()} CUDA devices")
    with tempfile.TemporaryDirectory(prefix="flowopd-") as folder:
        exit_file = Path(folder) / "exit"
        environment = dict(os.environ, **{EXIT_FILE: str(exit_file)})
        if not cuda:
            environment["ACCELERATE_USE_CPU"] = "true"
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        # The copies stop by themselves, and are waited for. Unlike SIG_IGN, a handler is not inherited by them.
        before = signal.signal(signal.SIGINT, lambda number, frame: None)
        try:
            code = subprocess.run(command(argv, processes, cuda=cuda), env=environment, check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)
        return int(exit_file.read_text()) if exit_file.is_file() else code


def record_exit(code: int) -> None:
    """Tell the process that launched this one how the command ended; launchers turn every failure into 1."""
    target = os.environ.get(EXIT_FILE)
    if target and is_main() and launched():
        Path(target).write_text(str(code))


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
