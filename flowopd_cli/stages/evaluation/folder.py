"""The picture folder of an evaluation: checks, reads and writes its pictures."""

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

from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.runs.layout import DRAWN, part_name
from flowopd_cli.runs.manifest import Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.drawing import side_by_side, to_bytes
from flowopd_cli.stages.evaluation.requests import PictureRequest
from flowopd_cli.suites.layouts import Place
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.paths import below
from flowopd_cli.system.pictures import is_whole_png, read_picture

Picture = UInt8[Tensor, "3 H W"]


@dataclass(frozen=True)
class PictureFolder:
    """Pictures under ``root`` in each suite's layout; a ``foreign`` folder, from another program, is only read."""

    root: Path
    foreign: bool = False

    def claim(self, settings: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        """Record the pictures' settings and prompts; :class:`ArtifactError` if those in the folder differ."""
        path = self.root / DRAWN
        record = read_json(path, "record of pictures") if path.is_file() else {"settings": settings, "prompts": {}}
        if not isinstance(record.get("prompts"), dict):
            raise ArtifactError(f"{path}: damaged record of pictures; choose a fresh --out, or --force")
        if record.get("settings") != settings:
            raise ArtifactError(f"{self.root}: has pictures of other settings; choose a fresh --out, or --force")
        changed = [home for home, digest in digests.items() if record["prompts"].get(home, digest) != digest]
        if changed:
            raise ArtifactError(f"{self.root}/{changed[0]}: has pictures of other prompts; choose a fresh --out")
        claimed = {"settings": settings, "prompts": {**record["prompts"], **digests}}
        if not path.is_file() or claimed != record:
            atomic_write(path, json.dumps(claimed, indent=1, sort_keys=True))

    def file(self, request: PictureRequest) -> Path | None:
        """The file of a picture, ``None`` if it is missing; :class:`RecipeError` if several files are that picture."""
        if not self.foreign or request.file is not None:
            path = self.root / request.path
            return path if path.is_file() else None
        files = (request.layout.find(folder, request.place) for folder in self._suite_folders(request))
        return next(filter(None, files), None)

    def find(self, request: PictureRequest) -> Path | None:
        """The file of a picture; one of ours that a crash left incomplete counts as missing."""
        path = self.file(request)
        return path if path is None or self.foreign or is_whole_png(path) else None

    def check(self, requests: Sequence[PictureRequest]) -> None:
        """Raise :class:`RecipeError` unless a foreign folder has every picture, of the prompt it notes."""
        missing = [request.path for request in requests if self.file(request) is None]
        source = f"--images {self.root}"
        if missing:
            raise RecipeError(
                f"{source}: {len(missing)} of {len(requests)} pictures are missing, the first is {missing[0]} "
                "(or .jpg, .jpeg, .webp)"
            )
        for request in requests:
            text = request.prompt.text
            notes = (request.layout.noted_prompt(path, request.place) for path in self._suite_folders(request))
            note = next(filter(None, notes), text)
            if note != text:
                clash = f"{request.path} is of {note[:60]!r}, but the prompt is {text[:60]!r}"
                raise RecipeError(f"{source}: {clash}: another prompt file, or another --base?")

    def _suite_folders(self, request: PictureRequest) -> tuple[Path, ...]:
        return (self.root / request.home, *(self.root / name for name in request.aliases), self.root)

    def read(self, request: PictureRequest) -> Picture:
        """A picture as RGB bytes; :class:`ArtifactError` if it is missing or cannot be decoded."""
        path = self.file(request)
        if path is None:
            raise ArtifactError(f"{self.root}: no picture {request.path}")
        try:
            picture = torch.from_numpy(np.array(read_picture(path))).permute(2, 0, 1)
        except ArtifactError as error:
            raise ArtifactError(f"{error}{'' if self.foreign else '; delete it and resume'}") from error
        return cut(picture, request.place, path) if request.layout.is_sheet(path, request.place) else picture

    def prepare(self, requests: Sequence[PictureRequest]) -> None:
        """Write each layout's notes for a prompt; :class:`ArtifactError` if a path leads out of the folder."""
        for request in requests:
            below(self.root, request.path)
            for name, text in request.layout.notes(request.prompt, request.place.position).items():
                note = below(self.root, f"{request.home}/{name}")
                if not note.is_file():
                    atomic_write(note, text)

    def write(self, requests: Sequence[PictureRequest], images: Float[Tensor, "B 3 H W"]) -> list[Picture]:
        """Write images in [0, 1] and return them as bytes; pixels that are not finite are an :class:`ArtifactError`.

        A resumed run redraws files that a power failure took.
        """
        for request, image in zip(requests, images, strict=True):
            if not bool(image.isfinite().all()):
                raise ArtifactError(
                    f"prompt {request.prompt.id}, picture {request.place.index}: has pixels that are not finite: "
                    "is the adapter damaged? Half precision overflows: try --set model.dtype=float32"
                )
        pictures = list(to_bytes(images))
        for request, picture in zip(requests, pictures, strict=True):
            buffer = io.BytesIO()
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
            atomic_write(self.root / request.path, buffer.getvalue(), lasting=False)
        return pictures

    def write_sheets(self, requests: Sequence[PictureRequest]) -> None:
        """Write the pictures of each prompt as one file where the suite's official scorer reads them so."""
        sheets: dict[str, list[PictureRequest]] = {}
        for request in requests:
            if request.layout.sheet is not None and not self.foreign:
                sheets.setdefault(f"{request.home}/{request.layout.sheet(request.place)}", []).append(request)
        for name, pictures in sheets.items():
            buffer = io.BytesIO()
            sheet = join([self.read(request) for request in pictures])
            Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
            atomic_write(below(self.root, name), buffer.getvalue(), lasting=False)


def join(pictures: Sequence[Picture]) -> Picture:
    """Pictures of one size as one, two in a row."""
    pairs = [torch.cat(tuple(pictures[i : i + 2]), dim=2) for i in range(0, len(pictures), 2)]
    last = torch.zeros_like(pairs[0])
    last[:, :, : pairs[-1].shape[2]] = pairs[-1]
    return torch.cat([*pairs[:-1], last], dim=1)


def cut(sheet: Picture, place: Place, path: Path) -> Picture:
    """The picture of that place in a sheet of all its prompt's; :class:`ArtifactError` if they differ in size."""
    columns, rows = min(place.images, 2), -(-place.images // 2)
    height, width = sheet.shape[1] // rows, sheet.shape[2] // columns
    if sheet.shape[1:] != (rows * height, columns * width):
        raise ArtifactError(f"{path}: {sheet.shape[2]} x {sheet.shape[1]} pixels are not {rows} x {columns} pictures")
    top, left = height * (place.index // 2), width * (place.index % 2)
    return sheet[:, top : top + height, left : left + width]


def picture_settings(recipe: EvalRecipe, parents: Sequence[Parent]) -> dict[str, Any]:
    """The settings that a picture depends on, besides its prompt and number."""
    model = recipe.model.model_dump(mode="json", exclude={"device", "cache_prompts", "too_long"})
    sampling = recipe.eval.model_dump(mode="json", include={"steps", "guidance", "seed"})
    return {"model": model, "adapters": [parent.sha256 for parent in parents], **sampling}


def write_samples(
    run: RunDir, requests: Sequence[PictureRequest], folder: PictureFolder, count: int, part: str = ""
) -> None:
    """Write the first picture of ``count`` prompts, spread over the whole list, as one row, and their prompts."""
    firsts = [request for request in requests if request.place.index == 0]
    count = min(count, len(firsts))
    chosen = [firsts[i * len(firsts) // count] for i in range(count)]
    run.write_eval("prompts", json.dumps([request.prompt.text for request in chosen]))
    pictures = [folder.read(request) for request in chosen]
    if len({picture.shape for picture in pictures}) == 1:
        run.write_image(part_name("eval", part), side_by_side(pictures))
