"""CVTG-2K (Du et al. 2025, TextCrafter, arXiv 2503.23461): 2,000 English prompts with 2 to 5 texts, one picture each.

Half of the prompts name sizes, colors and fonts too. Of the benchmark's figures, VQAScore and its aesthetic score are
not here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.prompts.public import fetch, is_public
from flowopd_cli.prompts.sources import check_split
from flowopd_cli.suites.base import NamedReward, Row, Suite, SuiteGroup
from flowopd_cli.suites.layouts import Layout, Place
from flowopd_cli.system.json_files import read_json

NAME = "cvtg-2k"
FOLDERS = tuple(f"{kind}/{texts}" for kind in ("CVTG", "CVTG-Style") for texts in range(2, 6))
PUBLISHED = {
    "accuracy": {"SD3.5-L": 0.6548, "FLUX.1-dev": 0.4965, "Qwen-Image": 0.8288},
    "clipscore": {"SD3.5-L": 0.7797, "FLUX.1-dev": 0.7401, "Qwen-Image": 0.8017},
}


def read_prompts(folder: Path) -> list[Prompt]:
    """The prompts of ``CVTG/2.json`` to ``CVTG-Style/5.json`` in a folder; an ``id`` is the picture's name there.

    Raises :class:`ArtifactError`: a file is missing or damaged.
    Raises :class:`PromptError`: a row has no prompt or number.
    """
    rows = [(name, folder / f"{name}.json") for name in FOLDERS]
    return [_prompt(name, path, row) for name, path in rows for row in read_json(path, "prompts").get("data_list", ())]


def _prompt(name: str, path: Path, row: Any) -> Prompt:
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str) or type(row.get("index")) is not int:
        raise PromptError(f'{path}: a row of data_list has no text "prompt" or whole number "index"')
    return Prompt(f"{name}/{row['index']}", row["prompt"], NAME)


def _picture(place: Place) -> str:
    return f"{place.prompt.id}{'' if place.images == 1 else f'_{place.index}'}.png"


def pooled(rows: Sequence[Row]) -> Mapping[str, float]:
    """NED over all words, and the accuracy on prompts with 2 to 5 texts, as ``regions-2``."""
    scored = [row for row in rows if row["valid"]]
    words = sum(row["scores"]["expected"] for row in scored)
    figures = {"ned": sum(row["scores"]["ned"] * row["scores"]["expected"] for row in scored) / words}
    for regions in range(2, 6):
        some = [row["scores"] for row in scored if row["prompt"].split("/")[1:2] == [str(regions)]]
        if some:
            share = sum(scores["correct"] for scores in some) / sum(scores["expected"] for scores in some)
            figures[f"regions-{regions}"] = share
    return figures


#: ``CVTG/2/17.png``, the name that the official scorer expects; with several pictures a prompt ``CVTG/2/17_0.png``
LAYOUT = Layout(_picture)


def cvtg_2k(prompts: str | None = None, clip: str | None = None, reward: str = "cvtg", **options: Any) -> SuiteGroup:
    """Word accuracy with NED, and CLIPScore.

    ``prompts`` is a folder in place of the fetched one, ``clip`` the source of CLIP's weights. ``reward`` is another
    name for the reward ``cvtg``, such as ``remote:URL``; ``options`` go to it.
    """
    accuracy = _suite("accuracy", prompts, NamedReward(reward, options))
    scorer = NamedReward("clipscore", {"variant": NAME} | ({} if clip is None else {"source": clip}))
    accuracy = replace(accuracy, weight="expected", breakdown=pooled, judge="cvtg")
    return SuiteGroup(NAME, (accuracy, _suite("clipscore", prompts, scorer)))


def _suite(figure: str, folder: str | None, reward: NamedReward) -> Suite:
    return Suite(
        name=f"{NAME}-{figure}",
        version="cvtg-2k-1",
        prompts=_reader(folder),
        reward=reward,
        images=1,
        layout=LAYOUT,
        folder=NAME,
        published=PUBLISHED[figure],
        has_own_prompts=partial(is_public, NAME, folder),
    )


@cache
def _reader(folder: str | None) -> Callable[[str], list[Prompt]]:
    """One reader for both suites, so that an evaluation reads the files once."""
    return partial(_prompts, folder)


def _prompts(folder: str | None, split: str) -> list[Prompt]:
    check_split(NAME, split, "test")
    return read_prompts(fetch(NAME, local=None if folder is None else Path(folder)).path)
