"""The shape of a FLUX.1 transformer.

The activations are counted by what autograd keeps of a block for its backward, in numbers a token and channel. Of both
kinds: queries, keys, values and result of the attention (4), the input of the GELU (4), and in float32 queries and keys
before their norms (2). Of a joint block the input of two norms, of one of a single stream that of one.
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

PACKED = 2  # latent pixels along a side of one token
SAMPLE_SIZE = 128  # the pipeline's own, in latent pixels
ENCODERS = 123_060_480 + 4_762_310_656  # weights of CLIP-L and the encoder half of T5-XXL


@dataclass(frozen=True)
class FluxShape(Shape):
    """Sizes of diffusers' ``FluxTransformer2DModel``, whose channels are those of 2 x 2 latent pixels."""

    SCHEDULER: ClassVar[Mapping[str, Any]] = {"shift": 3.0, "use_dynamic_shifting": True}
    TRANSIENT: ClassVar[int] = 18

    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    in_channels: int = 64
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    pixels: int = 8
    encoders: int = 0

    @property
    def blocks(self) -> int:
        """Joint blocks and those of a single stream."""
        return self.num_layers + self.num_single_layers

    @property
    def latent_channels(self) -> int:
        """A token's, divided among its latent pixels."""
        return self.in_channels // PACKED**2

    @property
    def own_side(self) -> int:
        """The pipeline's own; the configuration names none."""
        return SAMPLE_SIZE

    def image_tokens(self, resolution: int | None) -> int:
        """Tokens of a picture: 2 x 2 latent pixels each."""
        return (self.side(resolution) // PACKED) ** 2

    def text_tokens(self, max_sequence_length: int) -> int:
        """Tokens of a prompt: T5's alone."""
        return max_sequence_length

    def linears(self) -> Iterator[Linear]:
        """Every linear module of the transformer."""
        width = self.width
        yield Linear("x_embedder", self.in_channels, width, "image")
        yield Linear("context_embedder", self.joint_attention_dim, width, "text")
        for name in ("timestep", *(["guidance"] if self.guidance_embeds else [])):
            yield from embedding(TIME_CHANNELS, width, name)
        yield from embedding(self.pooled_projection_dim, width, "text")
        for index in range(self.num_layers):
            yield from self._joint(f"transformer_blocks.{index}")
        for index in range(self.num_single_layers):
            yield from self._single(f"single_transformer_blocks.{index}")
        yield Linear("norm_out.linear", width, 2 * width, "row")
        yield Linear("proj_out", width, self.in_channels, "image")

    def _joint(self, head: str) -> Iterator[Linear]:
        width = self.width
        for norm in ("norm1", "norm1_context"):
            yield Linear(f"{head}.{norm}.linear", width, 6 * width, "row")
        yield from attention(f"{head}.attn", width, "image", ("to_q", "to_k", "to_v"), "to_out.0")
        yield from attention(f"{head}.attn", width, "text", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out")
        yield from feed_forward(f"{head}.ff", width, "image")
        yield from feed_forward(f"{head}.ff_context", width, "text")

    def _single(self, head: str) -> Iterator[Linear]:
        """One stream of text and picture; attention and feed-forward side by side on one input."""
        width = self.width
        yield Linear(f"{head}.norm.linear", width, 3 * width, "row")
        yield from attention(f"{head}.attn", width, "joint", ("to_q", "to_k", "to_v"), None)
        yield Linear(f"{head}.proj_mlp", width, 4 * width, "joint", f"{head}.attn/joint")
        yield Linear(f"{head}.proj_out", 5 * width, width, "joint")

    def other_weights(self) -> int:
        """Norms of queries and keys, of the text's too in joint blocks."""
        return (4 * self.num_layers + 2 * self.num_single_layers) * self.attention_head_dim

    def kept(self, batch: Rows) -> int:
        """Bytes of the blocks' activations."""
        joint, single = 10 * batch.bytes + 2 * FULL, 9 * batch.bytes + 2 * FULL
        return batch.tokens * self.width * (self.num_layers * joint + self.num_single_layers * single)

    def attention_operations(self, image: int, text: int) -> int:
        """Products with keys and with values, over text and picture together in every block."""
        return self.blocks * 4 * (image + text) ** 2 * self.width


def read(folder: Path, config: Mapping[str, Any]) -> FluxShape:
    """The shape of a pipeline's folder.

    Raises:
        ArtifactError, KeyError, TypeError, ValueError: something of it is missing or damaged.
    """
    sizes = {f.name: config[f.name] for f in fields(FluxShape) if f.name in config}
    sizes["axes_dims_rope"] = tuple(sizes.get("axes_dims_rope", FluxShape.axes_dims_rope))
    return FluxShape(**sizes, pixels=pixels_of(folder))


SHAPES = {
    "flux-small": FluxShape(2, 4, 32, 4, 128, 128, guidance_embeds=True, axes_dims_rope=(8, 12, 12)),
    "flux-dev": FluxShape(guidance_embeds=True, encoders=ENCODERS),
    "flux-schnell": FluxShape(encoders=ENCODERS),
}
DEV, SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
LICENSES = {
    DEV: {
        "license": "other",
        "license_name": "flux-1-dev-non-commercial-license",
        "license_link": f"https://huggingface.co/{DEV}/blob/main/LICENSE.md",
    },
    SCHNELL: {"license": "apache-2.0"},
}
FAMILY = Family("FluxTransformer2DModel", False, SHAPES, {DEV: "flux-dev", SCHNELL: "flux-schnell"}, LICENSES, read)
