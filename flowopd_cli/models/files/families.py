"""What is known of a model family without loading one of its bases: known shapes, Hub ids, licenses. No torch here.

A family describes itself by a :class:`Family`, a row of ``registry.FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.registry import FAMILIES, base_source
from flowopd_cli.system.json_files import read_json

CLIP_L, CLIP_G, T5_XXL = 123_060_480, 694_659_840, 4_762_310_656  # parameters of text encoders
CLIP_L_PROJECTION = 768 * 768
SMALL_VAE = (32, 32, 32, 32)


@dataclass(frozen=True)
class Shape:
    """The configuration of a base, enough to build it with random weights.

    ``transformer`` and ``scheduler`` are the arguments of diffusers' classes, ``vae`` the channels of the autoencoder's
    blocks. ``clip_tokens`` is the length to which CLIP's tokenizer pads, ``encoders`` the parameters of the text
    encoders.
    """

    transformer: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    vae: tuple[int, ...] = (128, 256, 512, 512)
    clip_tokens: int = 77
    encoders: int = 0


@dataclass(frozen=True)
class Family:
    """A model family.

    ``transformer`` is the name of diffusers' class, by which a folder's family is recognized. For ``classifier_free``
    see :class:`~flowopd_cli.models.base.FlowModel`. ``shapes`` are configurations by name, ``known`` the Hub ids that
    have one of them, ``licenses`` the Hub's license metadata by id.
    """

    transformer: str = ""
    classifier_free: bool = True
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def halves(self, guidance: float) -> int:
        """Forwards of one velocity: two with classifier-free guidance, whose negative half is skipped at guidance 1."""
        return 2 if self.classifier_free and guidance != 1 else 1


def family(name: str) -> Family:
    """The family of a recipe's ``model.family``; one that is not registered is taken to be classifier-free."""
    return FAMILIES.load(name) if name in FAMILIES.names() else Family()


def family_of(pretrained: str) -> str | None:
    """The family of a named shape, a known Hub id or a local folder; ``None`` for any other base."""
    transformer = _transformer_class(pretrained)
    for name in FAMILIES.names():
        candidate = FAMILIES.load(name)
        if pretrained in candidate.shapes or pretrained in candidate.known or candidate.transformer == transformer:
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
    names = {repo: name for each in map(family, FAMILIES.names()) for repo, name in each.known.items()}
    return named_shapes().get(names.get(pretrained, pretrained))


def base_folder(pretrained: str) -> Path:
    """Where a base lies, if it is local: the folder behind a base alias such as ``toy``, or the path itself."""
    return Path(base_source(pretrained))


def _transformer_class(pretrained: str) -> str | None:
    path = base_folder(pretrained) / "transformer" / "config.json"
    try:
        return read_json(path, "configuration of a transformer").get("_class_name")
    except ArtifactError:
        return None


def _sd3(blocks: int, heads: int, positions: int, *, dual: int = 0, qk_norm: str | None = "rms_norm") -> Shape:
    transformer = {
        "num_layers": blocks,
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "caption_projection_dim": 64 * heads,
        "sample_size": 128,
        "pos_embed_max_size": positions,
        "dual_attention_layers": tuple(range(dual)),
        "qk_norm": qk_norm,
    }
    return Shape(transformer, {"shift": 3.0}, encoders=CLIP_L + CLIP_L_PROJECTION + CLIP_G + T5_XXL)


def _flux(**changes: Any) -> Shape:
    return Shape(changes, {"shift": 3.0, "use_dynamic_shifting": True}, encoders=CLIP_L + T5_XXL)


_SD3_SMALL = {
    "num_layers": 4,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "caption_projection_dim": 128,
    "sample_size": 32,
    "pos_embed_max_size": 32,
    "qk_norm": "rms_norm",
}
_SD3_KNOWN = {
    "stabilityai/stable-diffusion-3-medium-diffusers": "sd3-medium",
    "stabilityai/stable-diffusion-3.5-medium": "sd3.5-medium",
    "stabilityai/stable-diffusion-3.5-large": "sd3.5-large",
    "stabilityai/stable-diffusion-3.5-large-turbo": "sd3.5-large",
}
SD3 = Family(
    "SD3Transformer2DModel",
    shapes={
        "small": Shape(_SD3_SMALL, {"shift": 3.0}, SMALL_VAE, clip_tokens=16),
        "sd3-medium": _sd3(24, 24, 192, qk_norm=None),
        "sd3.5-medium": _sd3(24, 24, 384, dual=13),
        "sd3.5-large": _sd3(38, 38, 192),
    },
    known=_SD3_KNOWN,
    licenses={
        name: {
            "license": "other",
            "license_name": "stabilityai-ai-community",
            "license_link": f"https://huggingface.co/{name}/blob/main/LICENSE.md",
        }
        for name in _SD3_KNOWN
        if "3.5" in name
    },
)

_FLUX_SMALL = {
    "num_layers": 2,
    "num_single_layers": 4,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 12, 12),
}
_DEV, _SCHNELL = "black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-schnell"
FLUX = Family(
    "FluxTransformer2DModel",
    classifier_free=False,
    shapes={
        "flux-small": Shape(_FLUX_SMALL, {"shift": 3.0, "use_dynamic_shifting": True}, SMALL_VAE),
        "flux-dev": _flux(guidance_embeds=True),
        "flux-schnell": _flux(guidance_embeds=False),
    },
    known={_DEV: "flux-dev", _SCHNELL: "flux-schnell"},
    licenses={
        _DEV: {
            "license": "other",
            "license_name": "flux-1-dev-non-commercial-license",
            "license_link": f"https://huggingface.co/{_DEV}/blob/main/LICENSE.md",
        },
        _SCHNELL: {"license": "apache-2.0"},
    },
)
