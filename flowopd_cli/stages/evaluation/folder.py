"""A folder of pictures: where each lies, whose they are, reading and writing them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.rewards.pictures import is_whole_png, read_picture
from flowopd_cli.runs.layout import DRAWN
from flowopd_cli.stages.evaluation.requests import Wanted
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import below

Picture = UInt8[Tensor, "3 H W"]


@dataclass(frozen=True)
class PictureFolder:
    """Pictures as PNG files under ``root``, each suite's in its own layout.

    With ``foreign`` they are somebody else's: nothing is written, and the suite's folder may be ``root`` itself.
    """

    root: Path
    foreign: bool = False

    def claim(self, settings: Mapping[str, Any], prompts: Mapping[str, str]) -> None:
        """Refuse to mix pictures of two settings, or of other prompts; a fresh folder takes them on.

        Raises:
            ArtifactError: there are pictures of other settings or prompts.
        """
        path = self.root / DRAWN
        here = read_json(path, "note of what was drawn") if path.is_file() else {"settings": settings, "prompts": {}}
        if not isinstance(here.get("prompts"), dict):
            raise ArtifactError(f"{path}: damaged note of what was drawn; choose a fresh --out, or --force")
        if here.get("settings") != settings:
            raise ArtifactError(f"{self.root}: has pictures of other settings; choose a fresh --out, or --force")
        changed = [home for home, digest in prompts.items() if here["prompts"].get(home, digest) != digest]
        if changed:
            raise ArtifactError(f"{self.root}/{changed[0]}: has pictures of other prompts; choose a fresh --out")
        told = {"settings": settings, "prompts": {**here["prompts"], **prompts}}
        if not path.is_file() or told != here:
            atomic_write(path, json.dumps(told, indent=1, sort_keys=True))

    def find(self, wanted: Wanted) -> Path | None:
        """The file of a picture, if it is there; of our own, if it is whole."""
        own = self.root / wanted.path
        if not self.foreign:
            return own if is_whole_png(own) else None
        if own.is_file():
            return own
        paths = (wanted.layout.find(folder, wanted.place) for folder in self._folders(wanted))
        return next((path for path in paths if path is not None), None)

    def check(self, wanted: Sequence[Wanted]) -> None:
        """Refuse somebody else's pictures that are missing, or noted to be of other prompts.

        Raises:
            RecipeError: some are.
        """
        missing = [item for item in wanted if self.find(item) is None]
        if missing:
            raise RecipeError(f"--images {self.root}: {len(missing)} of {len(wanted)} pictures are missing, "
                              f"the first is {missing[0].path}")  # fmt: skip
        for item in wanted:
            says = next((text for f in self._folders(item) if (text := item.layout.noted_prompt(f, item.place))), None)
            if says is not None and says != item.prompt.text:
                raise RecipeError(f"--images {self.root}: {item.path} is of {says[:60]!r}, and the suite's prompt is "
                                  f"{item.prompt.text[:60]!r}: another prompt file, or another --base?")  # fmt: skip

    def _folders(self, wanted: Wanted) -> tuple[Path, ...]:
        return (self.root / wanted.home, *(self.root / name for name in wanted.aliases), self.root)

    def read(self, wanted: Wanted) -> Picture:
        """A picture as RGB bytes.

        Raises:
            ArtifactError: it is missing or no picture.
        """
        path = self.find(wanted)
        if path is None:
            raise ArtifactError(f"{self.root}: no picture {wanted.path}")
        try:
            return torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1)
        except ArtifactError as error:
            raise ArtifactError(f"{error}{'' if self.foreign else '; delete it and go on'}") from error

    def write(self, wanted: Wanted, picture: Picture) -> None:
        """Keep a picture, and what its layout notes beside it. One that a power cut takes can be drawn again.

        Raises:
            ArtifactError: its layout leads out of the folder.
        """
        buffer = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
        for name, text in wanted.layout.notes(wanted.prompt, wanted.place.position).items():
            note = below(self.root, f"{wanted.home}/{name}")
            if not note.is_file():
                atomic_write(note, text)
        atomic_write(below(self.root, wanted.path), buffer.getvalue(), lasting=False)
