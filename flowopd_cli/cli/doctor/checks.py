"""``flowopd doctor``: whether this machine has what the program needs, line by line, with the way out."""

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

State = Literal["ok", "warn", "fail"]
LITTLE, NONE = 5 * GIB, GIB // 2  # bytes of space that is little, and that is none
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


@dataclass(frozen=True)
class Line:
    """One thing that was looked at. ``fail`` is something that is needed, ``warn`` something that may be."""

    name: str
    state: State
    found: str
    way_out: str = ""

    def tree(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def examine() -> Iterator[Line]:
    """Interpreter, packages, devices, memory, extras, the Hub, folders."""
    yield _python()
    yield Line("flowopd", "ok", __version__)
    for name in machine.PACKAGES:
        yield from guarded(name, lambda name=name: [_package(name)])
    if machine.version("torch") is not None:
        yield from guarded("device", _devices, "install the build of PyTorch that fits this machine")
    yield from guarded("memory", lambda: [_memory()])
    yield Line("cores", "ok", f"{machine.cores()} ({machine.processor()})")
    for name in machine.EXTRAS:
        yield from guarded(f"extra {name}", lambda name=name: [_extra(name)])
    yield from guarded("toy base", lambda: [_toy()], "install the package again")
    yield from guarded("hub token", lambda: [_token()])
    yield from guarded("working folder", lambda: [_folder("working folder", Path.cwd())], "go where there is one")
    yield from guarded("cache", lambda: [_folder("cache", cache_dir())])
    yield from guarded("hub cache", _hub)


def guarded(name: str, check: Callable[[], Iterable[Line]], way_out: str = "") -> Iterator[Line]:
    """The lines of a check; one that breaks is a line that fails, and the others are looked at all the same."""
    try:
        yield from check()
    except Exception as error:
        told = f"could not be looked at ({type(error).__name__}: {error})"
        yield Line(name, "fail", one_line(told), way_out or "install what it names again")


def gib(count: int) -> str:
    """Bytes in GiB."""
    return f"{count / GIB:.1f} GiB"


def _python() -> Line:
    wanted, tested = machine.PYTHON
    found = platform.python_version()
    told = f"{found} (tested with {tested})"
    if machine.allowed(found, wanted) is not False:
        return Line("python", "ok", told)
    return Line("python", "fail", told, f"use a Python {wanted}")


def _package(name: str) -> Line:
    wanted, tested = machine.PACKAGES[name]
    found, way_out = machine.version(name), f"pip install '{name}{wanted}'"
    if found is None:
        return Line(name, "fail", "not installed", way_out)
    fits = machine.allowed(found, wanted)
    if fits is None:
        comparable = machine.version("packaging") is not None  # else that is what to install
        told = f"{found} cannot be compared with {wanted} (tested with {tested})"
        return Line(name, "warn", told, way_out if comparable else "")
    if not fits:
        return Line(name, "fail", f"{found} is outside {wanted} (tested with {tested})", way_out)
    return Line(name, "ok", found if found == tested else f"{found} (tested with {tested})")


def _devices() -> Iterator[Line]:
    found = machine.devices()
    for index, device in enumerate(found):
        bf16 = "bfloat16" if device.bf16 else "no bfloat16"
        told = f"{device.name}, {gib(device.memory)}, {gib(device.free)} free, {bf16}"
        way_out = "" if device.bf16 else "set model.dtype=float16 or float32"
        yield Line(f"device cuda:{index}", "ok" if device.bf16 else "warn", told, way_out)
    unused = None if found else machine.unused_gpu()
    if unused is not None:
        yield Line(
            "device", "fail", f"there is a GPU, but {unused}", "install the build of PyTorch that fits the driver"
        )
    elif not found:
        yield Line("device", "warn", "cpu, float32; no GPU", "enough for the toy; a real base wants a CUDA device")


def _memory() -> Line:
    found = machine.memory()
    if found is None:
        return Line("memory", "warn", "the system does not tell")
    return Line("memory", "ok" if found[1] > 2 * GIB else "warn", f"{gib(found[0])}, {gib(found[1])} available")


def _extra(name: str) -> Line:
    missing = machine.absent(name)
    if missing:
        told = [f"{package} {machine.version(package) or 'not installed'}" for package in missing]
        return Line(f"extra {name}", "warn", ", ".join(told), f"pip install 'flowopd[{name}]'")
    return Line(f"extra {name}", "ok", ", ".join(f"{p} {machine.version(p)}" for p in machine.EXTRAS[name]))


def _toy() -> Line:
    from flowopd_cli.registry import BASES

    folder = Path(str(BASES.load("toy")()))
    whole = (folder / "model_index.json").is_file() and any((folder / "transformer").glob("*.safetensors"))
    if whole:
        return Line("toy base", "ok", "in the package")
    return Line("toy base", "fail", f"its weights are not in {folder}", "install the package again")


def _token() -> Line:
    from huggingface_hub import get_token

    named = next((name for name in TOKENS if os.environ.get(name)), None)
    if get_token():
        return Line("hub token", "ok", f"there is one ({named or 'stored by hf auth login'})")
    way_out = "needed for push and for gated bases (Stable Diffusion 3.5, FLUX.1-dev): hf auth login, or HF_TOKEN"
    return Line("hub token", "warn", "none", way_out)


def _hub() -> Iterator[Line]:
    from huggingface_hub import constants

    yield _folder("hub cache", Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        yield Line("hub", "warn", "offline (HF_HUB_OFFLINE)", "unset it to download weights or to push")


def _folder(name: str, folder: Path) -> Line:
    _, free, writable = machine.space(folder)
    told = f"{folder}, {gib(free)} free"
    if not writable:
        return Line(name, "fail", f"{told}, may not be written to", "choose another, or change its rights")
    if free < LITTLE:
        return Line(name, "fail" if free < NONE else "warn", told, "make room")
    return Line(name, "ok", told)
