"""Adapter files: PEFT folders and diffusers' own layout, read and written with safetensors only."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError
from flowopd_cli.files import atomic_write

CONFIG, PEFT_WEIGHTS, DIFFUSERS_WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
BASE_KEY = "base_sha256"
PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B)(?:\.[^.]+)?\.weight")


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
        ArtifactError: files are missing, damaged or not safetensors; DoRA, biases or other trained modules; factors
            that do not pair up or hold non-finite values.
    """
    if (folder / CONFIG).is_file():
        data = _read_config(folder / CONFIG)
        tensors = _read_tensors(folder, PEFT_WEIGHTS, (PEFT_PREFIX, DIFFUSERS_PREFIX))
        with safe_open(folder / PEFT_WEIGHTS, framework="pt") as file:
            data = (file.metadata() or {}) | data
        return _config(data, tensors), _factors(folder, tensors, data)
    tensors = _read_tensors(folder, DIFFUSERS_WEIGHTS, (DIFFUSERS_PREFIX,))
    alphas = {name.removesuffix(".alpha"): float(t) for name, t in tensors.items() if name.endswith(".alpha")}
    ranks = {m["module"]: t.shape[0] for n, t in tensors.items() if (m := _NAME.fullmatch(n)) and m["side"] == "A"}
    data = {"alpha_pattern": {name: alphas.get(name, rank) for name, rank in ranks.items()}, "target_modules": [*ranks]}
    tensors = {name: t for name, t in tensors.items() if not name.endswith(".alpha")}
    return _config(data, tensors), _factors(folder, tensors, data)


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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: holds no adapter configuration")
    if data.get("use_dora"):
        raise ArtifactError(
            f"{path}: a DoRA adapter (use_dora), whose magnitudes have no low-rank form; use plain LoRA"
        )
    if data.get("bias", "none") != "none":
        raise ArtifactError(f"{path}: trains biases (bias: {data['bias']}); only plain LoRA adapters can be used")
    if data.get("modules_to_save"):
        raise ArtifactError(f"{path}: trains whole modules ({data['modules_to_save']}); only plain LoRA can be used")
    return data


def _read_tensors(folder: Path, name: str, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    path = folder / name
    if not path.is_file():
        raise ArtifactError(f"{folder}: no {name} in it (pickled weights are not read)")
    try:
        loaded = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{path}: damaged or not safetensors ({error})") from error
    tensors = {}
    for key, tensor in loaded.items():
        if "lora_magnitude_vector" in key:
            raise ArtifactError(f"{path}: a DoRA adapter ({key}); use plain LoRA")
        if not torch.isfinite(tensor).all():
            raise ArtifactError(f"{path}: {key} holds values that are not finite")
        for prefix in prefixes:
            key = key.removeprefix(prefix)
        tensors[key] = tensor
    return tensors


def _config(data: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> AdapterConfig:
    targets = data.get("target_modules") or sorted({name.rsplit(".lora_", 1)[0] for name in tensors})
    largest = max((t.shape[0] for name, t in tensors.items() if ".lora_A" in name), default=0)
    base, sha = data.get("base_model_name_or_path"), data.get(BASE_KEY)
    rank = int(data.get("r") or largest)
    return AdapterConfig(
        rank=rank,
        alpha=float(data.get("lora_alpha") or rank),
        targets=(targets,) if isinstance(targets, str) else tuple(targets),
        base=base if isinstance(base, str) and base else None,
        base_sha256=sha if isinstance(sha, str) else None,
        rank_pattern=dict(data.get("rank_pattern") or {}),
        alpha_pattern=dict(data.get("alpha_pattern") or {}),
    )


def _factors(folder: Path, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> dict[str, LoraFactors]:
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise ArtifactError(f"{folder}: {name} is no LoRA factor")
        sides.setdefault(found["module"], {})[found["side"]] = tensor
    if not sides:
        raise ArtifactError(f"{folder}: the adapter is empty")
    factors = {}
    for module, pair in sides.items():
        if set(pair) != {"A", "B"} or pair["A"].ndim != 2 or pair["A"].shape[0] != pair["B"].shape[-1]:
            raise ArtifactError(f"{folder}: the A and B factors of {module} do not pair up")
        rank = pair["A"].shape[0]
        alpha = float(_pattern(data.get("alpha_pattern"), module, data.get("lora_alpha") or rank))
        scale = alpha / math.sqrt(rank) if data.get("use_rslora") else alpha / rank
        factors[module] = LoraFactors(pair["A"].float(), pair["B"].float(), scale)
    return factors


def _pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name."""
    for key, value in (patterns or {}).items():
        if module == key or re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default
