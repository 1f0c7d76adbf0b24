"""From a study to its runs: which are shared, when their names change, and what is refused before anything runs."""

from pathlib import Path

import pytest
import yaml
from support.tiny_adapters import write_adapter

from flowopd_cli.cli.study.grid import check_nodes, expand
from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import StudySpec, dump, find, load

SMALL = {"train.iterations": 1}
CHAIN = {
    "seeds": [0, 1],
    "axes": {"lambda": [1, 2]},
    "stages": {
        "one": {"recipe": "toy/teacher-geneval", "set": SMALL},
        "two": {"recipe": "toy/teacher-ocr", "set": SMALL},
        "init": {"recipe": "toy/merge", "set": {"adapters": ["$one", "$two"]}},
        "student": {
            "recipe": "toy/distill",
            "set": {
                "adapter.init": "$init",
                "routing.geneval.ref": "$one",
                "routing.ocr.ref": "$two",
                "routing.preference.ref": "$one",
                "anchor.ref": "base",
                "opd.extrapolate": "$lambda",
            },
        },
        "scores": {"recipe": "toy/eval", "set": {"adapter": "$student"}},
    },
}


def grid(tree=CHAIN, **changes):
    return expand(StudySpec.model_validate({**tree, **changes}), "study.yaml")


def having(stage, **fields):
    """The stages of the chain, one with other fields of its recipe."""
    spec = CHAIN["stages"].get(stage, {"recipe": "toy/eval"})
    return {**CHAIN["stages"], stage: {**spec, "set": {**spec.get("set", {}), **fields}}}


def kinds(nodes):
    return [name.partition("-")[0] for name in nodes]


def test_what_no_axis_changes_is_made_once_for_each_seed():
    made = grid()
    assert len(made.cells) == 4
    counts = {kind: kinds(made.nodes).count(kind) for kind in ("teacher", "merge", "distill", "eval")}
    assert counts == {"teacher": 4, "merge": 2, "distill": 4, "eval": 4}
    first, second, third, _ = made.cells
    assert (first.values, first.seed, second.seed) == ({"lambda": 1}, 0, 1)
    assert first.nodes["init"] == third.nodes["init"] != second.nodes["init"]
    assert list(first.nodes) == ["one", "two", "init", "student", "scores"]


def test_parents_precede_their_children():
    made = grid()
    order = list(made.nodes)
    for node in made.nodes.values():
        assert all(order.index(parent) < order.index(node.name) for parent in node.parents)


def test_recipes_have_the_seed_the_axis_and_the_runs_of_parents():
    made, store = grid(), Path("my store")
    cell = made.cells[3]
    student = made.nodes[cell.nodes["student"]].recipe_in(store)
    assert (student.seed, student.opd.extrapolate) == (1, 2.0)
    assert student.adapter.init == str(store / cell.nodes["init"])
    assert student.routing["ocr"].ref == str(store / cell.nodes["two"])
    assert student.anchor.beta == load(find("toy/distill")).anchor.beta
    assert made.nodes[cell.node].recipe_in(store).adapter == str(store / cell.nodes["student"])
    assert made.nodes[cell.node].recipe.eval.seed == 42


def test_a_stage_may_fix_its_seed_and_an_evaluation_take_it():
    made = grid(stages=having("one", seed=7))
    assert len({cell.nodes["one"] for cell in made.cells}) == 1
    assert len({cell.nodes["two"] for cell in made.cells}) == 2
    made = grid(stages=having("base", **{"eval.seed": "$seed"}), axes=CHAIN["axes"])
    assert [made.nodes[c.node].recipe.eval.seed for c in made.cells if c.evaluation == "base"] == [0, 1]
    made = grid(stages=having("base"))
    assert len({cell.node for cell in made.cells if cell.evaluation == "base"}) == 1


def test_the_best_checkpoint_of_a_stage_is_a_path_below_its_run(tmp_path):
    made = grid(stages=having("best", adapter="$one/best"))
    cell = next(cell for cell in made.cells if cell.evaluation == "best")
    assert list(cell.nodes) == ["one", "best"]
    assert made.nodes[cell.node].recipe_in(tmp_path).adapter == f"{tmp_path}/{cell.nodes['one']}/best"
    assert check_nodes(made, "study.yaml", allow_code=False) == []


def test_an_edited_grid_keeps_the_names_of_what_is_unchanged():
    before = set(grid().nodes)
    more = set(grid(axes={"lambda": [1, 1.5, 2]}, seeds=[0, 1]).nodes)
    assert before < more
    assert len(more - before) == 4
    other = set(grid(stages=having("two", **{"train.lr": 1e-4})).nodes)
    assert kinds(before & other) == ["teacher", "teacher"], "teacher one of each seed"
    named = {"$one": "$first"}
    stages = {"first": CHAIN["stages"]["one"], **{k: v for k, v in CHAIN["stages"].items() if k != "one"}}
    text = yaml.safe_dump(stages)
    for old, new in named.items():
        text = text.replace(old, new)
    assert set(grid(stages=yaml.safe_load(text)).nodes) == before, "names of stages are no content"
    assert set(grid(axes={"lambda": [1.0, 2.0]}).nodes) == before


def test_the_number_of_teachers_is_an_axis_of_named_overrides():
    one = {"student": {"routing": {"ocr": {"ref": "$two"}}, "prompts": [{"source": "toy:ocr"}]}}
    one["init"] = {"adapters": ["$two"]}
    made = grid(axes={"lambda": [1], "teachers": {"1": one, "2": {}}}, seeds=[0])
    assert [sorted(cell.nodes) for cell in made.cells] == [
        ["init", "scores", "student", "two"],
        ["init", "one", "scores", "student", "two"],
    ]
    assert made.cells[0].nodes["two"] == made.cells[1].nodes["two"]
    assert made.cells[0].values == {"lambda": 1, "teachers": "1"}


def test_an_override_of_a_part_does_not_reach_other_cells():
    stages = having("student", routing={task: {"ref": "$one"} for task in ("geneval", "ocr", "preference")})
    axes = {"lambda": [1], "teacher": {"own": {"student": {"routing.ocr.ref": "$two"}}, "shared": {}}}
    made = grid(stages=stages, axes=axes, seeds=[0])
    own, shared = (made.nodes[cell.nodes["student"]].recipe.routing["ocr"].ref for cell in made.cells)
    assert (own, shared) == (made.cells[0].nodes["two"], made.cells[0].nodes["one"])


def test_inputs_from_outside_are_part_of_the_content(tmp_path):
    prompts, adapter = tmp_path / "p.txt", tmp_path / "adapter"
    stages = having("one", prompts=[{"source": str(prompts), "task": "geneval"}])
    stages["student"] = having("student", **{"anchor.ref": str(adapter)})["student"]

    def names():
        cell = grid(stages=stages).cells[0]
        return cell.nodes["one"], cell.nodes["two"], cell.nodes["student"]

    prompts.write_text("a red circle\n")
    write_adapter(adapter)
    one, two, student = names()
    prompts.write_text("a blue square\n")
    assert names()[0] != one
    assert names()[1] == two
    prompts.write_text("a red circle\n")
    assert names() == (one, two, student)
    write_adapter(adapter, metadata={"other": "bytes"})
    assert (names()[0], names()[2] == student) == (one, False)


def test_shards_are_all_cells_and_share_none():
    made = grid()
    parts = [made.cells[index::3] for index in range(3)]
    assert sorted((c for part in parts for c in part), key=made.cells.index) == list(made.cells)
    assert kinds(node.name for node in made.needed(parts[2])) == ["teacher", "teacher", "merge", "distill", "eval"]


FAULTS = [
    (having("one", **{"train.iteration": 2}), r"stages\.one: unknown key 'train.iteration', did you mean 'iterations'"),
    (having("one", **{"train.iterations": "many"}), r"stages\.one: train\.iterations: .*valid integer, not 'many'"),
    (having("one", **{"seed.x": 1}), r"stages\.one: seed\.x: seed is a value, not a section"),
    ({**CHAIN["stages"], "one": {"recipe": "toy/teacher-genevl"}}, r"stages\.one: no recipe 'toy/teacher-genevl', did"),
    (having("scores", **{"eval.suites": ["ocrr"]}), r"stages\.scores: .*ocrr"),
    (having("student", **{"anchor.ref": "runs/t-absent"}), r"stages\.student: anchor: runs/t-absent: no such run, and"),
    (
        having("student", **{"routing.ocr.ref": "$one", "prompts": [{"source": "toy:all", "task": "x"}]}),
        r"stages\.student: .*task 'x'",
    ),
    (having("one", rewards=[{"name": "os:getcwd"}]), r"stages\.one: .*os:getcwd is code"),
]


@pytest.mark.parametrize(("stages", "message"), FAULTS)
def test_a_faulty_recipe_is_refused_with_its_stage(stages, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=f"study.yaml: {message}"):
        check_nodes(grid(stages=stages), "study.yaml", allow_code=False)


def test_a_sound_study_passes_though_no_run_exists(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert check_nodes(grid(), "study.yaml", allow_code=False) == []
    assert list(tmp_path.iterdir()) == []
    assert dump(next(iter(grid().nodes.values())).recipe).startswith("model:")


def test_a_study_needs_an_evaluation_and_publishes_nothing():
    stages = {name: spec for name, spec in CHAIN["stages"].items() if name != "scores"}
    with pytest.raises(RecipeError, match="none is an evaluation"):
        grid(stages=stages)
    with pytest.raises(RecipeError, match=r"axes\.ocr: the name belongs to a suite"):
        grid(stages=having("student", **{"opd.extrapolate": "$ocr"}), axes={"ocr": [1, 2]})
