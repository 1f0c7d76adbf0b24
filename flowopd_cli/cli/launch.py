"""Several processes of one command, under PyTorch's elastic launcher (docs/howto/several_gpus.md)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from types import FrameType

from flowopd_cli.errors import Interrupted, RecipeError
from flowopd_cli.system.distributed import GROUP

RUN_ID = "flowopd"
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
PROGRAM = ("-m", "flowopd_cli")
KILL_SECONDS = 10.0  # after the second request to stop
REMARKS: list[str] = []  # on this process's environment


def adopt(environment: MutableMapping[str, str]) -> list[str]:
    """Accept the numbers that a launcher gave this process; remove any others and return a remark that names them.

    A launcher sets all of :data:`NUMBERS` and :data:`ADDRESS`; in a step of Slurm ``SLURM_LOCALID`` is the local rank.

    Raises :class:`RecipeError`: the numbers are none of a process.
    """
    step = [environment.get(name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")]
    if None not in step and step == [environment.get(name) for name in ("RANK", "WORLD_SIZE")]:
        environment.setdefault("LOCAL_RANK", environment.get("SLURM_LOCALID", "0"))
    present = {name: environment[name] for name in NUMBERS if name in environment}
    text = ", ".join(f"{name}={value}" for name, value in present.items())
    missing = [name for name in (*NUMBERS, *ADDRESS) if not environment.get(name)]
    valid = not missing and _valid(*present.values())
    if not valid:
        for name in (*NUMBERS, "LOCAL_WORLD_SIZE"):
            environment.pop(name, None)
    if not missing and not valid:
        raise RecipeError(f"{text} in the environment: not the numbers of a process; unset them, or use a launcher")
    if missing and present:
        return [f"{text} in the environment ignored: a launcher would set {', '.join(missing)} too"]
    return []


def _valid(rank: str, size: str, local: str) -> bool:
    return rank.isdecimal() and size.isdecimal() and local.isdecimal() and max(int(rank), int(local)) < int(size)


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return GROUP.rank == 0


def may_launch() -> bool:
    """Whether this process was not started by a launcher and may start others."""
    return NUMBERS[-1] not in os.environ


def exit_code(code: int, *, shared: bool) -> int:
    """The exit code; an error that all processes share is reported by the first one only.

    The launcher stops every process as soon as one fails, while the first may still be saving.
    """
    return 0 if shared and not is_main() and os.environ.get("TORCHELASTIC_RUN_ID") == RUN_ID else code


def relaunch(argv: Sequence[str], processes: int, device: str) -> int:
    """Run ``flowopd *argv`` in ``processes`` copies and return their exit code.

    Raises :class:`Interrupted`: the user stopped the processes before they ended by themselves.
    Raises :class:`RecipeError`: there are fewer CUDA devices than processes.
    """
    import torch
    from accelerate.utils import check_cuda_p2p_ib_support
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    devices = torch.cuda.device_count() if device != "cpu" else 0
    if 0 < devices < processes:
        raise RecipeError(f"--processes {processes}: this machine has {devices} CUDA devices")
    if not devices:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif not check_cuda_p2p_ib_support():  # accelerate refuses such devices without these
        os.environ.update(NCCL_P2P_DISABLE="1", NCCL_IB_DISABLE="1")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    logging.disable()  # each copy reports its own errors
    requests: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, partial(_forward, requests))
    rendezvous = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": RUN_ID, "max_restarts": 0}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        config = LaunchConfig(1, 1, processes, logs_specs=DefaultLogsSpecs(log_dir=folder), **rendezvous)
        try:  # in a thread, where the launcher installs no signal handlers
            thread.submit(elastic_launch(config, sys.executable), *PROGRAM, *argv).result()
        except ChildFailedError as error:
            code = (min(error.failures.items()) if requests else error.get_first_failure())[1].exitcode
            if requests and code < 0:
                raise Interrupted("stopped", requests[0]) from None
            if requests and code == 128 + signal.SIGTERM:
                return 128 + requests[0]
            return code if code >= 0 else 128 - code
    return 0


def _forward(requests: list[int], number: int, frame: FrameType | None) -> None:
    """Forward a signal to the processes: the first lets them finish their iteration, the second stops them at once."""
    requests.append(number)
    if len(requests) <= 2:
        _send(signal.SIGTERM)
    if len(requests) == 2:
        _later(KILL_SECONDS, signal.SIGKILL)


def _send(number: int) -> None:
    import psutil

    copies = psutil.Process().children()
    for copy in copies:
        with suppress(psutil.Error):
            copy.send_signal(number)
    if not copies:  # none has started yet
        _later(0.2, number)


def _later(seconds: float, number: int) -> None:
    timer = threading.Timer(seconds, _send, [number])
    timer.daemon = True
    timer.start()
