"""The pictures of an evaluation: what they depend on, which are fit to be kept, and the row that is shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.manifest import Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.requests import Wanted
from flowopd_cli.stages.training.samples import grid


def settings(recipe: EvalRecipe, parents: Sequence[Parent]) -> dict[str, Any]:
    """All that a picture depends on, beside its prompt and number."""
    spec = recipe.eval
    drawn = {"steps": spec.steps, "guidance": spec.guidance, "seed": spec.seed}
    adapters = [parent.sha256 for parent in parents]
    model = recipe.model.model_dump(mode="json", exclude={"device", "cache_prompts"})
    return {"model": model, "adapters": adapters, **drawn}


def whole(images: Float[Tensor, "B 3 H W"], wanted: Sequence[Wanted]) -> Float[Tensor, "B 3 H W"]:
    """The pictures themselves.

    Raises:
        ArtifactError: one has pixels that are not finite; as bytes it would pass for a black one.
    """
    broken = [item for item, image in zip(wanted, images, strict=True) if not bool(image.isfinite().all())]
    if broken:
        raise ArtifactError(
            f"prompt {broken[0].prompt.id}, picture {broken[0].place.index}: has pixels that are not finite: "
            "is the adapter sound? Half precision overflows: try --set model.dtype=float32"
        )
    return images


def keep(run: RunDir, wanted: Sequence[Wanted], folder: PictureFolder, count: int) -> None:
    """Keep the first picture of ``count`` prompts spread over the whole list, in one row, and their texts."""
    firsts = [item for item in wanted if item.place.index == 0]
    count = min(count, len(firsts))
    shown = [firsts[i * len(firsts) // count] for i in range(count)]
    run.write_eval("prompts", json.dumps([item.prompt.text for item in shown]))
    pictures = [folder.read(item) for item in shown]
    if len({picture.shape for picture in pictures}) == 1:
        run.write_image("eval", grid(torch.stack(pictures), count))
