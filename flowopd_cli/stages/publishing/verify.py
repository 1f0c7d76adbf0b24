"""The check of a push: our picture with the adapter against those of plain diffusers and PEFT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from flowopd_cli.core.sampler import SeededNoise
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family
from flowopd_cli.models.files.full_weights import is_full
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.reference import Request, full_picture, peft_picture, plain_picture, plain_pipeline
from flowopd_cli.recipe import ModelSpec, PushRecipe
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.drawing import ode_sampler
from flowopd_cli.stages.publishing.folder import model_of
from flowopd_cli.stages.training.model import load_model

SPEED = {"attention": "auto", "compile": "none", "shard": False}


class Check:
    """Draws one prompt with our sampler and, from folders, with plain diffusers and PEFT.

    All draw in float32: in half precision diffusers rounds the adapter and the autoencoder, and the pictures differ.
    ``SPEED`` is off, because some of it needs half precision. The base is loaded twice.
    """

    def __init__(self, source: RunDir, folder: Path, recipe: PushRecipe) -> None:
        self._recipe = recipe
        spec, device = model_of(recipe, source), recipe.model.device
        update = {"dtype": "float32", "device": spec.device if device == "auto" else device, **SPEED}
        with _out_of_memory_as_error():
            self._draw(folder, spec.model_copy(update=update))

    def compare(self, folder: Path, what: str) -> dict[str, float]:
        """Largest differences in [0, 1] between our picture and those of plain diffusers and PEFT from a folder.

        PEFT has no part in a full model.
        One above ``push.tolerance`` is an :class:`ArtifactError` with ``what`` as the way out.
        """
        libraries = {"difference": ("plain diffusers", plain_picture), "difference_peft": ("PEFT", peft_picture)}
        if is_full(folder):
            libraries = {"difference": ("plain diffusers", full_picture)}
        limit, figures = self._recipe.push.tolerance, {}
        for name, (library, draw) in libraries.items():
            with _out_of_memory_as_error():
                picture = draw(self._pipeline, folder, self._request)
            figures[name] = largest = float((picture - self._ours).abs().max())
            if not largest <= limit:
                raise ArtifactError(
                    f"{folder}: {library} draws another picture (difference {largest * 255:.1f} of 255, "
                    f"push.tolerance allows {limit * 255:.1f}); {what}"
                )
        return figures

    @cached_property
    def _pipeline(self) -> Any:
        pipeline = plain_pipeline(self._folder, torch.float32).to(self._device)
        self._family.prepare_plain(pipeline)
        return pipeline

    def _draw(self, folder: Path, spec: ModelSpec) -> None:
        push, model = self._recipe.push, load_model(spec, ())
        if not isinstance(model, PipelineModel):
            raise ArtifactError(f"model.family {spec.family} has no diffusers pipeline to check a push with")
        model.adapters.load("policy", folder)
        noise = SeededNoise((self._recipe.seed,), model.latent_shape)
        cond = model.encode([push.verify_prompt])
        model.release_encoders()
        sampler = ode_sampler(model, push.verify_steps, push.verify_guidance)
        with model.adapters.use("policy"), torch.no_grad():
            initial = noise.initial().to(model.device)
            self._ours = model.decode(sampler.rollout(model.velocity, initial, cond, noise).final).cpu()
        self._folder, self._device = model.folder, model.device
        start, side = model.packed(noise.initial()), self._ours.shape[-1]
        self._family = type(model)
        options = {**family(spec.family).call(push.verify_guidance, spec), **model.plain_options}
        self._request = Request(push.verify_prompt, start, side, push.verify_steps, spec.max_sequence_length, options)


@contextmanager
def _out_of_memory_as_error() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise ArtifactError(
            "the check of a push draws in float32, which does not fit in this device's memory: "
            "use --set model.device=cpu"
        ) from error
