"""A model of any shape with random weights and the real classes, for measurements without downloads."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.files.families import Shape
from flowopd_cli.models.loading import LoadOptions, pick_dtype, quiet_libraries, take_device
from flowopd_cli.models.pipeline import Modules, PipelineModel

LATENT_CHANNELS = 16


@contextmanager
def skeleton(family: type[PipelineModel], shape: Shape) -> Iterator[Path]:
    """A temporary pipeline folder with the configurations of a shape and no weights, tokenizers or encoders."""
    vae = shape.vae if isinstance(shape.vae, Mapping) else _kl_autoencoder(shape.vae)
    configs: dict[str, Mapping[str, Any]] = {
        "transformer/config.json": {"_class_name": family.transformer_class.__name__, **shape.transformer},
        "vae/config.json": vae,
        "tokenizer/tokenizer_config.json": {"model_max_length": shape.clip_tokens},
    }
    with tempfile.TemporaryDirectory(prefix="flowopd-") as name:
        folder = Path(name)
        for path, config in configs.items():
            (folder / path).parent.mkdir()
            (folder / path).write_text(json.dumps(config), encoding="utf-8")
        family.scheduler_class(**shape.scheduler).save_pretrained(folder / "scheduler")
        yield folder


def _kl_autoencoder(channels: tuple[int, ...]) -> dict[str, Any]:
    """The configuration of an ``AutoencoderKL`` whose blocks have these channels."""
    return {
        "down_block_types": ("DownEncoderBlock2D",) * len(channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(channels),
        "block_out_channels": channels,
        "layers_per_block": 2,
        "latent_channels": LATENT_CHANNELS,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }


def make_random(family: type[PipelineModel], shape: Shape, options: LoadOptions) -> PipelineModel:
    """A model of a family in this shape; the embedding of a text is random and a function of the text."""
    device = take_device(options.device)
    with skeleton(family, shape) as folder:
        transformer = empty_transformer(family, folder, device, pick_dtype(options.dtype, device))
        config: Any = family.autoencoder_class.load_config(folder, subfolder="vae")
        vae: Any = family.autoencoder_class.from_config(config)
        vae.to(device).eval().requires_grad_(False)
        model = family(folder, device, options, Modules(transformer, vae, lambda texts: _embed(model, tokens, texts)))
        tokens = model.text_tokens
    return model


def empty_transformer(family: type[PipelineModel], folder: Path, device: torch.device, dtype: torch.dtype) -> Any:
    """The transformer of a folder's configuration, its weights made on ``device``; the folder needs no weights."""
    quiet_libraries()
    config = family.transformer_class.load_config(folder, subfolder="transformer")
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return family.transformer_class.from_config(config).to(dtype)
    finally:
        torch.set_default_dtype(before)


def _embed(model: PipelineModel, tokens: int, texts: list[str]) -> Conditioning:
    rows: list[Conditioning] = []
    for text in texts:
        generator = torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))
        blank = {name: part for name, part in vars(model.blank(tokens)).items() if part is not None}
        rows.append(Conditioning(**{n: torch.randn(p.shape, generator=generator) for n, p in blank.items()}))
    return Conditioning.cat(rows)
