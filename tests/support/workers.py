"""Scoring workers as real processes, sound and faulty: ``with started("nan") as worker: RemoteReward(worker.url)``.

Run as a script it is such a worker. A sound one gives each picture the mean of its red channel.
"""

import json
import os
import select
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 30


@dataclass
class Worker:
    """A running worker. ``calls`` counts the calls of its reward."""

    url: str
    process: subprocess.Popen
    calls_file: Path
    log_file: Path

    @property
    def calls(self):
        return len(self.batches)

    @property
    def batches(self):
        """Pictures of each call."""
        return [int(line) for line in self.calls_file.read_text().split()] if self.calls_file.exists() else []

    def open_gate(self):
        """Let a ``gate`` worker score what it holds."""
        self.calls_file.with_suffix(".open").touch()

    @property
    def log(self):
        return self.log_file.read_text()


@contextmanager
def started(
    mode="sound", *, folder, token=None, argv=None, flags=None, limits=None, start_seconds=START_SECONDS, **options
):
    """A worker that behaves as ``mode`` says, ended in any case; ``argv`` starts another program instead.

    It has ``start_seconds`` to start.
    """
    mark = len(list(folder.glob("*.log")))
    calls, log = folder / f"{mark}.calls", folder / f"{mark}.log"
    command = argv or command_of(mode, calls, flags=flags, limits=limits, **options)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("FLOWOPD_REWARD_TOKEN", None)
    if token:
        environment["FLOWOPD_REWARD_TOKEN"] = token
    with log.open("w") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sink, text=True, env=environment)
    try:
        yield Worker(first_line(process, log, start_seconds), process, calls, log)
    finally:
        end(process)


def command_of(mode, calls, flags=None, limits=None, **options):
    values = {**(flags or {}), "limits": limits or {}, "options": {"mode": mode, "calls": str(calls), **options}}
    return [sys.executable, __file__, json.dumps(values)]


def first_line(process, log, seconds=START_SECONDS):
    """What it prints when it is ready."""
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    line = process.stdout.readline().strip() if ready else ""
    assert line.startswith("http://"), log.read_text()
    return line


def end(process):
    process.terminate()
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


class Scorer:
    """Red pictures score high, in the manner of ``mode``."""

    def __init__(self, mode, calls, name="red", seconds=30.0, weights="one"):
        self.mode, self.calls, self.seconds = mode, Path(calls), seconds
        self.info = {"reward": name, "package": "test 1", "weights": {"model": weights}, "low": 0, "high": None}
        if mode == "loading":
            time.sleep(seconds)

    def check(self, prompts):
        from flowopd_cli.rewards.remote.protocol import Refusal

        for prompt in prompts:
            if prompt["text"] == "bad":
                raise Refusal(422, f"prompt {prompt['id']!r}: is bad")

    def __call__(self, pictures, prompts):
        from flowopd_cli.rewards.remote.protocol import Answer

        with self.calls.open("a") as sink:
            sink.write(f"{len(pictures)}\n")
        if self.mode == "kill":
            os._exit(9)
        if self.mode == "slow":
            time.sleep(self.seconds)
        while self.mode == "gate" and not self.calls.with_suffix(".open").exists():
            time.sleep(0.02)
        if self.mode == "error" or (self.mode == "error_first" and len(self.calls.read_text().split()) <= 2):
            raise RuntimeError("the detector\nbroke")
        red = [picture.resize((1, 1)).getpixel((0, 0))[0] / 255 for picture in pictures]
        if self.mode == "nan":
            red[::2] = [float("nan")] * len(red[::2])
        sizes = [float(picture.width) for picture in pictures]
        return Answer(red, {"width": sizes}, [True] * len(red), [{"text": p["text"]} for p in prompts])


if __name__ == "__main__":
    from flowopd_cli.rewards.remote import server

    flags = json.loads(sys.argv[1])
    from_flags = server.from_flags

    def settings_of(flags):
        settings = from_flags(flags)
        return replace(settings, limits=replace(settings.limits, **flags["limits"]))

    server.from_flags = settings_of
    server.run(lambda options: Scorer(**options))
