"""The demo: its stages, table, verdict and report; interruption, failure and resume."""

import json
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import support

from flowopd_cli.cli import demo
from flowopd_cli.cli.demo import Demo
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.cli.study import pool
from flowopd_cli.errors import ArtifactError, Interrupted, MissingDependency, StorageError
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

TRAINING = ("train.iterations=2", "train.groups=2", "train.group_size=2", "sampling.steps=4", "adapter.rank=4")
TRAINING += ("watch.groups=2",)  # of all-rewards, the only one that is watched
EVALUATION = ("eval.images=1", "eval.limit=3", "eval.steps=2")
TINY = {"teacher": TRAINING, "distill": TRAINING, "merge": ("merge.rank=4",), "eval": EVALUATION}
TEACHERS = [f"teacher-{objective}" for objective in demo.OBJECTIVES]
MODELS = ["base", *TEACHERS, "merge", "all-rewards", "all-rewards-best", "one-after-another", "student"]
CHAIN = [f"one-after-another-{task}" for task in demo.OBJECTIVES]
FAKE = Path(support.__path__[0]) / "fake_stage.py"


class InProcess:
    """A pool that runs real stages in this process, of two CPU-seconds each by its records."""

    def __init__(self, store, jobs, note, *, interval):
        self.store = store

    def run(self, nodes, again):
        for node in nodes:
            recipe = node.recipe_in(self.store)
            run_stage(Plan.of(recipe), RunDir.create(self.store / node.name, recipe.stage), Silent())
            (self.store / f"{node.name}.cpu.json").write_text('{"seconds": [1.5, 0.5]}')
        return {node.name: "done" for node in nodes}


class Shown(Silent):
    """The titles and rows of the tables, and the notes."""

    def __init__(self):
        self.tables, self.notes = {}, []

    def table(self, title, columns, rows):
        self.tables[title] = [columns, *rows]

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The smallest demo of real stages: its folder, its result, what it showed."""
    out, shown = tmp_path_factory.mktemp("demo") / "out", Shown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "QUICK", TINY)
        patch.setattr(demo, "Pool", InProcess)
        return out, Demo(out, seed=3, quick=True, baseline=True).run(shown), shown


def test_every_model_has_every_suite(real):
    _, result, _ = real
    assert list(result["models"]) == MODELS
    for suites in result["models"].values():
        assert list(suites) == ["geneval", "ocr", "preference", "quality"]
        assert all(set(figures) == {"mean", "stderr", "n", "exact"} for figures in suites.values())
    json.dumps(result)


def test_stages_have_the_seed_of_the_demo(real):
    out, _, _ = real
    for name in ("teacher-ocr", "all-rewards", "merge", "student"):
        assert "seed: 3" in (out / name / "recipe.yaml").read_text()


def test_the_cost_of_a_model_is_that_of_all_behind_it(real):
    out, result, shown = real
    (_, *rows), costs = shown.tables[f"Held-out results. {demo.CAPTION}"], result["costs"]
    drawn = {name: len(RunDir(out / name).rows()) for name in ("all-rewards", *CHAIN)}
    stages = {"base": 0, "teacher-ocr": 1, "merge": 5, "one-after-another": 4, "student": 6}
    assert {name: costs[name]["CPU-seconds"] for name in stages} == {name: 2 * n for name, n in stages.items()}
    pictures = {name: figures["pictures drawn"] for name, figures in costs.items()}
    assert (pictures["base"], pictures["teacher-ocr"], pictures["merge"], pictures["student"]) == (0, 8, 32, 40)
    assert pictures["one-after-another"] == 4 * sum(drawn[name] for name in CHAIN)
    iterations = drawn["all-rewards"] - 1  # the first watch has a row of its own
    watched = 2 * (1 + iterations // 10)
    assert pictures["all-rewards"] == pictures["all-rewards-best"] == 4 * iterations + watched
    assert [row[-2:] for row in rows if row[0] == "student"] == [("12", "40")]


def test_the_best_checkpoint_is_a_model_of_its_own(real):
    out, _, _ = real
    parents = {name: RunDir(out / f"eval-{name}").manifest().parents[0].ref for name in ("all-rewards", demo.BEST)}
    assert parents == {"all-rewards": f"{out}/all-rewards", demo.BEST: f"{out}/all-rewards/best"}


def test_the_report_is_one_file_with_table_verdict_curves_and_pictures(real):
    out, result, shown = real
    html = (out / "report.html").read_text()
    assert result["report"] == str(out / "report.html")
    assert all(name in html for name in MODELS)
    assert html.count("data:image/png;base64,") >= len(MODELS)
    assert "<path" in html
    assert not re.search(r'(src|href)="https?://', html)
    assert "all-rewards-best &" in (out / "table.tex").read_text()
    assert re.match(r"The student (surpasses|equals|falls short of) ", result["verdict"])
    assert shown.notes == [result["verdict"]]
    assert f"<p>{result['verdict']}</p>" in html
    for rival in (*(f"{name} on {name.split('-')[1]} (" for name in TEACHERS), "all-rewards-best on average ("):
        assert rival in result["verdict"]


def test_the_baselines_cost_as_much_as_teachers_and_student():
    for quick in (False, True):
        nodes = {node.name: node.recipe for node in Demo(Path("d"), quick=quick, baseline=True).nodes()}
        count = {name: recipe.train.iterations for name, recipe in nodes.items() if hasattr(recipe, "train")}
        chain, whole = 4 * demo.START_SECONDS, 6 * demo.START_SECONDS + count["student"] * demo.STUDENT_SECONDS
        for task, seconds in demo.OBJECTIVES.items():
            whole += count[f"teacher-{task}"] * seconds
            chain += count[f"one-after-another-{task}"] * seconds
        at_once = demo.START_SECONDS + count["all-rewards"] * demo.ALL_REWARDS_SECONDS
        assert chain == pytest.approx(whole, rel=0.03)
        assert at_once == pytest.approx(whole, rel=0.1)
    assert nodes["one-after-another-geneval"].adapter.init is None
    assert nodes["one-after-another-quality"].adapter.init == "one-after-another-preference"


class Stages:
    """Processes that train nothing, and notes of their calls."""

    def __init__(self, folder):
        self.folder = folder

    def order(self, **orders):
        """What stages do whose recipe has a text."""
        tree = {text.replace("_", ": ", 1): what for text, what in orders.items()}
        (self.folder / "orders").write_text(json.dumps(tree))

    def calls(self):
        """What was started and resumed since the last question."""
        file = self.folder / "calls"
        lines = [line.split()[:2] for line in file.read_text().splitlines()] if file.exists() else []
        file.unlink(missing_ok=True)
        return lines


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Runs stages as processes that train nothing."""
    (tmp_path / "notes").mkdir()
    monkeypatch.setenv("FAKE_NOTES", str(tmp_path / "notes"))
    monkeypatch.setattr(pool, "PROGRAM", ("-SE", str(FAKE)))
    monkeypatch.setattr(pool, "POLL", 0.02)
    return Stages(tmp_path / "notes")


def test_an_interrupted_demo_goes_on_where_it_stopped(stages, tmp_path):
    chain = Demo(tmp_path / "my demo", seed=2, quick=True, jobs=1)
    stages.order(stage_merge="hang")

    def interrupt():
        calls = stages.folder / "calls"
        while not calls.exists() or "merge" not in calls.read_text():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Timer(0.5, interrupt).start()
    with pytest.raises(Interrupted) as stopped:
        chain.run(Silent())
    assert (
        str(stopped.value) == f"stopped; resume with: flowopd demo --out '{tmp_path}/my demo' --quick --seed 2 --jobs 1"
    )
    assert stages.calls() == [["start", name] for name in (*TEACHERS, "merge")]
    stages.order()
    chain.run(Silent())
    assert stages.calls()[:3] == [["resume", "merge"], ["start", "student"], ["start", "eval-base"]]
    result = chain.run(Silent())
    assert stages.calls() == []
    assert Path(result["report"]).is_file()
    replace(chain, baseline=True).run(Silent())
    added = ["all-rewards", *CHAIN, "eval-all-rewards", "eval-all-rewards-best", "eval-one-after-another"]
    assert stages.calls() == [["start", name] for name in added]


def test_a_failed_stage_is_named_and_the_others_are_made(stages, flowopd, tmp_path):
    out = tmp_path / "d"
    stages.order(**{"name_toy-ocr": "fail"})
    code, stdout, err = flowopd("demo", "--out", out, "--jobs", 2)
    assert (code, stdout) == (3, f"{out}/report.html\n")
    assert "teacher-geneval: started" in err
    assert re.search(r"teacher-quality: done \(\d+ CPU-seconds, \d+ of 13\)", err)
    line = err.splitlines()[-1]
    assert line.startswith("1 runs failed, 5 were skipped; the first: teacher-ocr failed, exit code 1: ")
    assert f"(its output: {out}/teacher-ocr.log)" in line
    assert "teacher-quality" in (out / "report.html").read_text()
    stages.order()
    stages.calls()
    code, stdout, _ = flowopd("demo", "--out", out, "--json")
    assert (code, json.loads(stdout)["faults"]) == (0, {})
    assert stages.calls()[0] == ["resume", "teacher-ocr"]


def test_the_ablation_shows_folding_with_its_cost(stages, tmp_path):
    chain, shown = Demo(tmp_path / "d", ablation=True), Shown()
    guidances = {"student": None, demo.FOLDED: demo.GUIDANCE}
    for node in (node for node in chain.nodes() if node.name in guidances):
        assert {spec.guidance for spec in node.recipe.routing.values()} == {guidances[node.name]}
    Demo(tmp_path / "d").run(shown)
    assert list(shown.tables) == [f"Held-out results. {demo.CAPTION}"]
    stages.calls()
    chain.run(shown)
    models = ["base", *TEACHERS, "student"]
    added = {"student-no-anchor", demo.FOLDED, "eval-student-no-anchor", f"eval-{demo.FOLDED}"}
    assert {name for _, name in stages.calls()} == added | {f"eval-{name}-guided" for name in models}
    _, *rows = shown.tables[demo.FOLDING]
    rows_of_each = [(name, *row) for name in models for row in (("1", "10"), ("2", "20"))]
    assert [row[:3] for row in rows] == [*rows_of_each, (demo.FOLDED, "1", "10")]
    assert demo.FOLDING in (tmp_path / "d" / "report.html").read_text()


def test_a_demo_of_other_settings_is_not_mixed_in(stages, tmp_path):
    Demo(tmp_path / "d").run(Silent())
    for other in (Demo(tmp_path / "d", seed=1), Demo(tmp_path / "d", quick=True)):
        with pytest.raises(ArtifactError, match="was made with other settings"):
            other.run(Silent())


def test_a_directory_of_something_else_stays_as_it_is(stages, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    (tmp_path / "notes").rmdir()
    with pytest.raises(ArtifactError, match=r"is not empty, and thesis\.tex is not part of a demo"):
        Demo(tmp_path).run(Silent())
    with pytest.raises(ArtifactError, match="is a file"):
        Demo(tmp_path / "thesis.tex").run(Silent())
    with pytest.raises(StorageError, match="/dev/null/x: cannot be written"):
        Demo(Path("/dev/null/x")).run(Silent())


def test_an_absent_package_is_refused_before_anything_is_trained(stages, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingDependency, match=r"rapidocr is not installed: pip install 'flowopd\[ocr\]'"):
        Demo(tmp_path / "d").run(Silent())
    assert not (tmp_path / "d").exists()
