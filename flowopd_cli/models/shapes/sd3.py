"""The shape of an SD3 transformer.

The activations are counted by what autograd keeps of a block for its backward, in numbers a token and channel: the
input of each norm (2), queries, keys, values and result of the attention (4), the input of the GELU (4), and twice
(once in the working precision, once in float32 where that is not the same) queries and keys before their norms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

from flowopd_cli.models.files.shapes import (
    FULL,
    TIME_CHANNELS,
    Family,
    Linear,
    Rows,
    Shape,
    attention,
    embedding,
    feed_forward,
    pixels_of,
)
from flowopd_cli.system.json_files import read_json

CLIP_TOKENS = 77
ENCODERS = 123_650_304 + 694_659_840 + 4_762_310_656  # weights of CLIP-L, CLIP-G and the encoder half of T5-XXL


@dataclass(frozen=True)
class SD3Shape(Shape):
    """Sizes of diffusers' ``SD3Transformer2DModel``; ``clip_tokens`` are those of a prompt beside T5's."""

    NOT_OF_CONFIG: ClassVar[tuple[str, ...]] = (*Shape.NOT_OF_CONFIG, "clip_tokens")
    SCHEDULER: ClassVar[Mapping[str, Any]] = {"shift": 3.0}
    TRANSIENT: ClassVar[int] = 12

    num_layers: int
    num_attention_heads: int
    attention_head_dim: int
    joint_attention_dim: int
    pooled_projection_dim: int
    caption_projection_dim: int
    sample_size: int
    pos_embed_max_size: int
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: str | None = "rms_norm"
    pixels: int = 8
    clip_tokens: int = CLIP_TOKENS
    encoders: int = 0

    @property
    def blocks(self) -> int:
        """All of one kind."""
        return self.num_layers

    @property
    def latent_channels(self) -> int:
        """Those of the transformer's input."""
        return self.in_channels

    @property
    def own_side(self) -> int:
        """The configuration's sample size."""
        return self.sample_size

    def image_tokens(self, resolution: int | None) -> int:
        """Tokens of a picture: its patches."""
        return (self.side(resolution) // self.patch_size) ** 2

    def text_tokens(self, max_sequence_length: int) -> int:
        """Tokens of a prompt: CLIP's and T5's, one after the other."""
        return self.clip_tokens + max_sequence_length

    def linears(self) -> Iterator[Linear]:
        """Every linear module of the transformer, the convolution of the patches among them."""
        width, patch = self.width, self.patch_size**2
        yield Linear("pos_embed.proj", self.in_channels * patch, width, "image")
        yield from embedding(TIME_CHANNELS, width, "timestep")
        yield from embedding(self.pooled_projection_dim, width, "text")
        yield Linear("context_embedder", self.joint_attention_dim, self.caption_projection_dim, "text")
        for index in range(self.num_layers):
            yield from self._block(index)
        yield Linear("norm_out.linear", width, 2 * width, "row")
        yield Linear("proj_out", width, patch * self.out_channels, "image")

    def _block(self, index: int) -> Iterator[Linear]:
        head, width = f"transformer_blocks.{index}", self.width
        dual, last = index in self.dual_attention_layers, index == self.num_layers - 1
        yield Linear(f"{head}.norm1.linear", width, (9 if dual else 6) * width, "row")
        yield Linear(f"{head}.norm1_context.linear", width, (2 if last else 6) * width, "row")
        yield from attention(f"{head}.attn", width, "image", ("to_q", "to_k", "to_v"), "to_out.0")
        added = ("add_q_proj", "add_k_proj", "add_v_proj")
        yield from attention(f"{head}.attn", width, "text", added, None if last else "to_add_out")
        if dual:
            yield from attention(f"{head}.attn2", width, "image", ("to_q", "to_k", "to_v"), "to_out.0")
        for name, tokens in [("ff", "image"), *([] if last else [("ff_context", "text")])]:
            yield from feed_forward(f"{head}.{name}", width, tokens)

    def other_weights(self) -> int:
        """Norms of queries and keys, and the table of positions."""
        norms = 0
        if self.qk_norm is not None:
            norms = 2 * (2 * self.num_layers + len(self.dual_attention_layers)) * self.attention_head_dim
        return norms + self.pos_embed_max_size**2 * self.width

    def kept(self, batch: Rows) -> int:
        """Bytes of the blocks' activations, those of the second attention of dual blocks with them."""
        norms = 0 if self.qk_norm is None else 2 * (FULL if batch.bytes == FULL else FULL + batch.bytes)
        attended = 4 * batch.bytes + norms
        whole = self.num_layers * batch.tokens * self.width * (6 * batch.bytes + attended)
        return whole + len(self.dual_attention_layers) * batch.of("image") * self.width * attended

    def attention_operations(self, image: int, text: int) -> int:
        """Products with keys and with values, of the joint attention and of the dual blocks' own."""
        joint = self.num_layers * 4 * (image + text) ** 2 * self.width
        return joint + len(self.dual_attention_layers) * 4 * image**2 * self.width


def read(folder: Path, config: Mapping[str, Any]) -> SD3Shape:
    """The shape of a pipeline's folder.

    Raises:
        ArtifactError, KeyError, TypeError, ValueError: something of it is missing or damaged.
    """
    sizes = {f.name: config[f.name] for f in fields(SD3Shape) if f.name in config}
    sizes["dual_attention_layers"] = tuple(sizes.get("dual_attention_layers", ()))
    sizes.setdefault("qk_norm", None)
    words = read_json(folder / "tokenizer" / "tokenizer_config.json", "configuration of the tokenizer")
    return SD3Shape(**sizes, pixels=pixels_of(folder), clip_tokens=words.get("model_max_length", CLIP_TOKENS))


SHAPES = {
    "small": SD3Shape(
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=32,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        caption_projection_dim=128,
        sample_size=32,
        pos_embed_max_size=32,
        clip_tokens=16,
    ),
    "sd3-medium": SD3Shape(24, 24, 64, 4096, 2048, 1536, 128, 192, qk_norm=None, encoders=ENCODERS),
    "sd3.5-medium": SD3Shape(
        24, 24, 64, 4096, 2048, 1536, 128, 384, dual_attention_layers=tuple(range(13)), encoders=ENCODERS
    ),
    "sd3.5-large": SD3Shape(38, 38, 64, 4096, 2048, 2432, 128, 192, encoders=ENCODERS),
}
KNOWN = {
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo": "sd3.5-large",
}
LICENSES = {
    name: {
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": f"https://huggingface.co/{name}/blob/main/LICENSE.md",
    }
    for name in KNOWN
    if "3.5" in name
}
FAMILY = Family("SD3Transformer2DModel", True, SHAPES, KNOWN, LICENSES, read)
