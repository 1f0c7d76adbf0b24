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

from flowopd_cli.errors import Interrupted, RecipeError

EXIT_FILE = "FLOWOPD_EXIT_FILE"
PID = ".pid"
HURRY = 10.0  # seconds that copies have to stop at once
PATIENCE = 60  # seconds that the other copies have when one has ended badly: with it gone they cannot go on


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
    """Run ``flowopd *argv`` in ``processes`` copies and return the exit code of the first.

    Raises:
        Interrupted: it was asked to stop, and the copies were gone before they could say how they ended.
    """
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
        code, asked = _run(command(argv, processes, cuda=cuda), environment, processes)
        if asked and not exit_file.is_file():
            raise Interrupted("stopped", asked[0])
        return int(exit_file.read_text()) if exit_file.is_file() else code


def _run(argv: Sequence[str], environment: Mapping[str, str], processes: int) -> tuple[int, list[int]]:
    """Run the launcher to its end: its exit code, and the requests to stop that came meanwhile.

    It has a session of its own, so that no signal but ours reaches it. The first request is handed on to the copies,
    which finish by themselves and are waited for (as long as some have not begun, to the launcher, which ends them);
    at the second they stop at once, or are killed.
    """
    asked: list[int] = []
    with subprocess.Popen(argv, env=environment, start_new_session=True) as launcher:

        def stop(number: int, frame: FrameType | None) -> None:
            asked.append(number)
            handed = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
            copies = _copies(environment)
            if len(asked) == 1 and len(copies) < processes:
                launcher.send_signal(handed)
            elif len(asked) <= 2:
                _tell(copies, handed)
            if len(asked) == 2:
                timer = threading.Timer(HURRY, lambda: (_tell(_copies(environment), signal.SIGKILL), launcher.kill()))
                timer.daemon = True
                timer.start()

        before = {number: signal.signal(number, stop) for number in _asking()}
        try:
            return launcher.wait(), asked
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _asking() -> list[signal.Signals]:
    """Signals that ask to stop; the end of the terminal does, unless it is ignored as under nohup."""
    hung_up = getattr(signal, "SIGHUP", None)
    heard = hung_up is not None and signal.getsignal(hung_up) is not signal.SIG_IGN
    return [signal.SIGINT, signal.SIGTERM, *([hung_up] if heard and hung_up else [])]


def _copies(environment: Mapping[str, str]) -> list[int]:
    """The numbers of the copies that have begun and not ended; see :func:`announce`."""
    found = []
    for path in Path(environment[EXIT_FILE]).parent.glob(f"*{PID}"):
        with suppress(OSError, ValueError):
            found.append(int(path.read_text()))
    return found


def _tell(copies: Sequence[int], number: int) -> None:
    for copy in copies:
        with suppress(OSError):
            os.kill(copy, number)


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


def final_code(code: int, *, told: bool) -> int:
    """What this process exits with: a launcher of ours, which reads the code elsewhere, has nothing to report.

    Unless the other copies have not been ``told``: then it ends them.
    """
    return 0 if told and launched() and os.environ.get(EXIT_FILE) else code


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
