"""The rule of ``train.stop`` over made-up rows: when it ends a training, and which checkpoints it allows."""

import math

import pytest

from flowopd_cli.train.stopping import StopRule


def ended(rule, *values):
    """The iteration at which a rule ends a training whose metric takes these values from iteration 1 on."""
    for iteration, value in enumerate(values, start=1):
        rule.observe({"iteration": iteration, "x": value})
        if rule.reason:
            return iteration
    return None


def test_a_bound_ends_a_training_after_that_many_values_beyond_it():
    assert ended(StopRule("x", 2, below=0.5), 0.6, 0.4, 0.7, 0.4, 0.3) == 5
    assert ended(StopRule("x", 2, below=0.5), 0.6, 0.4, 0.5, 0.4, 0.5) is None
    assert ended(StopRule("x", 3, above=1.0), 2.0, 2.0, 1.0, 2.0, 2.0, 2.0) == 6
    assert ended(StopRule("x", 1, below=0.2, above=0.8), 0.5, 0.8, 0.2, 0.9) == 4


@pytest.mark.parametrize(("direction", "sign"), [("max", 1), ("min", -1)])
def test_without_a_bound_values_that_do_not_improve_on_the_best_end_it(direction, sign):
    values = [sign * value for value in (0.1, 0.3, 0.2, 0.3, 0.4, 0.4, 0.2, 0.1)]
    assert ended(StopRule("x", 3, direction=direction), *values) == 8
    assert ended(StopRule("x", 2, direction=direction), *values) == 4


def test_a_value_that_is_no_number_is_bad_and_a_row_without_the_metric_is_none():
    assert ended(StopRule("x", 2, above=1.0), 0.0, math.nan, None) == 3
    rule = StopRule("x", 2, below=0.5)
    for iteration, row in enumerate([{"x": 0.1}, {"x": 0.1}, {}, {}, {"x": 0.1}]):  # the first is a baseline
        assert rule.reason is None
        rule.observe({"iteration": iteration, **row})
    assert rule.reason == "train.stop ends the training: x was below 0.5 for 2 values in a row, is 0.1"
    stuck = StopRule("x", 1)
    assert ended(stuck, 3.0, 2.0) == 2
    assert stuck.reason.endswith("x did not improve on 3 for 1 values in a row, is 2")


def test_a_bound_allows_checkpoints_between_good_values():
    rule = StopRule("x", 9, below=0.5)
    for iteration, value in {0: 0.1, 10: 0.7, 20: 0.4, 30: 0.6, 40: 0.5}.items():
        rule.observe({"iteration": iteration, "x": value})
    allowed = [step for step in (5, 10, 15, 20, 25, 30, 35, 40, 45) if rule.allows(step)]
    assert allowed == [5, 10, 30, 35, 40]  # after the last value nothing is known
    assert all(StopRule("x", 9).allows(step) for step in (1, 100))
