"""A model of any shape with random weights: the same classes, nothing fetched, for measurements."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ModelMixin
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.files.shapes import Shape
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.pipeline import PipelineModel

VAE_CHANNELS = (128, 256, 512, 512)


def write_shape(folder: Path, transformer: str, shape: Shape, vae_channels: Sequence[int]) -> Path:
    """A pipeline folder without weights, tokenizers and encoders, its transformer of that class of diffusers."""
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * len(vae_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(vae_channels),
        "block_out_channels": tuple(vae_channels),
        "layers_per_block": 2,
        "latent_channels": shape.latent_channels,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    parts = {"transformer": {"_class_name": transformer, **shape.config()}, "vae": vae}
    for name, config in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    FlowMatchEulerDiscreteScheduler(**shape.SCHEDULER).save_pretrained(folder / "scheduler")
    return folder


def make_random(
    family: type[PipelineModel], shape: Shape, options: LoadOptions, vae_channels: Sequence[int] = VAE_CHANNELS
) -> PipelineModel:
    """A model of a family in this shape; ``options`` are those of its ``load``, the folder left out."""
    kept = tempfile.TemporaryDirectory(prefix="flowopd-")
    folder = write_shape(Path(kept.name) / "pipeline", family.transformer_class.__name__, shape, vae_channels)
    model = type(f"Random{family.__name__}", (_Random, family), {}).load(folder, options)
    model._kept, model._shape, model._texts = kept, shape, {}
    return model


class _Random(PipelineModel):
    """Weights that are made where they are used; a text is a random embedding of the true size."""

    _kept: tempfile.TemporaryDirectory  # the folder goes when the model does
    _shape: Shape
    _texts: dict[str, tuple[Tensor, Tensor]]

    def _load_transformer(self) -> ModelMixin:
        config = self.transformer_class.load_config(self.folder, subfolder="transformer")
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                return self.transformer_class.from_config(config).to(self.dtype)
        finally:
            torch.set_default_dtype(before)

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Normal numbers of the true shape, a function of each text, the empty one's too."""
        return self._conditioning([self._row(text) for text in texts], self._row("") if self.classifier_free else None)

    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures of nothing, at the cost of true ones."""
        if self._vae is None:
            self._vae = AutoencoderKL.from_config(AutoencoderKL.load_config(self.folder, subfolder="vae"))
            self._vae.to(self.device).eval().requires_grad_(False)
        return super().decode(latents)

    def _row(self, text: str) -> tuple[Tensor, Tensor]:
        if text not in self._texts:
            shape, tokens = self._shape, self._shape.text_tokens(self.max_sequence_length)
            generator = torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))
            embeds = torch.randn(tokens, shape.joint_attention_dim, generator=generator).to(self.dtype)
            self._texts[text] = embeds, torch.randn(shape.pooled_projection_dim, generator=generator).to(self.dtype)
        return self._texts[text]
