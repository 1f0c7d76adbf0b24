"""Laws of the trained steps: chances, weights and systematic draws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.queries import Query, draw_systematic, mean_last

LAWS = st.tuples(st.floats(0.3, 8), st.floats(0.3, 8))


def test_chances_by_hand():
    assert Query(1, (2.0, 1.0)).chances(3) == pytest.approx((1 / 9, 3 / 9, 5 / 9))  # density x at 1/6, 3/6, 5/6
    assert Query(2, (2.0, 1.0)).chances(3) == pytest.approx((1 / 4, 3 / 4, 1))  # 10/9 is too much: 1, and 1 : 3 share 1
    assert Query(2).chances(4) == pytest.approx((0.5,) * 4)
    assert Query(None, (2.0, 1.0)).chances(3) == (1.0, 1.0, 1.0)
    assert Query(7, (5.0, 2.0)).chances(3) == (1.0, 1.0, 1.0)


def test_weights_are_the_inverse_of_the_chances_unless_the_law_is_the_weight():
    assert Query(1, (2.0, 1.0)).weights(3) == pytest.approx((3, 1, 3 / 5))
    assert Query(1, (2.0, 1.0), unbiased=False).weights(3) == (1.0, 1.0, 1.0)
    assert Query(2).weights(5) == (1.0,) * 5


@pytest.mark.parametrize("beta", [(50.0, 50.0), (50.0, 1e-9), (1e-9, 50.0)])
@pytest.mark.parametrize("count", [1, 4, 9, 1000])
def test_the_sharpest_laws_have_finite_weights_where_they_draw(beta, count):
    query = Query(2, beta)
    weights = query.weights(count)
    for offset in (1e-9, 0.3, 1 - 1e-9):
        steps = draw_systematic(query.chances(count), offset)
        assert len(steps) == min(2, count)
        assert all(weights[step] < 1e300 for step in steps)


@given(st.integers(1, 12), st.integers(1, 12), LAWS)
def test_the_weighted_mean_over_drawn_steps_is_unbiased(count, steps, beta):
    """Its expectation gives each of the steps 1 / count."""
    query = Query(steps, beta)
    drawn = min(steps, count)
    chances, weights = query.chances(count), query.weights(count)
    assert sum(chances) == pytest.approx(drawn)
    assert max(chances) <= 1
    assert [chance * weight / drawn for chance, weight in zip(chances, weights, strict=True)] == pytest.approx(
        [1 / count] * count
    )


@given(st.integers(1, 9), st.integers(1, 9), LAWS)
def test_a_systematic_draw_has_the_chances_and_a_constant_number(count, steps, beta):
    query, offsets = Query(steps, beta), [(i + 0.5) / 2000 for i in range(2000)]
    draws = [draw_systematic(query.chances(count), offset) for offset in offsets]
    assert {len(draw) for draw in draws} == {min(steps, count)}
    shares = [sum(i in draw for draw in draws) / len(draws) for i in range(count)]
    assert shares == pytest.approx(query.chances(count), abs=2e-3)
    assert mean_last(query, count) == pytest.approx(sum(draw[-1] for draw in draws) / len(draws), abs=0.02)


def test_the_last_of_some_equally_likely_steps():
    """Of two among three: (0, 1), (0, 2), (1, 2)."""
    assert mean_last(Query(2), 3) == pytest.approx((1 + 2 + 2) / 3)
    assert mean_last(Query(), 5) == 4
