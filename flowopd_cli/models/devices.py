"""Which device a process works on, and in which precision."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from flowopd_cli.errors import ArtifactError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def take_device(wanted: str) -> torch.device:
    """The device behind ``model.device``, made the current one where it is CUDA's: do this before loading anything.

    Raises:
        ArtifactError: see :func:`pick_device`.
    """
    place = pick_device(wanted, torch.cuda.device_count() if torch.cuda.is_available() else 0, os.environ)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    return place


def pick_device(wanted: str, cuda: int, environment: Mapping[str, str]) -> torch.device:
    """``auto`` is CUDA where there is any; the copies that a launcher started each take the device of their number.

    ``cuda`` is their number; ``environment`` holds the launcher's ``LOCAL_RANK`` and ``LOCAL_WORLD_SIZE``.

    Raises:
        ArtifactError: no such device, or one device for several processes.
    """
    place = _parse("cuda" if wanted == "auto" and cuda else "cpu" if wanted == "auto" else wanted)
    if place.type != "cuda":
        return place
    if not cuda:
        raise ArtifactError(f"model.device is {wanted}, but PyTorch sees no CUDA device: use --set model.device=cpu")
    copies = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if place.index is not None and copies > 1:
        raise ArtifactError(f"model.device {wanted} is one device for {copies} processes: use --set model.device=cuda")
    index = int(environment.get("LOCAL_RANK", "0")) if place.index is None else place.index
    if index >= cuda:
        raise ArtifactError(f"model.device {wanted}: there is no CUDA device {index} here, their number is {cuda}")
    return torch.device("cuda", index)


def pick_dtype(wanted: str, place: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on CUDA and float32 elsewhere."""
    if wanted == "auto":
        wanted = "bfloat16" if place.type == "cuda" else "float32"
    return DTYPES[wanted]


def _parse(wanted: str) -> torch.device:
    known = f"model.device {wanted!r} is no device of PyTorch here: use auto, cpu, cuda or cuda:N"
    try:
        place = torch.device(wanted)
    except RuntimeError as error:
        raise ArtifactError(known) from error
    other = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if place.type not in {"cpu", "cuda", other.type if other else None}:
        raise ArtifactError(known)
    return place
