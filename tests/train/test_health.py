"""Warnings about the metrics of a training that goes wrong."""

import math

from flowopd_cli.train.health import HealthMonitor


def warnings(rows):
    monitor = HealthMonitor()
    return [monitor.observe(row) for row in rows]


def test_groups_without_spread_are_warned_of_once():
    texts_by_row = warnings([{"flat_groups": 1.0}] * 8 + [{"flat_groups": 0.5}] * 5 + [{"flat_groups": 0.95}] * 6)
    at = [index for index, texts in enumerate(texts_by_row) if texts]
    assert at == [4, 17]
    assert "train.resample_flat" in texts_by_row[4][0]


def test_a_falling_reward_is_a_collapse_and_a_rising_one_is_none():
    rising = [{"reward": index / 30, "reward_std": 0.2} for index in range(30)]
    assert not any(warnings(rising))
    texts_by_row = warnings(rising + [{"reward": 0.1, "reward_std": 0.2}] * 15)
    (text,) = [text for texts in texts_by_row for text in texts]
    assert "collapsing" in text
    noise = [{"reward": 0.5 + 0.05 * (-1) ** index, "reward_std": 0.3} for index in range(60)]
    assert not any(warnings(noise))


def test_an_exploding_kl_is_warned_of():
    texts_by_row = warnings([{"kl_base": 0.1 + 0.01 * (index % 3)} for index in range(20)] + [{"kl_base": 5.0}])
    assert not any(texts_by_row[:-1])
    assert "kl_base is 5" in texts_by_row[-1][0]
    assert "train.lr" in texts_by_row[-1][0]


def test_a_kl_of_other_tasks_and_steps_than_the_rows_before_has_not_exploded():
    kl = {("old", 0): 1e-5, ("old", 1): 1e-3, ("new", 0): 0.02, ("new", 1): 2.0}

    def row(task, step, factor=1):
        value = factor * kl[task, step]
        return {"kl": value, f"kl/{task}": value, f"kl_step/{step}": value}

    alternating = [row("new" if index % 3 == 0 else "old", 1) for index in range(60)]
    assert not any(warnings(alternating))
    drawn = [row("old", int(index % 3 == 0)) for index in range(60)]
    assert not any(warnings(drawn))
    for rows in (alternating, drawn):
        (text,) = warnings([*rows, row("old", 1, factor=4000)])[-1]
        assert "kl/old is 4" in text
    together = [{"kl": 0.1, "kl/a": 0.1, "kl/b": 0.1, "kl_step/0": 0.1}] * 20
    assert "kl/b is 9" in warnings([*together, {"kl": 5.0, "kl/a": 0.1, "kl/b": 9.9, "kl_step/0": 5.0}])[-1][0]


def test_clipped_rows_and_iterations_without_a_score_are_warned_of():
    assert "train.updates" in warnings([{"clip_fraction": 0.9}] * 5)[-1][0]
    assert not any(warnings([{"clip_fraction": 0.5}] * 9))
    texts_by_row = warnings([{"invalid": 1.0, "reward": math.nan}, {"invalid": 0.9, "reward": 1.0}, {"invalid": 1.0}])
    assert [bool(texts) for texts in texts_by_row] == [True, False, True]


def test_a_gradient_that_stays_at_several_times_its_first_norm_is_warned_of_once():
    norms = [0.09, 0.11, 0.1] * 5
    assert not any(warnings([{"grad_norm": norm} for norm in [*norms, 9.0, *norms]]))  # one peak is none
    texts_by_row = warnings([{"grad_norm": norm} for norm in [*norms, *[0.7] * 8]])
    (text,) = [text for texts in texts_by_row for text in texts]
    assert "grad_norm is 0.7, 7 times that of the first iterations" in text
    assert "train.stop" in text
