"""Rows of pictures as data URIs of a bounded size: PNG for small ones, WebP for others."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.evaluations import SHEET, Evaluation
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import read_json_value

BUDGET = 3_000_000  # characters of all pictures of a page
MAX_ROWS, MAX_COLUMNS, MAX_PROMPT = 8, 12, 160
MAX_WIDTH = 240  # pixels of one picture
WIDTHS = (MAX_WIDTH, MAX_WIDTH // 2, MAX_WIDTH // 4)
PIXELATED = 96  # pixels: up to this size single pixels are shown, larger pictures are compressed


@dataclass(frozen=True)
class Strip:
    """A row of pictures: its label, each picture as a data URI, their width and height in the file."""

    label: str
    uris: tuple[str, ...]
    width: int
    height: int


@dataclass(frozen=True)
class Grid:
    """Rows of pictures over the prompts that they share."""

    title: str
    caption: str
    prompts: tuple[str, ...]
    strips: tuple[Strip, ...]

    @property
    def pixelated(self) -> bool:
        """Whether to show single pixels."""
        return self.strips[0].height <= PIXELATED


def grid(
    title: str, caption: str, prompts: Sequence[str], files: Sequence[tuple[str, Path]], budget: int = BUDGET
) -> Grid | None:
    """The pictures of labeled files, one for each prompt; ``None`` where no file can be read.

    Pictures shrink until they fit into ``budget`` characters, then rows are dropped. Prompts are left out if their
    number differs from that of the pictures.
    """
    strips: list[Strip] = []
    for width in WIDTHS:
        strips = [strip for label, file in files if (strip := _read(label, file, len(prompts), width))]
        if _characters(strips) <= budget:
            break
    while _characters(strips) > budget:
        strips.pop()
    if not strips:
        return None
    columns = len(strips[0].uris)
    shown = tuple(text[:MAX_PROMPT] for text in prompts[:MAX_COLUMNS])
    strips = [strip for strip in strips if len(strip.uris) == columns]
    return Grid(title, caption, shown if len(shown) == columns else (), tuple(strips))


def _characters(strips: Sequence[Strip]) -> int:
    return sum(len(uri) for strip in strips for uri in strip.uris)


def _read(label: str, file: Path, count: int, max_width: int) -> Strip | None:
    """The ``count`` pictures side by side in a file (0: squares); ``None`` for a file that cannot be read."""
    from flowopd_cli.system.pictures import read_picture

    try:
        row = read_picture(file)
        count = count or max(1, round(row.width / row.height))
        width = row.width // count if row.width % count == 0 else row.width
        lefts = range(0, row.width, width)[:MAX_COLUMNS]
        uris = tuple(_uri(row.crop((left, 0, left + width, row.height)), max_width) for left in lefts)
    except (ArtifactError, OSError, ValueError):
        return None
    return Strip(label, uris, width, row.height)


def _uri(picture: Any, max_width: int) -> str:
    picture.thumbnail((max_width, max_width * 4))
    kind = "png" if picture.width * picture.height <= PIXELATED**2 else "webp"
    buffer = io.BytesIO()
    picture.save(buffer, format=kind, quality=82)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def over_time(run: RunDir) -> Grid | None:
    """A run's samples of the same prompts and seeds during training, including the first and the last."""
    samples = run.samples()
    if len(samples) > MAX_ROWS:
        samples = [samples[round(i * (len(samples) - 1) / (MAX_ROWS - 1))] for i in range(MAX_ROWS)]
    prompts = [str(entry.get("text", "")) for entry in _list(run.sample_prompts_file) if isinstance(entry, dict)]
    caption = "Drawn by the policy at that iteration; a column has the same prompt and seed throughout."
    files = [(f"iteration {iteration}", file) for iteration, file in samples]
    return grid("Pictures over training time", caption, prompts, files)


def evaluated(run: RunDir, scores: Sequence[Evaluation] = ()) -> Grid | None:
    """The row of pictures of a push, or of an evaluation at each guidance."""
    caption = "The first picture of prompts spread over the suites."
    rows = [(f"guidance {one.guidance:g}" if one.part else "", one.sheet) for one in scores]
    return grid("Pictures", caption, evaluated_prompts(run), rows or [("", run.image_file(SHEET))])


def evaluated_prompts(run: RunDir) -> list[str]:
    """The prompts of an evaluation's row of pictures."""
    return [text for text in _list(run.eval_file("prompts")) if isinstance(text, str)]


def _list(file: Path) -> list[Any]:
    try:
        value = read_json_value(file, "list of prompts")
    except ArtifactError:
        return []
    return value if isinstance(value, list) else []
