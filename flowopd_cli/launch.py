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
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from flowopd_cli.errors import RecipeError

EXIT_FILE = "FLOWOPD_EXIT_FILE"
PID = ".pid"
HURRY = 10.0  # seconds that copies have to stop at once
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
    """Run the launcher to its end. It has a session of its own, so that no signal but ours reaches it.

    The first request to stop is handed on to it and by it to the copies, which finish by themselves and are waited for;
    the second goes to the copies, which then stop at once or are killed.
    """
    asked: list[int] = []
    with subprocess.Popen(argv, env=environment, start_new_session=True) as launcher:

        def stop(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            if len(asked) == 1:
                launcher.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)
            elif len(asked) == 2:
                _stop_copies(Path(environment[EXIT_FILE]).parent, launcher)

        before = {number: signal.signal(number, stop) for number in _asking()}
        try:
            return launcher.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _asking() -> list[signal.Signals]:
    """Signals that ask to stop; the end of the terminal does, unless it is ignored as under nohup."""
    hung_up = getattr(signal, "SIGHUP", None)
    heard = hung_up is not None and signal.getsignal(hung_up) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hung_up] if heard and hung_up else [])]


def _stop_copies(folder: Path, launcher: subprocess.Popen[bytes]) -> None:
    """Ask every copy once more, and kill those that are there after ``HURRY`` seconds, and the launcher."""

    def tell(number: int) -> None:
        for path in folder.glob(f"*{PID}"):
            with suppress(OSError, ValueError):
                os.kill(int(path.read_text()), number)

    def kill() -> None:
        tell(signal.SIGKILL)
        launcher.kill()

    tell(signal.SIGTERM)
    timer = threading.Timer(HURRY, kill)
    timer.daemon = True
    timer.start()


def announce() -> None:
    """Tell the process that launched this one its number; one that ends takes it back, see :func:`record_exit`."""
    target = os.environ.get(EXIT_FILE)
    if target and launched():
        Path(target).with_name(f"{rank()}{PID}").write_text(str(os.getpid()))


def record_exit(code: int) -> None:
    """Tell the process that launched this one how the command ended; launchers turn every failure into 1."""
    target = os.environ.get(EXIT_FILE)
    if target and launched():
        Path(target).with_name(f"{rank()}{PID}").unlink(missing_ok=True)
        if is_main():
            Path(target).write_text(str(code))


def final_code(code: int) -> int:
    """What this process exits with: a launcher of ours, which reads the code elsewhere, has nothing to report."""
    return 0 if launched() and os.environ.get(EXIT_FILE) else code


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
