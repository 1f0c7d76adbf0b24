"""T2I-CompBench++ (Huang et al. 2023, arXiv 2307.06350, and 2024): 8 categories of 300 prompts, ten pictures each.

Color, shape, texture and non-spatial use the benchmark's own models and compare with papers. So do the others over
UniDet (``detector: unidet``). Over an open-vocabulary detector, the default, it is part of the figure's name
(``spatial[grounding-dino]``), and the average leaves them out.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RecipeError
from flowopd_cli.prompts.files import read_rows
from flowopd_cli.prompts.public import fetch, is_public
from flowopd_cli.prompts.sources import check_split
from flowopd_cli.rewards.compbench.detectors import KINDS
from flowopd_cli.rewards.compbench.rules import kinds_of
from flowopd_cli.suites.base import NamedReward, Result, Suite, SuiteGroup, combined_error
from flowopd_cli.suites.compbench_import import IMAGES, NAME, PUBLISHED, VERSION, import_category
from flowopd_cli.suites.layouts import Layout, Place, has_picture_suffix, only_file
from flowopd_cli.system.text import suggest

MOST_BYTES = 240  # of a prompt, which is part of its pictures' names
DETECTOR, DEPTH, UNIDET = "grounding-dino", "dpt-hybrid", "unidet"
RELATIONS = ("spatial", "action")  # the parts of ``complex`` that have a file
CHECKPOINTS = ("rs200", "r50")  # options: UniDet's checkpoints, in place of ``detector=unidet=FILE``


@dataclass(frozen=True)
class Category:
    """The reward of a category and its options."""

    reward: str
    options: Mapping[str, str]  #: options of the suite that the reward takes, and their names there
    fixed: Mapping[str, Any] = field(default_factory=dict)
    score: str | None = None  #: the reward's figure that counts; ``None``: its total
    unidet: str | None = None  #: the option with UniDet's checkpoint


def _same_names(*names: str) -> dict[str, str]:
    return {name: name for name in (*names, "device", "batch")}


_VQA = Category("blip-vqa", {**_same_names("parser", "tokenizer", "dtype"), "blip": "model"})
_DETECTOR = _same_names("parser", "detector")
CATEGORIES: Mapping[str, Category] = {
    "color": _VQA,
    "shape": _VQA,
    "texture": _VQA,
    "spatial": Category("compbench-spatial", _DETECTOR, unidet="rs200"),
    "3d_spatial": Category("compbench-3d-spatial", {**_DETECTOR, "depth": "depth"}, unidet="r50"),
    "numeracy": Category("compbench-numeracy", _DETECTOR, unidet="r50"),
    "non_spatial": Category(
        "clipscore", {**_same_names("dtype"), "clip": "source"}, {"variant": "t2i-compbench"}, score="cosine"
    ),
    "complex": Category("compbench-complex", {**_DETECTOR, "blip": "blip", "clip": "clip"}, unidet="rs200"),
}
COMPARABLE = ("color", "shape", "texture", "non_spatial")


def experimental(name: str) -> bool:
    """Whether a figure's name includes a detector (``spatial[owlv2]``), so that it is not comparable with papers."""
    return "[" in name


def comparable(category: str, detector: str = DETECTOR) -> bool:
    """Whether a category's figures with this detector compare with papers."""
    return category in COMPARABLE or detector.partition("=")[0] == UNIDET


def figure_name(category: str, detector: str = DETECTOR) -> str:
    """The category's name, followed by the detector's where the figure does not compare with papers."""
    if comparable(category, detector):
        return category
    return f"{category}[{detector.partition('=')[0]}{f'+{DEPTH}' if category == '3d_spatial' else ''}]"


def prompts(category: str, folder: Path) -> list[Prompt]:
    """The prompts of a category, from ``<category>_val.txt`` in a folder.

    ``metadata`` holds category and position; of a complex prompt also its ``relations``, which the files
    ``complex_val_spatial.txt`` and ``complex_val_action.txt`` give.

    Raises :class:`PromptError`: unknown category, unreadable file, or a prompt that cannot be part of a file name.
    """
    _check_category(category)
    rows, *parts = (read_rows(folder / name) for name in _files(category))
    for row in rows:
        if set("_/\\") & set(row.text) or len(row.text.encode()) > MOST_BYTES:
            raise PromptError(f"{row.place}: it names pictures: no _, / or \\, and at most {MOST_BYTES} bytes")
    texts = [row.text for row in rows]
    metadata: list[dict[str, Any]] = [{"category": category, "position": i} for i in range(len(texts))]
    if category == "complex":
        lists = ([row.text for row in part] for part in parts)
        for row, kind in zip(metadata, kinds_of(texts, *lists), strict=True):
            row["relations"] = kind
    return [Prompt(f"{NAME}/{category}/{i:03d}", text, NAME, metadata[i]) for i, text in enumerate(texts)]


def reward(category: str, **options: Any) -> NamedReward:
    """The reward of a category, with the suite's options that apply to it.

    Raises :class:`RecipeError`: an option that no category takes, or a detector that there is not.
    """
    names = sorted({*CHECKPOINTS, *(name for each in CATEGORIES.values() for name in each.options)})
    unknown = next((name for name in options if name not in names), None)
    if unknown is not None:
        raise RecipeError(f"{NAME}: no option {unknown!r}{suggest(unknown, names)}; known: {', '.join(names)}")
    checkpoint = next((name for name in options if name in CHECKPOINTS), None)
    if checkpoint is not None and options.get("detector") != UNIDET:
        raise RecipeError(f"{NAME}: {checkpoint} is a checkpoint of {UNIDET}: add detector: {UNIDET}")
    detector = str(options.get("detector", DETECTOR)).partition("=")[0]
    detectors = [UNIDET, *KINDS]
    if detector not in detectors:
        raise RecipeError(
            f"{NAME}: no detector {detector!r}{suggest(detector, detectors)}; known: {', '.join(detectors)}"
        )
    spec = CATEGORIES[category]
    renamed = {spec.options[name]: value for name, value in options.items() if name in spec.options}
    if options.get("detector") == UNIDET and spec.unidet in options:
        renamed["detector"] = f"{UNIDET}={options[spec.unidet]}"
    return NamedReward(spec.reward, {**spec.fixed, **renamed})


def t2i_compbench(categories: Sequence[str] | str = (), folder: str | None = None, **options: Any) -> SuiteGroup:
    """One suite a category, ``t2i-compbench-<figure name>``, by default all eight.

    ``folder`` holds local prompt files in place of the fetched ones; ``options`` are those of :func:`reward`.

    Raises :class:`PromptError`: unknown category.
    """
    names = [name.strip() for name in categories.split(",")] if isinstance(categories, str) else categories
    for name in names:
        _check_category(name)
    suites = tuple(_suite(name, folder, **options) for name in names or CATEGORIES)
    detector = str(options.get("detector", DETECTOR))
    averaged = any(comparable(name, detector) for name in names or CATEGORIES)
    return SuiteGroup(NAME, suites, aggregate if averaged else None)


def _suite(category: str, folder: str | None, **options: Any) -> Suite:
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
        has_own_prompts=partial(is_public, NAME, folder, _files(category)),
    )


def aggregate(results: Mapping[str, Result]) -> Result:
    """Mean of the comparable categories, NaN without one; the others are under ``experimental``."""
    plain = {name: result for name, result in results.items() if not experimental(str(result.get("suite", name)))}
    return {
        "suite": NAME,
        "version": VERSION,
        "exact": bool(plain) and all(result.get("exact", True) for result in plain.values()),
        "note": f"mean of {len(plain)} comparable of {len(CATEGORIES)} categories",
        "mean": sum(result["mean"] for result in plain.values()) / len(plain) if plain else math.nan,
        "stderr": combined_error([result.get("stderr") for result in plain.values()]),
        "n": sum(result["n"] for result in plain.values()),
        "parts": {name: result["mean"] for name, result in plain.items()},
        "experimental": {name: result["mean"] for name, result in results.items() if name not in plain},
        "published": {},
    }


def compbench_elsewhere(folder: Path, place: Place) -> Path | None:
    """The picture with that index, whose name may have any number of digits."""
    files = [
        file
        for file in sorted((folder / "samples").glob(f"{glob.escape(place.prompt.text)}_*"))
        if has_picture_suffix(file)
        and (digits := file.stem.rpartition("_")[2]).isdecimal()
        and int(digits) == _index(place)
    ]
    return only_file(files)


#: ``samples/<prompt>_<6 digits>.png``; picture j of prompt i has the index ``10 i + j``
LAYOUT = Layout(lambda place: f"samples/{place.prompt.text}_{_index(place):06d}.png", elsewhere=compbench_elsewhere)


def _index(place: Place) -> int:
    return place.position * place.images + place.index


def _prompts(category: str, folder: str | None, split: str) -> list[Prompt]:
    check_split(NAME, split, "test")
    return prompts(category, fetch(NAME).path if folder is None else Path(folder))


def _files(category: str) -> tuple[str, ...]:
    """The prompt files of a category."""
    return f"{category}_val.txt", *(f"complex_val_{kind}.txt" for kind in RELATIONS if category == "complex")


def _check_category(name: str) -> None:
    if name not in CATEGORIES:
        raise PromptError(f"{NAME}: no category {name!r}; known: {', '.join(CATEGORIES)}")
