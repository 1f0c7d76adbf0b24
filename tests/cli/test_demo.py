"""The demo: the run of each stage, table and report; interruption and resume."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flowopd_cli.cli import demo
from flowopd_cli.cli.console import Console
from flowopd_cli.cli.demo import Demo
from flowopd_cli.cli.execute import run_demo
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import ArtifactError, Interrupted, MissingDependency
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

TRAINING = ("train.iterations=2", "train.groups=2", "train.group_size=2", "sampling.steps=4", "adapter.rank=4")
EVALUATION = ("eval.images=1", "eval.limit=3", "eval.steps=2")
TINY = {"teacher": TRAINING, "distill": TRAINING, "merge": ("merge.rank=4",), "eval": EVALUATION}
MODELS = ["base", "teacher-geneval", "teacher-ocr", "teacher-quality", "grpo-mix", "merge", "student"]
MODELS += ["student-no-anchor", demo.FOLDED]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "QUICK", TINY)
        patch.setattr(Demo, "guided", lambda self: [])  # five evaluations, which nothing here looks at
        return out, Demo(out, seed=3, quick=True, baseline=True, ablation=True).run(run_stage, Silent())


def test_every_model_has_every_suite(shown):
    _, result = shown
    assert list(result["models"]) == MODELS
    for suites in result["models"].values():
        assert list(suites) == ["geneval", "ocr", "quality"]
        assert all(set(figures) == {"mean", "stderr", "n", "exact"} for figures in suites.values())
    json.dumps(result)


def test_stages_have_the_seed_of_the_demo(shown):
    out, _ = shown
    for name in ("teacher-ocr", "grpo-mix", "merge", "student"):
        assert "seed: 3" in (out / name / "recipe.yaml").read_text()


def test_the_report_is_one_file_with_table_curves_and_pictures(shown):
    out, result = shown
    html = (out / "report.html").read_text()
    assert result["report"] == str(out / "report.html")
    assert all(name in html for name in MODELS)
    assert html.count("data:image/png;base64,") >= len(MODELS)
    assert "<path" in html
    assert not re.search(r'(src|href)="https?://', html)
    assert "student-no-anchor &" in (out / "table.tex").read_text()


def pretend(seen, *, stop=None):
    """A stage that only leaves the files behind; the one called ``stop`` is interrupted instead."""

    def execute(plan, run, progress, *, resume=False):
        recipe = plan.recipe
        seen.append((run.path.name, resume))
        run.start(recipe)
        if run.path.name == stop:
            run.finish("interrupted")
            raise Interrupted("stopped")
        for suite in demo.OBJECTIVES if recipe.stage == "eval" else ():
            result = {"suite": suite, "version": "1", "mean": 0.5, "stderr": 0.0, "n": 1}
            run.write_eval(suite, json.dumps(result))
        run.write_eval("prompts", "[]")
        run.finish("done")

    return execute


def test_an_interrupted_demo_goes_on_where_it_stopped(tmp_path):
    shown, seen = Demo(tmp_path / "d"), []
    with pytest.raises(Interrupted):
        shown.run(pretend(seen, stop="merge"), Silent())
    assert [name for name, _ in seen] == ["teacher-geneval", "teacher-ocr", "teacher-quality", "merge"]
    again = []
    shown.run(pretend(again), Silent())
    assert again[:3] == [("merge", True), ("student", False), ("eval-base", False)]
    executed = []
    result = shown.run(pretend(executed), Silent())
    assert executed == []
    assert Path(result["report"]).is_file()
    more = []
    replace(shown, baseline=True).run(pretend(more), Silent())
    assert [name for name, _ in more] == ["grpo-mix", "eval-grpo-mix"]


def test_the_ablation_shows_folding_with_its_cost(tmp_path):
    shown, seen = Demo(tmp_path / "d", ablation=True), []
    guidances = {"student": None, demo.FOLDED: demo.GUIDANCE}
    for student, guidance in guidances.items():
        assert {spec.guidance for spec in shown.stages()[student].routing.values()} == {guidance}
    Demo(tmp_path / "d").run(pretend([]), Silent())
    html = (tmp_path / "d" / "report.html").read_text()
    assert demo.CAPTION in html
    assert demo.FOLDING not in html
    shown.run(pretend(seen), Silent())
    models = ["base", "teacher-geneval", "teacher-ocr", "teacher-quality", "student"]
    added = ["student-no-anchor", demo.FOLDED]
    added += [f"eval-{name}" for name in added] + [f"eval-{name}-guided" for name in models]
    assert [name for name, _ in seen] == added
    rows = re.search(rf"{re.escape(demo.FOLDING)}(.*?)</table>", (tmp_path / "d/report.html").read_text(), re.S)[1]
    cells = re.findall(r"<td[^>]*>([^<]*)", rows)
    columns = 3 + len(demo.OBJECTIVES) + 1
    found = [tuple(cells[i : i + 3]) for i in range(0, len(cells), columns)]
    rows_of_each = [(name, *row) for name in models for row in (("1", "10"), ("2", "20"))]
    assert found == [*rows_of_each, (demo.FOLDED, "1", "10")]


def test_a_demo_of_other_settings_is_not_mixed_in(tmp_path):
    Demo(tmp_path / "d").run(pretend([]), Silent())
    for other in (Demo(tmp_path / "d", seed=1), Demo(tmp_path / "d", quick=True)):
        with pytest.raises(ArtifactError, match="was made with other settings"):
            other.run(pretend([]), Silent())


def test_a_directory_of_something_else_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"is not empty, and thesis\.tex is not part of a demo"):
        Demo(tmp_path).run(pretend([]), Silent())
    with pytest.raises(ArtifactError, match="is a file"):
        Demo(tmp_path / "thesis.tex").run(pretend([]), Silent())
    with pytest.raises(ArtifactError, match="/dev/null/x/teacher-geneval: cannot be written"):
        Demo(Path("/dev/null/x")).run(pretend([]), Silent())


def test_an_absent_package_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingDependency, match=r"rapidocr is not installed: pip install 'flowopd\[ocr\]'"):
        Demo(tmp_path / "d").run(pretend([]), Silent())
    assert not (tmp_path / "d").exists()


def test_the_line_after_ctrl_c_is_the_demos_own_command(monkeypatch, tmp_path):
    def stops(recipe, run, progress, **rest):
        raise KeyboardInterrupt

    chain = Demo(tmp_path / "my demo", seed=2, quick=True, ablation=True)
    again = f"resume with: flowopd demo --out '{tmp_path}/my demo' --seed 2 --quick --ablation"
    assert chain.command() == again.removeprefix("resume with: ")
    monkeypatch.setitem(sys.modules, "flowopd_cli.stages.teacher", SimpleNamespace(run=stops))
    with pytest.raises(Interrupted) as stopped:
        run_demo(chain, Console(quiet=True))
    assert str(stopped.value) == f"stopped; {again}"
    assert RunDir.open(chain.out / "teacher-geneval").manifest().status == "interrupted"
    monkeypatch.setattr(Demo, "run", lambda *rest: stops(*rest))
    with pytest.raises(Interrupted, match="resume with: flowopd demo"):
        run_demo(chain, Console(quiet=True))
