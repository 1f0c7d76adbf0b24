"""HPSv2.1: the human preference score, a CLIP ViT-H/14 tuned on human choices (Wu et al. 2023, arXiv 2306.09341).

Its checkpoint is one of ``open_clip``; here its tensors are renamed into ``transformers``' CLIP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.preference.clip import ClipEncoder, as_dtype, paired_cosine, read, split_revision
from flowopd_cli.rewards.preference.scoring import (
    assemble,
    declared,
    letterbox,
    refuse_words,
    scalar_result,
    text_vectors,
    weights_file,
)
from flowopd_cli.rewards.weights import load_tensors, pick_device, refuse_mismatch, weights_id

MODEL = "xswu/HPSv2@697403c78157020a1ae59d23f111aa58ced35b0a"
FILE = "HPS_v2.1_compressed.pt"
CONFIG = "config.json"
BASE = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"

BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(ln_1|ln_2|attn|mlp)\.(.+)")
NAMES = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
INSIDE = {
    "ln_1": {"weight": "layer_norm1.weight", "bias": "layer_norm1.bias"},
    "ln_2": {"weight": "layer_norm2.weight", "bias": "layer_norm2.bias"},
    "attn": {"out_proj.weight": "self_attn.out_proj.weight", "out_proj.bias": "self_attn.out_proj.bias"},
    "mlp": {
        "c_fc.weight": "mlp.fc1.weight",
        "c_fc.bias": "mlp.fc1.bias",
        "c_proj.weight": "mlp.fc2.weight",
        "c_proj.bias": "mlp.fc2.bias",
    },
}


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
        self,
        source: str = MODEL,
        base: str = BASE,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` has the checkpoint, ``base`` the CLIP it was tuned from: its configuration, words and pixels.

        Either is a local folder or ``repository@revision``; ``source`` may be the file itself.

        Raises:
            ArtifactError: one of them cannot be read, or names or shapes of the checkpoint are not those of ``base``.
        """
        from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        path, digest = weights_file(source, FILE)
        weights_file(base, CONFIG)
        name, revision = split_revision(base)
        config = read(CLIPConfig, name, revision)
        tensors = from_open_clip(load_tensors(path, digest), str(path))
        model = assemble(CLIPModel, config, tensors, str(path), as_dtype(dtype)).to(pick_device(device))
        words, pixels = read(CLIPTokenizer, name, revision), read(CLIPImageProcessorPil, name, revision)
        refuse_words(words, config.text_config.vocab_size, base)
        self.encoder = ClipEncoder(model, words, pixels, batch=batch)
        self.side, self.source = config.vision_config.image_size, source
        self.weights = {"checkpoint": weights_id(source), "base": weights_id(base), "dtype": dtype}
        self.info = declared(self.info, source == MODEL and base == BASE, dtype)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        words = text_vectors(self.encoder, [prompt.text for prompt in prompts])
        squares = [letterbox(image, self.side) for image in to_pil(images)]
        return scalar_result(paired_cosine(self.encoder.images(squares), words), {}, prompts, self.source)


def from_open_clip(tensors: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """Tensors of an ``open_clip`` ViT under the names of ``CLIPModel``; fused q, k, v apart, projections turned.

    Raises:
        ArtifactError: a name that ``open_clip`` does not use.
    """
    converted: dict[str, Tensor] = {}
    unexpected = []
    for name, value in tensors.items():
        renamed = dict(_renamed(name, value))
        converted |= renamed
        unexpected += [] if renamed else [name]
    refuse_mismatch(what, [], unexpected, [])
    return converted


def _renamed(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    block = BLOCK.fullmatch(name)
    if name in NAMES:
        yield NAMES[name], value
    elif name in TRANSPOSED:
        yield TRANSPOSED[name], value.movedim(0, -1).contiguous()
    elif block is not None:
        tower = "vision_model" if block[1] else "text_model"
        prefix = f"{tower}.encoder.layers.{block[2]}"
        part, rest = block[3], block[4]
        if part == "attn" and rest in ("in_proj_weight", "in_proj_bias"):
            for letter, third in zip("qkv", value.tensor_split(3), strict=True):
                yield f"{prefix}.self_attn.{letter}_proj.{rest.removeprefix('in_proj_')}", third
        elif rest in INSIDE[part]:
            yield f"{prefix}.{INSIDE[part][rest]}", value
