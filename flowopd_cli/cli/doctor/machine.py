"""The machine: packages and their ranges, devices, memory, cores, disk space. Nothing heavy at module level."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
OTHER_EXTRAS = {"demo", "dev", "docs"}  # extras that only join others, or serve development
# The versions that the tests ran with, of the packages that compute.
TESTED: Mapping[str, str] = {
    "python": "3.11",
    "torch": "2.13.0",
    "diffusers": "0.42.1",
    "transformers": "5.23.0",
    "peft": "0.21.2",
    "accelerate": "1.15.0",
    "safetensors": "0.8.0",
    "huggingface-hub": "2.4.0",
    "numpy": "2.4.6",
    "pydantic": "2.14.3",
}


@dataclass(frozen=True)
class Device:
    """An accelerator: its name, its total and free memory in bytes, whether it supports bfloat16."""

    name: str
    memory: int
    free: int
    bf16: bool


def version(package: str) -> str | None:
    """The version of an installed package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache
def requirements() -> Mapping[str, Mapping[str, str]]:
    """The version ranges of packages by extra, as flowopd declares them; its own dependencies under the empty name."""
    from packaging.requirements import Requirement

    ranges: dict[str, dict[str, str]] = {}
    for requirement in map(Requirement, metadata.requires("flowopd") or ()):
        extra = str(requirement.marker).partition('extra == "')[2].rstrip('"') if requirement.marker else ""
        if requirement.name != "flowopd" and extra not in OTHER_EXTRAS:
            ranges.setdefault(extra, {})[requirement.name] = str(requirement.specifier)
    return ranges


def in_range(text: str, specifier: str) -> bool | None:
    """Whether a version is in a range; a local build counts as its release. ``None`` if it cannot be parsed."""
    from packaging.specifiers import SpecifierSet
    from packaging.version import InvalidVersion, Version

    try:
        return SpecifierSet(specifier).contains(Version(text).public, prereleases=True)
    except InvalidVersion:
        return None


def absent(extra: str) -> list[str]:
    """The packages of an extra that are missing, too old or too new."""
    packages = [(name, version(name), specifier) for name, specifier in requirements().get(extra, {}).items()]
    return [name for name, text, specifier in packages if text is None or in_range(text, specifier) is False]


def devices() -> list[Device]:
    """The CUDA devices that PyTorch can use."""
    import torch

    usable = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        usable.append(Device(properties.name, total, free, properties.major >= 8))
    return usable


def unused_gpu() -> str | None:
    """Why PyTorch cannot use a GPU that this machine seems to have; ``None`` if it seems to have none."""
    import torch

    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return f"PyTorch finds no device: is the driver new enough for its CUDA {torch.version.cuda}"


def processor() -> str:
    """The name of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> tuple[int, int]:
    """Total and available bytes of memory, within the limit of a container."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    for limit, used in _limits():
        if limit < total:
            total, free = limit, min(free, max(0, limit - used))
    return total, free


def _limits(root: Path = CGROUPS) -> list[tuple[int, int]]:
    """The memory limits of control groups and their use, without reclaimable file pages."""
    limits = []
    for folder, limit, used, inactive in (
        (root, "memory.max", "memory.current", "inactive_file "),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
    ):
        with suppress(OSError, ValueError):  # "max" stands for no limit
            rows = (folder / "memory.stat").read_text().splitlines() if (folder / "memory.stat").is_file() else []
            droppable = sum(int(row.removeprefix(inactive)) for row in rows if row.startswith(inactive))
            limits.append((int((folder / limit).read_text()), max(0, int((folder / used).read_text()) - droppable)))
    return limits


def disk_space(folder: Path) -> tuple[int, bool]:
    """The free bytes for a folder that need not exist yet, and whether it is writable."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free, os.access(place, os.W_OK)
