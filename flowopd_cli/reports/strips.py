"""Rows of pictures as data URIs of a bounded size: PNG where they are small, WebP where they are not."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.json_files import read_json_value
from flowopd_cli.run import RunDir

BUDGET = 3_000_000  # characters that all pictures of a page may take
ROWS, COLUMNS = 8, 12
WIDEST, SMALLEST = 1600, 200
PIXELS = 1 << 26
SMALL_PNG = 40_000
SHOWN = 160


@dataclass(frozen=True)
class Strip:
    """A row of pictures: its label, where it is, and, once read, its data URI and how large it is."""

    label: str
    file: Path
    uri: str = ""
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Grid:
    """Rows of pictures under the prompts that they share, from left to right."""

    title: str
    caption: str
    prompts: tuple[str, ...]
    strips: tuple[Strip, ...]
    pixelated: bool = False


def read(strip: Strip, widest: int) -> Strip | None:
    """The strip with its picture, at most ``widest`` pixels wide; ``None`` where there is none that can be read."""
    from PIL import Image

    try:
        with Image.open(strip.file, formats=("PNG",)) as found:
            if found.width * found.height > PIXELS:
                return None
            picture = found.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    size = picture.size
    if picture.width > widest:
        scaled = max(1, round(picture.height * widest / picture.width))
        picture = picture.resize((widest, scaled), Image.Resampling.LANCZOS)
    buffer, kind = io.BytesIO(), "png"
    picture.save(buffer, format="PNG", optimize=True)
    if buffer.tell() > SMALL_PNG:
        buffer, kind = io.BytesIO(), "webp"
        picture.save(buffer, format="WEBP", quality=82, method=4)
    text = base64.b64encode(buffer.getvalue()).decode()
    return replace(strip, uri=f"data:image/{kind};base64,{text}", width=size[0], height=size[1])


def within(strips: Sequence[Strip], budget: int = BUDGET) -> list[Strip]:
    """The strips that can be read, all together within ``budget`` characters: narrower until they fit."""
    widest = WIDEST
    while True:
        found = [strip for strip in (read(one, widest) for one in strips) if strip is not None]
        if sum(len(strip.uri) for strip in found) <= budget:
            return found
        if widest <= SMALLEST:
            return found[: len(found) // 2] and within(found[: len(found) // 2], budget)
        widest //= 2


def over_time(run: RunDir) -> Grid | None:
    """A run's samples: the same prompts and seeds as the training went on, the first and the last row among them."""
    found = sorted(path for path in run.samples_dir.glob("*.png") if path.stem.isdecimal())
    chosen = found if len(found) <= ROWS else [found[round(i * (len(found) - 1) / (ROWS - 1))] for i in range(ROWS)]
    strips = within([Strip(f"iteration {int(path.stem)}", path) for path in chosen])
    if not strips:
        return None
    caption = "Drawn by the policy as it stood; a column has the same prompt and seed throughout."
    return grid("Pictures over training time", caption, _sample_prompts(run), strips)


def grid(title: str, caption: str, prompts: Sequence[str], strips: Sequence[Strip]) -> Grid:
    """Strips of one shape with their prompts; without prompts where there are not as many as pictures."""
    first = strips[0]
    alike = tuple(strip for strip in strips if strip.width * first.height == strip.height * first.width)
    across = first.width / max(first.height, 1)
    shown = tuple(str(text)[:SHOWN] for text in prompts) if across == len(prompts) else ()
    return Grid(title, caption, shown, alike, pixelated=first.height <= 96)


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
