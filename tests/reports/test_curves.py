"""Curves: means over stretches and windows, the KL by step."""

import math

from flowopd_cli.reports import curves, series


def test_a_moving_mean_keeps_a_straight_line_and_a_gap():
    line = [float(i) for i in range(50)]
    assert series.smooth(line, 5)[5:45] == line[5:45]
    first, gap, _ = series.smooth([1.0, math.nan, 3.0], 3)
    assert first == 1.0
    assert math.isnan(gap)
    assert series.thinned(line, 10) == [2.0 + 5 * i for i in range(10)]


def test_the_kl_by_step_is_that_of_the_first_and_the_last_iterations():
    rows = [{"iteration": i, "kl_step/0": 4.0 if i <= 2 else 1.0, "kl_step/1": 2.0} for i in range(1, 11)]
    (chart,) = curves.kl_by_step(rows)
    assert chart.alt == "KL by sampling step: step 0 from 4 to 1; step 1 from 2 to 2"
    assert list(curves.kl_by_step([{"kl_step/0": 1.0}])) == []


def test_steps_without_a_kl_in_the_first_or_last_iterations_leave_a_gap():
    rows = [{"iteration": i} for i in range(10)]
    rows[2] = {"kl_step/0": 4.0, "kl_step/1": 2.0}  # in none of the three fifths
    assert list(curves.kl_by_step(rows)) == []
    rows[0] = {"kl_step/0": 3.0}
    rows[9] = {"kl_step/0": 1.0, "kl_step/1": 5.0}
    (chart,) = curves.kl_by_step(rows)
    assert chart.alt == "KL by sampling step: step 0 from 3 to 1"
