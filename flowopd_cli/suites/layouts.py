"""File names of a suite's pictures, those that its official scorer expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.system.json_files import read_json


@dataclass(frozen=True)
class Place:
    """A picture's place in its suite: prompt ``position`` in the whole list, picture ``index`` of ``images`` each."""

    prompt: Prompt
    position: int
    index: int
    images: int


@dataclass(frozen=True)
class Layout:
    """The files of a suite, relative to its folder."""

    picture: Callable[[Place], str]  #: path of a picture
    notes: Callable[[Prompt, int], Mapping[str, str]] = lambda prompt, position: {}  #: further files of a prompt
    elsewhere: Callable[[Path, Place], Path | None] | None = None  #: finds a picture that another program named
    noted_prompt: Callable[[Path, Place], str | None] = lambda folder, place: None  #: the prompt that a note gives

    def find(self, folder: Path, place: Place) -> Path | None:
        """The file of a picture in a suite's folder, ``None`` if it is missing."""
        own = folder / self.picture(place)
        if own.is_file() or self.elsewhere is None:
            return own if own.is_file() else None
        return self.elsewhere(folder, place)


def flat_picture(place: Place) -> str:
    """``samples/00012_003.png``: the prompt's position, the picture's number."""
    return f"samples/{place.position:05d}_{place.index:03d}.png"


def geneval_picture(place: Place) -> str:
    """``00012/samples/00003.png``, as ``evaluate_images.py`` looks for it."""
    return f"{place.position:05d}/samples/{place.index:05d}.png"


def geneval_elsewhere(folder: Path, place: Place) -> Path | None:
    """The picture of that number among those with an all-digit name, as the official scorer counts them."""
    paths = [path for path in (folder / f"{place.position:05d}" / "samples").glob("*.png") if path.stem.isdigit()]
    paths.sort(key=lambda path: (int(path.stem), path.stem))
    return paths[place.index] if place.index < len(paths) else None


def geneval_noted_prompt(folder: Path, place: Place) -> str | None:
    """The prompt in ``00012/metadata.jsonl``, ``None`` without a readable one."""
    try:
        row = read_json(folder / f"{place.position:05d}" / "metadata.jsonl", "metadata")
    except ArtifactError:
        return None
    return row["prompt"] if isinstance(row.get("prompt"), str) else None


def geneval_notes(prompt: Prompt, position: int) -> Mapping[str, str]:
    """``00012/metadata.jsonl``: the prompt's own row."""
    row = {key: value for key, value in prompt.metadata.items() if key != "prompt"}
    return {f"{position:05d}/metadata.jsonl": json.dumps({**row, "prompt": prompt.text}) + "\n"}


FLAT = Layout(flat_picture)
GENEVAL = Layout(geneval_picture, geneval_notes, geneval_elsewhere, geneval_noted_prompt)
