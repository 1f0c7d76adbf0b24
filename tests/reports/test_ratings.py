"""Ratings and intervals against closed forms."""

import math

import pytest

from flowopd_cli.reports.ratings import SCALE, Z, bradley_terry, wilson


@pytest.mark.parametrize(("wins", "total"), [(0, 5), (3, 5), (2.5, 5), (5, 5), (80, 100)])
def test_the_bounds_of_wilsons_interval_are_one_z_away(wins, total):
    low, high = wilson(wins, total)
    for bound in {low, high} - {0.0, 1.0}:
        assert abs(wins / total - bound) == pytest.approx(Z * math.sqrt(bound * (1 - bound) / total))
    assert low <= wins / total <= high
    assert wilson(total - wins, total) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize(("won", "lost"), [(3, 1), (7.5, 2.5), (12, 0), (400, 1)])
def test_two_players_have_haldanes_log_odds(won, lost):
    ratings = bradley_terry({("a", "b"): won, ("b", "a"): lost})
    (a, margin), (b, other) = ratings["a"], ratings["b"]
    assert a + b == pytest.approx(3000)
    assert a - b == pytest.approx(SCALE * math.log((won + 0.5) / (lost + 0.5)))
    error = math.sqrt(1 / (won + 0.5) + 1 / (lost + 0.5))  # of the difference, from which each is one half away
    assert (margin, other) == pytest.approx((Z * SCALE * error / 2,) * 2)


def test_odds_multiply_along_a_chain():
    ratings = bradley_terry({("a", "b"): 9.5, ("b", "a"): 0.5, ("b", "c"): 9.5, ("c", "b"): 0.5})
    step = SCALE * math.log(10)
    assert [ratings[name][0] for name in "abc"] == pytest.approx([1500 + step, 1500, 1500 - step])
    assert ratings["b"][1] < ratings["a"][1] == pytest.approx(ratings["c"][1])


def test_the_expected_wins_of_a_round_robin_are_those_counted():
    wins = {("a", "b"): 6, ("b", "a"): 2, ("b", "c"): 3, ("c", "b"): 3, ("a", "c"): 1, ("c", "a"): 4, ("d", "a"): 8}
    ratings = bradley_terry(wins)
    assert sum(points for points, _ in ratings.values()) == pytest.approx(6000)
    for one in "abcd":
        counted = expected = 0.0
        for two in "abcd":
            met = wins.get((one, two), 0) + wins.get((two, one), 0)
            if met:
                counted += wins.get((one, two), 0) + 0.5
                expected += (met + 1) / (1 + 10 ** ((ratings[two][0] - ratings[one][0]) / 400))
        assert counted == pytest.approx(expected)


def test_players_without_a_chain_of_comparisons_have_no_ratings():
    assert bradley_terry({("a", "b"): 3, ("c", "d"): 1}) == {}
    assert bradley_terry({}) == {}
