"""Files with all weights of a transformer: diffusers' folders, read and written with safetensors only."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.full_weights import BASE_NAME, CONFIG, WEIGHTS, WeightsHeader
from flowopd_cli.models.files.peft_config import BASE_KEY
from flowopd_cli.system.files import atomic_write

_ERRNO = re.compile(r"\(os error (\d+)\)")


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


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file without a copy in memory, byte-identical for equal tensors and metadata.

    Raises :class:`OSError`: it cannot be written.
    """
    path.touch()
    mode = path.stat().st_mode
    values = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(values, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = _ERRNO.search(str(error))
        code = int(number[1]) if number else 0
        raise OSError(code, os.strerror(code) if code else one_line(error)) from error
    path.chmod(mode)  # the library makes a new file that no other user may read
    with path.open("r+b") as file:  # and writes metadata in any order
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            file.seek(8)
            file.write(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size))
