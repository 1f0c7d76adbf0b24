"""The pictures of an evaluation: which are wanted, where they lie, and scoring them while others are drawn."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.files import atomic_write
from flowopd_cli.recipe import EvalSpec
from flowopd_cli.rewards.base import Reward
from flowopd_cli.run import DRAWN
from flowopd_cli.suites.base import Row, Suite, score
from flowopd_cli.suites.layouts import Layout, Place

Picture = UInt8[Tensor, "3 H W"]


@dataclass(frozen=True)
class Wanted:
    """A picture that suites ask for. ``home`` is the first of them, in whose folder and layout it lies."""

    prompt: Prompt
    place: Place
    home: str
    layout: Layout
    suites: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str, int]:
        """Task, prompt id and picture number: what names a picture. Public prompt sets all count from 00000."""
        return self.prompt.task, self.prompt.id, self.place.index

    @property
    def path(self) -> str:
        """Its path below the folder of all suites."""
        return f"{self.home}/{self.layout.picture(self.place)}"


def plan(suites: Sequence[Suite], spec: EvalSpec) -> list[Wanted]:
    """Every picture once, whatever number of suites asks for it, in the order of suites and prompts."""
    found: dict[tuple[str, str, int], Wanted] = {}
    for suite in suites:
        images = spec.images or suite.images
        for position, prompt in chosen(suite.prompts(spec.split), spec.limit):
            for index in range(images):
                place = Place(prompt, position, index, images)
                mine = Wanted(prompt, place, suite.name, suite.layout, (suite.name,))
                known = found.get(mine.key)
                found[mine.key] = mine if known is None else replace(known, suites=(*known.suites, suite.name))
    return list(found.values())


def chosen(prompts: Sequence[Prompt], limit: int | None) -> list[tuple[int, Prompt]]:
    """Prompts with their positions; with a ``limit`` that many, spread evenly over the list."""
    count = len(prompts) if limit is None else min(limit, len(prompts))
    return [(position, prompts[position]) for position in (i * len(prompts) // count for i in range(count))]


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


class Scorer:
    """Scores batches of pictures in a thread of its own, while the next ones are drawn."""

    def __init__(self, suites: Sequence[Suite], rewards: Mapping[str, Reward]) -> None:
        self._suites = {suite.name: suite for suite in suites}
        self._rewards = rewards
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="flowopd-score")
        self._pending: list[Future[list[tuple[str, Row]]]] = []
        self.rows: list[tuple[str, Row]] = []

    def submit(self, wanted: Sequence[Wanted], pictures: Sequence[Picture]) -> None:
        """Take a batch; an error of an earlier one is raised here."""
        self._collect(wait=False)
        self._pending.append(self._pool.submit(self._score, list(wanted), list(pictures)))

    def finish(self) -> list[tuple[str, Row]]:
        """All rows so far, each with its suite's name."""
        self._collect(wait=True)
        return self.rows

    def close(self) -> None:
        """Drop what is still waiting."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _collect(self, *, wait: bool) -> None:
        while self._pending and (wait or self._pending[0].done()):
            self.rows += self._pending.pop(0).result()

    @torch.no_grad()
    def _score(self, wanted: list[Wanted], pictures: list[Picture]) -> list[tuple[str, Row]]:
        rows: list[tuple[str, Row]] = []
        for name, suite in self._suites.items():
            for part in _of_one_size([i for i, w in enumerate(wanted) if name in w.suites], pictures):
                prompts = [wanted[i].prompt for i in part]
                indices = [wanted[i].place.index for i in part]
                images = torch.stack([pictures[i] for i in part])
                rows += [(name, row) for row in score(suite, self._rewards[name], images, prompts, indices)]
        return rows


def _of_one_size(rows: Sequence[int], pictures: Sequence[Picture]) -> Iterator[list[int]]:
    sizes: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        sizes.setdefault(tuple(pictures[row].shape), []).append(row)
    yield from sizes.values()
