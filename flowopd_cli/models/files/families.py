"""Facts of model families that need no base: shapes, Hub ids, licenses. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.registry import FAMILIES, base_source
from flowopd_cli.system.json_files import read_json

CLIP_L, CLIP_G, T5_XXL, QWEN3_4B = 123_060_480, 694_659_840, 4_762_310_656, 4_022_468_096  # text encoders' parameters
CLIP_L_PROJECTION = 768 * 768
SMALL_VAE = (32, 32, 32, 32)


@dataclass(frozen=True)
class Shape:
    """The configuration of a base, enough to build it with random weights.

    ``transformer`` and ``scheduler`` are arguments of diffusers' classes, ``vae`` the channels of the blocks of an
    ``AutoencoderKL`` or the configuration of another autoencoder, ``clip_tokens`` the length to which CLIP's tokenizer
    pads, ``encoders`` the text encoders' parameters.
    """

    transformer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    vae: tuple[int, ...] | Mapping[str, Any] = (128, 256, 512, 512)
    clip_tokens: int = 77
    encoders: int = 0


def _guidance_scale(guidance: float) -> dict[str, Any]:
    return {"guidance_scale": guidance}


@dataclass(frozen=True)
class Family:
    """A model family, an entry of ``registry.FAMILIES``.

    ``transformer`` is the name of diffusers' class, by which a folder's family is recognized. ``shapes`` are
    configurations by name, ``known`` the Hub ids that have one of them, ``licenses`` the Hub's license metadata by id.
    ``pipeline_guidance`` gives the arguments of the pipeline's call for a guidance.
    """

    transformer: str = ""
    classifier_free: bool = True
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pipeline_guidance: Callable[[float], dict[str, Any]] = _guidance_scale

    def halves(self, guidance: float) -> int:
        """Forwards of one velocity: two with classifier-free guidance, whose negative half is skipped at guidance 1."""
        return 2 if self.classifier_free and guidance != 1 else 1


def family(name: str) -> Family:
    """The family of a recipe's ``model.family``; an unregistered family is assumed to be classifier-free."""
    return FAMILIES.load(name) if name in FAMILIES.names() else Family()


def family_of(pretrained: str) -> str | None:
    """The family of a named shape, a known Hub id or a local folder; ``None`` for any other base."""
    transformer = None
    with suppress(ArtifactError):
        path = base_folder(pretrained) / "transformer" / "config.json"
        transformer = read_json(path, "configuration of a transformer").get("_class_name")
    for name in FAMILIES.names():
        candidate = FAMILIES.load(name)
        if pretrained in {*candidate.shapes, *candidate.known} or candidate.transformer == transformer:
            return name
    return None


def model_fields(pretrained: str) -> dict[str, str]:
    """A base and, if it is known, its family: fields of a recipe's ``model`` section."""
    name = family_of(pretrained)
    return {"pretrained": pretrained} | ({"family": name} if name else {})


def named_shapes() -> dict[str, Shape]:
    """The shapes of all families by name."""
    return {name: shape for each in map(family, FAMILIES.names()) for name, shape in each.shapes.items()}


def known_shape(pretrained: str) -> Shape | None:
    """The shape of a name or a known Hub id."""
    names = dict(item for each in map(family, FAMILIES.names()) for item in each.known.items())
    return named_shapes().get(names.get(pretrained, pretrained))


def base_folder(pretrained: str) -> Path:
    """The folder of a local base: of an alias such as ``toy``, or the path itself."""
    return Path(base_source(pretrained))


def _license(repo: str, name: str) -> dict[str, str]:
    link = f"https://huggingface.co/{repo}/blob/main/LICENSE.md"
    return {"license": "other", "license_name": name, "license_link": link}


def _attention(heads: int, width: int, text: int, pooled: int) -> dict[str, Any]:
    names = "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim"
    return dict(zip(names, (heads, width, text, pooled), strict=True))


def _sd3(blocks: int, heads: int, positions: int, **more: Any) -> Shape:
    sizes = {"num_layers": blocks, "caption_projection_dim": 64 * heads, "pos_embed_max_size": positions}
    transformer = {**_attention(heads, 64, 4096, 2048), **sizes, "sample_size": 128, "qk_norm": "rms_norm", **more}
    return Shape(transformer, {"shift": 3.0}, encoders=CLIP_L + CLIP_L_PROJECTION + CLIP_G + T5_XXL)


_SMALL = _attention(4, 32, 128, 128)
_SD3_SMALL = {"num_layers": 4, "caption_projection_dim": 128, "pos_embed_max_size": 32, "sample_size": 32}
_SD3_KNOWN = {
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo": "sd3.5-large",
}
SD3 = Family(
    "SD3Transformer2DModel",
    shapes={
        "small": Shape({**_SMALL, **_SD3_SMALL, "qk_norm": "rms_norm"}, {"shift": 3.0}, SMALL_VAE, clip_tokens=16),
        "sd3-medium": _sd3(24, 24, 192, qk_norm=None),
        "sd3.5-medium": _sd3(24, 24, 384, dual_attention_layers=tuple(range(13))),
        "sd3.5-large": _sd3(38, 38, 192),
    },
    known=_SD3_KNOWN,
    licenses={repo: _license(repo, "stabilityai-ai-community") for repo in _SD3_KNOWN if "3.5" in repo},
)

_FLUX_SMALL = {"num_layers": 2, "num_single_layers": 4, "guidance_embeds": True, "axes_dims_rope": (8, 12, 12)}
_SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True}
_DEV, _SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
FLUX = Family(
    "FluxTransformer2DModel",
    classifier_free=False,
    shapes={
        "flux-small": Shape({**_SMALL, **_FLUX_SMALL}, _SCHEDULER, SMALL_VAE),
        "flux-dev": Shape({"guidance_embeds": True}, _SCHEDULER, encoders=CLIP_L + T5_XXL),
        "flux-schnell": Shape({"guidance_embeds": False}, _SCHEDULER, encoders=CLIP_L + T5_XXL),
    },
    known={_DEV: "flux-dev", _SCHNELL: "flux-schnell"},
    licenses={_DEV: _license(_DEV, "flux-1-dev-non-commercial-license"), _SCHNELL: {"license": "apache-2.0"}},
)

_Z_IMAGE_SMALL = {"dim": 128, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 4, "n_kv_heads": 4, "cap_feat_dim": 128}
_Z_BASE, _Z_TURBO = "Tongyi-MAI/Z-Image", "Tongyi-MAI/Z-Image-Turbo"
Z_IMAGE = Family(
    "ZImageTransformer2DModel",
    shapes={
        "z-image-small": Shape({**_Z_IMAGE_SMALL, "axes_dims": (8, 12, 12)}, {"shift": 6.0}, SMALL_VAE),
        "z-image": Shape({}, {"shift": 6.0}, encoders=QWEN3_4B),
        "z-image-turbo": Shape({}, {"shift": 3.0}, encoders=QWEN3_4B),
    },
    known={_Z_BASE: "z-image", _Z_TURBO: "z-image-turbo"},
    licenses={name: {"license": "apache-2.0"} for name in (_Z_BASE, _Z_TURBO)},
    pipeline_guidance=lambda guidance: {"guidance_scale": guidance - 1},
)
