"""Differences of two models on the same prompts and seeds, from the rows of their evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from flowopd_cli.core.clusters import clustered_mean, weighted_mean
from flowopd_cli.errors import ArtifactError
from flowopd_cli.reports.entries import BASE, Entry
from flowopd_cli.runs.evaluations import Evaluation, Values

NOTE = (
    "On the same prompts and seeds: mean difference ± standard error over prompts; in brackets the shares of prompts "
    "won and lost, by the mean of their pictures."
)


@dataclass(frozen=True)
class Difference:
    """One model less another on a suite: the mean, its standard error, and shares of the prompts won and lost.

    ``stderr`` is ``None`` where a tag has a single prompt.
    """

    mean: float
    stderr: float | None
    won: float
    lost: float
    prompts: int


def difference(one: Values, other: Values, weights: Values | None = None) -> Difference | None:
    """The paired difference of two models, ``None`` where they share no picture.

    As in a suite's headline, tags are averaged without weights, pictures of a tag by ``weights``, if these are given,
    and the error of a tag is that of the means of its prompts. Equal prompts and noise make the two models' figures
    dependent, so this error is that of the differences.
    """
    tags: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for key, pictures in one.items():
        others, factors = other.get(key, {}), weights[key] if weights is not None else dict.fromkeys(pictures, 1.0)
        if pairs := [(value - others[i], factors[i]) for i, value in pictures.items() if i in others]:
            tags.setdefault(key[0], {})[key[1]] = pairs
    if not tags:
        return None
    _, centre, stderr = clustered_mean(tags, weighted=weights is not None)
    every = [weighted_mean(pairs)[0] for prompts in tags.values() for pairs in prompts.values()]
    won, lost = (sum(sign * value > 0 for value in every) / len(every) for sign in (1, -1))
    return Difference(centre, stderr if math.isfinite(stderr) else None, won, lost, len(every))


def between(one: Evaluation, other: Evaluation) -> dict[str, Difference]:
    """The differences of two evaluations by suite, of the suites that compare and whose rows are there."""
    differences = {
        suite: difference(one.values(suite), other.values(suite), one.weights(suite)) for suite in one.shared(other)
    }
    return {suite: pair for suite, pair in differences.items() if pair is not None}


def reference(entries: Sequence[Entry], name: str | None = None) -> str:
    """The model ``name``, or without one the base, or else the first model; empty if none was evaluated.

    Raises :class:`ArtifactError`: no model of that name has a comparable evaluation.
    """
    names = list(dict.fromkeys(entry.name for entry in entries if entry.evaluation and entry.comparable))
    if name is not None and name not in names:
        raise ArtifactError(f"--against {name}: no such model; those with comparable evaluations: {', '.join(names)}")
    return name or (BASE if BASE in names else next(iter(names), ""))


def against(entries: Sequence[Entry], name: str) -> dict[str, dict[str, Difference]]:
    """``{model: {suite: difference}}`` of the comparable models against the model ``name``, at equal guidances."""
    comparable = [entry for entry in entries if entry.evaluation and entry.comparable]
    return {
        entry.label: between(entry.evaluation, other.evaluation)
        for entry in comparable
        if entry.evaluation and (other := counterpart(entry, name, comparable)) and other.evaluation
    }


def counterpart(entry: Entry, name: str, entries: Sequence[Entry]) -> Entry | None:
    """The entry of another model, ``name``, at the guidance of ``entry``."""
    others = [other for other in entries if other.name == name and other.guidance == entry.guidance]
    return None if entry in others else next(iter(others), None)


def against_full_precision(entries: Sequence[Entry]) -> dict[str, dict[str, Difference]]:
    """``{model: {suite: difference}}`` of the models on a quantized base against themselves on the full one."""
    whole = {_place(entry): entry.evaluation for entry in entries if entry.evaluation and entry.quantize == "none"}
    return {
        entry.label: between(entry.evaluation, replace(full, protocol={**full.protocol, "quantize": entry.quantize}))
        for entry in entries
        if entry.evaluation and entry.quantize != "none" and (full := whole.get(_place(entry)))
    }


def _place(entry: Entry) -> tuple[str, float | None]:
    return entry.name, entry.guidance
