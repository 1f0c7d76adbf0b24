"""Commands as processes of their own without the seconds of their imports: a server imports once and forks for each.

``with server(folder) as forks: forks.run("teacher", "--out", path, kill=Kill(change=7))``. A child can be killed before
its n-th change of a file below a folder (every rename, removal, new folder, opening for writing and fsync), in the
middle of a write, or after a time. Run as a script it is the server.
"""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 300.0
WATCHED = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Kill:
    """When a child is killed: before change number ``change``, in the middle of write number ``change`` by ``half``
    (``append`` or ``bytes``), after ``seconds``, or once the metrics have ``rows``. ``number`` is the signal, of
    which ``times`` are sent, ``gap`` seconds apart; of several processes ``rank`` is the one.
    """

    change: int | None = None
    half: str | None = None
    seconds: float | None = None
    rows: int | None = None
    number: int = signal.SIGKILL
    times: int = 1
    gap: float = 0.3
    rank: int = 0


@dataclass(frozen=True)
class Ended:
    """The exit code of a child (negative: the signal), its output, its changes of files, and its seconds."""

    code: int
    out: str
    err: str
    changes: list
    seconds: float

    @property
    def killed(self):
        return self.code < 0


class Forks:
    """The client's side."""

    def __init__(self, process, folder):
        self._process, self._folder, self._count = process, folder, 0

    def inside(self, folder):
        """The same server; its children work in ``folder``."""
        return Forks(self._process, folder)

    def rivals(self, *argv, count=2, before=""):
        """The same command line in processes that start together: how each of them ended."""
        return self._ask(argv, rivals=count, before=before)

    def run(self, *argv, kill=None, below=None, before="", ranks=1):
        """Run a command line to its end, in ``ranks`` processes; the first one's changes below a folder are noted.

        ``before`` is the source of Python statements that each executes first. When one of several ends, the others are
        stopping to end too, as a launcher does.
        """
        options = {"kill": asdict(kill) if kill else {}, "below": str(below) if below else None}
        return self._ask(argv, **options, before=before, ranks=ranks)[0]

    def _ask(self, argv, **options):
        self._count += 1
        stem = self._folder / str(self._count)
        job = {"kill": {}, "below": None, "before": "", "ranks": 1, "rivals": 1, **options}
        job |= {"argv": [str(word) for word in argv], "stem": str(stem), "cwd": str(self._folder)}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the server ended with {self._process.wait(PATIENCE)}"
        answer = json.loads(line)
        return [self._ended(code, answer["seconds"], _stem(stem, i)) for i, code in enumerate(answer["codes"])]

    def _ended(self, code, seconds, stem):
        texts = {name: stem.with_suffix(f".{name}").read_text() for name in ("out", "err")}
        noted = stem.with_suffix(".changes")
        changes = [json.loads(line) for line in noted.read_text().splitlines()] if noted.exists() else []
        return Ended(code, texts["out"], texts["err"], changes, seconds)


def _stem(stem, index):
    return Path(stem) if index == 0 else Path(f"{stem}-{index}")


@contextmanager
def server(folder):
    """A server whose children write their output into ``folder``."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, __file__], env=environment, **pipes)
    try:
        yield Forks(process, folder)
    finally:
        process.stdin.close()
        process.wait(PATIENCE)
        process.stdout.close()


def serve():
    """Answer one request a line until there are no more."""
    import diffusers
    import torch
    from PIL import Image
    from rich import live, progress  # noqa: F401

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are started without it
    torch.set_num_threads(1)
    from flowopd_cli import suites  # noqa: F401
    from flowopd_cli.cli import app, execute  # noqa: F401
    from flowopd_cli.models import sd3  # noqa: F401
    from flowopd_cli.stages import coldstart, distill, eval, merge, push, teacher  # noqa: F401
    from flowopd_cli.toy import detector, prompts, rewards  # noqa: F401

    _ = diffusers.StableDiffusion3Pipeline  # imported by the first text to encode
    Image.preinit()
    os.fsync = lambda descriptor: None  # a killed process loses nothing that it has written; a disk takes milliseconds
    gc.freeze()  # or each child would copy the libraries' pages to look for garbage in them
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job, children = json.loads(line), []
        port = _free_port()
        for rank in range(job["ranks"] * job["rivals"]):
            children.append(os.fork())
            if children[-1] == 0:
                answers.close()
                _be(job, rank, port)
        started = time.monotonic()
        due = _due(job["kill"], job["below"], started)
        codes = _wait(children, due, job["kill"], rivals=job["rivals"] > 1)
        print(json.dumps({"codes": codes, "seconds": time.monotonic() - started}), file=answers, flush=True)


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _due(kill, below, started):
    """A function whose result is true when the next signal is due."""
    times = [i * kill["gap"] for i in range(kill["times"])] if kill.get("seconds") or kill.get("rows") else []
    first = started + kill["seconds"] if kill.get("seconds") else None

    def due():
        nonlocal first
        if times and first is None and _rows(below) >= kill["rows"]:
            first = time.monotonic()
        return bool(times) and first is not None and time.monotonic() >= first + times[0] and times.pop(0) >= 0

    return due


def _rows(below):
    try:
        return (Path(below) / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def _wait(children, due, kill, *, rivals):
    """The exit codes of all children."""
    codes, failed, stopping, started = {}, None, False, time.monotonic()
    while len(codes) < len(children):
        now = time.monotonic()
        for child in children:
            ended, status = os.waitpid(child, os.WNOHANG) if child not in codes else (0, 0)
            if ended:
                codes[child] = os.waitstatus_to_exitcode(status)
        living = [child for child in children if child not in codes]
        if due():
            _signal([child for child in living if child == children[kill["rank"]]], kill["number"])
        if any(codes.values()) and not rivals:
            failed = failed or now
        if failed and not stopping and now > failed + 0.1:  # as seldom as torch's launcher looks
            stopping = True
            _signal(living, signal.SIGTERM)
        if now > started + PATIENCE:
            _signal(living, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[child] for child in children]


def _signal(children, number):
    for child in children:
        os.kill(child, number)


def _be(job, rank, port):
    """A child: a command line, from its first statement to its exit code."""
    code = 1
    try:
        stem = _stem(job["stem"], rank)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(stem.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT, 0o644), descriptor)
        os.chdir(job["cwd"])
        sys.stdin.close()
        sys.argv = ["flowopd", *job["argv"]]
        if job["ranks"] > 1:
            shared = {"WORLD_SIZE": job["ranks"], "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = {"RANK": rank, "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
            os.environ |= {name: str(value) for name, value in (shared | own).items()}
        exec(job["before"], {})
        if rank == 0:
            _watch(job)
        from flowopd_cli.cli import app as cli

        cli.main()
    except SystemExit as stop:
        code = stop.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(job):
    """Note the changes below a folder, and die at one of them."""
    kill = job["kill"]
    if kill.get("half"):
        _die_in_the_middle(kill)
    if not job["below"]:
        return
    below, count = os.path.realpath(job["below"]), 0
    noted = os.open(Path(job["stem"]).with_suffix(".changes"), os.O_WRONLY | os.O_CREAT)

    def change(what, path):
        nonlocal count
        count += 1
        os.write(noted, (json.dumps([what, path]) + "\n").encode())
        if count == kill.get("change") and not kill.get("half"):
            os.kill(os.getpid(), kill["number"])

    def seen(event, args):
        name = event
        if event == "open":
            name = "open" if (args[2] or 0) & WRITING else None
        if name not in WATCHED | {"open"}:
            return
        inside = event in {"os.remove", "os.rmdir"} and args[-1] != -1  # one step of the removal of a folder
        path = os.fspath(args[0]) if isinstance(args[0], str | os.PathLike) else None
        if path is not None and (inside or os.path.realpath(path).startswith(below)):
            change(name, path)

    sys.addaudithook(seen)
    fsync = os.fsync

    def synced(descriptor):
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        path = os.path.realpath(f"/proc/self/fd/{number}")
        if path.startswith(below):
            change("os.fsync", path)
        fsync(descriptor)

    os.fsync = synced


def _die_in_the_middle(kill):
    """Write half of the n-th row of metrics, or of the n-th file of tensors, and die."""
    from flowopd_cli.system import files

    count, write = 0, Path.write_bytes

    def half(path, data):
        nonlocal count
        count += 1
        if count == kill["change"]:
            with path.open("ab") as handle:
                handle.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    if kill["half"] == "append":
        append = files.append
        files.append = lambda path, text: half(path, text.encode()) or append(path, text)
    else:
        Path.write_bytes = lambda path, data: half(path, data) or write(path, data)


if __name__ == "__main__":
    serve()
