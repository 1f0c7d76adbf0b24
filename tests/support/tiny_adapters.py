"""Adapter folders of the toy base, written without torch."""

import json
import math

from flowopd_cli.models.files.pipelines import base_fingerprint, linear_shapes
from flowopd_cli.toy import folder

TOY_SHA = base_fingerprint(folder())
MODULE = "transformer_blocks.0.attn.to_q"
WIDTH = linear_shapes(folder())[MODULE][1]


def safetensors(tensors, metadata=None, data=None):
    """The bytes of a safetensors file: shapes of float32 zeros by name, or ``(kind, shape, bytes)``."""
    header, blocks, end = {"__metadata__": metadata} if metadata else {}, [], 0
    for name, spec in tensors.items():
        kind, shape, content = spec if spec and isinstance(spec[0], str) else ("F32", spec, bytes(4 * math.prod(spec)))
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + len(content)]}
        end += len(content)
        blocks.append(content)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(blocks)


def pair(module=MODULE, rank=4, inputs=WIDTH, outputs=WIDTH, prefix="base_model.model."):
    """The shapes of one module's factors by their names."""
    return {f"{prefix}{module}.lora_A.weight": (rank, inputs), f"{prefix}{module}.lora_B.weight": (outputs, rank)}


def write_adapter(path, tensors=None, metadata=None, **config):
    """A sound adapter in PEFT form; ``config`` goes into its configuration."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    (path / "adapter_model.safetensors").write_bytes(safetensors(tensors or pair(), metadata))
    return path
