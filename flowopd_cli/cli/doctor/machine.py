"""What this machine has: interpreter, packages, devices, memory, cores, space. Nothing heavy at module level."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

GIB = 2**30
CGROUPS = Path("/sys/fs/cgroup")
PYTHON = ">=3.10", "3.11"
# What pyproject.toml asks for, and the version that the tests ran with.
PACKAGES: Mapping[str, tuple[str, str]] = {
    "torch": (">=2.6,<=2.13.0", "2.13.0"),
    "diffusers": (">=0.36,<0.43", "0.42.1"),
    "transformers": (">=5.4,<6", "5.23.0"),
    "peft": (">=0.18,<0.22", "0.21.2"),
    "accelerate": (">=1.10,<2", "1.15.0"),
    "safetensors": (">=0.5", "0.8.0"),
    "huggingface_hub": (">=1.0", "2.4.0"),
    "jinja2": (">=3.1", "3.1.6"),
    "jaxtyping": (">=0.3", "0.3.11"),
    "matplotlib": (">=3.8", "3.11.2"),
    "numpy": (">=1.26", "2.4.6"),
    "packaging": (">=21", "26.3"),
    "pillow": (">=10", "13.0.0"),
    "pydantic": (">=2.8,<3", "2.14.3"),
    "pyyaml": (">=6", "6.0.3"),
    "rich": (">=13.7", "15.0.0"),
    "typer": (">=0.15", "0.29.2"),
}
# The extras of users; dev, docs and those that only join others are left out.
EXTRAS: Mapping[str, Mapping[str, str]] = {
    "ocr": {"rapidocr": ">=3.4", "onnxruntime": ">=1.18"},
    "paddle": {"paddleocr": ">=3.7,<3.8", "onnxruntime": ">=1.18"},
    "detect": {"scipy": ">=1.11"},
    "spacy": {"spacy": ">=3.5,<4"},
    "int8": {"bitsandbytes": ">=0.45"},
    "track": {"tensorboard": ">=2.16"},
    "track-wandb": {"wandb": ">=0.31"},
    "track-mlflow": {"mlflow": ">=3"},
    "track-trackio": {"trackio": ">=0.43"},
}


@dataclass(frozen=True)
class Device:
    """An accelerator: its name, bytes in all and free now, whether it computes in bfloat16."""

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


def allowed(found: str, wanted: str) -> bool | None:
    """Whether a version lies in a range as pyproject.toml writes them; a local build counts as its release. ``None``
    where that cannot be told: the version is no version, or packaging is not installed.
    """
    try:
        from packaging.specifiers import SpecifierSet
        from packaging.version import InvalidVersion, Version
    except ImportError:
        return None
    try:
        return SpecifierSet(wanted).contains(Version(found).public, prereleases=True)
    except InvalidVersion:
        return None


def absent(extra: str) -> list[str]:
    """The packages of an extra that are not installed, or too old or too new."""
    wanted = EXTRAS.get(extra, {})
    found = {name: version(name) for name in wanted}
    return [name for name, told in found.items() if told is None or allowed(told, wanted[name]) is False]


def devices() -> list[Device]:
    """The CUDA devices that PyTorch can use."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        told = torch.cuda.get_device_properties(index)
        free, whole = torch.cuda.mem_get_info(index)
        found.append(Device(told.name, whole, free, told.major >= 8))
    return found


def unused_gpu() -> str | None:
    """Why PyTorch does not use a GPU that this machine seems to have; ``None`` where there is no sign of one."""
    import torch

    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return None
    if torch.version.cuda is None and torch.version.hip is None:
        return f"PyTorch {torch.__version__} is built without CUDA"
    return "PyTorch finds no device: is the driver new enough for its CUDA " + str(torch.version.cuda)


def processor() -> str:
    """The name of the CPU, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def memory() -> tuple[int, int] | None:
    """Bytes of memory in all and available, a container's limit counted; ``None`` where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        told = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith("kB")}
        whole, free = told["MemTotal"], told["MemAvailable"]
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in _limits():
        if limit < whole:
            whole, free = limit, min(free, max(0, limit - used))
    return whole, free


def _limits(root: Path = CGROUPS) -> list[tuple[int, int]]:
    """The memory limits of control groups and what of them is used, without pages of files that may be dropped."""
    found = []
    for folder, limit, used, idle in (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        with suppress(OSError, ValueError):  # "max" where there is none
            taken = int((folder / used).read_text()) - _counted(folder / "memory.stat", idle)
            found.append((int((folder / limit).read_text()), max(0, taken)))
    return found


def _counted(file: Path, name: str) -> int:
    """The figure of that name in a file with one a line; 0 where there is none."""
    with suppress(OSError, ValueError):
        rows = (line.split() for line in file.read_text().splitlines())
        return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == name), 0)
    return 0


def space(folder: Path) -> tuple[Path, int, bool]:
    """Of a folder that may not be there yet: the nearest that is, its free bytes, whether it may be written to."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    return place, shutil.disk_usage(place).free, os.access(place, os.W_OK)
