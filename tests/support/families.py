"""A tiny random pipeline of every family, for the tests of their common contract."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiffusionPipeline
from support import tiny, tiny_klein, tiny_lumina2, tiny_qwen, tiny_sana

from flowopd_cli.core.types import Conditioning
from flowopd_cli.models.files import families
from flowopd_cli.models.files.pipelines import absent_parts
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.registry import MODELS
from flowopd_cli.toy.pipeline import TOKENS


@dataclass(frozen=True)
class Tiny:
    """A family's name, its pipeline of random weights (a function of a seed), and the options that ``load`` needs.

    ``letters`` is the length of the longest text ``aaa…`` that the encoders read whole. ``embeddings`` gives what the
    pipeline makes of a list of texts.
    """

    family: str
    assemble: Callable[[int], DiffusionPipeline]
    options: Mapping[str, Any]
    letters: int
    embeddings: Callable[[DiffusionPipeline, list[str], int], Mapping[str, Any]]

    def load(self, folder: Path, **more: Any) -> PipelineModel:
        """The folder as a flow model on the CPU."""
        return MODELS.load(self.family).load(folder, LoadOptions(**{"device": "cpu", **self.options, **more}))

    def plain(self, folder: Path) -> DiffusionPipeline:
        """The folder as a diffusers pipeline."""
        pipeline = DiffusionPipeline.from_pretrained(folder, **absent_parts(folder))
        pipeline.set_progress_bar_config(disable=True)
        MODELS.load(self.family).prepare_plain(pipeline)
        return pipeline

    def call(self, guidance: float) -> dict[str, Any]:
        """Arguments of the pipeline's call for pictures of the tiny size."""
        own = MODELS.load(self.family).plain_options | families.family(self.family).pipeline_guidance(guidance)
        side, length = self.options["resolution"], self.options["max_sequence_length"]
        return {"max_sequence_length": length, "height": side, "width": side, "output_type": "pt", **own}


def joint(pipeline: DiffusionPipeline, texts: list[str], length: int) -> dict[str, Any]:
    """Of a pipeline with CLIP: SD3's also has the empty prompt's."""
    names = ("embeds", "neg_embeds", "pooled", "neg_pooled")
    if "Flux" in type(pipeline).__name__:
        names = ("embeds", "pooled")
    return dict(zip(names, pipeline.encode_prompt(texts, None, None, max_sequence_length=length), strict=False))


def chat(pipeline: DiffusionPipeline, texts: list[str], length: int) -> dict[str, Any]:
    """Of a pipeline that gives a list of tensors of different lengths."""
    return dict(zip(("embeds", "neg_embeds"), pipeline.encode_prompt(texts, max_sequence_length=length), strict=True))


def masked(pipeline: DiffusionPipeline, texts: list[str], length: int) -> dict[str, Any]:
    """Of a pipeline with its own instruction, which SANA's takes as an argument, without padding."""
    call, name = inspect.signature(type(pipeline).__call__).parameters, "complex_human_instruction"
    own = {name: call[name].default} if name in call else {}
    embeds, mask, empty, empty_mask = pipeline.encode_prompt(texts, max_sequence_length=length, **own)
    halves = {"embeds": (embeds, mask), "neg_embeds": (empty, empty_mask)}
    return {name: [row[keep.bool()] for row, keep in zip(*half, strict=True)] for name, half in halves.items()}


def stacked(pipeline: DiffusionPipeline, texts: list[str], length: int) -> dict[str, Any]:
    """Of a pipeline that encodes the empty prompt as any other."""
    halves = {"embeds": texts, "neg_embeds": [""] * len(texts)}
    return {name: pipeline.encode_prompt(half, max_sequence_length=length)[0] for name, half in halves.items()}


def shown(pipeline: DiffusionPipeline, texts: list[str], length: int) -> dict[str, Any]:
    """Of Qwen-Image's pipeline, which pads to the longest text, without padding."""
    pairs = {"embeds": texts, "neg_embeds": [""] * len(texts)}
    halves = {name: pipeline.encode_prompt(half, max_sequence_length=length) for name, half in pairs.items()}
    return {
        name: Conditioning(embeds, mask=None if mask is None else mask.bool()).unpadded()
        for name, (embeds, mask) in halves.items()
    }


CLIP_LETTERS = TOKENS - 2
SD3 = Tiny(
    "sd3",
    tiny.assemble,
    {"resolution": 8, "max_sequence_length": tiny.SEQUENCE, "targets": tiny.TARGETS},
    CLIP_LETTERS,
    joint,
)
FLUX = Tiny(
    "flux",
    tiny.assemble_flux,
    {**SD3.options, "resolution": 16, "max_sequence_length": tiny.FLUX_SEQUENCE},
    CLIP_LETTERS,
    joint,
)
Z_IMAGE = Tiny(
    "z-image",
    tiny_qwen.assemble_z_image,
    {"resolution": 16, "max_sequence_length": tiny_qwen.SEQUENCE, "targets": ("attention",)},
    tiny_qwen.SEQUENCE - 6,
    chat,
)
SANA = Tiny(
    "sana",
    tiny_sana.assemble_sana,
    {"resolution": 32, "max_sequence_length": tiny_sana.SEQUENCE, "targets": ("attention",)},
    tiny_sana.SEQUENCE - 2,
    masked,
)
LUMINA2 = Tiny(
    "lumina2",
    tiny_lumina2.assemble_lumina2,
    {"resolution": 32, "max_sequence_length": tiny_lumina2.SEQUENCE, "targets": ("attention",)},
    tiny_lumina2.SEQUENCE - 2,
    masked,
)
FLUX2_KLEIN = Tiny(
    "flux2-klein",
    tiny_klein.assemble_klein,
    Z_IMAGE.options,
    Z_IMAGE.letters,
    stacked,
)
QWEN_IMAGE = Tiny(
    "qwen-image",
    tiny_qwen.assemble_qwen_image,
    {"resolution": 16, "max_sequence_length": tiny_qwen.SEQUENCE, "targets": ("attention",)},
    tiny_qwen.SEQUENCE,
    shown,
)
FAMILIES = {one.family: one for one in (SD3, FLUX, Z_IMAGE, SANA, LUMINA2, FLUX2_KLEIN, QWEN_IMAGE)}
# Between them, these two have what code that all families share tells apart: pooled embeddings and masked ones of many
# lengths, one tokenizer and several, schedulers and autoencoders of two classes.
TYPICAL = ("sd3", "sana")
# For tests of such code: the other families are in ``pytest -m slow``.
SHARED = [name if name in TYPICAL else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
