"""The pictures of an evaluation: where they lie, and what they depend on."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import ArtifactError
from flowopd_cli.files import atomic_write
from flowopd_cli.manifest import Parent
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.run import DRAWN, RunDir
from flowopd_cli.stages._samples import grid
from flowopd_cli.stages._wanted import Wanted

Picture = UInt8[Tensor, "3 H W"]


@dataclass(frozen=True)
class PictureFolder:
    """Pictures as PNG files under ``root``, each suite's in its own layout.

    With ``foreign`` they are somebody else's: nothing is written, and the suite's folder may be ``root`` itself.
    """

    root: Path
    foreign: bool = False

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Refuse to mix pictures of two settings in one folder; a fresh folder takes them on.

        Raises:
            ArtifactError: there are pictures of other settings.
        """
        path = self.root / DRAWN
        text = json.dumps(settings, indent=1, sort_keys=True)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise ArtifactError(f"{self.root}: has pictures of other settings; choose a fresh --out, or --force")
        if not path.is_file():
            atomic_write(path, text)

    def find(self, wanted: Wanted) -> Path | None:
        """The file of a picture, if it is there."""
        own = self.root / wanted.path
        if own.is_file() or not self.foreign:
            return own if own.is_file() else None
        folders = (self.root / wanted.home, self.root)
        paths = (wanted.layout.find(folder, wanted.place) for folder in folders)
        return next((path for path in paths if path is not None), None)

    def read(self, wanted: Wanted) -> Picture:
        """A picture as RGB bytes.

        Raises:
            ArtifactError: it is missing or no picture.
        """
        path = self.find(wanted)
        if path is None:
            raise ArtifactError(f"{self.root}: no picture {wanted.path}")
        try:
            with Image.open(path) as image:
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: cannot be read as a picture ({error}); delete it and go on") from error

    def write(self, wanted: Wanted, picture: Picture) -> None:
        """Keep a picture, and what its layout notes beside it."""
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
        for name, text in wanted.layout.notes(wanted.prompt, wanted.place.position).items():
            note = self.root / wanted.home / name
            if not note.is_file():
                atomic_write(note, text)
        atomic_write(self.root / wanted.path, buffer.getvalue())


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
