"""Adapter files: PEFT folders and diffusers' own layout, read and written with safetensors only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.adapter_header import (
    CONFIG,
    DIFFUSERS_CONFIG,
    DIFFUSERS_PREFIX,
    DIFFUSERS_WEIGHTS,
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    Pair,
    read_adapter_header,
)
from flowopd_cli.models.files.peft_config import BASE_KEY
from flowopd_cli.models.files.targets import anchored, pattern_keys
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.tensor_files import serialized


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's own description; ``base_sha256`` identifies the base it was trained on.

    ``targets`` match the adapter's modules and no others of its base; empty where that is not known.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    base: str | None = None
    base_sha256: str | None = None


def read_adapter(place: Path) -> tuple[AdapterConfig, dict[str, LoraFactors]]:
    """The configuration and the factors, float32, of a folder or file, by module name of the transformer.

    Raises :class:`ArtifactError`: as :func:`read_adapter_header`, or factors hold non-finite values.
    """
    header = read_adapter_header(place)
    tensors = _read_tensors(header.file)
    factors = {
        module: LoraFactors(tensors[pair.a], _rows(tensors[pair.b], pair), header.scale(module))
        for module, pair in header.pairs.items()
    }
    base, base_sha256 = header.config.base, header.config.base_sha256
    return AdapterConfig(header.rank, header.alpha, header.targets, base, base_sha256), factors


def write_adapter(folder: Path, factors: Mapping[str, LoraFactors], config: AdapterConfig) -> None:
    """Write the PEFT form, each file atomically, the configuration last.

    ``task_type`` is left out: the Hub warns if it is not a string, and PEFT's strings name wrappers for language
    models, which pass arguments that a picture transformer does not take.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ranks = {name: pair.a.shape[0] for name, pair in factors.items()}
    alphas = {name: pair.scale * ranks[name] for name, pair in factors.items()}
    keys = pattern_keys(factors)
    body = {
        "peft_type": "LORA",
        "base_model_name_or_path": config.base or "",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(config.targets) or anchored(sorted(factors)),
        "rank_pattern": {keys[name]: rank for name, rank in ranks.items() if rank != config.rank},
        "alpha_pattern": {keys[name]: alpha for name, alpha in alphas.items() if not math.isclose(alpha, config.alpha)},
        "inference_mode": True,
        "init_lora_weights": True,
        "use_dora": False,
        "use_rslora": False,
        "modules_to_save": None,
        "fan_in_fan_out": False,
    }
    metadata = {"format": "pt"} | ({BASE_KEY: config.base_sha256} if config.base_sha256 else {})
    atomic_write(folder / PEFT_WEIGHTS, b"".join(serialized(_named(PEFT_PREFIX, factors), metadata)))
    atomic_write(folder / CONFIG, json.dumps(body, indent=2) + "\n")


def write_diffusers(folder: Path, factors: Mapping[str, LoraFactors]) -> None:
    """Write ``pytorch_lora_weights.safetensors``, which ``load_lora_weights`` of diffusers reads.

    Scales are folded into B, so that alpha is the rank. The header holds every rank and alpha: without them, diffusers
    before 0.40 takes the alpha of the first module for all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folded = {name: LoraFactors(pair.a, pair.b * pair.scale, 1.0) for name, pair in factors.items()}
    ranks = {name: pair.a.shape[0] for name, pair in factors.items()}
    rank = max(ranks.values())
    # ^: PEFT compares the ends of names, so that proj_out would be single_transformer_blocks.0.proj_out too.
    pattern = {f"^{name}": other for name, other in ranks.items() if other != rank}
    config = {
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(ranks),
    }
    metadata = {"format": "pt", DIFFUSERS_CONFIG: json.dumps({DIFFUSERS_PREFIX + k: v for k, v in config.items()})}
    atomic_write(folder / DIFFUSERS_WEIGHTS, b"".join(serialized(_named(DIFFUSERS_PREFIX, folded), metadata)))


def _named(prefix: str, factors: Mapping[str, LoraFactors]) -> dict[str, Tensor]:
    sides = {f"{prefix}{name}.lora_{side}.weight": (pair, side) for name, pair in factors.items() for side in "AB"}
    return {name: pair.a if side == "A" else pair.b for name, (pair, side) in sides.items()}


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


def _rows(tensor: Tensor, pair: Pair) -> Tensor:
    return torch.cat([tensor[start:end] for start, end in pair.rows]) if pair.rows else tensor
