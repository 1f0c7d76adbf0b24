"""The grammar of single flags: rewards, teachers, prompt sources, the anchor, lists of names and numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from math import isfinite, nan
from typing import Any

from flowopd_cli.errors import RecipeError
from flowopd_cli.system import yaml_files
from flowopd_cli.system.redact import secret_in_name, secret_in_options
from flowopd_cli.system.text import suggest

TEACHER_OPTIONS = ("guidance", "base", "family", "revision", "dtype", "quantize", "offload")


def teacher_specs(texts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Several ``TASK=REF[,guidance=G][,base=BASE]...`` as the fields of teachers by task."""
    specs: dict[str, dict[str, Any]] = {}
    for text in texts:
        head, options = _split_options(text, "--teacher", TEACHER_OPTIONS)
        task, _, ref = head.partition("=")
        if not task or not ref:
            raise RecipeError(f"--teacher {text}: write it as TASK=REF, for example ocr=runs/t-ocr,guidance=4.5")
        if task in specs:
            raise RecipeError(f"--teacher {task}: named twice; to mix several, list them under routing in a recipe")
        specs[task] = {"ref": ref, **options}
    return specs


def reward_spec(text: str) -> dict[str, Any]:
    """``NAME[=WEIGHT][,task=TASK]`` as the fields of a reward."""
    secret = secret_in_name(text)
    if secret:
        raise RecipeError(f"--reward: {secret}")
    head, options = _split_options(text, "--reward", ("task",))
    name, equals, weight = head.partition("=")
    spec: dict[str, Any] = {"name": name, **options}
    if equals:
        try:
            spec["weight"] = float(weight)
        except ValueError as error:
            raise RecipeError(f"--reward {text}: the weight {weight!r} is not a number") from error
    return spec


def prompt_spec(text: str) -> dict[str, Any]:
    """``SOURCE[,task=T][,split=S][,weight=W][,limit=N]`` as the fields of a prompt source."""
    head, options = _split_options(text, "--prompts", ("task", "split", "weight", "limit"))
    return {"source": head, **options}


def anchor_values(text: str | None, beta: float | None) -> dict[str, Any]:
    """``REF[,guidance=G]`` and a weight as dotted keys."""
    values: dict[str, Any] = {"anchor.beta": beta}
    if text is not None:
        head, options = _split_options(text, "--anchor", ("guidance",))
        values |= {"anchor.ref": head, **{f"anchor.{key}": value for key, value in options.items()}}
    return values


def numbers(text: str | None, flag: str) -> list[float] | None:
    """``1,2,0.5`` as numbers."""
    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise RecipeError(f"{flag} {text}: write numbers with commas between them") from error


def names(texts: Sequence[str]) -> list[str]:
    """Several ``A, B`` as names, each once."""
    return list(dict.fromkeys(name.strip() for text in texts for name in text.split(",")))


def thresholds(texts: Sequence[str]) -> dict[str, float]:
    """``SUITE=X`` as numbers by suite."""
    values: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if name in values:
            raise RecipeError(f"--fail-under {name}: is given twice")
        values[name] = nan
        with suppress(ValueError):
            values[name] = float(number)
        if not name or not isfinite(values[name]):
            raise RecipeError(f"--fail-under {text}: write it as SUITE=NUMBER, for example geneval=0.85")
    return values


def reward_options(texts: Sequence[str]) -> dict[str, Any]:
    """``OPTION=VALUE`` as the options of a reward; values as in YAML.

    Raises :class:`RecipeError`: the form is wrong, or a value is a secret, which a worker would show to its clients.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, raw = text.partition("=")
        if not equals or not name.isidentifier():
            raise RecipeError(f"--set {text[:80]}: write it as OPTION=VALUE")
        options[name] = yaml_files.parse(raw, f"--set {name}")
    secret = secret_in_options(options)
    if secret:
        raise RecipeError(f"--set: {secret}")
    return options


def _split_options(text: str, flag: str, known: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """``HEAD,key=value,...`` as the head and its options, whose keys must be known."""
    head, *rest = re.split(r",(?=[a-z_]+=)", text)
    options: dict[str, Any] = {}
    for part in rest:
        key, _, raw = part.partition("=")
        if key not in known:
            raise RecipeError(f"{flag} {text}: no option {key!r}{suggest(key, known)}; known: {', '.join(known)}")
        if key in options:
            raise RecipeError(f"{flag} {text}: {key} is given twice")
        options[key] = yaml_files.parse(raw, f"{flag} {head}: {key}")
    return head, options
