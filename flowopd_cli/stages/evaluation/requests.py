"""Which pictures the suites of an evaluation want: each once, whatever number of them asks for it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalSpec
from flowopd_cli.suites.base import Suite
from flowopd_cli.suites.layouts import Layout, Place

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class Wanted:
    """A picture that suites ask for. It lies in the folder ``home``, and in the layout, of the first of them.

    ``aliases`` are other names that this folder may have where another program drew.
    """

    prompt: Prompt
    place: Place
    home: str
    layout: Layout
    suites: tuple[str, ...]
    aliases: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Task, prompt id, its text and picture number: what names a picture. Public sets all count from 00000."""
        return self.prompt.task, self.prompt.id, self.prompt.text, self.place.index

    @property
    def path(self) -> str:
        """Its path below the folder of all suites."""
        return f"{self.home}/{self.layout.picture(self.place)}"


def plan(suites: Sequence[Suite], spec: EvalSpec) -> list[Wanted]:
    """Every picture once, whatever number of suites asks for it, in the order of suites and prompts."""
    found: dict[Key, Wanted] = {}
    for suite in suites:
        images = spec.images or suite.images
        for position, prompt in chosen(suite.prompts(spec.split), spec.limit):
            for index in range(images):
                place = Place(prompt, position, index, images)
                home = suite.folder or suite.name
                mine = Wanted(prompt, place, home, suite.layout, (suite.name,), suite.aliases)
                known = found.get(mine.key)
                found[mine.key] = mine if known is None else replace(known, suites=(*known.suites, suite.name))
    return list(found.values())


def digests(suites: Sequence[Suite], split: str) -> dict[str, str]:
    """What tells the prompts of each folder of pictures from others: a SHA-256 of ids and texts."""
    found: dict[str, str] = {}
    for suite in suites:
        lines = [f"{prompt.task}/{prompt.id}/{prompt.text}" for prompt in suite.prompts(split)]
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
        if found.setdefault(suite.folder or suite.name, digest) != digest:
            raise RecipeError(f"eval.suites: {suite.name} has other prompts than another suite with its pictures")
    return found


def chosen(prompts: Sequence[Prompt], limit: int | None) -> list[tuple[int, Prompt]]:
    """Prompts with their positions; with a ``limit`` that many, spread evenly over the list."""
    count = len(prompts) if limit is None else min(limit, len(prompts))
    return [(position, prompts[position]) for position in (i * len(prompts) // count for i in range(count))]
