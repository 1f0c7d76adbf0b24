"""Where a suite's pictures lie, so that official scorers can be pointed at the same folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.core.types import Prompt
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
    """``picture`` gives a picture's path in the suite's folder, ``notes`` further files of a prompt and their text.

    ``elsewhere`` finds a picture in a folder that another program filled, where its name may differ; ``says`` reads
    there which prompt the pictures of a place are of, where that is noted.
    """

    picture: Callable[[Place], str]
    notes: Callable[[Prompt, int], Mapping[str, str]] = lambda prompt, position: {}
    elsewhere: Callable[[Path, Place], Path | None] | None = None
    says: Callable[[Path, Place], str | None] = lambda folder, place: None

    def find(self, folder: Path, place: Place) -> Path | None:
        """A picture's file in a suite's folder, if it is there."""
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
    """The picture of that number among those with an all-digit name, as the official scorer takes them."""
    found = [path for path in (folder / f"{place.position:05d}" / "samples").glob("*.png") if path.stem.isdigit()]
    found.sort(key=lambda path: (int(path.stem), path.stem))
    return found[place.index] if place.index < len(found) else None


def geneval_says(folder: Path, place: Place) -> str | None:
    """The prompt in ``00012/metadata.jsonl``, if it lies there."""
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
GENEVAL = Layout(geneval_picture, geneval_notes, geneval_elsewhere, geneval_says)
