"""Ratings and win rates from paired comparisons, with 95 % intervals as if the comparisons were independent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Z = 1.959964  # of a normal distribution, for 95 %
CENTRE, SCALE = 1500.0, 400 / math.log(10)  # Elo's: 400 points are odds of ten to one


def wilson(wins: float, total: float) -> tuple[float, float]:
    """Wilson's score interval of a rate in [0, 1]: ``wins`` of ``total`` above 0, a tie counts one half."""
    rate, spread = wins / total, Z**2 / total
    centre = (rate + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (rate * (1 - rate) + spread / 4)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def bradley_terry(wins: Mapping[tuple[str, str], float]) -> dict[str, tuple[float, float]]:
    """The players' Elo points, 1500 in the mean, and half the width of the interval, from ``{(winner, loser): wins}``
    with a tie as half a win both ways. Empty where no chain of comparisons connects all players.

    The most probable strengths of the model of Bradley and Terry (1952). Either side of every pair that met counts half
    a win more, as in Haldane's log odds, so that the rating of a player who always won or lost is finite.
    """
    names = sorted({name for pair in wins for name in pair})
    won, count = np.zeros((len(names), len(names))), max(1, len(names))
    for (winner, loser), number in wins.items():
        won[names.index(winner), names.index(loser)] += number
    has_met = won + won.T > 0
    if not np.linalg.matrix_power(np.eye(len(names)) + has_met, count).all():
        return {}
    won += has_met / 2
    strengths = np.zeros(len(names))
    while True:
        expected = 1 / (1 + np.exp(strengths - strengths[:, None]))
        weights = (won + won.T) * expected * (1 - expected)
        information = np.diag(weights.sum(axis=1)) - weights
        covariance = np.linalg.inv(information + 1 / count) - 1 / count  # the pseudo-inverse: strengths add up to 0
        step = covariance @ (won - (won + won.T) * expected).sum(axis=1)
        if np.abs(step).max(initial=0) < 1e-9:
            break
        strengths += step / max(1.0, np.ptp(step))  # the likelihood rises at every step of at most this size
    points, margins = CENTRE + SCALE * strengths, Z * SCALE * np.sqrt(np.diag(covariance))
    return {name: (float(points[i]), float(margins[i])) for i, name in enumerate(names)}
