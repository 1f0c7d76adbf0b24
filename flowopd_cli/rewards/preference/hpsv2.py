"""HPSv2.1: the human preference score, a CLIP ViT-H/14 tuned on human choices (Wu et al. 2023, arXiv 2306.09341).

Its checkpoint is one of ``open_clip``; here its tensors are renamed into ``transformers``' CLIP. Pictures are prepared
as in the package ``hpsv2`` 1.2.0 with torchvision 0.17 or newer (older ones do not antialias tensors).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.preference.clip import ClipEncoder, as_dtype, read, read_tokenizer
from flowopd_cli.rewards.preference.scoring import (
    assemble,
    clip_normalized,
    declared,
    scalar_result,
)
from flowopd_cli.rewards.weights import pick_device, read_checkpoint, weights_file, weights_id

MODEL = "xswu/HPSv2@697403c78157020a1ae59d23f111aa58ced35b0a"
FILE = "HPS_v2.1_compressed.pt"
BASE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"

PARAMETER = re.compile(r"(?:(visual\.)?transformer\.resblocks\.(\d+)\.)?(.+)[._](weight|bias)")
LAYERS = {
    "token_embedding": "text_model.embeddings.token_embedding",
    "ln_final": "text_model.final_layer_norm",
    "visual.conv1": "vision_model.embeddings.patch_embedding",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
}
BLOCK_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
TENSORS = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}


class LetterboxClip(ClipEncoder):
    """A CLIP that sees whole pictures, each resized as a tensor in the middle of a black square."""

    def pixels(self, images: list[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """The longest side becomes S; values that the bicubic filter takes outside [0, 1] stay."""
        return clip_normalized(torch.cat([self._square(to_tensor([image])) for image in images]))

    def _square(self, pixels: Float[Tensor, "1 3 H W"]) -> Float[Tensor, "1 3 S S"]:
        side, longest = self.image_size, max(pixels.shape[2:])
        if longest != side:
            size = [max(1, round(edge * (side / longest))) for edge in pixels.shape[2:]]
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
        down, across = (side - edge for edge in pixels.shape[2:])
        return F.pad(pixels, (across // 2, across - across // 2, down // 2, down - down // 2))


class HPSv2Reward(Reward):
    """The cosine of picture and prompt, about 0.2 to 0.35; tables of the HPS benchmark show a hundred times it.

    The picture's longest side becomes 224 and the rest is black, as in the reference; square pictures have no rest.
    """

    info = RewardInfo(
        "hpsv2",
        "arXiv 2306.09341",
        0.2,
        0.35,
        license="Apache-2.0",
        note="v2.1; range as usually seen; prompts are not repaired by ftfy as open_clip does",
    )

    def __init__(
        self, source: str = MODEL, base: str = BASE, dtype: str = "float32", device: str = "auto", batch: int = 32
    ) -> None:
        """``source`` has the checkpoint, ``base`` the configuration and the tokenizer of its CLIP.

        Either is a local folder or ``repository@revision``; ``source`` may be the file itself.

        Raises :class:`ArtifactError`: one of them cannot be read, or names or shapes of the checkpoint are not those of
        ``base``.
        """
        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        tensors, path = read_checkpoint(source, FILE)
        weights_file(base, "config.json")
        config = read(CLIPConfig, base)
        model = assemble(CLIPModel, config, from_open_clip(tensors), path, as_dtype(dtype)).to(pick_device(device))
        tokenizer = read_tokenizer(CLIPTokenizer, base, config.text_config.vocab_size)
        self.encoder = LetterboxClip(model, tokenizer, None, batch=batch)
        self.source = source
        self.weights = {"checkpoint": weights_id(source), "base": weights_id(base), "dtype": dtype}
        self.info = declared(self.info, source == MODEL and base == BASE, dtype)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that are too long."""
        self.encoder.check(self.info.name, [prompt.text for prompt in prompts])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        return scalar_result(self.encoder.cosines(images, [prompt.text for prompt in prompts]), {}, self.source)


def from_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of an ``open_clip`` ViT under the names of ``CLIPModel``: fused query, key and value split, projections
    transposed. An unknown name is unchanged.
    """
    converted: dict[str, Tensor] = {}
    for name, value in tensors.items():
        match = PARAMETER.fullmatch(name)
        tower, block, layer, kind = match.groups() if match else (None, None, name, "")
        prefix = f"{'vision' if tower else 'text'}_model.encoder.layers.{block}."
        if name in TRANSPOSED:
            converted[TRANSPOSED[name]] = value.movedim(0, -1).contiguous()
        elif block and layer == "attn.in_proj":
            thirds = zip("qkv", value.tensor_split(3), strict=True)
            converted |= {f"{prefix}self_attn.{letter}_proj.{kind}": third for letter, third in thirds}
        elif block and layer in BLOCK_LAYERS:
            converted[f"{prefix}{BLOCK_LAYERS[layer]}.{kind}"] = value
        elif not block and layer in LAYERS:
            converted[f"{LAYERS[layer]}.{kind}"] = value
        else:
            converted[TENSORS.get(name, name)] = value
    return converted
