"""``flowopd doctor``: checks whether this machine has what flowopd needs; each line has the remedy."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path

from flowopd_cli import __version__
from flowopd_cli.cli.doctor import machine
from flowopd_cli.cli.plan import Finding
from flowopd_cli.errors import FlowOPDError, one_line
from flowopd_cli.system.paths import cache_dir
from flowopd_cli.system.text import GIB, gib

LITTLE, NONE = 5 * GIB, GIB // 2  # bytes of disk space that is little, and that is none


def machine_findings() -> Iterator[Finding]:
    """Interpreter, packages, devices, memory, extras, the Hub, folders."""
    yield from guarded("python", _python)
    yield Finding("flowopd", "ok", __version__)
    yield from guarded("packages", _packages)
    if machine.version("torch") is not None:
        yield from guarded("device", _devices, "install the build of PyTorch that fits this machine")
    yield from guarded("memory", _memory)
    yield Finding("cores", "ok", f"{machine.cores()} ({machine.processor()})")
    yield from guarded("extras", _extras)
    yield from guarded("toy base", _toy, "install the package again")
    yield from guarded("hub token", _token)
    yield from guarded("working folder", lambda: [folder_finding("working folder", Path.cwd())], "change to another")
    yield from guarded("cache", lambda: [folder_finding("cache", cache_dir())])
    yield from guarded("hub cache", _hub)


def guarded(name: str, check: Callable[[], Iterable[Finding]], way_out: str = "") -> Iterator[Finding]:
    """The findings of a check. An exception in a check counts as a failure and does not stop the others."""
    try:
        yield from check()
    except Exception as error:
        reason = one_line(f"could not be checked ({type(error).__name__}: {error})")
        if isinstance(error, FlowOPDError):  # it names its own way out
            yield Finding(name, "fail", one_line(error))
        else:
            yield Finding(name, "fail", reason, way_out or "install the package that it names again")


def folder_finding(name: str, folder: Path) -> Finding:
    """Whether a folder, which need not exist yet, is writable and has space."""
    free, writable = machine.disk_space(folder)
    text = f"{folder}, {gib(free)} free"
    if not writable:
        return Finding(name, "fail", f"{text}, may not be written to", "choose another, or change its permissions")
    if free < LITTLE:
        return Finding(name, "fail" if free < NONE else "warn", text, "make room")
    return Finding(name, "ok", text)


def _python() -> Iterator[Finding]:
    specifier = str(metadata.metadata("flowopd")["Requires-Python"])
    yield _version("python", platform.python_version(), specifier, f"use a Python {specifier}")


def _packages() -> Iterator[Finding]:
    for name, specifier in machine.requirements()[""].items():
        yield _version(name, machine.version(name), specifier, f"pip install '{name}{specifier}'")


def _version(name: str, text: str | None, specifier: str, way_out: str) -> Finding:
    if text is None:
        return Finding(name, "fail", "not installed", way_out)
    tested = machine.TESTED.get(name, text)
    inside = machine.in_range(text, specifier)
    if inside is None:
        return Finding(name, "warn", f"{text} cannot be compared with {specifier} (tested with {tested})", way_out)
    if not inside:
        return Finding(name, "fail", f"{text} is outside {specifier} (tested with {tested})", way_out)
    return Finding(name, "ok", text if text == tested else f"{text} (tested with {tested})")


def _devices() -> Iterator[Finding]:
    devices = machine.devices()
    for index, device in enumerate(devices):
        text = f"{device.name}, {gib(device.memory)}, {gib(device.free)} free"
        if device.bf16:
            yield Finding(f"device cuda:{index}", "ok", f"{text}, bfloat16")
        else:
            way_out = "set model.dtype=float16 or float32"
            yield Finding(f"device cuda:{index}", "warn", f"{text}, no bfloat16", way_out)
    if devices:
        return
    unused = machine.unused_gpu()
    if unused is not None:
        yield Finding("device", "fail", f"a GPU, but {unused}", "install the build of PyTorch that fits the driver")
    else:
        yield Finding("device", "warn", "cpu, float32; no GPU", "enough for the toy; a real base needs a CUDA device")


def _memory() -> Iterator[Finding]:
    total, free = machine.memory()
    yield Finding("memory", "ok" if free > 2 * GIB else "warn", f"{gib(total)}, {gib(free)} available")


def _extras() -> Iterator[Finding]:
    for extra, ranges in machine.requirements().items():
        missing = machine.absent(extra)
        if extra:
            text = ", ".join(f"{name} {machine.version(name) or 'not installed'}" for name in missing or ranges)
            way_out = f"pip install 'flowopd[{extra}]'" if missing else ""
            yield Finding(f"extra {extra}", "warn" if missing else "ok", text, way_out)


def _toy() -> Iterator[Finding]:
    from flowopd_cli.registry import BASES

    folder = Path(str(BASES.load("toy")()))
    if any((folder / "transformer").glob("*.safetensors")):
        yield Finding("toy base", "ok", "in the package")
    else:
        yield Finding("toy base", "fail", f"its weights are not in {folder}", "install the package again")


def _token() -> Iterator[Finding]:
    from huggingface_hub import get_token

    if get_token():
        variable = next(filter(os.environ.get, ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")), "stored by hf auth login")
        yield Finding("hub token", "ok", f"present ({variable})")
    else:
        way_out = "needed for push and for gated bases (Stable Diffusion 3.5, FLUX.1-dev): hf auth login, or HF_TOKEN"
        yield Finding("hub token", "warn", "none", way_out)


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants

    yield folder_finding("hub cache", Path(constants.HF_HUB_CACHE))
    if constants.HF_HUB_OFFLINE:
        yield Finding("hub", "warn", "offline (HF_HUB_OFFLINE)", "unset it to download weights or to push")
