"""An SD3 model of any shape with random weights: the same classes, nothing fetched, for measurements."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.sd3 import SD3Model

SHIFT = 3.0
VAE_LEVELS = 4


@dataclass(frozen=True)
class RandomShape:
    """What a random model is made of: the transformer's arguments, tokens of CLIP's texts, the autoencoder's levels."""

    transformer: Mapping[str, Any]
    clip_tokens: int
    vae_channels: tuple[int, ...] = (128, 256, 512, 512)


def write_shape(folder: Path, shape: RandomShape) -> Path:
    """A pipeline folder without weights, tokenizers and encoders, which :class:`RandomSD3` can load."""
    vae = {
        "down_block_types": ("DownEncoderBlock2D",) * len(shape.vae_channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(shape.vae_channels),
        "block_out_channels": shape.vae_channels,
        "layers_per_block": 2,
        "latent_channels": shape.transformer["in_channels"],
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    parts = {"transformer": {"_class_name": "SD3Transformer2DModel", **shape.transformer}, "vae": vae}
    for name, config in parts.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    FlowMatchEulerDiscreteScheduler(shift=SHIFT).save_pretrained(folder / "scheduler")
    return folder


class RandomSD3(SD3Model):
    """A shape with random weights, made where they are used; a text is a random embedding of the true size."""

    _kept: tempfile.TemporaryDirectory  # the folder goes when the model does
    _shape: RandomShape
    _texts: dict[str, tuple[Tensor, Tensor]]

    @classmethod
    def make(cls, shape: RandomShape, options: Mapping[str, Any]) -> RandomSD3:
        """A model of this shape; ``options`` are those of :meth:`SD3Model.load`, the folder left out."""
        kept = tempfile.TemporaryDirectory(prefix="flowopd-")
        model = cls.load(write_shape(Path(kept.name) / "pipeline", shape), **options)
        assert isinstance(model, RandomSD3)
        model._kept, model._shape, model._texts = kept, shape, {}
        return model

    def _load_transformer(self) -> SD3Transformer2DModel:
        config = SD3Transformer2DModel.load_config(self.folder, subfolder="transformer")
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            with torch.device(self.device):
                return SD3Transformer2DModel.from_config(config).to(self.dtype)  # type: ignore[return-value]
        finally:
            torch.set_default_dtype(before)

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Normal numbers of the true shape, a function of each text; the empty text is one more row of them."""
        empty, *rows = (self._row(text) for text in ["", *texts])
        return Conditioning(
            embeds=torch.stack([e for e, _ in rows]).to(self.device),
            pooled=torch.stack([p for _, p in rows]).to(self.device),
            neg_embeds=empty[0].to(self.device).expand(len(texts), -1, -1),
            neg_pooled=empty[1].to(self.device).expand(len(texts), -1),
        )

    def decode(self, latents: Float[Tensor, "b C H W"]) -> Float[Tensor, "b 3 H W"]:
        """Pictures of nothing, at the cost of true ones."""
        if self._vae is None:
            self._vae = AutoencoderKL.from_config(AutoencoderKL.load_config(self.folder, subfolder="vae"))
            self._vae.to(self.device).eval().requires_grad_(False)
        return super().decode(latents)

    def _row(self, text: str) -> tuple[Tensor, Tensor]:
        if text not in self._texts:
            tokens = self._shape.clip_tokens + self.max_sequence_length
            sizes = self._shape.transformer["joint_attention_dim"], self._shape.transformer["pooled_projection_dim"]
            generator = torch.Generator().manual_seed(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16))
            embeds = torch.randn(tokens, sizes[0], generator=generator).to(self.dtype)
            self._texts[text] = embeds, torch.randn(sizes[1], generator=generator).to(self.dtype)
        return self._texts[text]
