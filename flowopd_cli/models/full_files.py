"""Files with all weights of a transformer: diffusers' folders, read and written with safetensors only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.full_weights import BASE_NAME, CONFIG, WEIGHTS, WeightsHeader
from flowopd_cli.models.files.peft_config import BASE_KEY
from flowopd_cli.system.files import atomic_write

# The names of the format.
KINDS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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
    """Write a safetensors file tensor by tensor, byte-identical for equal tensors and metadata.

    The library's own functions need a copy of the whole in memory, or hide the errors of the system.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    names, end = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)), 0  # aligned to their numbers
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        header[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
