"""The average of Flow-OPD (arXiv 2605.08063): GenEval, OCR, DeQA over 5 and PickScore over 26, in equal parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowopd_cli.suites.base import Result, Suite, SuiteGroup, combined_error
from flowopd_cli.suites.drawbench import deqa
from flowopd_cli.suites.geneval import geneval
from flowopd_cli.suites.ocr import ocr
from flowopd_cli.suites.pickscore import pickscore

MEMBERS = {"geneval": geneval, "ocr": ocr, "deqa": deqa, "pickscore": pickscore}
SCALES = {"geneval": 1.0, "ocr": 1.0, "deqa": 5.0, "pickscore": 26.0}
PUBLISHED = {"SD3.5-M": 0.7165, "Flow-OPD": 0.90}


def average(**options: Mapping[str, Any]) -> SuiteGroup:
    """The four suites and their average; ``options`` are those of each suite by its name."""
    suites: tuple[Suite, ...] = tuple(make(**options.get(name, {})) for name, make in MEMBERS.items())
    return SuiteGroup("average", suites, combine)


def combine(found: Mapping[str, Result]) -> Result | None:
    """Mean of the four on a scale of one, ``None`` where one is missing; their errors add in squares."""
    if not found.keys() >= SCALES.keys():
        return None
    parts = {name: found[name]["mean"] / scale for name, scale in SCALES.items()}
    errors = [None if (error := found[name]["stderr"]) is None else error / SCALES[name] for name in parts]
    return {
        "suite": "average",
        "version": "average-1",
        "exact": all(found[name].get("exact", True) for name in parts),
        "mean": sum(parts.values()) / len(parts),
        "stderr": combined_error(errors),
        "n": sum(found[name]["n"] for name in parts),
        "parts": parts,
        "published": PUBLISHED,
    }
