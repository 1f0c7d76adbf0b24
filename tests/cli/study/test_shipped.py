"""Every stage of the shipped studies runs, shrunk to one optimizer step."""

import pytest
import yaml

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.study.grid import expand
from flowopd_cli.runs.inspect import standing

STEP = {"iterations": 1, "groups": 4, "group_size": 2, "sample_every": 0, "checkpoint_every": 1}


def shrunk(recipe):
    """The same stage with a few pictures."""
    tree = recipe.model_dump(mode="json")
    if "train" in tree:
        tree["train"] |= STEP
        tree["sampling"]["steps"] = 4
    if "sft" in tree:
        tree["sft"] |= {"samples": 4, "batch": 4}
    if "eval" in tree:
        tree["eval"] |= {"limit": 1, "images": 1, "steps": 2}
    return yaml.safe_dump(tree)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """The folder of the runs of all studies."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(recipes.shipped_studies()))
def test_a_shipped_study_runs(name, store, flowopd):
    """With one seed and the first value of each list; runs that studies share are made once."""
    spec = recipes.load_study(recipes.shipped_studies()[name])
    axes = {axis: values[:1] if isinstance(values, list) else values for axis, values in spec.axes.items()}
    grid = expand(spec.model_copy(update={"seeds": (0,), "axes": axes}), name)
    for node in grid.nodes.values():
        if standing(store / node.name) != "done":
            file = store / f"{node.name}.yaml"
            file.write_text(shrunk(node.recipe_in(store)), encoding="utf-8")
            code, _, err = flowopd(node.recipe.stage, "--recipe", file, "--out", store / node.name)
            assert code == 0, f"{node.label}: {err}"
