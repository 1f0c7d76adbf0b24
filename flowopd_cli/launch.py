"""Several processes: run the same command again under ``accelerate launch``, one copy a device.

``--processes N`` does so on this machine. Several machines take the launcher itself, with the same command on each, an
``--out`` and one ``--machine_rank`` each; only the first writes, ``--resume`` needs the run on all of them::

    accelerate launch --multi_gpu --num_machines 2 --machine_rank 0 --num_processes 16 \\
        --main_process_ip 10.0.0.1 --main_process_port 29500 -m flowopd_cli distill --recipe my.yaml --out runs/s

A copy that a launcher started knows it by ``LOCAL_RANK`` and starts no others. Without CUDA devices the same holds with
``ACCELERATE_USE_CPU=true`` in the environment. How many copies there are changes no result, only the time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flowopd_cli.errors import RecipeError

EXIT_FILE = "FLOWOPD_EXIT_FILE"
PATIENCE = 3600  # seconds that copies which were asked to stop have for their last iteration


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
        environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE))
        if not cuda:
            environment["ACCELERATE_USE_CPU"] = "true"
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
        code = _run(command(argv, processes, cuda=cuda), environment)
        return int(exit_file.read_text()) if exit_file.is_file() else code


def _run(argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the launcher to its end. Asked to stop, the copies finish by themselves and are waited for.

    A terminal sends Ctrl-C to the launcher itself; SIGTERM reaches this process alone and is handed on. Unlike SIG_IGN,
    a handler is not inherited.
    """
    with subprocess.Popen(argv, env=environment) as launcher:
        answers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: launcher.terminate()}
        before = {number: signal.signal(number, answer) for number, answer in answers.items()}
        try:
            return launcher.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def record_exit(code: int) -> None:
    """Tell the process that launched this one how the command ended; launchers turn every failure into 1."""
    target = os.environ.get(EXIT_FILE)
    if target and is_main() and launched():
        Path(target).write_text(str(code))


def final_code(code: int) -> int:
    """What this process exits with: a launcher of ours, which reads the code elsewhere, has nothing to report."""
    return 0 if launched() and os.environ.get(EXIT_FILE) else code


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
