"""Curves: means over stretches and windows, the KL by step."""

import math

from support.reported import TEACHER

from flowopd_cli import recipe as recipes
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


def test_watched_figures_are_lines_from_watch_to_watch():
    rows = [{"iteration": i, "reward": 0.1 * i, "latent_norm": 1.0, "distance_slow": 0.1 * i} for i in range(1, 9)]
    rows.insert(0, {"iteration": 0})
    for i in (0, 4, 8):
        figures = {"reward/ocr": 0.5, "reward/quality": 0.9 - 0.1 * i, "latent_norm": 1 + i, "diversity": 1 / (1 + i)}
        rows[i] |= {f"watch/{name}": value for name, value in figures.items()}
    charts = {chart.title: chart.alt for chart in curves.of_run(recipes.build(TEACHER), rows)}
    assert charts["Held-out rewards"] == "Held-out rewards: ocr from 0.5 to 0.5; quality from 0.9 to 0.1"
    assert charts["Latent norm"].endswith("rollout from 1 to 1; fixed prompts and seeds from 1 to 9")
    assert charts["Diversity"] == "Diversity: within a group from 1 to 0.111"
    assert charts["Velocity distance"] == "Velocity distance: to the slow copy from 0.1 to 0.8"
    assert "Distance to the base" not in charts


def test_steps_without_a_kl_in_the_first_or_last_iterations_leave_a_gap():
    rows = [{"iteration": i} for i in range(10)]
    rows[2] = {"kl_step/0": 4.0, "kl_step/1": 2.0}  # in none of the three fifths
    assert list(curves.kl_by_step(rows)) == []
    rows[0] = {"kl_step/0": 3.0}
    rows[9] = {"kl_step/0": 1.0, "kl_step/1": 5.0}
    (chart,) = curves.kl_by_step(rows)
    assert chart.alt == "KL by sampling step: step 0 from 3 to 1"
