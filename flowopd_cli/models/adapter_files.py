"""Adapter files: PEFT folders and diffusers' own layout, read and written with safetensors only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.adapter_header import (
    CONFIG,
    DIFFUSERS_PREFIX,
    DIFFUSERS_WEIGHTS,
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    AdapterHeader,
    read_adapter_header,
)
from flowopd_cli.models.files.peft_config import BASE_KEY
from flowopd_cli.system.files import atomic_write


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter says about itself; ``base_sha256`` names the base it was trained on."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str | None = None
    base_sha256: str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)


def read_adapter(folder: Path) -> tuple[AdapterConfig, dict[str, LoraFactors]]:
    """An adapter's configuration and its factors by module name of the transformer.

    Raises:
        ArtifactError: as :func:`read_adapter_header`, or factors hold non-finite values.
    """
    header = read_adapter_header(folder)
    tensors = _read_tensors(header.file)
    alphas = {module: _alpha(header, module, tensors[name]) for module, name in header.alphas.items()}
    factors = {}
    for module, pair in header.pairs.items():
        scale = alphas[module] / pair.rank if module in alphas else header.config.scale_of(module, pair.rank)
        factors[module] = LoraFactors(tensors[pair.a], tensors[pair.b], scale)
    return _config(header, alphas), factors


def write_adapter(folder: Path, factors: Mapping[str, LoraFactors], config: AdapterConfig) -> None:
    """Write the PEFT form, each file atomically, the configuration last.

    There is no ``task_type``: the Hub warns about one that is not a string, and each of PEFT's strings is a wrapper for
    language models, which hands a transformer of pictures arguments that it does not take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = {}, {}
    for name, pair in factors.items():
        tensors[f"{PEFT_PREFIX}{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"{PEFT_PREFIX}{name}.lora_B.weight"] = pair.b.contiguous()
        rank = pair.a.shape[0]
        if rank != config.rank:
            ranks[name] = rank
        if not math.isclose(pair.scale * rank, config.alpha):
            alphas[name] = pair.scale * rank
    body = {
        "peft_type": "LORA",
        "base_model_name_or_path": config.base or "",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(config.targets),
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "fan_in_fan_out": False,
    }
    metadata = {"format": "pt"} | ({BASE_KEY: config.base_sha256} if config.base_sha256 else {})
    atomic_write(folder / PEFT_WEIGHTS, _serialized(tensors, metadata))
    atomic_write(folder / CONFIG, json.dumps(body, indent=2) + "\n")


def write_diffusers(folder: Path, factors: Mapping[str, LoraFactors]) -> None:
    """Write ``pytorch_lora_weights.safetensors``, which ``load_lora_weights`` reads without any configuration.

    Scales are folded into B, so that the loader's default of alpha = rank is right.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, pair in factors.items():
        tensors[f"{DIFFUSERS_PREFIX}{name}.lora_A.weight"] = pair.a.contiguous()
        tensors[f"{DIFFUSERS_PREFIX}{name}.lora_B.weight"] = (pair.b * pair.scale).contiguous()
    atomic_write(folder / DIFFUSERS_WEIGHTS, save(tensors, {"format": "pt"}))


def _serialized(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file, the same for the same tensors: the library puts its metadata into any order."""
    data = save(tensors, metadata)
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return data[:8] + text.ljust(size) + data[8 + size :]


def _read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, float32."""
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged or not safetensors ({error})") from error
    tensors = {key: tensor.float() for key, tensor in loaded.items()}
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path}: {key} holds values that are not finite")
    return tensors


def _alpha(header: AdapterHeader, module: str, tensor: Tensor) -> float:
    if module not in header.pairs or not float(tensor):
        raise ArtifactError(f"{header.file}: {header.alphas[module]} belongs to no factors, or is 0")
    return float(tensor)


def _config(header: AdapterHeader, alphas: Mapping[str, float]) -> AdapterConfig:
    config, largest = header.config, max(pair.rank for pair in header.pairs.values())
    rank = config.rank or largest
    scales = {module: alphas.get(module, pair.rank) for module, pair in header.pairs.items()}
    return AdapterConfig(
        rank=rank,
        alpha=config.alpha or float(rank),
        targets=tuple(sorted(header.pairs)) if config.target_pattern or not config.targets else config.targets,
        base=config.base,
        base_sha256=config.base_sha256,
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern if config.path else scales,
    )
