"""Names of mmdet's Mask2Former with a Swin backbone, and those of the same tensors in ``transformers``.

mmdet fuses query, key and value of Swin's and of the decoder's self-attention, and its patch merging flattens a 2 x 2
neighbourhood channel by channel where ``transformers`` goes pixel by pixel. Checkpoints of mmdet 2 (mmcv 1 names) and
of mmdet 3 are both understood. Targets are the names of ``transformers`` 5.23; ``modern`` maps those of earlier 5.x
releases to them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

ENCODER, QUERIES = "model.pixel_level_module.encoder", "model.transformer_module"
# Applied in this order. ``{}``: the tensor holds query, key and value, and is cut in thirds.
RENAMES = (
    # mmcv 1 numbers a layer's attentions in the order in which they run: the decoder's first is the cross-attention.
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"\.attentions\.0\.", ".cross_attn."),
    (r"\.attentions\.1\.", ".self_attn."),
    (r"\.ffns\.0\.", ".ffn."),
    (r"^backbone\.patch_embed\.projection", f"{ENCODER}.swin.embeddings.patch_embeddings.projection"),
    (r"^backbone\.patch_embed", f"{ENCODER}.swin.embeddings"),
    (r"^backbone\.stages", f"{ENCODER}.swin.encoder.layers"),
    *((rf"^backbone\.norm{i}", f"{ENCODER}.hidden_states_norms.stage{i + 1}") for i in range(4)),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.w_msa\.qkv\.", ".attention.{}_proj."),
    (r"\.attn\.w_msa\.proj\.", ".attention.o_proj."),
    (r"\.attn\.w_msa\.", ".attention.relative_position_bias."),
    (r"(\.blocks\.\d+)\.ffn\.", r"\1.mlp.ffn."),
    (r"\.ffn\.layers\.0\.0\.", ".fc1."),
    (r"\.ffn\.layers\.1\.", ".fc2."),
    (r"(pixel_decoder\..+)\.norms\.0\.", r"\1.self_attn_layer_norm."),
    (r"(pixel_decoder\..+)\.norms\.1\.", r"\1.final_layer_norm."),
    (r"\.norms\.0\.", ".cross_attn_layer_norm."),
    (r"\.norms\.1\.", ".self_attn_layer_norm."),
    (r"\.norms\.2\.", ".final_layer_norm."),
    (r"\.input_convs\.", ".input_projections."),
    (r"\.lateral_convs\.0\.", ".adapter_1."),
    (r"\.output_convs\.0\.", ".layer_1."),
    (r"\.conv\.", ".0."),
    (r"\.gn\.", ".1."),
    (r"\.level_encoding\.weight$", ".level_embed"),
    (r"\.mask_feature\.", ".mask_projection."),
    (r"^panoptic_head\.pixel_decoder", "model.pixel_level_module.decoder"),
    (r"^panoptic_head\.cls_embed", "class_predictor"),
    *((rf"\.mask_embed\.{2 * i}\.", f".decoder.mask_predictor.mask_embedder.{i}.0.") for i in range(3)),
    (r"\.query_embed\.", ".queries_embedder."),
    (r"\.query_feat\.", ".queries_features."),
    (r"\.cross_attn\.attn\.", ".cross_attn."),
    (r"\.self_attn\.attn\.in_proj_", ".self_attn.{}_proj."),
    (r"\.self_attn\.attn\.", ".self_attn."),
    (r"\.transformer_decoder\.post_norm\.", ".decoder.layernorm."),
    (r"\.transformer_decoder\.", ".decoder."),
    (r"^panoptic_head\.", f"{QUERIES}."),
)
# From names of transformers 5.0 to those of 5.23, in this order.
EARLIER = (
    (r"(pixel_level_module\.encoder)\.(embeddings|encoder|layernorm)\.", r"\1.swin.\2."),
    (r"\.attention\.self\.query\.", ".attention.q_proj."),
    (r"\.attention\.self\.key\.", ".attention.k_proj."),
    (r"\.attention\.self\.value\.", ".attention.v_proj."),
    (r"\.attention\.self\.relative", ".attention.relative_position_bias.relative"),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
# Tensors without learned weights: mmdet's index table, and a norm of transformers that no layer uses.
INDEX_TABLE, UNUSED_NORM = "relative_position_index", "encoder.swin.layernorm."


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


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """mmdet's tensors under the names of ``transformers``; one of an unknown name is not renamed."""
    converted: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target = _renamed(name, RENAMES)
        if "{}" in target:
            thirds = zip("qkv", tensor.chunk(3), strict=False)
            converted |= {target.format(part): third.clone() for part, third in thirds}
        elif not name.endswith(INDEX_TABLE):
            converted[target] = by_pixel(tensor) if ".downsample." in target else tensor
    return converted


def by_pixel(tensor: Tensor) -> Tensor:
    """Reorder the last axis from channel-major (pixels 00, 01, 10, 11 inside) to pixel-major (00, 10, 01, 11 outside).

    A last axis that is not a multiple of four is unchanged, so that the check of shapes names it.
    """
    if tensor.shape[-1] % 4:
        return tensor
    grouped = tensor.unflatten(-1, (-1, 4))[..., [0, 2, 1, 3]]
    return grouped.transpose(-1, -2).flatten(-2).contiguous()


def modern(name: str) -> str:
    """The name that ``transformers`` 5.23 gives to a tensor of any 5.x release."""
    return _renamed(name, EARLIER)


def _renamed(name: str, rules: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
