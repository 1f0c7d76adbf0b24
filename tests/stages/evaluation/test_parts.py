"""The parts of an evaluation: their names."""

import pytest

from flowopd_cli.recipe import EvalRecipe
from flowopd_cli.stages.evaluation.parts import scored_name


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({}, "base"),
        ({"adapter": "runs/student"}, "runs/student"),
        ({"eval": {"pictures": "their/pictures/"}}, "pictures"),
        ({"eval": {"import_scores": "out"}}, "out"),
        ({"adapter": "runs/student", "eval": {"pictures": "mine"}}, "runs/student"),
    ],
)
def test_pictures_of_another_program_are_not_called_the_base_s(fields, name):
    recipe = {"stage": "eval", "model": {"pretrained": "toy"}, **fields}
    assert scored_name(EvalRecipe.model_validate(recipe)) == name
