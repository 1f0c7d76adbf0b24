"""Shared parts of the scalar scorers: finding checkpoints, loading models, square pictures, results."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.weights import check_tensors

_log = logging.getLogger("flowopd")
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def warn_of_truncation(name: str, tokenizer: Any, limit: int, texts: Sequence[str]) -> None:
    """Warn of texts with more than ``limit`` tokens, whose end the scorer ``name`` does not read, as its reference."""
    distinct = list(dict.fromkeys(texts))
    counts = [len(ids) for ids in tokenizer(distinct, verbose=False).input_ids] if distinct else []
    if longer := sum(count > limit for count in counts):
        _log.warning(
            "reward %s reads %d tokens of a prompt: the end of %d of %d prompts does not count, the longest has %d",
            *(name, limit, longer, len(distinct), max(counts)),
        )


def assemble(
    kind: Any, config: Any, tensors: Mapping[str, Tensor], what: str, dtype: torch.dtype, **options: Any
) -> Any:
    """A ``transformers`` model of this class and configuration with exactly these tensors, in evaluation mode.

    ``options`` are further arguments of the constructor.
    """
    with torch.device("meta"):
        check_tensors(what, kind(config, **options).state_dict(), tensors)
    model = kind.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=dtype, **options)
    return model.eval().requires_grad_(False)


def linear_head(tensors: Mapping[str, Tensor], width: int, what: str) -> nn.Sequential:
    """Five linear layers from ``width`` to one number, in float32, without activations between them.

    ``tensors`` has ``layers.N.weight`` and ``layers.N.bias`` for N in 0, 2, 4, 6, 7; the others are dropout.
    """
    sizes = [width, *(len(tensors.get(f"layers.{n}.bias", [0])) for n in (0, 2, 4, 6)), 1]
    first, second, third, *rest = (nn.Linear(a, b, device="meta") for a, b in pairwise(sizes))
    head = nn.Sequential(first, nn.Dropout(), second, nn.Dropout(), third, nn.Dropout(), *rest)
    check_tensors(what, head.state_dict(prefix="layers."), tensors)
    state = {name.removeprefix("layers."): tensor.float() for name, tensor in tensors.items()}
    head.load_state_dict(state, assign=True)
    return head.eval().requires_grad_(False)


def declared(info: RewardInfo, default: bool, dtype: str, precision: str = "float32") -> RewardInfo:
    """The declaration of a scorer, exact only with its ``default`` weights in the reference's ``precision``."""
    other = [] if default else ["other weights than the reference's, or a copy of them"]
    other += [] if dtype == precision else [f"in {dtype}"]
    notes = [info.note] if info.note and not info.exact else []
    return replace(info, exact=False, note="; ".join(notes + other)) if other else info


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """Shorter side to ``side`` (bicubic), then the centre square, its corner rounded half to even as in CLIP.

    ``transformers`` rounds the corner down; an image of this size passes its processor unchanged.
    """
    short = min(image.size)
    width, height = (side if edge == short else side * edge // short for edge in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def clip_normalized(images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
    """Images in [0, 1], normalized by CLIP's mean and deviation, for CLIP and BLIP."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (images - mean) / std


def scalar_result(total: Float[Tensor, " B"], scores: Mapping[str, Float[Tensor, " B"]], model: str) -> RewardResult:
    """One number per picture; a picture whose number is not finite is invalid."""
    valid = torch.isfinite(total)
    errors = [{} if good else {"error": "its score is not a finite number"} for good in valid.tolist()]
    return RewardResult(total.float(), dict(scores), valid, tuple({"model": model} | error for error in errors))
