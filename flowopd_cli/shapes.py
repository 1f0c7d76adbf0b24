"""The shape of an SD3 transformer, and what follows from it by counting: weights, adapters, activations, operations.

No torch here: these are the figures of ``--dry-run`` and the shapes of ``flowopd bench``. The tests compare every count
with diffusers' own modules, and the activations with what autograd really keeps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.json_files import read_json
from flowopd_cli.registry import BASES

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FULL = 4  # bytes of a float32 number: adapters, optimizer, latents
TIME_CHANNELS = 256
CLIP_TOKENS = 77
MOST_LAYERS = 10_000
ENCODERS = 123_650_304 + 694_659_840 + 4_762_310_656  # weights of CLIP-L, CLIP-G and the encoder half of T5-XXL


@dataclass(frozen=True)
class Shape:
    """A transformer's sizes, under the names of its ``config.json``; ``clip_tokens`` and ``encoders`` are its texts'.

    ``pixels`` is the side of a latent pixel in the picture; ``encoders`` counts the text encoders' weights, 0 if not
    known.
    """

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
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    def config(self) -> dict[str, Any]:
        """The arguments of diffusers' ``SD3Transformer2DModel``."""
        own = {"pixels", "clip_tokens", "encoders"}
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in own}

    def side(self, resolution: int | None) -> int:
        """Latent pixels along a side of a picture."""
        return self.sample_size if resolution is None else resolution // self.pixels

    def image_tokens(self, resolution: int | None) -> int:
        """Tokens of a picture."""
        return (self.side(resolution) // self.patch_size) ** 2

    def text_tokens(self, max_sequence_length: int) -> int:
        """Tokens of a prompt: CLIP's and T5's, one after the other."""
        return self.clip_tokens + max_sequence_length


SHAPES = {
    "small": Shape(
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
    "sd3-medium": Shape(24, 24, 64, 4096, 2048, 1536, 128, 192, qk_norm=None, encoders=ENCODERS),
    "sd3.5-medium": Shape(
        24, 24, 64, 4096, 2048, 1536, 128, 384, dual_attention_layers=tuple(range(13)), encoders=ENCODERS
    ),
    "sd3.5-large": Shape(38, 38, 64, 4096, 2048, 2432, 128, 192, encoders=ENCODERS),
}
KNOWN = {
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo": "sd3.5-large",
}


def shape_of(pretrained: str) -> Shape | None:
    """The shape of a base: of a name or a Hub id that is known here, else of a local folder; ``None`` if neither."""
    name = KNOWN.get(pretrained, pretrained)
    if name in SHAPES:
        return SHAPES[name]
    folder = Path(str(BASES.load(pretrained)()) if pretrained in BASES.names() else pretrained)
    try:
        return _of_folder(folder, read_json(folder / "transformer" / "config.json", "configuration"))
    except (ArtifactError, ValueError, TypeError, KeyError):
        return None


def _of_folder(folder: Path, config: dict[str, Any]) -> Shape:
    sizes = {f.name: config[f.name] for f in fields(Shape) if f.name in config}
    sizes["dual_attention_layers"] = tuple(sizes.get("dual_attention_layers", ()))
    sizes.setdefault("qk_norm", None)
    vae = read_json(folder / "vae" / "config.json", "configuration")
    words = read_json(folder / "tokenizer" / "tokenizer_config.json", "configuration")
    pixels = 2 ** (len(vae["block_out_channels"]) - 1)
    made = Shape(**sizes, pixels=pixels, clip_tokens=words.get("model_max_length", CLIP_TOKENS))
    numbers = [getattr(made, f.name) for f in fields(Shape) if f.type == "int" and f.name != "encoders"]
    if not all(type(number) is int and number > 0 for number in numbers) or made.num_layers > MOST_LAYERS:
        raise ValueError("no sizes of a transformer")
    return made


@dataclass(frozen=True)
class Linear:
    """A linear module: its name, its sizes, and whose tokens go through it (``image``, ``text`` or one ``row``)."""

    name: str
    inputs: int
    outputs: int
    tokens: str

    @property
    def weights(self) -> int:
        """With the bias."""
        return self.outputs * (self.inputs + 1)


def linears(shape: Shape) -> Iterator[Linear]:
    """Every linear module of the transformer."""
    width, patch = shape.width, shape.patch_size**2
    yield Linear("pos_embed.proj", shape.in_channels * patch, width, "image")
    for side, inputs in (("timestep", TIME_CHANNELS), ("text", shape.pooled_projection_dim)):
        yield Linear(f"time_text_embed.{side}_embedder.linear_1", inputs, width, "row")
        yield Linear(f"time_text_embed.{side}_embedder.linear_2", width, width, "row")
    yield Linear("context_embedder", shape.joint_attention_dim, shape.caption_projection_dim, "text")
    for index in range(shape.num_layers):
        yield from _block(shape, index)
    yield Linear("norm_out.linear", width, 2 * width, "row")
    yield Linear("proj_out", width, patch * shape.out_channels, "image")


def _block(shape: Shape, index: int) -> Iterator[Linear]:
    head, width = f"transformer_blocks.{index}", shape.width
    dual, last = index in shape.dual_attention_layers, index == shape.num_layers - 1
    yield Linear(f"{head}.norm1.linear", width, (9 if dual else 6) * width, "row")
    yield Linear(f"{head}.norm1_context.linear", width, (2 if last else 6) * width, "row")
    image, text = ["to_q", "to_k", "to_v", "to_out.0"], ["add_q_proj", "add_k_proj", "add_v_proj"]
    yield from (Linear(f"{head}.attn.{name}", width, width, "image") for name in image)
    yield from (
        Linear(f"{head}.attn.{name}", width, width, "text") for name in [*text, *([] if last else ["to_add_out"])]
    )
    if dual:
        yield from (Linear(f"{head}.attn2.{name}", width, width, "image") for name in image)
    for name, tokens in [("ff", "image"), *([] if last else [("ff_context", "text")])]:
        yield Linear(f"{head}.{name}.net.0.proj", width, 4 * width, tokens)
        yield Linear(f"{head}.{name}.net.2", 4 * width, width, tokens)


def base_weights(shape: Shape) -> int:
    """Numbers that the frozen transformer holds, its table of positions included."""
    norms = 0
    if shape.qk_norm is not None:
        norms = 2 * (2 * shape.num_layers + len(shape.dual_attention_layers)) * shape.attention_head_dim
    positions = shape.pos_embed_max_size**2 * shape.width
    return sum(linear.weights for linear in linears(shape)) + norms + positions


def adapted(shape: Shape, targets: Sequence[str]) -> list[Linear]:
    """The modules that an adapter with these targets sits on."""
    return [m for m in linears(shape) if any(m.name == t or m.name.endswith(f".{t}") for t in targets)]


def adapter_weights(shape: Shape, targets: Sequence[str], rank: int) -> int:
    """Numbers of one adapter."""
    return sum(rank * (module.inputs + module.outputs) for module in adapted(shape, targets))
