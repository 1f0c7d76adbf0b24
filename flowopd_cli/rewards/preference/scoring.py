"""Shared parts of the scalar scorers: finding checkpoints, loading models, square pictures, results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.preference.clip import split_revision
from flowopd_cli.rewards.weights import Weights, hub_file, load_tensors, refuse_mismatch, split_digest

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
STACK = (0, 2, 4, 6, 7)


def weights_file(source: str, filename: str) -> Weights:
    """The file itself, ``filename`` in a local folder, or in a Hub repository ``name@revision``; a suffix
    ``#sha256=digest`` pins its digest.

    Raises:
        ArtifactError: it is missing or cannot be fetched.
    """
    source, digest = split_digest(source)
    if Path(source).is_file():
        return Weights(Path(source), digest)
    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise ArtifactError(f"{source}: no such file or folder")
    repo, revision = split_revision(source)
    weights = hub_file(repo, filename, revision=revision)
    return weights._replace(sha256=digest or weights.sha256)


def read_checkpoint(source: str, filename: str) -> tuple[dict[str, Tensor], str]:
    """The tensors of a checkpoint found by :func:`weights_file`, and its path.

    Raises:
        ArtifactError: it is missing, cannot be read, or is a pickle that is not pinned.
    """
    path, digest = weights_file(source, filename)
    return load_tensors(path, digest), str(path)


def assemble(
    kind: Any, config: Any, tensors: Mapping[str, Tensor], what: str, dtype: torch.dtype, **options: Any
) -> Any:
    """A ``transformers`` model of this class and configuration with exactly these tensors, in evaluation mode.

    ``options`` are further arguments of the constructor.

    Raises:
        ArtifactError: a name is missing or surplus, or a shape differs.
    """
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in kind(config, **options).state_dict().items()}
    actual = {name: tuple(value.shape) for name, value in tensors.items()}
    shared = expected.keys() & actual.keys()
    misshaped = sorted(f"{name} {actual[name]}" for name in shared if expected[name] != actual[name])
    refuse_mismatch(what, sorted(expected.keys() - shared), sorted(actual.keys() - shared), misshaped)
    model = kind.from_pretrained(None, config=config, state_dict=dict(tensors), dtype=dtype, **options)
    return model.eval().requires_grad_(False)


class LinearStack:
    """Five linear layers without activations between them (dropout only, which scoring leaves out), in float32."""

    def __init__(self, tensors: Mapping[str, Tensor], width: int, what: str) -> None:
        """``tensors`` has ``layers.N.weight`` and ``layers.N.bias`` for N in 0, 2, 4, 6, 7; ``width`` goes in.

        Raises:
            ArtifactError: other names, or shapes that do not lead from ``width`` to one number.
        """
        names = [f"layers.{n}.{part}" for n in STACK for part in ("weight", "bias")]
        missing, unexpected = [n for n in names if n not in tensors], sorted(tensors.keys() - set(names))
        refuse_mismatch(what, missing, unexpected, [])
        self.layers = [(tensors[w].float(), tensors[b].float()) for w, b in zip(names[::2], names[1::2], strict=True)]
        outputs = [weight.shape[0] for weight, _ in self.layers]
        shapes = zip([*outputs[:-1], 1], [width, *outputs[:-1]], strict=True)
        pairs = zip(names[::2], self.layers, shapes, strict=True)
        misshaped = [f"{n} {tuple(w.shape)}" for n, (w, b), s in pairs if w.shape != s or b.shape != s[:1]]
        refuse_mismatch(what, [], [], misshaped)

    def __call__(self, vectors: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """One number for each vector."""
        for weight, bias in self.layers:
            vectors = F.linear(vectors.float(), weight.to(vectors.device), bias.to(vectors.device))
        return vectors[:, 0]


def declared(info: RewardInfo, default: bool, dtype: str) -> RewardInfo:
    """The declaration of a scorer, exact only with its ``default`` weights in float32."""
    other = [] if default else ["other weights than the reference's, or a copy of them"]
    other += [] if dtype == "float32" else [f"in {dtype}"]
    notes = [info.note] if info.note and not info.exact else []
    return replace(info, exact=False, note="; ".join(notes + other)) if other else info


def letterbox(image: Image.Image, side: int) -> Image.Image:
    """The whole picture in a black square: longest side ``side`` (bicubic), centred."""
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side))
    square.paste(image.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """Shorter side to ``side`` (bicubic), then the centre square, its corner rounded half to even as in CLIP.

    ``transformers`` rounds the corner down; an image of this size passes its processor unchanged.
    """
    short = min(image.size)
    width, height = (side if edge == short else side * edge // short for edge in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def clip_pixels(images: Sequence[Image.Image]) -> Float[Tensor, "B 3 S S"]:
    """Squares of one size, scaled to [0, 1] and normalized by CLIP's mean and deviation, for CLIP and BLIP."""
    stacked = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (stacked.permute(0, 3, 1, 2).float() / 255 - mean) / std


def scalar_result(total: Float[Tensor, " B"], scores: Mapping[str, Float[Tensor, " B"]], model: str) -> RewardResult:
    """One number per picture; a picture whose number is not finite is invalid."""
    valid = torch.isfinite(total)
    errors = [{} if good else {"error": "its score is not a finite number"} for good in valid.tolist()]
    return RewardResult(total.float(), dict(scores), valid, tuple({"model": model} | error for error in errors))
