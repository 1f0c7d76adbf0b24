"""How a base is loaded: options, device, precision, parts of a pipeline's folder."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from packaging.version import Version
from safetensors import SafetensorError

from flowopd_cli.errors import ArtifactError, one_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BROKEN = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, SafetensorError)


@dataclass(frozen=True)
class LoadOptions:
    """How to load a base: fields of a recipe's ``model`` section, and adapters' ``targets``.

    ``prompt_cache`` is a folder for embeddings of several runs; without one they stay in memory. With ``offload`` the
    transformer stays in the host's memory and is copied to the device for each forward. ``quantize`` is one of
    :data:`~flowopd_cli.models.quantization.KINDS` or ``none``. ``guidance_limit`` is the largest norm of a guided
    velocity, relative to that of the prompt's own; rows with ``1 - sigma`` above ``guidance_until`` have no guidance.
    """

    revision: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    resolution: int | None = None
    max_sequence_length: int = 128
    targets: tuple[str, ...] = ()
    prompt_cache: Path | None = None
    tf32: bool = True
    compile: str = "none"
    attention: str = "auto"
    shard: bool = False
    offload: bool = False
    quantize: str = "none"
    guidance_limit: float | None = None
    guidance_until: float | None = None


def take_device(name: str) -> torch.device:
    """:func:`pick_device` on this machine; a CUDA device becomes the current one. Call it before loading anything."""
    device = pick_device(name, torch.cuda.device_count() if torch.cuda.is_available() else 0, os.environ)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_device(name: str, cuda: int, environment: Mapping[str, str]) -> torch.device:
    """The device of ``model.device``; ``auto`` is one of ``cuda`` CUDA devices, if there are any.

    Each process of a launcher uses the device of its ``LOCAL_RANK``.

    Raises :class:`ArtifactError`: no such device, or one device for several processes.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    try:
        device = torch.device(("cuda" if cuda else "cpu") if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in {"cpu", "cuda", accelerator and accelerator.type}:
        raise ArtifactError(f"model.device {name!r} is not a PyTorch device here: use auto, cpu, cuda or cuda:N")
    if device.type != "cuda":
        return device
    if not cuda:
        raise ArtifactError(f"model.device is {name}, but PyTorch sees no CUDA device: use --set model.device=cpu")
    processes = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if device.index is not None and processes > 1:
        raise ArtifactError(f"model.device {name} is one device for {processes} processes: use --set model.device=cuda")
    index = int(environment.get("LOCAL_RANK", "0")) if device.index is None else device.index
    if index >= cuda:
        raise ArtifactError(f"model.device {name}: no CUDA device {index} here; this machine has {cuda}")
    return torch.device("cuda", index)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return automatic if name == "auto" else DTYPES[name]


def require_diffusers(pipeline: str, first: str) -> None:
    """Refuse a version of diffusers before ``first``, which has no such pipeline, or one that draws other pictures.

    Raises :class:`ArtifactError`: it is installed.
    """
    if Version(diffusers.__version__).release < Version(first).release:
        raise ArtifactError(
            f"{pipeline} needs diffusers {first} or later, {diffusers.__version__} is installed: pip install "
            f"'diffusers>={first}'"
        )


def load_part(kind: Any, folder: Path, subfolder: str = "", dtype: torch.dtype | None = None, **options: Any) -> Any:
    """``kind.from_pretrained`` of a part of a pipeline, or of the whole.

    A part with weights is given ``dtype``; pickled weights are not read.

    Raises :class:`ArtifactError`: it is missing, damaged or of another kind.
    Raises :class:`torch.OutOfMemoryError`: it does not fit.
    """
    options |= {"subfolder": subfolder} if subfolder else {}
    options |= {"torch_dtype": dtype, "use_safetensors": True} if dtype else {}
    try:
        return kind.from_pretrained(folder, **options)
    except torch.OutOfMemoryError:
        raise
    except BROKEN as error:
        reason = one_line(error)[:300]
        raise ArtifactError(f"{folder / subfolder}: cannot be loaded as {kind.__name__} ({reason})") from error


def quiet_libraries() -> None:
    """Silence diffusers and transformers: stderr belongs to the console, and what they raise is reported there."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity(logging.CRITICAL)
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*torch_dtype.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*already found a `peft_config`.*")
