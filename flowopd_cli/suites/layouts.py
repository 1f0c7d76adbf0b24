"""File names of a suite's pictures, those that its official scorer expects."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.system.json_files import read_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")  # of pictures by other programs; ours are PNG


@dataclass(frozen=True)
class Place:
    """A picture's place in its suite: the prompt's ``position`` in the list, the picture's ``index`` of ``images``."""

    prompt: Prompt
    position: int
    index: int
    images: int


@dataclass(frozen=True)
class Layout:
    """The file names of a suite, relative to its folder."""

    picture: Callable[[Place], str]  #: path of a picture
    notes: Callable[[Prompt, int], Mapping[str, str]] = lambda prompt, position: {}  #: further files of a prompt
    elsewhere: Callable[[Path, Place], Path | None] | None = None  #: finds a picture that another program named
    noted_prompt: Callable[[Path, Place], str | None] = lambda folder, place: None  #: the prompt that a note gives
    sheet: Callable[[Place], str] | None = None  #: path of a file that has all pictures of a prompt, two in a row

    def find(self, folder: Path, place: Place) -> Path | None:
        """The file of a picture in a suite's folder, with any suffix of a picture, ``None`` if it is missing.

        A sheet counts where a picture has no file of its own.

        Raises :class:`RecipeError`: several files are that picture.
        """
        file = only_file(_files(folder / self.picture(place)))
        if file is None and self.elsewhere is not None:
            file = self.elsewhere(folder, place)
        if file is None and self.sheet is not None:
            path = Path(self.sheet(place))
            file = only_file([*_files(folder / path), *_files(folder / path.name)])
        return file

    def is_sheet(self, file: Path, place: Place) -> bool:
        """Whether a picture's file has all pictures of its prompt."""
        return self.sheet is not None and file.stem == Path(self.sheet(place)).stem


def _files(path: Path) -> list[Path]:
    """The files of that name with any suffix of a picture."""
    names = [path.with_suffix(suffix) for lower in SUFFIXES for suffix in (lower, lower.upper())]
    return [name for name in names if name.is_file()]


def only_file(files: Sequence[Path]) -> Path | None:
    """The file of a picture, ``None`` without one; :class:`RecipeError` if these are different files."""
    for other in files[1:]:
        if not other.samefile(files[0]):
            raise RecipeError(f"{files[0]} and {other.name} are the same picture of the suite: remove one of them")
    return files[0] if files else None


def has_picture_suffix(file: Path) -> bool:
    """Whether a file is named as a picture."""
    return file.suffix.lower() in SUFFIXES


def _geneval_elsewhere(folder: Path, place: Place) -> Path | None:
    """The picture of that number among those with an all-digit name, as the official scorer counts them."""
    files = [
        file for file in sorted((folder / f"{place.position:05d}" / "samples").glob("*")) if has_picture_suffix(file)
    ]
    stems = sorted({file.stem for file in files if file.stem.isdecimal()}, key=lambda stem: (int(stem), stem))
    return only_file([file for file in files if file.stem in stems[place.index : place.index + 1]])


def _geneval_noted_prompt(folder: Path, place: Place) -> str | None:
    """The prompt in ``00012/metadata.jsonl``, ``None`` if it cannot be read."""
    try:
        row = read_json(folder / f"{place.position:05d}" / "metadata.jsonl", "metadata")
    except ArtifactError:
        return None
    return row["prompt"] if isinstance(row.get("prompt"), str) else None


def _geneval_notes(prompt: Prompt, position: int) -> Mapping[str, str]:
    """``00012/metadata.jsonl``: the prompt's own row."""
    row = {key: value for key, value in prompt.metadata.items() if key != "prompt"}
    return {f"{position:05d}/metadata.jsonl": json.dumps({**row, "prompt": prompt.text}) + "\n"}


#: ``samples/00012_003.png``: the prompt's position, the picture's index
FLAT = Layout(lambda place: f"samples/{place.position:05d}_{place.index:03d}.png")
#: ``00012/samples/00003.png``, the name that ``evaluate_images.py`` expects
GENEVAL = Layout(
    lambda place: f"{place.position:05d}/samples/{place.index:05d}.png",
    _geneval_notes,
    _geneval_elsewhere,
    _geneval_noted_prompt,
)
