"""Recipes from hostile YAML, hostile trees and hostile flags."""

from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import ODD, TEXTS, as_json, both, edited, folder, guarded, mutated

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.check import check
from flowopd_cli.cli.plan.flags import anchor_values, numbers, prompt_spec, reward_options, reward_spec, teacher_specs
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.errors import FlowOPDError, one_line, redacted
from flowopd_cli.system import yaml_files as safe_yaml

CONTENTS = {name: path.read_bytes() for name, path in recipes.shipped().items()}
TREES = [
    recipes.load(path).model_dump(mode="json") for name, path in recipes.shipped().items() if name.startswith("toy/")
]


def text_of_a_recipe(content):
    with folder() as box:
        path = box / "r.yaml"
        path.write_bytes(content)
        with guarded(box):
            recipe = recipes.load(path)
            again = box / "again.yaml"
            again.write_text(recipes.dump(recipe), encoding="utf-8")
            assert recipes.load(again) == recipe
            assert recipes.digest(recipes.load(again)) == recipes.digest(recipe)


SHIPPED = st.sampled_from(sorted(CONTENTS)).flatmap(lambda name: edited(CONTENTS[name]))
test_text_of_a_recipe, test_text_of_a_recipe_at_length = both(given(content=SHIPPED), text_of_a_recipe, 10, 1500)


def any_yaml(text):
    with folder() as box, guarded(box):
        value = safe_yaml.parse(text, "text")
        assert recipes.build({"stage": "eval", "eval": {"options": {"x": {"y": value}}}}) is not None


YAML = st.one_of(
    st.text(max_size=60), st.lists(TEXTS, max_size=6).map(" ".join), st.lists(TEXTS, max_size=6).map("\n".join)
)
test_any_yaml, test_any_yaml_at_length = both(given(text=YAML), any_yaml, 10, 1000)


def checks_of_a_recipe(tree):
    """All of a command before it makes a run directory."""
    with folder() as box, guarded(box):
        (box / "r.yaml").write_bytes(as_json(tree))
        recipe = Plan.of(recipes.load(box / "r.yaml")).recipe
        recipes.dump(recipe).encode("utf-8")
        check(recipe, out=box / "out", dry_run=True)


SECTIONS = st.sampled_from(TREES).flatmap(lambda tree: mutated(tree, most=2))
test_checks_of_a_recipe, test_checks_of_a_recipe_at_length = both(given(tree=SECTIONS), checks_of_a_recipe, 10, 700)


def overrides(expressions):
    with folder() as box, guarded(box):
        recipes.build({"stage": "merge", "adapters": ["a", "b"]}, overrides=expressions)


KEYS = st.one_of(
    st.sampled_from(["seed", "stage", "adapters", "adapters.0", "merge.weights", "merge", "model.pretrained", "model"]),
    st.lists(TEXTS, min_size=1, max_size=4).map(".".join),
)
VALUES = st.one_of(TEXTS, st.text(max_size=30), ODD.map(repr))
EXPRESSIONS = st.lists(st.one_of(st.builds(lambda k, v: f"{k}={v}", KEYS, VALUES), st.text(max_size=20)), max_size=3)
test_overrides, test_overrides_at_length = both(given(expressions=EXPRESSIONS), overrides, 10, 1200)


def flags(text):
    with folder() as box:
        for read in (
            reward_spec,
            prompt_spec,
            lambda text: teacher_specs([text]),
            lambda text: anchor_values(text, None),
            lambda text: numbers(text, "--weights"),
            lambda text: reward_options([text]),
            lambda text: recipes.find(text),
        ):
            with guarded(box):
                read(text)


FLAGS = st.one_of(
    st.text(max_size=30), st.lists(TEXTS, max_size=4).map("=".join), st.lists(TEXTS, max_size=4).map(",a=".join)
)
test_flags, test_flags_at_length = both(given(text=FLAGS), flags, 10, 500)


def lines(text):
    """Every error is one line without a secret."""
    line = one_line(FlowOPDError(text))
    assert line.isprintable()
    assert len(line) <= 12 * 2000
    assert redacted(line) == line
    assert "S3CRETS3CRETS3CRET" not in one_line(f"{text} hf_S3CRETS3CRETS3CRET {text}")
    assert "S3CRET" not in one_line(f"{text} https://me:S3CRET@host/x {text}"[-1500:])


test_lines, test_lines_at_length = both(given(text=st.text()), lines, 10, 300)
