"""Names of mmdet's Mask2Former with a Swin backbone, and where ``transformers`` keeps the same tensors.

mmdet fuses query, key and value of Swin's and of the decoder's self-attention, and its patch merging flattens a 2 x 2
neighbourhood channel by channel where ``transformers`` goes pixel by pixel. Checkpoints of mmdet 2 (mmcv 1 names) and
of mmdet 3 are both understood. Targets are the names of ``transformers`` 5.23; ``modern`` brings those of earlier 5.x
releases to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

ENCODER = "model.pixel_level_module.encoder"
PIXELS = "model.pixel_level_module.decoder"
QUERIES = "model.transformer_module"
BLOCK = rf"{ENCODER}.swin.encoder.layers.\1.blocks.\2"
LAYER = rf"{QUERIES}.decoder.layers.\1"

# mmcv 1 numbers the attentions of a layer in the order in which they run: the decoder's first is the cross-attention.
MMCV1 = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"\.ffns\.0\.", r".ffn."),
)
# ``{}`` in a target: the tensor holds query, key and value below each other, and is cut in thirds.
BACKBONE = (
    (r"patch_embed\.projection\.(\w+)", rf"{ENCODER}.swin.embeddings.patch_embeddings.projection.\1"),
    (r"patch_embed\.norm\.(\w+)", rf"{ENCODER}.swin.embeddings.norm.\1"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm1\.(\w+)", rf"{BLOCK}.layernorm_before.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.norm2\.(\w+)", rf"{BLOCK}.layernorm_after.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.qkv\.(\w+)", rf"{BLOCK}.attention.{{}}_proj.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.proj\.(\w+)", rf"{BLOCK}.attention.o_proj.\3"),
    (
        r"stages\.(\d+)\.blocks\.(\d+)\.attn\.w_msa\.(relative_position_bias_table)",
        rf"{BLOCK}.attention.relative_position_bias.\3",
    ),
    (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", rf"{BLOCK}.mlp.fc1.\3"),
    (r"stages\.(\d+)\.blocks\.(\d+)\.ffn\.layers\.1\.(\w+)", rf"{BLOCK}.mlp.fc2.\3"),
    (r"stages\.(\d+)\.downsample\.(reduction|norm)\.(\w+)", rf"{ENCODER}.swin.encoder.layers.\1.downsample.\2.\3"),
    (r"norm0\.(\w+)", rf"{ENCODER}.hidden_states_norms.stage1.\1"),
    (r"norm1\.(\w+)", rf"{ENCODER}.hidden_states_norms.stage2.\1"),
    (r"norm2\.(\w+)", rf"{ENCODER}.hidden_states_norms.stage3.\1"),
    (r"norm3\.(\w+)", rf"{ENCODER}.hidden_states_norms.stage4.\1"),
)
PIXEL_DECODER = (
    (r"input_convs\.(\d)\.conv\.(\w+)", rf"{PIXELS}.input_projections.\1.0.\2"),
    (r"input_convs\.(\d)\.gn\.(\w+)", rf"{PIXELS}.input_projections.\1.1.\2"),
    (r"encoder\.layers\.(\d+)\.self_attn\.([\w.]+)", rf"{PIXELS}.encoder.layers.\1.self_attn.\2"),
    (r"encoder\.layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", rf"{PIXELS}.encoder.layers.\1.fc1.\2"),
    (r"encoder\.layers\.(\d+)\.ffn\.layers\.1\.(\w+)", rf"{PIXELS}.encoder.layers.\1.fc2.\2"),
    (r"encoder\.layers\.(\d+)\.norms\.0\.(\w+)", rf"{PIXELS}.encoder.layers.\1.self_attn_layer_norm.\2"),
    (r"encoder\.layers\.(\d+)\.norms\.1\.(\w+)", rf"{PIXELS}.encoder.layers.\1.final_layer_norm.\2"),
    (r"level_encoding\.weight", rf"{PIXELS}.level_embed"),
    (r"lateral_convs\.0\.conv\.(\w+)", rf"{PIXELS}.adapter_1.0.\1"),
    (r"lateral_convs\.0\.gn\.(\w+)", rf"{PIXELS}.adapter_1.1.\1"),
    (r"output_convs\.0\.conv\.(\w+)", rf"{PIXELS}.layer_1.0.\1"),
    (r"output_convs\.0\.gn\.(\w+)", rf"{PIXELS}.layer_1.1.\1"),
    (r"mask_feature\.(\w+)", rf"{PIXELS}.mask_projection.\1"),
)
HEAD = (
    (r"query_embed\.weight", rf"{QUERIES}.queries_embedder.weight"),
    (r"query_feat\.weight", rf"{QUERIES}.queries_features.weight"),
    (r"level_embed\.weight", rf"{QUERIES}.level_embed.weight"),
    (r"cls_embed\.(\w+)", r"class_predictor.\1"),
    (r"mask_embed\.0\.(\w+)", rf"{QUERIES}.decoder.mask_predictor.mask_embedder.0.0.\1"),
    (r"mask_embed\.2\.(\w+)", rf"{QUERIES}.decoder.mask_predictor.mask_embedder.1.0.\1"),
    (r"mask_embed\.4\.(\w+)", rf"{QUERIES}.decoder.mask_predictor.mask_embedder.2.0.\1"),
    (r"transformer_decoder\.layers\.(\d+)\.cross_attn\.attn\.([\w.]+)", rf"{LAYER}.cross_attn.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.self_attn\.attn\.in_proj_(\w+)", rf"{LAYER}.self_attn.{{}}_proj.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.self_attn\.attn\.out_proj\.(\w+)", rf"{LAYER}.self_attn.out_proj.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.norms\.0\.(\w+)", rf"{LAYER}.cross_attn_layer_norm.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.norms\.1\.(\w+)", rf"{LAYER}.self_attn_layer_norm.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.norms\.2\.(\w+)", rf"{LAYER}.final_layer_norm.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.ffn\.layers\.0\.0\.(\w+)", rf"{LAYER}.fc1.\2"),
    (r"transformer_decoder\.layers\.(\d+)\.ffn\.layers\.1\.(\w+)", rf"{LAYER}.fc2.\2"),
    (r"transformer_decoder\.post_norm\.(\w+)", rf"{QUERIES}.decoder.layernorm.\1"),
)
RULES = tuple(
    (re.compile(re.escape(prefix) + pattern), target)
    for prefix, rules in (
        ("backbone.", BACKBONE),
        ("panoptic_head.pixel_decoder.", PIXEL_DECODER),
        ("panoptic_head.", HEAD),
    )
    for pattern, target in rules
)
# Names of transformers 5.0 and what 5.23 calls them, in this order.
EARLIER = (
    (r"(pixel_level_module\.encoder)\.(embeddings|encoder|layernorm)\.", r"\1.swin.\2."),
    (r"\.attention\.self\.query\.", r".attention.q_proj."),
    (r"\.attention\.self\.key\.", r".attention.k_proj."),
    (r"\.attention\.self\.value\.", r".attention.v_proj."),
    (r"\.attention\.self\.relative", r".attention.relative_position_bias.relative"),
    (r"\.attention\.output\.dense\.", r".attention.o_proj."),
    (r"\.intermediate\.dense\.", r".mlp.fc1."),
    (r"\.output\.dense\.", r".mlp.fc2."),
)
# Tensors that carry no weights of their own: mmdet's index table, and a norm of transformers that nothing reads.
INDEX_TABLE, UNREAD_NORM = "relative_position_index", "encoder.swin.layernorm."


@dataclass(frozen=True)
class Architecture:
    """The sizes of the network. The defaults are mmdet's ``mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco``."""

    embed: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    width: int = 256
    attention_heads: int = 8
    pixel_layers: int = 6
    pixel_feedforward: int = 1024
    query_layers: int = 9
    query_feedforward: int = 2048
    queries: int = 100


def convert(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """mmdet's tensors under the names of ``transformers``, and the names that no rule knows."""
    converted: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in state.items():
        if name.endswith(INDEX_TABLE):
            continue
        target = translate(name)
        if target is None:
            unknown.append(name)
        elif "{}" in target:
            thirds = zip("qkv", tensor.chunk(3), strict=False)
            converted |= {target.format(part): third.clone() for part, third in thirds}
        else:
            converted[target] = by_pixel(tensor) if ".downsample." in target else tensor
    return converted, unknown


def translate(name: str) -> str | None:
    """The name in ``transformers`` of a tensor of mmdet; ``None`` when there is no rule for it."""
    for pattern, replacement in MMCV1:
        name = re.sub(pattern, replacement, name)
    for pattern, target in RULES:
        if match := pattern.fullmatch(name):
            return match.expand(target)
    return None


def by_pixel(tensor: Tensor) -> Tensor:
    """Reorder the last axis from channel-major (pixels 00, 01, 10, 11 inside) to pixel-major (00, 10, 01, 11 outside).

    A last axis that is no multiple of four is left as it is, for the check of shapes to name.
    """
    if tensor.shape[-1] % 4:
        return tensor
    grouped = tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]]
    return grouped.transpose(-1, -2).flatten(-2).contiguous()


def modern(name: str) -> str:
    """The name that ``transformers`` 5.23 gives to a tensor of any 5.x release."""
    for pattern, replacement in EARLIER:
        name = re.sub(pattern, replacement, name)
    return name
