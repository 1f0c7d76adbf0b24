"""A tiny random pipeline of every family, for the tests of their common contract."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from support import tiny

from flowopd_cli.models.files.pipelines import absent_parts
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.registry import MODELS


@dataclass(frozen=True)
class Tiny:
    """A family's name, its pipeline of random weights (a function of a seed), and the options that ``load`` needs."""

    family: str
    assemble: Callable[[int], DiffusionPipeline]
    options: Mapping[str, Any]

    def load(self, folder: Path, **more: Any) -> PipelineModel:
        """The folder as a flow model on the CPU."""
        return MODELS.load(self.family).load(folder, LoadOptions(**{"device": "cpu", **self.options, **more}))

    def plain(self, folder: Path) -> DiffusionPipeline:
        """The folder as a diffusers pipeline."""
        pipeline = DiffusionPipeline.from_pretrained(folder, **absent_parts(folder))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


SD3 = Tiny("sd3", tiny.assemble, {"resolution": 8, "max_sequence_length": tiny.SEQUENCE, "targets": tiny.TARGETS})
FLUX = Tiny("flux", tiny.assemble_flux, {**SD3.options, "resolution": 16, "max_sequence_length": tiny.FLUX_SEQUENCE})
FAMILIES = {one.family: one for one in (SD3, FLUX)}
