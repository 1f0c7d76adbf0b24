"""Reads the output of T2I-CompBench's own scripts, which write it below the folder whose ``samples`` they scored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from flowopd_cli.errors import ArtifactError
from flowopd_cli.suites.base import MissingScores, Result, aggregate, finite_or_none
from flowopd_cli.system.json_files import read_json_value

NAME, VERSION = "t2i-compbench", "t2i-compbench++-1"
NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?\s*$")
ANSWERS = "vqa_result.json"
IMAGES = 10
PICTURES = 300 * IMAGES
TOLERANCE = 1e-4
TAIL = 100  # bytes at the end of a file that hold its average


class Output(NamedTuple):
    """A script, its folder below the category's, and the file of its average there."""

    folder: str
    average: str
    script: str


_BLIP = Output("annotation_blip", "blip_vqa_score.txt", "BLIP_vqa.py")
OUTPUTS: Mapping[str, Output] = {
    "color": _BLIP,
    "shape": _BLIP,
    "texture": _BLIP,
    "spatial": Output("labels/annotation_obj_detection_2d", "avg_score.txt", "2D_spatial_eval.py"),
    "3d_spatial": Output("labels/annotation_obj_detection_3d", "avg_result.txt", "3D_spatial_eval.py"),
    "numeracy": Output("annotation_num", "score.txt", "numeracy_eval.py"),
    "non_spatial": Output("annotation_clip", "score_avg.txt", "CLIP_similarity.py"),
    "complex": Output("annotation_3_in_1", "vqa_score.txt", "3_in_1.py"),
}


def _published(sd35: float | None, grpo: float | None, opd: float | None) -> dict[str, float]:
    pairs = {"SD3.5-M": sd35, "Flow-GRPO": grpo, "Flow-OPD": opd}
    return {name: value for name, value in pairs.items() if value is not None}


# SD3.5-M and Flow-GRPO as in arXiv 2505.05470, Flow-OPD (merge) as in its own paper.
PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "color": _published(0.7994, 0.8379, 0.8298),
    "shape": _published(0.5669, 0.6130, 0.6292),
    "texture": _published(0.7338, 0.7236, 0.7446),
    "spatial": _published(0.2850, 0.5447, None),
    "3d_spatial": _published(0.3739, 0.4471, 0.4565),
    "numeracy": _published(0.5927, 0.6752, 0.6837),
    "non_spatial": _published(0.3146, 0.3195, 0.3163),
    "complex": _published(0.3800, None, 0.3943),
}


def import_category(folder: Path, category: str, images: int = IMAGES) -> Result:
    """The figures of one category, from its folder below ``folder`` or from ``folder`` itself.

    Raises :class:`MissingScores`: there is no list of answers.
    Raises :class:`ArtifactError`: it is damaged, or differs from the average beside it.
    """
    output, name = OUTPUTS[category], f"{NAME}-{category}"
    folders = (folder / category, folder / name, *sorted(folder.glob(f"{name}[[]*")), folder)
    paths = [place / output.folder / ANSWERS for place in folders]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise MissingScores(f"{paths[-1]}: no such file")
    rows = _read_answers(path)
    values = [answer for _, answer in rows]
    mean = sum(values) / len(values)
    _check_average(path.parent / output.average, mean)
    clusters = [str(question // images) for question, _ in rows]
    return {
        "suite": name,
        "version": VERSION,
        "engine": output.script,
        "exact": len(values) == PICTURES,
        "note": "" if len(values) == PICTURES else f"{len(values)} pictures; the whole category has {PICTURES}",
        "mean": mean,
        "stderr": finite_or_none(aggregate(values, clusters, [""] * len(values))[2]),
        "n": len(values),
        "invalid": 0,
        "prompts": len(set(clusters)),
        "published": dict(PUBLISHED[category]),
        "protocol": {"imported": str(path), "images": images},
    }


def _read_answers(path: Path) -> list[tuple[int, float]]:
    """Question id and answer, which BLIP's script writes as text, of each row of a ``vqa_result.json``."""
    content = read_json_value(path, "list of question_id and answer")
    try:
        rows = [(int(row["question_id"]), float(row["answer"])) for row in content]
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path}: no list of question_id and answer ({repr(error)[:200]})") from error
    for question, answer in rows:
        if not math.isfinite(answer):
            raise ArtifactError(f"{path}: answer {question} is not a number")
    if not rows:
        raise ArtifactError(f"{path}: has no rows")
    return rows


def _check_average(path: Path, mean: float) -> None:
    """Check the average that a script wrote, if any, against the average of its answers."""
    if not path.is_file():
        return
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL))
        stated = NUMBER.search(handle.read(TAIL).decode("utf-8", "replace").strip())
    if stated is None or abs(float(stated[0]) - mean) > TOLERANCE:
        raise ArtifactError(f"{path}: states {stated[0] if stated else 'no number'}, but {ANSWERS} gives {mean:.6f}")
