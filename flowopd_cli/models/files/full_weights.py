"""Folders with all weights of a transformer, as diffusers writes them, before a tensor is read. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.adapter_header import read_header
from flowopd_cli.models.files.peft_config import BASE_KEY
from flowopd_cli.system.files import is_file

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
SHARDS, INDEX = "diffusion_pytorch_model-*-of-*.safetensors", "diffusion_pytorch_model.safetensors.index.json"
WHOLE_BASE = "takes no full model, but LoRAs alone: set model.shard to false, and quantize to none"
BASE_NAME = "base_model"  # the base's name, beside its digest in the metadata of the weights


@dataclass(frozen=True)
class WeightsHeader:
    """The weights of a transformer before they are read: file and shape by name, and the base they came from."""

    files: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]
    base: str | None
    base_sha256: str | None


def is_full(folder: Path) -> bool:
    """Whether a folder has all weights of a transformer, not an adapter."""
    return is_file(folder / CONFIG) and bool(weights_files(folder))


def weights_files(folder: Path) -> tuple[Path, ...]:
    """The weights of a transformer's folder: one file, or all shards."""
    return (folder / WEIGHTS,) if is_file(folder / WEIGHTS) else tuple(sorted(folder.glob(SHARDS)))


def read_weights_header(folder: Path) -> WeightsHeader:
    """The header of a transformer's folder; :class:`ArtifactError` if a file is missing or damaged."""
    files, shapes, metadata = dict[str, Path](), dict[str, tuple[int, ...]](), dict[str, str]()
    present = weights_files(folder)
    for _, of, number in (file.stem.rpartition("-of-") for file in present):
        if of and number.isdecimal() and int(number) != len(present):
            raise ArtifactError(f"{folder}: {len(present)} of its {int(number)} files of weights are there: fetch all")
    for file in present:
        entries, more = read_header(file, folder)
        shapes |= {name: entry.shape for name, entry in entries.items()}
        files |= dict.fromkeys(entries, file)
        metadata |= more
    if not files:
        raise ArtifactError(f"{folder}: no {WEIGHTS} in it (pickled weights are not read)")
    return WeightsHeader(files, shapes, metadata.get(BASE_NAME), metadata.get(BASE_KEY))
