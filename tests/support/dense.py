"""A transformer's output with an adapter's update added to its weights, the slow reference of every adapter file.

As a script, in the diffusers that PYTHONPATH names: ``dense.py PIPELINE ADAPTER OUTPUT`` saves the output of a
pipeline's transformer with the adapter as ``load_lora_weights`` reads it.
"""

import copy
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn


@torch.no_grad()
def output(transformer):
    """The output for fixed random inputs."""
    generator, config = torch.Generator().manual_seed(0), transformer.config
    if type(transformer).__name__.startswith("ZImage"):
        rows = torch.randn(1, config.in_channels, 1, 4, 4, generator=generator)
        texts = torch.randn(6, config.cap_feat_dim, generator=generator)
        return transformer([*rows], torch.tensor([0.5]), [texts], return_dict=False)[0][0]
    if type(transformer).__name__.startswith("Sana"):
        picture = torch.randn(1, config.in_channels, 4, 4, generator=generator)
        texts = torch.randn(1, 6, config.caption_channels, generator=generator)
        return transformer(picture, texts, torch.tensor([500.0]), return_dict=False)[0]
    if type(transformer).__name__.startswith("Lumina2"):
        picture = torch.randn(1, config.in_channels, 4, 4, generator=generator)
        texts, mask = torch.randn(1, 6, config.cap_feat_dim, generator=generator), torch.ones(1, 6, dtype=torch.bool)
        return transformer(picture, torch.tensor([0.5]), texts, mask, return_dict=False)[0]
    if type(transformer).__name__.startswith("Flux2"):
        picture = torch.randn(1, 4, config.in_channels, generator=generator)
        texts = torch.randn(1, 6, config.joint_attention_dim, generator=generator)
        places = torch.zeros(4, 4), torch.zeros(6, 4)
        return transformer(picture, texts, torch.tensor([0.5]), *places, return_dict=False)[0]
    if type(transformer).__name__.startswith("QwenImage"):
        picture = torch.randn(1, 4, config.in_channels, generator=generator)
        texts = torch.randn(1, 6, config.joint_attention_dim, generator=generator)
        shape = {"img_shapes": [[(1, 2, 2)]], "timestep": torch.tensor([0.5])}
        return transformer(picture, texts, **shape, return_dict=False)[0]
    is_flux = type(transformer).__name__.startswith("Flux")
    side = config.get("sample_size") or 4
    shapes = {
        "hidden_states": (1, 4, config.in_channels) if is_flux else (1, config.in_channels, side, side),
        "encoder_hidden_states": (1, 6, config.joint_attention_dim),
        "pooled_projections": (1, config.pooled_projection_dim),
    }
    inputs = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    inputs["timestep"] = torch.tensor([0.5 if is_flux else 500.0])
    if is_flux:
        inputs |= {"guidance": torch.tensor([3.0]), "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(6, 3)}
    return transformer(**inputs, return_dict=False)[0]


def dense_output(transformer, deltas):
    """The output with ``deltas``, by module, added to a copy's weights."""
    copied = copy.deepcopy(transformer)
    for module, delta in deltas.items():
        copied.get_submodule(module).weight.data += delta.float()
    return output(copied)


def linear_modules(transformer):
    """The linear modules inside the transformer's blocks by name, and the last one."""
    modules = {name: module for name, module in transformer.named_modules() if isinstance(module, nn.Linear)}
    return {name: module for name, module in modules.items() if re.search(r"\.\d+\.", name) or name == "proj_out"}


if __name__ == "__main__":
    from diffusers import DiffusionPipeline

    folder, adapter, target = map(Path, sys.argv[1:])
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "sd3" in folder.name else {}
    pipeline = DiffusionPipeline.from_pretrained(folder, **absent)
    pipeline.load_lora_weights(adapter)
    save_file({"output": output(pipeline.transformer)}, target)
