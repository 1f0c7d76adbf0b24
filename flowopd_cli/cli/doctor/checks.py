"""``flowopd doctor``: whether this machine has what flowopd needs, line by line, with the remedy."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowopd_cli import __version__
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.doctor.machine import GIB
from flowopd_cli.errors import one_line
from flowopd_cli.system.paths import cache_dir

LITTLE, NONE = 5 * GIB, GIB // 2  # bytes of disk space that is little, and that is none
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Line:
    """The result of one check. ``fail`` is something that is needed, ``warn`` something that may be."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    way_out: str = ""

    def tree(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def machine_lines() -> Iterator[Line]:
    """Interpreter, packages, devices, memory, extras, the Hub, folders."""
    yield from guarded("python", _python)
    yield Line("flowopd", "ok", __version__)
    yield from guarded("packages", _packages)
    if machine.version("torch") is not None:
        yield from guarded("device", _devices, "install the build of PyTorch that fits this machine")
    yield from guarded("memory", _memory)
    yield Line("cores", "ok", f"{machine.cores()} ({machine.processor()})")
    yield from guarded("extras", _extras)
    yield from guarded("toy base", _toy, "install the package again")
    yield from guarded("hub token", _token)
    yield from guarded("working folder", lambda: [folder_line("working folder", Path.cwd())], "change to another")
    yield from guarded("cache", lambda: [folder_line("cache", cache_dir())])
    yield from guarded("hub cache", _hub)


def guarded(name: str, check: Callable[[], Iterable[Line]], way_out: str = "") -> Iterator[Line]:
    """The lines of a check; a check that breaks is a line that fails, and does not stop the others."""
    try:
        yield from check()
    except Exception as error:
        reason = one_line(f"could not be checked ({type(error).__name__}: {error})")
        yield Line(name, "fail", reason, way_out or "install the package that it names again")


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / GIB:.1f} GiB"


def folder_line(name: str, folder: Path) -> Line:
    """Whether a folder, which may not exist yet, can be written to and has space."""
    free, writable = machine.disk_space(folder)
    text = f"{folder}, {gib(free)} free"
    if not writable:
        return Line(name, "fail", f"{text}, may not be written to", "choose another, or change its permissions")
    if free < LITTLE:
        return Line(name, "fail" if free < NONE else "warn", text, "make room")
    return Line(name, "ok", text)


def _python() -> Iterator[Line]:
    text, specifier = platform.python_version(), machine.python_range()
    fits = machine.in_range(text, specifier) is not False
    shown = f"{text} (tested with {machine.TESTED['python']})"
    yield Line("python", "ok" if fits else "fail", shown, "" if fits else f"use a Python {specifier}")


def _packages() -> Iterator[Line]:
    for name, specifier in machine.requirements()[""].items():
        yield _package(name, specifier)


def _package(name: str, specifier: str) -> Line:
    text, way_out = machine.version(name), f"pip install '{name}{specifier}'"
    if text is None:
        return Line(name, "fail", "not installed", way_out)
    tested = machine.TESTED.get(name, text)
    fits = machine.in_range(text, specifier)
    if fits is None:
        return Line(name, "warn", f"{text} cannot be compared with {specifier} (tested with {tested})", way_out)
    if not fits:
        return Line(name, "fail", f"{text} is outside {specifier} (tested with {tested})", way_out)
    return Line(name, "ok", text if text == tested else f"{text} (tested with {tested})")


def _devices() -> Iterator[Line]:
    devices = machine.devices()
    for index, device in enumerate(devices):
        bf16 = "bfloat16" if device.bf16 else "no bfloat16"
        text = f"{device.name}, {gib(device.memory)}, {gib(device.free)} free, {bf16}"
        way_out = "" if device.bf16 else "set model.dtype=float16 or float32"
        yield Line(f"device cuda:{index}", "ok" if device.bf16 else "warn", text, way_out)
    if devices:
        return
    unused = machine.unused_gpu()
    if unused is not None:
        yield Line("device", "fail", f"a GPU, but {unused}", "install the build of PyTorch that fits the driver")
    else:
        yield Line("device", "warn", "cpu, float32; no GPU", "enough for the toy; a real base needs a CUDA device")


def _memory() -> Iterator[Line]:
    total, free = machine.memory()
    yield Line("memory", "ok" if free > 2 * GIB else "warn", f"{gib(total)}, {gib(free)} available")


def _extras() -> Iterator[Line]:
    for extra, ranges in machine.requirements().items():
        missing = machine.absent(extra)
        if extra:
            text = ", ".join(f"{name} {machine.version(name) or 'not installed'}" for name in missing or ranges)
            way_out = f"pip install 'flowopd[{extra}]'" if missing else ""
            yield Line(f"extra {extra}", "warn" if missing else "ok", text, way_out)


def _toy() -> Iterator[Line]:
    from flowopd_cli.registry import BASES

    folder = Path(str(BASES.load("toy")()))
    if (folder / "model_index.json").is_file() and any((folder / "transformer").glob("*.safetensors")):
        yield Line("toy base", "ok", "in the package")
    else:
        yield Line("toy base", "fail", f"its weights are not in {folder}", "install the package again")


def _token() -> Iterator[Line]:
    from huggingface_hub import get_token

    variable = next((name for name in TOKENS if os.environ.get(name)), None)
    if get_token():
        yield Line("hub token", "ok", f"present ({variable or 'stored by hf auth login'})")
    else:
        way_out = "needed for push and for gated bases (Stable Diffusion 3.5, FLUX.1-dev): hf auth login, or HF_TOKEN"
        yield Line("hub token", "warn", "none", way_out)


def _hub() -> Iterator[Line]:
    from huggingface_hub import constants

    yield folder_line("hub cache", Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        yield Line("hub", "warn", "offline (HF_HUB_OFFLINE)", "unset it to download weights or to push")
