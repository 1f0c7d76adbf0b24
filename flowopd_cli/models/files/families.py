"""Facts of model families that need no base: shapes, Hub ids, licenses. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.pipelines import CONFIG, locate
from flowopd_cli.registry import FAMILIES, base_source
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import is_hub_id

CLIP_L, CLIP_G, T5_XXL = 123_060_480, 694_659_840, 4_762_310_656  # parameters of text encoders
QWEN3_4B, QWEN3_8B, GEMMA_2_2B = 4_022_468_096, 8_190_735_360, 2_614_341_888
QWEN2_5_VL_7B = 8_292_166_656
CLIP_L_PROJECTION = 768 * 768
ATTENTION_TARGETS = tuple(  # the projections of joint attention
    f"attn.{name}"
    for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
)
SMALL_VAE = (32, 32, 32, 32)
GUIDANCE_RULES = ("guidance_limit", "guidance_until")  # fields of a recipe's ``model`` section


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
    ``pipeline_guidance`` gives the arguments of the pipeline's call for a guidance, ``guidance_arguments`` the names of
    those :data:`GUIDANCE_RULES` that it knows. ``targets`` are the linear layers that get a LoRA in a recipe that names
    none.
    """

    transformer: str = ""
    classifier_free: bool = True
    shapes: Mapping[str, Shape] = field(default_factory=dict)
    known: Mapping[str, str] = field(default_factory=dict)
    licenses: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    pipeline_guidance: Callable[[float], dict[str, Any]] = _guidance_scale
    guidance_arguments: Mapping[str, str] = field(default_factory=dict)
    targets: tuple[str, ...] = ("attention",)

    def call(self, guidance: float, model: Any) -> dict[str, Any]:
        """The arguments of the pipeline's call for a guidance with the rules of a recipe's ``model`` section."""
        rules = {name: getattr(model, field) for field, name in self.guidance_arguments.items()}
        return self.pipeline_guidance(guidance) | {name: value for name, value in rules.items() if value is not None}

    def halves(self, guidance: float) -> int:
        """Forwards of one velocity: two with classifier-free guidance, whose negative half is skipped at guidance 1."""
        return 2 if self.classifier_free and guidance != 1 else 1


def family(name: str) -> Family:
    """The family of a recipe's ``model.family``; an unregistered family is assumed to be classifier-free."""
    return FAMILIES.load(name) if name in FAMILIES.names() else Family()


def family_of(pretrained: str, *, fetch: bool = False) -> str | None:
    """The family of a named shape, a known Hub id or a local folder; ``None`` for any other base.

    Also that of another repository of the Hub whose transformer's configuration is in the cache, or with ``fetch`` is
    fetched.
    """
    families = {name: FAMILIES.load(name) for name in FAMILIES.names()}
    named = next((name for name, each in families.items() if pretrained in {*each.shapes, *each.known}), None)
    if named is not None:
        return named
    with suppress(ArtifactError):
        folder = base_folder(pretrained)
        if is_hub_id(pretrained) and not folder.is_dir():
            folder = locate(pretrained, files=[CONFIG], fetch=fetch)
        kind = read_json(folder / CONFIG, "configuration of a transformer").get("_class_name")
        return next((name for name, each in families.items() if each.transformer == kind), None)
    return None


def model_fields(pretrained: str, *, fetch: bool = False) -> dict[str, str]:
    """A base and its family, if :func:`family_of` tells it: fields of a recipe's ``model`` section."""
    name = family_of(pretrained, fetch=fetch)
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
    targets=ATTENTION_TARGETS,
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
    targets=ATTENTION_TARGETS,
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
    guidance_arguments={"guidance_limit": "cfg_normalization", "guidance_until": "cfg_truncation"},
)


def _dc_autoencoder(channels: tuple[int, ...], layers: tuple[int, ...], **more: Any) -> dict[str, Any]:
    """The configuration of an ``AutoencoderDC``, the second half of whose blocks has attention at scale 5."""
    half = len(channels) // 2
    blocks = ("ResBlock",) * half + ("EfficientViTBlock",) * half
    sides = {"block_types": blocks, "block_out_channels": channels, "qkv_multiscales": ((),) * half + ((5,),) * half}
    config = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sides.items()}
    return {
        **config,
        "encoder_layers_per_block": layers,
        "decoder_layers_per_block": (max(layers),) * len(channels),
        "latent_channels": 32,
        "upsample_block_type": "interpolate",
        "downsample_block_type": "conv",
        "scaling_factor": 0.41407,
        **more,
    }


def _sana(blocks: int, heads: int, cross: int, side: int, **more: Any) -> Shape:
    width = 32 * heads
    sizes = {"num_layers": blocks, "num_attention_heads": heads, "cross_attention_dim": width, "sample_size": side}
    cross_heads = {"num_cross_attention_heads": cross, "cross_attention_head_dim": width // cross}
    transformer = {**sizes, **cross_heads, **more}
    vae = _dc_autoencoder((128, 256, 512, 512, 1024, 1024), (2, 2, 2, 3, 3, 3))
    return Shape(transformer, _FLOW_SOLVER, vae, encoders=GEMMA_2_2B)


_FLOW_SOLVER = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
_SANA_SMALL = replace(
    _sana(4, 4, 4, 8, caption_channels=128), vae=_dc_autoencoder((32,) * 4, (1,) * 4, attention_head_dim=8), encoders=0
)
SANA = Family(
    "SanaTransformer2DModel",
    shapes={
        "sana-small": _SANA_SMALL,
        "sana-0.6b": _sana(28, 36, 16, 16),
        "sana-1.6b": _sana(20, 70, 20, 16),
        "sana-1.5-1.6b": _sana(20, 70, 20, 32, qk_norm="rms_norm_across_heads"),
    },
    known={
        "Efficient-Large-Model/Sana_600M_512px_diffusers": "sana-0.6b",
        "Efficient-Large-Model/Sana_1600M_512px_diffusers": "sana-1.6b",
        "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers": "sana-1.5-1.6b",
    },
)

_LUMINA2_SMALL = {"hidden_size": 128, "num_layers": 4, "num_refiner_layers": 1, "cap_feat_dim": 128}
_LUMINA2_HEADS = {"num_attention_heads": 4, "num_kv_heads": 2, "axes_dim_rope": (8, 12, 12)}
_LUMINA_IMAGE = "Alpha-VLLM/Lumina-Image-2.0"
LUMINA2 = Family(
    "Lumina2Transformer2DModel",
    shapes={
        "lumina2-small": Shape({**_LUMINA2_SMALL, **_LUMINA2_HEADS}, {"shift": 6.0}, SMALL_VAE),
        "lumina-image-2": Shape({"cap_feat_dim": 2304}, {"shift": 6.0}, encoders=GEMMA_2_2B),
    },
    known={_LUMINA_IMAGE: "lumina-image-2"},
    licenses={_LUMINA_IMAGE: {"license": "apache-2.0"}},
)


def _klein(heads: int, blocks: int, single: int, text: int, **more: Any) -> dict[str, Any]:
    sizes = {"num_attention_heads": heads, "num_layers": blocks, "num_single_layers": single}
    return {**sizes, "joint_attention_dim": text, "guidance_embeds": False, **more}


_KLEIN_VAE = {"block_out_channels": (128, 256, 512, 512)}
_KLEIN_4B, _KLEIN_9B = (
    tuple(f"black-forest-labs/FLUX.2-klein-{kind}{size}" for kind in ("base-", "")) for size in ("4B", "9B")
)
FLUX2_KLEIN = Family(
    "Flux2Transformer2DModel",
    shapes={
        "flux2-klein-small": Shape(
            _klein(4, 2, 4, 128, attention_head_dim=32, axes_dims_rope=(8,) * 4),
            _SCHEDULER,
            {"block_out_channels": SMALL_VAE},
        ),
        "flux2-klein-4b": Shape(_klein(24, 5, 20, 3 * 2560), _SCHEDULER, _KLEIN_VAE, encoders=QWEN3_4B),
        "flux2-klein-9b": Shape(_klein(32, 8, 24, 3 * 4096), _SCHEDULER, _KLEIN_VAE, encoders=QWEN3_8B),
    },
    known=dict.fromkeys(_KLEIN_4B, "flux2-klein-4b") | dict.fromkeys(_KLEIN_9B, "flux2-klein-9b"),
    licenses={
        **{name: {"license": "apache-2.0"} for name in _KLEIN_4B},
        **{name: _license(name, "flux-non-commercial-license") for name in _KLEIN_9B},
    },
)

_QWEN_SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
_QWEN_SIZES = {"num_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32, "joint_attention_dim": 128}
_QWEN_VAE = {"temperal_downsample": (False, True, True)}
_QWEN_KNOWN = {"Qwen/Qwen-Image": "qwen-image", "Qwen/Qwen-Image-2512": "qwen-image"}
QWEN_IMAGE = Family(
    "QwenImageTransformer2DModel",
    shapes={
        "qwen-image-small": Shape(
            {**_QWEN_SIZES, "axes_dims_rope": (8, 12, 12)}, _QWEN_SCHEDULER, {**_QWEN_VAE, "base_dim": 16}
        ),
        "qwen-image": Shape({}, _QWEN_SCHEDULER, _QWEN_VAE, encoders=QWEN2_5_VL_7B),
    },
    known=_QWEN_KNOWN,
    licenses={name: {"license": "apache-2.0"} for name in _QWEN_KNOWN},
    pipeline_guidance=lambda guidance: {
        "true_cfg_scale": guidance,
        **({} if guidance == 1 else {"negative_prompt": ""}),
    },
)
