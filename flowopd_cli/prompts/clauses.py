"""GenEval's vocabulary (tags, relations, COCO's 80 classes) and the check of a prompt's clauses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
# In detector order, by COCO's names and by GenEval's, which differ in three.
COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard"),
    *("cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
    *("teddy bear", "hair drier", "toothbrush"),
)
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
GENEVAL_CLASSES = tuple(RENAMED.get(name, name) for name in COCO_CLASSES)


def faulty(metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with a prompt's clauses, ``None`` if nothing is."""
    include, exclude = metadata.get("include") or [], metadata.get("exclude") or []
    if not isinstance(include, list | tuple) or not isinstance(exclude, list | tuple):
        return "include and exclude must be lists of clauses"
    if not include and not exclude:
        return "there is no include or exclude clause"
    for number, clause in enumerate([*include, *exclude]):
        if not isinstance(clause, Mapping) or not isinstance(clause.get("class"), str):
            return "a clause without a class"
        count = clause.get("count")
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            return f"a count of {count!r} for {clause['class']}"
        if "position" in clause and not _sound_position(clause["position"], min(number, len(include))):
            return f"a position of {clause['position']!r} for {clause['class']}, no relation to an earlier clause"
    return None


def _sound_position(position: Any, earlier: int) -> bool:
    if not isinstance(position, Sequence) or len(position) != 2 or isinstance(position, str):
        return False
    relation, target = position
    return relation in RELATIONS and type(target) is int and 0 <= target < earlier
