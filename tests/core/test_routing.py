"""Prompts to teachers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.routing import check_routes, route
from flowopd_cli.errors import RoutingError


def prompts(tasks):
    return [Prompt(str(i), "text", task) for i, task in enumerate(tasks)]


def test_rows_of_each_task_in_order_of_appearance():
    rows = route(prompts("baabc"), "abc")
    assert {task: found.tolist() for task, found in rows.items()} == {"b": [0, 3], "a": [1, 2], "c": [4]}
    assert list(rows) == ["b", "a", "c"]


@given(st.text("abc", min_size=1, max_size=20))
def test_every_row_is_routed_once_by_its_own_task(tasks):
    found = {int(row): task for task, rows in route(prompts(tasks), "abc").items() for row in rows}
    assert "".join(found[row] for row in range(len(tasks))) == tasks


def test_a_task_without_a_teacher_is_refused_with_the_way_out():
    with pytest.raises(RoutingError, match=r"no teacher for task 'z' \(routes: a, b\): add --teacher z=REF"):
        route(prompts("az"), ("b", "a"))
    with pytest.raises(RoutingError, match="routes: none"):
        check_routes(["a"], ())
