"""DPG-Bench (Hu et al. 2024, arXiv 2403.05135): 1,065 long prompts, four pictures each, judged by their questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from flowopd_cli.errors import RewardError
from flowopd_cli.prompts import dpg_bench as source
from flowopd_cli.prompts.public import is_public
from flowopd_cli.rewards.dpg_bench.rules import category_shares
from flowopd_cli.suites.base import NamedReward, Row, Suite
from flowopd_cli.suites.layouts import FLAT, Layout

_CATEGORIES = TypeAdapter(dict[str, tuple[NonNegativeInt, PositiveInt]])  # yes answers and questions
PUBLISHED = {"SD3-M": 0.8408, "FLUX.1-dev": 0.8384}
#: as ``FLAT``, and ``grids/<item>.png``, which ``compute_dpg_bench.py`` cuts
LAYOUT = Layout(FLAT.picture, sheet=lambda place: f"grids/{place.prompt.id}.png")


def dpg_bench(prompts: str | None = None, reward: str = "dpg-bench", **options: Any) -> Suite:
    """The suite; ``prompts`` is a local ``dpg_bench.csv`` in place of the fetched one, ``options`` go to the reward."""
    return Suite(
        name="dpg-bench",
        version="dpg-bench-1",
        prompts=partial(source.prompts, source=prompts),
        reward=NamedReward(reward, options),
        images=4,
        layout=LAYOUT,
        published=PUBLISHED,
        judge="dpg-bench",
        has_own_prompts=partial(is_public, "dpg-bench", prompts),
        breakdown=category_figures,
    )


def category_figures(rows: Sequence[Row]) -> Mapping[str, float]:
    """The figures by category that the reference prints, ``L1 entity`` and so on.

    They are shares of ``yes`` over the questions about the last picture of each prompt, whatever these depend on, and
    not parts of the headline.

    Raises :class:`RewardError`: a report of the reward is not that of ``dpg-bench``.
    """
    last: dict[str, Row] = {}
    for row in rows:
        if row["prompt"] not in last or row["index"] > last[row["prompt"]]["index"]:
            last[row["prompt"]] = row
    return category_shares(_categories(row) for row in last.values() if row["valid"])


def _categories(row: Row) -> Mapping[str, tuple[int, int]]:
    try:
        return _CATEGORIES.validate_python(row["details"].get("categories", {}))
    except ValidationError as error:
        raise RewardError(f"suite dpg-bench: the reward's report of prompt {row['prompt']} is not valid") from error
