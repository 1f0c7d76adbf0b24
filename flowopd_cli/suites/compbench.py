"""T2I-CompBench++ (Huang et al. 2023, arXiv 2307.06350, and 2024): 8 categories of 300 prompts, ten pictures each.

Color, shape, texture and non-spatial are judged by the models of the benchmark itself and comparable with papers. The
spatial, counting and complex categories use UniDet there; here an open-vocabulary detector stands in, whose name is
part of the figure's name (``spatial[grounding-dino]``), and no average mixes the two kinds. What the official scripts
wrote can be read instead (``import_scores``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import PromptError, RecipeError
from flowopd_cli.prompts.files import read_rows
from flowopd_cli.prompts.public import fetch
from flowopd_cli.prompts.sources import only_test
from flowopd_cli.rewards.compbench.rules import kinds_of
from flowopd_cli.suites.base import NamedReward, Result, Suite, SuiteGroup, combined_error
from flowopd_cli.suites.compbench_import import PUBLISHED, import_category, import_scores
from flowopd_cli.suites.layouts import Layout, Place

NAME, VERSION = "t2i-compbench", "t2i-compbench++-1"
IMAGES = 10
LONGEST = 240
DETECTOR, DEPTH = "grounding-dino", "dpt-hybrid"


@dataclass(frozen=True)
class Category:
    """How a category is judged: the reward, which of the suite's options it takes and what they are called there.

    ``fixed`` are options of ours, ``score`` is the reward's figure that counts (``None``: its total).
    """

    reward: str
    options: Mapping[str, str]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    score: str | None = None


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in (*names, "device", "batch")}


_ASKED = {**_same("parser", "tokenizer", "dtype"), "blip": "model"}
_SEEN = _same("parser", "detector")
CATEGORIES: Mapping[str, Category] = {
    "color": Category("blip-vqa", _ASKED),
    "shape": Category("blip-vqa", _ASKED),
    "texture": Category("blip-vqa", _ASKED),
    "spatial": Category("compbench-spatial", _SEEN),
    "3d_spatial": Category("compbench-3d-spatial", {**_SEEN, "depth": "depth"}),
    "numeracy": Category("compbench-numeracy", _SEEN),
    "non_spatial": Category(
        "clipscore", {**_same("dtype"), "clip": "source"}, {"variant": "t2i-compbench"}, score="cosine"
    ),
    "complex": Category("compbench-complex", {**_SEEN, "blip": "blip", "clip": "clip"}),
}
COMPARABLE = ("color", "shape", "texture", "non_spatial")


def experimental(name: str) -> bool:
    """Whether a figure's name says that another model than the benchmark's judged it: ``spatial[owlv2]``."""
    return "[" in name


def figure_name(category: str, detector: str = DETECTOR) -> str:
    """The name of a category's figure: plain where it is comparable, with the detector's name where it is not."""
    if category in COMPARABLE:
        return category
    return f"{category}[{detector.partition('=')[0]}{f'+{DEPTH}' if category == '3d_spatial' else ''}]"


def file_name(prompt_text: str, running_index: int) -> str:
    """``<prompt>_<6 digits>.png``; the index runs over the category: picture j of prompt i of ten is ``10 i + j``."""
    return f"{prompt_text}_{running_index:06d}.png"


def prompts(category: str, folder: Path) -> list[Prompt]:
    """The prompts of a category, from ``<category>_val.txt`` in a folder.

    ``metadata`` has category and position, which the file's name depends on; a complex prompt also says which
    ``relations`` it has, by the helper files ``complex_val_spatial.txt`` and ``complex_val_action.txt``.

    Raises:
        PromptError: no such category, a file is missing or unreadable, or a prompt cannot be part of a file's name.
    """
    _known([category])
    rows = read_rows(folder / f"{category}_val.txt")
    for row in rows:
        if set("_/\\") & set(row.text) or len(row.text.encode()) > LONGEST:
            raise PromptError(f"{row.place}: pictures are named after it, so no _, no /, no \\, {LONGEST} bytes")
    texts = [row.text for row in rows]
    lists = ([row.text for row in read_rows(folder / f"complex_val_{kind}.txt")] for kind in ("spatial", "action"))
    kinds = kinds_of(texts, *lists) if category == "complex" else [None] * len(texts)
    return [
        Prompt(
            f"{NAME}/{category}/{position:03d}",
            text,
            NAME,
            {"category": category, "position": position} | ({"relations": kind} if kind else {}),
        )
        for position, (text, kind) in enumerate(zip(texts, kinds, strict=True))
    ]


def reward(category: str, **options: Any) -> NamedReward:
    """The reward of a category by its name in the registry; of the suite's options it gets those that it takes.

    Raises:
        RecipeError: an option that no category takes.
    """
    _known([category])
    known = {name for found in CATEGORIES.values() for name in found.options}
    unknown = sorted(set(options) - known)
    if unknown:
        raise RecipeError(f"{NAME}: no option {unknown[0]!r}; known: {', '.join(sorted(known))}")
    found = CATEGORIES[category]
    taken = {found.options[name]: value for name, value in options.items() if name in found.options}
    return NamedReward(found.reward, {**found.fixed, **taken})


def t2i_compbench(categories: Sequence[str] | str = (), folder: str | None = None, **options: Any) -> SuiteGroup:
    """One suite a category, ``t2i-compbench-<figure's name>``, all eight where none is named.

    ``folder`` holds the prompt files in place of the fetched ones; ``options`` are those of ``reward``.

    Raises:
        PromptError: no such category.
    """
    chosen = [name.strip() for name in categories.split(",")] if isinstance(categories, str) else list(categories)
    _known(chosen)
    suites = tuple(suite(name, folder, **options) for name in chosen or CATEGORIES)
    comparable = not chosen or set(chosen) & set(COMPARABLE)
    return SuiteGroup(NAME, suites, aggregate if comparable else None)


def suite(category: str, folder: str | None = None, **options: Any) -> Suite:
    """The suite of one category."""
    name = f"{NAME}-{figure_name(category, str(options.get('detector', DETECTOR)))}"
    return Suite(
        name=name,
        version=VERSION,
        prompts=partial(_prompts, category, folder),
        reward=reward(category, **options),
        score=CATEGORIES[category].score,
        images=IMAGES,
        layout=LAYOUT,
        published={} if experimental(name) else PUBLISHED[category],
        folder=f"{NAME}-{category}",
        aliases=(category,),
        imported=partial(import_category, category=category),
    )


def aggregate(found: Mapping[str, Result]) -> Result:
    """Mean of the comparable categories alone, with what went into it; those of another detector are listed apart.

    ``mean`` is NaN where no comparable category was judged. The errors of categories add in squares.
    """
    plain = {name: result for name, result in found.items() if not experimental(str(result.get("suite", name)))}
    apart = {name: result["mean"] for name, result in found.items() if name not in plain}
    mean = sum(result["mean"] for result in plain.values()) / len(plain) if plain else math.nan
    return {
        "suite": NAME,
        "version": VERSION,
        "exact": bool(plain) and all(result.get("exact", True) for result in plain.values()),
        "note": f"mean of {len(plain)} comparable of {len(CATEGORIES)} categories",
        "mean": mean,
        "stderr": combined_error([result.get("stderr") for result in plain.values()]),
        "n": sum(result["n"] for result in plain.values()),
        "parts": {name: result["mean"] for name, result in plain.items()},
        "experimental": apart,
        "published": {},
    }


def compbench_picture(place: Place) -> str:
    """``samples/<prompt>_<6 digits>.png``, the index running over the category."""
    return f"samples/{file_name(place.prompt.text, place.position * place.images + place.index)}"


def compbench_elsewhere(folder: Path, place: Place) -> Path | None:
    """The picture of that running index, whatever number of digits its name has."""
    index = place.position * place.images + place.index
    found = (folder / "samples").glob(f"{_literal(place.prompt.text)}_*.png")
    return next((path for path in found if path.stem.rpartition("_")[2].isdigit()
                 and int(path.stem.rpartition("_")[2]) == index), None)  # fmt: skip


LAYOUT = Layout(compbench_picture, elsewhere=compbench_elsewhere)
__all__ = [
    "CATEGORIES",
    "aggregate",
    "experimental",
    "file_name",
    "import_scores",
    "prompts",
    "reward",
    "t2i_compbench",
]


def _literal(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _prompts(category: str, folder: str | None, split: str) -> list[Prompt]:
    only_test(NAME, split)
    return prompts(category, fetch(NAME).path if folder is None else Path(folder))


def _known(categories: Sequence[str]) -> None:
    for name in categories:
        if name not in CATEGORIES:
            raise PromptError(f"{NAME}: no category {name!r}; known: {', '.join(CATEGORIES)}")
