"""How many examples were tried in all; the last of the fuzz tests."""

import pytest
from support.fuzzing import COUNTS, PLANNED


@pytest.mark.slow
def test_ten_thousand_examples_were_tried(request, capsys):
    tried = [item for item in request.session.items if item.name.endswith("_at_length")]
    if len(tried) < PLANNED["tests"]:
        pytest.skip(f"only {len(tried)} of {PLANNED['tests']} properties were selected")
    with capsys.disabled():
        print(f"\nfuzzing: {COUNTS['many']} examples of {len(tried)} properties")
    assert COUNTS["many"] >= PLANNED["examples"] >= 10_000


def test_the_plan_holds_ten_thousand_examples(request):
    modules = {item.module.__name__ for item in request.session.items if "fuzz" in str(item.path)}
    if len(modules) < 7:
        pytest.skip("only a part of the fuzz tests was collected")
    assert PLANNED["examples"] >= 10_000
