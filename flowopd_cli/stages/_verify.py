"""The check before an upload: our picture of the published adapter against plain diffusers'."""

from __future__ import annotations

import torch

from flowopd_cli.core.sampler import SeededNoise
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.plain import Request, plain_picture, plain_pipeline
from flowopd_cli.recipe import PushRecipe
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _model
from flowopd_cli.stages._samples import ode_sampler


def verify(source: RunDir, run: RunDir, recipe: PushRecipe) -> float:
    """Largest difference in [0, 1] between our picture (PEFT form) and plain diffusers' (its own form).

    Both are drawn in float32, whatever the run was trained in: in half precision plain diffusers rounds the adapter and
    the autoencoder too, and the difference would be the rounding's. The base is loaded for this alone, once for each.

    Raises:
        ArtifactError: they differ by more than ``push.tolerance``, or the base does not fit in the device's memory.
    """
    try:
        largest = _difference(source, run, recipe)
    except torch.OutOfMemoryError as error:
        raise ArtifactError(
            "the check of a push draws in float32, which does not fit in this device's memory: "
            "use --set model.device=cpu"
        ) from error
    if largest > recipe.push.tolerance:
        raise ArtifactError(
            f"{run.hub_dir}: plain diffusers draws another picture (difference {largest * 255:.1f} of 255, "
            f"push.tolerance allows {recipe.push.tolerance * 255:.1f}); nothing was uploaded"
        )
    return largest


def _difference(source: RunDir, run: RunDir, recipe: PushRecipe) -> float:
    push, spec = recipe.push, source.recipe().model
    asked = recipe.model.device
    spec = spec.model_copy(update={"dtype": "float32", "device": spec.device if asked == "auto" else asked})
    model = _model.load_model(spec, ())
    if not isinstance(model, PipelineModel):
        raise ArtifactError(f"model.family {spec.family} has no diffusers pipeline to check a push with")
    model.adapters.load("policy", run.hub_dir)
    noise = SeededNoise((recipe.seed,), model.latent_shape)
    cond = model.encode([push.verify_prompt])
    model.release_encoders()
    sampler = ode_sampler(model, push.verify_steps, push.verify_guidance)
    with model.adapters.use("policy"), torch.no_grad():
        initial = noise.initial().to(model.device)
        ours = model.decode(sampler.rollout(model.velocity, initial, cond, noise).final).cpu()
    folder, dtype, device = model.folder, model.dtype, model.device
    start, side = model.packed(noise.initial()), ours.shape[-1]
    del model
    pipeline = plain_pipeline(folder, dtype).to(device)
    request = Request(
        push.verify_prompt, start, side, push.verify_steps, push.verify_guidance, spec.max_sequence_length
    )
    return float((plain_picture(pipeline, run.hub_dir, request) - ours).abs().max())
