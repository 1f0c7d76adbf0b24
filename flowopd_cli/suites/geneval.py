"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): 553 prompts, four pictures each, judged by the official rules."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError
from flowopd_cli.prompts.clauses import TAGS
from flowopd_cli.prompts.public import is_public
from flowopd_cli.prompts.sources import evaluation_prompts
from flowopd_cli.suites.base import MissingScores, NamedReward, Result, Suite, aggregate, finite_or_none
from flowopd_cli.suites.layouts import GENEVAL
from flowopd_cli.system.json_files import read_json_lines

PUBLISHED = {"SD3.5-M": 0.63, "Flow-GRPO": 0.95, "Flow-OPD": 0.92}
IMAGES = 553 * 4


def geneval(prompts: str | None = None, reward: str = "geneval", **options: Any) -> Suite:
    """The suite; ``prompts`` is a local metadata file in place of the fetched one, ``options`` go to the reward."""
    return Suite(
        name="geneval",
        version="geneval-1",
        prompts=partial(evaluation_prompts, "geneval", source=prompts),
        reward=NamedReward(reward, {"score": "official", **options}),
        score="official",
        tagged=True,
        images=4,
        layout=GENEVAL,
        published=PUBLISHED,
        imported=read_official,
        judge="geneval",
        has_own_prompts=partial(is_public, "geneval", prompts),
    )


def read_official(folder: Path) -> Result:
    """The suite's figures from the result file of ``evaluate_images.py``: ``results.jsonl`` in ``folder``.

    Raises :class:`MissingScores`: there is no such file.
    Raises :class:`ArtifactError`: a row lacks a field that the script writes.
    """
    path = folder / "results.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise MissingScores(f"{path}: no such file")
    rows = read_json_lines(path)
    for number, row in enumerate(rows, start=1):
        if row.get("correct") not in (True, False) or row.get("tag") not in TAGS or "metadata" not in row:
            raise ArtifactError(
                f"{path}: not a result file of GenEval's evaluate_images.py: row {number} has no valid correct, tag or "
                "metadata"
            )
    values, tags = [float(row["correct"]) for row in rows], [row["tag"] for row in rows]
    clusters = [json.dumps(row["metadata"], sort_keys=True) for row in rows]
    means, mean, stderr = aggregate(values, clusters, tags)
    if math.isnan(mean):
        raise ArtifactError(f"{path}: has no rows")
    return {
        "suite": "geneval",
        "version": "geneval-1",
        "engine": "evaluate_images.py",
        "exact": len(rows) == IMAGES,
        "note": "" if len(rows) == IMAGES else f"{len(rows)} pictures; the whole suite has {IMAGES}",
        "mean": mean,
        "stderr": finite_or_none(stderr),
        "n": len(rows),
        "prompts": len(set(clusters)),
        "by_tag": means,
        "published": PUBLISHED,
        "protocol": {"imported": path.name},
    }
