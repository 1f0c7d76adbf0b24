"""GenEval 2 (Kamath et al. 2025, arXiv 2512.16853): 800 prompts of 3 to 10 atoms, one picture each, by Soft-TIFA."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from flowopd_cli.prompts.atoms import SKILLS
from flowopd_cli.prompts.public import is_public
from flowopd_cli.prompts.sources import evaluation_prompts
from flowopd_cli.rewards.geneval2.rules import arithmetic_mean, geometric_mean
from flowopd_cli.suites.base import NamedReward, Row, Suite


def geneval2(prompts: str | None = None, reward: str = "geneval2", **options: Any) -> Suite:
    """Soft-TIFA GM; ``prompts`` is a local file in place of the fetched one, ``options`` go to the reward."""
    return Suite(
        name="geneval2",
        version="geneval2-1",
        prompts=partial(evaluation_prompts, "geneval2", source=prompts),
        reward=NamedReward(reward, options),
        score="gm",
        images=1,
        judge="geneval2",
        has_own_prompts=partial(is_public, "geneval2", prompts),
        breakdown=breakdown,
    )


def breakdown(rows: Sequence[Row]) -> dict[str, float]:
    """The mean probability over all questions of each skill, and the mean GM of each atomicity, as ``atoms-3``."""
    scored = [row["details"] for row in rows if row["valid"] and "probabilities" in row["details"]]
    skills: dict[str, list[float]] = {skill: [] for skill in SKILLS}
    atoms: dict[int, list[float]] = {}
    for details in scored:
        for skill, probability in zip(details["skills"], details["probabilities"], strict=True):
            skills[skill].append(probability)
        atoms.setdefault(details["atom_count"], []).append(geometric_mean(details["probabilities"]))
    groups = {**skills, **{f"atoms-{count}": atoms[count] for count in sorted(atoms)}}
    return {name: arithmetic_mean(values) for name, values in groups.items() if values}
