"""Files with all weights of a transformer: diffusers' folders, read and written with safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.full_weights import BASE_NAME, CONFIG, WEIGHTS, WeightsHeader
from flowopd_cli.models.files.peft_config import BASE_KEY
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.tensor_files import write_tensors


def read_tensor(header: WeightsHeader, name: str) -> Tensor:
    """One tensor of a transformer's folder, in the precision of its file.

    Raises :class:`ArtifactError`: the file is damaged, or the tensor has numbers that are not finite.
    """
    path = header.files[name]
    try:
        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: damaged or not safetensors ({one_line(error)[:200]})") from error
    if not tensor.isfinite().all():
        raise ArtifactError(f"{path}: {name} has numbers that are not finite")
    return tensor


def write_folder(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], base: str | None, base_sha256: str | None
) -> None:
    """Write a transformer's folder, which ``from_pretrained`` of its class loads, with the base's name and digest.

    The place on a machine that diffusers adds to a configuration is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {BASE_NAME: base, BASE_KEY: base_sha256}
    config = {key: value for key, value in config.items() if key != "_name_or_path"}
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"} | {key: value for key, value in names.items() if value})
    atomic_write(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
