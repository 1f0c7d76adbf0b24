"""The pictures that the suites of an evaluation request, planned once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RecipeError
from flowopd_cli.recipe import EvalSpec
from flowopd_cli.suites.base import Suite, SuiteGroup
from flowopd_cli.suites.layouts import Layout, Place

Key = tuple[str, str, str, int]


@dataclass(frozen=True)
class PictureRequest:
    """A picture and the suites that score it. It lies in the folder and the layout of the first of them."""

    prompt: Prompt
    place: Place
    home: str  #: folder of the suite, below that of all suites
    layout: Layout
    suites: tuple[str, ...]
    aliases: tuple[str, ...] = ()  #: names of ``home`` in other programs
    file: str | None = None  #: its path below the folder of another program, if a list names it

    @cached_property
    def key(self) -> Key:
        """Task, prompt id, prompt and picture number; ids alone repeat, as every public set counts from 00000."""
        return self.prompt.task, self.prompt.id, self.prompt.text, self.place.index

    @cached_property
    def path(self) -> str:
        """The picture's path below the folder of all suites."""
        return self.file or f"{self.home}/{self.layout.picture(self.place)}"


@dataclass(frozen=True)
class Requests:
    """Suites, the groups among them, every picture once, and a SHA-256 of the prompts of each picture folder.

    ``others`` are the suites that score other prompts than their own, with a SHA-256 of these.
    """

    suites: tuple[Suite, ...]
    groups: tuple[SuiteGroup, ...] = ()
    pictures: tuple[PictureRequest, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)


def plan(suites: Sequence[Suite], groups: Sequence[SuiteGroup], spec: EvalSpec) -> Requests:
    """The requests of the suites.

    Raises :class:`RecipeError`: suites with one picture folder have different prompts.
    Raises :class:`PromptError`: two prompts of a suite have the same pictures.
    """
    prompt_lists: dict[Callable[[str], list[Prompt]], list[Prompt]] = {}
    pictures: list[PictureRequest] = []
    digests: dict[str, str] = {}
    others: dict[str, str] = {}
    for suite in suites:
        if suite.prompts not in prompt_lists:
            prompt_lists[suite.prompts] = suite.prompts(spec.split)
        prompts, home, images = prompt_lists[suite.prompts], suite.picture_folder, spec.images or suite.images
        digest = digest_of(prompts)
        if digests.setdefault(home, digest) != digest and spec.pictures is None:
            raise RecipeError(f"eval.suites: {suite.name} has other prompts than another suite with its pictures")
        if not suite.has_own_prompts():
            others[suite.name] = digest_of(prompts, metadata=True)
        own = [
            PictureRequest(
                prompt, Place(prompt, position, index, images), home, suite.layout, (suite.name,), suite.aliases
            )
            for position, prompt in select(prompts, spec.limit)
            for index in range(images)
        ]
        _refuse_shared_files(suite.name, own)
        pictures += own
    return Requests(tuple(suites), tuple(groups), collect(pictures), digests, others)


def _refuse_shared_files(suite: str, requests: Iterable[PictureRequest]) -> None:
    """Refuse prompts with one number or id where that names their pictures."""
    places: dict[str, Place] = {}
    for request in requests:
        other = places.setdefault(request.path, request.place)
        if other.position != request.place.position:
            texts = f"{other.prompt.text[:80]!r} and {request.prompt.text[:80]!r}"
            raise PromptError(
                f"suite {suite}: the prompts {texts} have one picture, {request.path}: give each its own number or id"
            )


def collect(requests: Iterable[PictureRequest]) -> tuple[PictureRequest, ...]:
    """Each picture once, at its first place, with all the suites that request it."""
    pictures: dict[Key, PictureRequest] = {}
    for request in requests:
        if (earlier := pictures.get(request.key)) is not None:
            request = replace(earlier, suites=(*earlier.suites, *request.suites))
        pictures[request.key] = request
    return tuple(pictures.values())


def select(prompts: Sequence[Prompt], limit: int | None) -> list[tuple[int, Prompt]]:
    """Prompts with their positions; with a ``limit`` that many, spread evenly over the list."""
    count = len(prompts) if limit is None else min(limit, len(prompts))
    return [(position, prompts[position]) for position in (i * len(prompts) // count for i in range(count))]


def digest_of(prompts: Sequence[Prompt], *, metadata: bool = False) -> str:
    """SHA-256 of tasks, ids and texts, and of the ``metadata`` too, by which the pictures are scored."""
    lines = [f"{prompt.task}/{prompt.id}/{prompt.text}" for prompt in prompts]
    lines += [json.dumps(dict(prompt.metadata), sort_keys=True) for prompt in prompts if metadata]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
