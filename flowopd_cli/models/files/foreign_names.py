"""Names of tensors in adapter files of other programs: kohya's, ComfyUI's and ai-toolkit's. No torch here.

They name modules as the models' first publishers do, where query, key and value are rows of one module; diffusers
splits these (``lora_conversion_utils`` for FLUX, ``single_file_utils`` for Stable Diffusion 3).
"""

from __future__ import annotations

import re
from typing import NamedTuple

Modules = dict[str, tuple[str, ...]]
KOHYA, BFL = "lora_unet_", "diffusion_model."
SIDES = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}


def _stream(prefix: str, rest: tuple[str, str, str], suffix: str, attention: tuple[str, ...]) -> Modules:
    """Their names of one stream of a block, pictures or texts; ``rest`` is its two-layer network and its modulation."""
    *queries, output = (f"attn.{name}" for name in attention)
    ours = ((f"ff{suffix}.net.0.proj",), (f"ff{suffix}.net.2",), (f"norm1{suffix}.linear",))
    theirs = ("attn_qkv", "attn_proj", *rest)
    return {f"{prefix}_{name}": names for name, names in zip(theirs, (tuple(queries), (output,), *ours), strict=True)}


FLUX, SD3 = ("mlp_0", "mlp_2", "mod_lin"), ("mlp_fc1", "mlp_fc2", "adaLN_modulation_1")
IMAGE = ("", ("to_q", "to_k", "to_v", "to_out.0"))
TEXT = ("_context", ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"))
# diffusers' list of blocks, and its modules for each of a block's; several are consecutive rows of one.
BLOCKS: dict[str, tuple[str, Modules]] = {
    "double": ("transformer_blocks", {**_stream("img", FLUX, *IMAGE), **_stream("txt", FLUX, *TEXT)}),
    "single": (
        "single_transformer_blocks",
        {
            "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            "linear2": ("proj_out",),
            "modulation_lin": ("norm.linear",),
        },
    ),
    "joint": (
        "transformer_blocks",
        {
            **_stream("x_block", SD3, *IMAGE),
            **_stream("context_block", SD3, *TEXT),
            "x_block_attn2_qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
            "x_block_attn2_proj": ("attn2.to_out.0",),
        },
    ),
}
_BLOCK = re.compile(r"(double|single|joint)_blocks[._](\d{1,4})[._](.+)")
# What is not plain LoRA of a picture transformer, by a part of its tensors' names.
OTHERS = {
    r"lora_magnitude_vector|dora_scale": "a DoRA adapter",
    r"\.hada_": "a LoHa adapter",
    r"\.lokr_": "a LoKr adapter",
    r"\.lora_mid\.": "a LoCon adapter",
    r"\.b?oft_": "an OFT adapter",
    r"\.on_input$|ia3": "an (IA)³ adapter",
    r"\.[ab][12]\.weight$": "a GLoRA adapter",
    r"\.(diff|diff_b|[wb]_norm|set_weight)$|_norm\.scale$|\.norm_\w+\.weight$": "trains norms, biases or whole weights",
    r"^(text_encoder|lora_te|lora_prior_te|cond_stage_model)": "trains text encoders too",
    r"\.processor\.": "an adapter in XLabs' form",
    r"^lora_transformer_": "an adapter in OneTrainer's form",
    r"^lora_unet_(input|output|middle|down|up|mid)_block": "an adapter of a UNet (Stable Diffusion 1, 2 or XL)",
    r"^lycoris_": "an adapter in LyCORIS' form",
    rf"^({KOHYA}|{re.escape(BFL)})(?!(double|single|joint)_blocks)": "trains modules outside FLUX's or SD3's blocks",
}


class Part(NamedTuple):
    """A module of diffusers' transformer, and the spans of rows that it takes of another's factor B; all if empty."""

    module: str
    rows: tuple[tuple[int, int], ...] = ()


def other_kind(name: str) -> str | None:
    """What a tensor of this name belongs to, if it is no plain LoRA of a picture transformer."""
    return next((kind for pattern, kind in OTHERS.items() if re.search(pattern, name)), None)


def as_peft(name: str) -> str:
    """A tensor's name without the other programs' prefixes, and with PEFT's names of factors."""
    bare = name.removeprefix(KOHYA).removeprefix(BFL)
    for theirs, ours in SIDES.items() if bare != name else ():
        if bare.endswith(theirs):
            return bare.removesuffix(theirs) + ours
    return bare


def parts(module: str, inputs: int, outputs: int) -> tuple[Part, ...]:
    """The modules of diffusers that a module of another program is; itself if it is no such module.

    ``ValueError`` if its name is unknown in its block, or its rows cannot be split.
    """
    match = _BLOCK.fullmatch(module)
    if match is None:
        return (Part(module),)
    blocks, modules = BLOCKS[match[1]]
    tail = match[3].replace(".", "_")
    names = [f"{blocks}.{match[2]}.{name}" for name in modules.get(tail, ())]
    if tail == "context_block_adaLN_modulation_1" and outputs == 2 * inputs:  # the last block: shift and scale swapped
        return (Part(names[0], ((inputs, outputs), (0, inputs))),)
    if len(names) == 1:
        return (Part(names[0]),)
    width = inputs if tail == "linear1" else outputs // 3
    ends = [width, 2 * width, 3 * width, outputs][: len(names)]
    if not names or ends[-1] != outputs or ends != sorted({*ends}):
        raise ValueError
    return tuple(Part(name, ((start, end),)) for name, start, end in zip(names, [0, *ends], ends, strict=False))
