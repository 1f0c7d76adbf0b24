"""Rows of pictures as data URIs of a bounded size: PNG where they are small, WebP where they are not."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import read_json_value

BUDGET = 3_000_000  # characters that all pictures of a page may take
ROWS, COLUMNS = 8, 12
WIDEST, SMALLEST = 240, 60  # pixels of one picture
PIXELS = 1 << 26
PIXELATED = 96  # pixels: pictures up to this size are shown as they are, larger ones are compressed
SHOWN = 160


@dataclass(frozen=True)
class Strip:
    """A row of pictures: its label, the file of them all, and, once read, each as a data URI; ``size`` is a height."""

    label: str
    file: Path
    uris: tuple[str, ...] = ()
    width: int = 0
    size: int = 0

    @property
    def characters(self) -> int:
        """How long the pictures are, written into the page."""
        return sum(map(len, self.uris))


@dataclass(frozen=True)
class Grid:
    """Rows of pictures over the prompts that they share, from left to right."""

    title: str
    caption: str
    prompts: tuple[str, ...]
    strips: tuple[Strip, ...]

    @property
    def pixelated(self) -> bool:
        """Whether the pictures are so small that their pixels are to be seen."""
        return self.strips[0].size <= PIXELATED


def read(strip: Strip, count: int, widest: int) -> Strip | None:
    """The strip with its pictures, each at most ``widest`` pixels wide and four times as high; ``None`` where none can
    be read.

    ``count`` is how many lie side by side, 0 where that is not known: they are then taken for squares.
    """
    from PIL import Image

    try:
        with Image.open(strip.file, formats=("PNG",)) as found:
            if found.width * found.height > PIXELS:
                return None
            whole = found.convert("RGB")
        count = count or max(1, round(whole.width / whole.height))
        width = whole.width // count if whole.width % count == 0 else whole.width
        places = range(0, whole.width, width)[:COLUMNS]
        parts = [whole.crop((left, 0, left + width, whole.height)) for left in places]
        uris = tuple(_uri(part, widest) for part in parts)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return replace(strip, uris=uris, width=width, size=whole.height)


def _uri(picture: Any, widest: int) -> str:
    picture.thumbnail((widest, widest * 4))  # never larger than it is
    kind = "png" if picture.width * picture.height <= PIXELATED**2 else "webp"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def within(strips: Sequence[Strip], count: int, budget: int = BUDGET) -> list[Strip]:
    """The strips that can be read, all together within ``budget`` characters: narrower until they fit, then fewer."""
    widest, found = WIDEST, []
    while widest >= SMALLEST:
        found = [strip for strip in (read(one, count, widest) for one in strips) if strip is not None]
        if sum(strip.characters for strip in found) <= budget:
            return found
        widest //= 2
    kept = [i for i in range(len(found)) if sum(strip.characters for strip in found[: i + 1]) <= budget]
    return found[: len(kept)]


def over_time(run: RunDir) -> Grid | None:
    """A run's samples: the same prompts and seeds as the training went on, the first and the last row among them."""
    found = run.samples()
    chosen = found if len(found) <= ROWS else [found[round(i * (len(found) - 1) / (ROWS - 1))] for i in range(ROWS)]
    prompts = _sample_prompts(run)
    strips = within([Strip(f"iteration {iteration}", path) for iteration, path in chosen], len(prompts))
    caption = "Drawn by the policy as it stood; a column has the same prompt and seed throughout."
    return grid("Pictures over training time", caption, prompts, strips) if strips else None


def grid(title: str, caption: str, prompts: Sequence[str], strips: Sequence[Strip]) -> Grid:
    """Strips of as many pictures as the first one, with their prompts where there are as many of those."""
    alike = tuple(strip for strip in strips if len(strip.uris) == len(strips[0].uris))
    shown = tuple(str(text)[:SHOWN] for text in prompts[:COLUMNS])
    return Grid(title, caption, shown if len(shown) == len(strips[0].uris) else (), alike)


def _sample_prompts(run: RunDir) -> list[str]:
    """What the columns of a run's samples show; nothing where the run did not write it down."""
    return [str(entry.get("text", "")) for entry in _list(run.sample_prompts_file) if isinstance(entry, Mapping)]


def shown_prompts(run: RunDir) -> list[str]:
    """The prompts of an evaluation's row of pictures."""
    return [text for text in _list(run.eval_file("prompts")) if isinstance(text, str)]


def _list(file: Path) -> list[Any]:
    try:
        told = read_json_value(file, "list of prompts")
    except ArtifactError:
        return []
    return told if isinstance(told, list) else []
