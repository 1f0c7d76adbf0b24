"""A frozen base in 8 or 4 bits: linear layers whose weights are decoded for each product. Plain torch, on any device.

The forward and the backward multiply by the same decoded weights, and inputs are not rounded, so that a policy has the
same velocity in a rollout and in learning, in any batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from torch.nn import functional

from flowopd_cli.errors import ArtifactError

BLOCK = 64  # successive weights of a row that share a scale
# The 4-bit NormalFloat: quantiles of a standard normal distribution, scaled to [-1, 1] (QLoRA, arXiv:2305.14314).
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
KINDS = ("int8", "nf4")
Codes = Int8[Tensor, "out in"] | UInt8[Tensor, "out half"]


def quantize(blocks: Iterable[nn.Module], kind: str, device: torch.device) -> None:
    """Replace the linear layers inside ``blocks`` by :class:`QuantizedLinear` ones on ``device``, one after another.

    Layers whose rows are no multiple of ``BLOCK`` long stay whole, as do all layers outside of blocks.

    Raises :class:`ArtifactError`: no layer can be quantized.
    """
    layers = linear_layers(blocks)
    if not layers:
        raise ArtifactError(f"model.quantize {kind}: the base has no linear layer with a multiple of {BLOCK} inputs")
    while layers:  # each whole weight is released before the next is encoded
        parent, name, layer = layers.pop()
        setattr(parent, name, QuantizedLinear(layer, kind, device))


def linear_layers(blocks: Iterable[nn.Module]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The layers that can be quantized, each with its parent and its name there."""
    return [
        (parent, name, layer)
        for block in blocks
        for parent in block.modules()
        for name, layer in parent.named_children()
        if type(layer) is nn.Linear and layer.in_features % BLOCK == 0
    ]


def coded_bytes(weights: int, kind: str, itemsize: int) -> int:
    """Bytes of the codes and scales of so many weights of a base whose own weights have ``itemsize`` bytes."""
    return weights // (2 if kind == "nf4" else 1) + weights // BLOCK * itemsize


def decoding_bytes(weights: int, kind: str, itemsize: int) -> int:
    """Bytes that :func:`decode` needs for a layer of so many weights: the result, and for ``nf4`` its indices."""
    return weights * itemsize + (weights // 2 * 4 if kind == "nf4" else 0)


class QuantizedLinear(nn.Linear):
    """A frozen linear layer whose ``weight`` holds codes, with a scale for each block of a row.

    The scales are in the layer's own precision, as are the decoded weights.
    """

    def __init__(self, layer: nn.Linear, kind: str, device: torch.device) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        table = torch.tensor(NF4, dtype=layer.weight.dtype, device=device) if kind == "nf4" else None
        codes, scale = encode(layer.weight.detach().to(device), table)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.bias = layer.bias
        self.register_buffer("scale", scale)
        self.register_buffer("table", None if table is None else _pairs(table), persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """The product with the decoded weights."""
        return _Product.apply(input, self.weight, self.scale, self.table, self.bias)  # pyright: ignore[reportReturnType]

    def extra_repr(self) -> str:
        """The sizes and the number of bits."""
        return f"{super().extra_repr()}, bits={8 if self.table is None else 4}"


def encode(
    weight: Float[Tensor, "out in"], table: Float[Tensor, 16] | None
) -> tuple[Codes, Float[Tensor, "out blocks"]]:
    """Codes of a weight and the scale of each block, in the weight's dtype.

    With a ``table`` two codes share a byte, the first in its upper half; without one a code is an 8-bit integer.
    """
    blocks = weight.unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(2) / (127 if table is None else 1)
    ratios = blocks.float() / scale.float().clamp(min=torch.finfo(scale.dtype).tiny).unsqueeze(2)
    if table is None:
        return ratios.round().clamp(-127, 127).to(torch.int8).flatten(1), scale
    values = table.float()
    codes = torch.bucketize(ratios, (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8).flatten(1)
    return codes[:, ::2] << 4 | codes[:, 1::2], scale


def decode(
    codes: Codes, scale: Float[Tensor, "out blocks"], table: Float[Tensor, "256 2"] | None
) -> Float[Tensor, "out in"]:
    """The weight that :func:`encode` made codes of, in the dtype of its scales; ``table`` has a byte's two values."""
    values = codes.to(scale.dtype) if table is None else functional.embedding(codes.int(), table).flatten(1)
    return values.unflatten(1, (-1, BLOCK)).mul_(scale.unsqueeze(2)).flatten(1)


def _pairs(table: Float[Tensor, 16]) -> Float[Tensor, "256 2"]:
    return torch.cartesian_prod(table, table)


class _Product(torch.autograd.Function):
    """``input @ weight.T + bias``; only the codes are saved for the backward, which decodes them again."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, codes: Tensor, scale: Tensor, table: Tensor | None, bias: Tensor | None):
        ctx.save_for_backward(codes, scale, table)
        return functional.linear(input, decode(codes, scale, table), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        return gradients[0] @ decode(*ctx.saved_tensors), None, None, None, None
