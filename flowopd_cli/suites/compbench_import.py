"""What T2I-CompBench's own scripts wrote, read back: a list of ``{question_id, answer}`` and an average a category.

Where each script writes: BLIP_vqa.py, 2D_spatial_eval.py, 3D_spatial_eval.py, numeracy_eval.py, CLIP_similarity.py and
3_in_1.py, under the folder whose ``samples`` they scored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flowopd_cli.errors import ArtifactError
from flowopd_cli.suites.base import Absent, Result, aggregate, known
from flowopd_cli.system.json_files import read_json_value

NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?\s*$")
ANSWERS = "vqa_result.json"
IMAGES = 10
WHOLE = 300 * IMAGES
TOLERANCE = 1e-4
TAIL = 100  # bytes at the end of a file, in which its average stands


class Written(NamedTuple):
    """A script's folder below the category's, the file of its average, and the script."""

    folder: str
    average: str
    script: str


_BLIP = Written("annotation_blip", "blip_vqa_score.txt", "BLIP_vqa.py")
WRITTEN: Mapping[str, Written] = {
    "color": _BLIP,
    "shape": _BLIP,
    "texture": _BLIP,
    "spatial": Written("labels/annotation_obj_detection_2d", "avg_score.txt", "2D_spatial_eval.py"),
    "3d_spatial": Written("labels/annotation_obj_detection_3d", "avg_result.txt", "3D_spatial_eval.py"),
    "numeracy": Written("annotation_num", "score.txt", "numeracy_eval.py"),
    "non_spatial": Written("annotation_clip", "score_avg.txt", "CLIP_similarity.py"),
    "complex": Written("annotation_3_in_1", "vqa_score.txt", "3_in_1.py"),
}


def _published(sd35: float | None, grpo: float | None, opd: float | None) -> dict[str, float]:
    pairs = {"SD3.5-M": sd35, "Flow-GRPO": grpo, "Flow-OPD": opd}
    return {name: value for name, value in pairs.items() if value is not None}


# SD3.5-M and Flow-GRPO as arXiv 2505.05470 prints them, Flow-OPD (merge) as its own paper does; second hand.
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
# A folder that is no category's own: what only one category's scripts write says which it is, the first that fits.
TELLING = ("complex", "spatial", "3d_spatial", "numeracy")


def import_scores(folder: Path, images: int = IMAGES) -> dict[str, Result]:
    """Figures of every category whose scores lie below ``folder``.

    ``folder`` holds a folder a category (``color``, or ``t2i-compbench-color`` as ``flowopd eval`` names them), or is
    one category's own where only one category can have written what is there. ``images`` is the number of pictures a
    prompt, which the standard error needs.

    Raises:
        ArtifactError: there are none, or their category cannot be told, or a file is damaged.
    """
    found = {name: import_category(folder, name, images) for name in WRITTEN if _own_folder(folder, name)}
    if found:
        return found
    here = next((name for name in TELLING if _answers(folder, name).is_file()), None)
    if here is not None:
        return {here: import_category(folder, here, images)}
    known = [name for name in WRITTEN if _answers(folder, name).is_file()]
    if known:
        raise ArtifactError(f"{folder}: scores of {', '.join(known)}? Put them into a folder of the category's name")
    raise ArtifactError(f"{folder}: no scores of T2I-CompBench's scripts (such as color/annotation_blip/{ANSWERS})")


def import_category(folder: Path, category: str, images: int = IMAGES) -> Result:
    """The figures of one category, from its folder below ``folder`` or from ``folder`` itself.

    Raises:
        Absent: there is no list.
        ArtifactError: it is damaged, or the average beside it is of another list.
    """
    own = _own_folder(folder, category) or folder
    path, written = _answers(own, category), WRITTEN[category]
    if not path.is_file():
        raise Absent(f"{path}: no such file")
    rows = read_answers(path)
    values = [row["answer"] for row in rows]
    mean = sum(values) / len(values)
    _same_average(path.parent / written.average, mean, path)
    clusters = [str(row["question_id"] // images) for row in rows]
    return {
        "suite": f"t2i-compbench-{category}",
        "version": "t2i-compbench++-1",
        "engine": written.script,
        "exact": len(values) == WHOLE,
        "note": "" if len(values) == WHOLE else f"{len(values)} pictures; the whole category has {WHOLE}",
        "mean": mean,
        "stderr": known(aggregate(values, clusters, [""] * len(values))[2]),
        "n": len(values),
        "invalid": 0,
        "prompts": len(set(clusters)),
        "published": dict(PUBLISHED[category]),
        "protocol": {"imported": str(path), "images": images},
    }


def read_answers(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``vqa_result.json``: ``question_id`` int, ``answer`` float (BLIP writes it as text).

    Raises:
        ArtifactError: it is missing, another form, empty, or has an answer that is no number.
    """
    told = read_json_value(path, "list of question_id and answer")
    try:
        rows = [{"question_id": int(row["question_id"]), "answer": float(row["answer"])} for row in told]
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise ArtifactError(f"{path}: no list of question_id and answer ({repr(error)[:200]})") from error
    broken = next((row["question_id"] for row in rows if not math.isfinite(row["answer"])), None)
    if not rows or broken is not None:
        raise ArtifactError(f"{path}: " + (f"answer {broken} is not a number" if rows else "has no rows"))
    return rows


def _same_average(path: Path, mean: float, answers: Path) -> None:
    """Refuse an average that is not that of the list beside it; a script that writes none is believed."""
    if not path.is_file():
        return
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - TAIL))
        stated = NUMBER.search(handle.read(TAIL).decode("utf-8", "replace").strip())
    if stated is None or abs(float(stated[0]) - mean) > TOLERANCE:
        raise ArtifactError(
            f"{path}: states {stated[0] if stated else 'no number'}, but {answers.name} gives {mean:.6f}"
        )


def _own_folder(folder: Path, category: str) -> Path | None:
    tried = (
        folder / category,
        folder / f"t2i-compbench-{category}",
        *sorted(folder.glob(f"t2i-compbench-{category}[[]*")),
    )
    return next((place for place in tried if _answers(place, category).is_file()), None)


def _answers(folder: Path, category: str) -> Path:
    return folder / WRITTEN[category].folder / ANSWERS
