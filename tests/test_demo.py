"""The demo as a chain: every stage's run, one table, one report that needs nothing else."""

import json
import re

import pytest

from flowopd_cli import demo
from flowopd_cli.execute import run_stage
from flowopd_cli.progress import Silent

TINY = {
    "teacher": (
        *("train.iterations=2", "train.groups=2", "train.group_size=2", "sampling.steps=3", "adapter.rank=4"),
        *("train.sample_every=0", "train.checkpoint_every=9"),
    ),
    "merge": ("merge.rank=4",),
    "eval": ("eval.images=1", "eval.limit=3", "eval.steps=2"),
}
TINY["distill"] = TINY["teacher"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    before = demo.QUICK
    demo.QUICK = TINY
    try:
        result = demo.run(demo.Demo(out, run_stage, Silent(), seed=3, quick=True), baseline=True, ablation=True)
    finally:
        demo.QUICK = before
    return out, result


MODELS = [
    "base",
    "teacher-geneval",
    "teacher-ocr",
    "teacher-quality",
    "grpo-mix",
    "merge",
    "student",
    "student-no-anchor",
]


def test_every_model_has_every_suite(shown):
    _, result = shown
    assert list(result["models"]) == MODELS
    for suites in result["models"].values():
        assert list(suites) == ["geneval", "ocr", "quality"]
        assert all(set(figures) == {"mean", "stderr", "n"} for figures in suites.values())
    json.dumps(result)


def test_the_baseline_has_as_many_steps_as_the_teachers_together(shown):
    out, _ = shown
    rows = (out / "grpo-mix" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 3 * 4


def test_the_report_is_one_file_with_table_curves_and_pictures(shown):
    out, result = shown
    html = (out / "report.html").read_text()
    assert result["report"] == str(out / "report.html")
    assert all(name in html for name in MODELS)
    assert html.count("data:image/png;base64,") >= len(MODELS)
    assert "<polyline" in html
    assert not re.search(r'(src|href)="https?://', html)


def test_the_seed_reaches_every_stage(shown):
    out, _ = shown
    for name in ("teacher-ocr", "merge", "student"):
        assert "seed: 3" in (out / name / "recipe.yaml").read_text()
