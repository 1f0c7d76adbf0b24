"""Evaluation on the toy base: pictures in official layouts, drawn once; resume, batches and processes."""

import json
import os
import shutil
import sys
import types
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from PIL import Image
from support.recorders import StopAt
from support.toyruns import changes

from flowopd_cli import recipe as recipes
from flowopd_cli import registry
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import ArtifactError, Interrupted, RecipeError
from flowopd_cli.prompts.files import load_prompts
from flowopd_cli.rewards.jpeg import JpegReward
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages import eval as stage
from flowopd_cli.stages.evaluation import journal as journals
from flowopd_cli.stages.evaluation.journal import judge, key_of
from flowopd_cli.stages.evaluation.suites import plan_requests
from flowopd_cli.suites.base import NamedReward, Suite
from flowopd_cli.system.progress import Silent

SMALL = ("eval.limit=4", "eval.images=2", "eval.steps=2", "eval.split=validation", "eval.batch=4")
SUITES = ("geneval", "ocr", "quality")


def perform(path, *overrides, resume=False, progress=None):
    built = recipes.load(recipes.find("toy/eval"), overrides=[*SMALL, *overrides])
    run = RunDir.open(path) if resume else RunDir.create(path, built.stage)
    return run, run_stage(Plan.of(built), run, progress or Silent(), resume=resume)


def result(run, suite):
    return json.loads(run.eval_file(suite).read_text())


def rows(run, suite):
    return [json.loads(line) for line in (run.eval_dir / f"{suite}.jsonl").read_text().splitlines()]


def pngs(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return perform(tmp_path_factory.mktemp("eval") / "e")[0]


def test_geneval_pictures_have_the_official_layout(done):
    folder = done.images_dir / "geneval"
    prompts = sorted(path.name for path in folder.iterdir())
    assert len(prompts) == 4
    for name in prompts:
        assert sorted(path.name for path in (folder / name / "samples").iterdir()) == ["00000.png", "00001.png"]
        metadata = json.loads((folder / name / "metadata.jsonl").read_text())
        assert {"tag", "include", "prompt"} <= set(metadata)


def test_suites_share_the_pictures_of_a_prompt(done):
    drawn = pngs(done.images_dir)
    shared = {(row["task"], row["prompt"], row["index"]) for name in SUITES for row in rows(done, name)}
    assert len(drawn) == len(shared) < sum(len(rows(done, name)) for name in SUITES)


def test_every_picture_has_a_row_and_the_summary_is_their_mean(done):
    for name in SUITES:
        summary, own = result(done, name), rows(done, name)
        assert summary["n"] == len(own) == 8
        assert all((done.images_dir / row["picture"]).is_file() for row in own)
        tags = {row["tag"] for row in own}
        means = [[row["value"] for row in own if row["tag"] == tag] for tag in tags]
        assert summary["mean"] == pytest.approx(sum(sum(v) / len(v) for v in means) / len(means))


def test_a_resumed_evaluation_draws_no_picture_twice(done, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        perform(tmp_path / "e", progress=StopAt(2))
    run = RunDir.open(tmp_path / "e")
    before = {path: path.stat().st_mtime_ns for path in run.images_dir.rglob("*.png")}
    assert 0 < len(before) < len(pngs(done.images_dir))
    perform(run.path, resume=True)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert pngs(run.images_dir) == pngs(done.images_dir)
    for name in SUITES:
        assert rows(run, name) == rows(done, name)
    monkeypatch.setattr(stage, "load_model", lambda *args: pytest.fail("a model was loaded for nothing"))
    perform(run.path, resume=True)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    return perform(tmp_path_factory.mktemp("eval") / "e", "eval.guidance=[1, 2.5]")


def test_several_guidances_are_drawn_and_scored_apart(done, compared, tmp_path):
    run, found = compared
    alone = {1: done, 2.5: perform(tmp_path / "e", "eval.guidance=2.5")[0]}
    for guidance, one in alone.items():
        part = f"guidance-{guidance}"
        assert pngs(run.images_dir / part) == pngs(one.images_dir)
        for name in SUITES:
            assert run.eval_file(name, part).read_text() == one.eval_file(name).read_text()
            lines = run.eval_file(name, part).with_suffix(".jsonl").read_text()
            assert lines == (one.eval_dir / f"{name}.jsonl").read_text()
    means = {row["guidance"]: [suite["mean"] for suite in row["suites"].values()] for row in found["by_guidance"]}
    assert list(means) == [1, 2.5]
    assert found["best_guidance"] == run.manifest().metrics["best_guidance"] == max(means, key=lambda g: sum(means[g]))


def test_a_resumed_comparison_of_guidances_draws_and_scores_nothing_twice(compared, tmp_path, monkeypatch):
    run, models = compared[0], []
    load = stage.load_model
    monkeypatch.setattr(stage, "load_model", lambda *args: models.append(args) or load(*args))
    batches = sum(-(-len(pngs(folder)) // 4) for folder in run.images_dir.iterdir() if folder.is_dir())
    with pytest.raises(Interrupted):
        perform(tmp_path / "e", "eval.guidance=[1, 2.5]", progress=StopAt(batches // 2 + 2))
    half = RunDir.open(tmp_path / "e")
    before = {path: path.stat().st_mtime_ns for path in half.images_dir.rglob("*.png")}
    assert {path.relative_to(half.images_dir).parts[0] for path in before} == {"guidance-1", "guidance-2.5"}
    assert (half.scored_dir / "guidance-1").exists()  # the scorer may not have come to the second guidance yet
    assert len(models) == 1
    perform(half.path, "eval.guidance=[1, 2.5]", resume=True)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert pngs(half.images_dir) == pngs(run.images_dir)
    assert not half.scored_dir.exists()
    texts = [{file.name: file.read_text() for file in one.eval_dir.iterdir()} for one in (half, run)]
    assert texts[0] == texts[1]
    assert len(models) == 2
    perform(half.path, "eval.guidance=[1, 2.5]", resume=True)
    assert len(models) == 2, "a model was loaded for nothing"


@pytest.mark.parametrize("field", ["pictures=p", "import_scores=p", "fail_under={ocr: 0.5}"])
def test_several_guidances_are_refused_where_there_is_one_set_of_pictures(field):
    with pytest.raises(RecipeError, match=rf"guidance is 1, 2, but {field.split('=')[0]} is about one set of pictures"):
        recipes.load(recipes.find("toy/eval"), overrides=["eval.guidance=[1, 2]", f"eval.{field}"])


def test_damaged_pictures_are_drawn_again(done, tmp_path):
    shutil.copytree(done.path, tmp_path / "e")
    run = RunDir.open(tmp_path / "e")
    lost = sorted(run.images_dir.rglob("*.png"))[:3]
    lost[0].write_bytes(b"")
    lost[1].write_bytes(bytes(lost[1].stat().st_size))  # blocks that never reached the disk
    lost[2].write_bytes(lost[2].read_bytes()[:-20])
    perform(run.path, resume=True)
    assert pngs(run.images_dir) == pngs(done.images_dir)


def test_pictures_of_other_settings_are_not_mixed_in(done, tmp_path):
    shutil.copytree(done.path, tmp_path / "e")
    for override in ("eval.steps=3", "eval.seed=7", "eval.guidance=3"):
        with pytest.raises(ArtifactError, match="other settings"):
            perform(tmp_path / "e", override, resume=True)


def test_pictures_of_other_prompts_are_refused(tmp_path):
    for name, text in (("a", "first"), ("b", "second")):
        (tmp_path / f"{name}.txt").write_text(f'a sign that says "{text}"\n')

    def options(name):
        return f"eval.options={{toy-prompts: {{prompts: {tmp_path / name}.txt}}}}"

    overrides = ("eval.suites=[toy-prompts]", "eval.split=test")
    with patched_suite():
        run, _ = perform(tmp_path / "e", *overrides, options("a"))
        with pytest.raises(ArtifactError, match="other prompts"):
            perform(run.path, *overrides, options("b"), resume=True)


@contextmanager
def patched_suite():
    """A user's suite whose prompts are an option."""
    sys.modules["test_eval_suite"] = types.SimpleNamespace(suite=own_suite)
    with patch.dict(registry.SUITES._table, {"toy-prompts": "test_eval_suite:suite"}):
        yield
    del sys.modules["test_eval_suite"]


def own_suite(prompts):
    return Suite("own", "1", lambda split: load_prompts(prompts, task="ocr"), JpegReward, images=1)


def assert_equal_values(run, other):
    for name in SUITES:
        for one, two in zip(rows(run, name), rows(other, name), strict=True):
            assert (one["prompt"], one["index"]) == (two["prompt"], two["index"])
            assert one["value"] == pytest.approx(two["value"], abs=1e-4)


def test_batch_size_changes_no_value(done, tmp_path):
    run, _ = perform(tmp_path / "e", "eval.batch=1")
    assert_equal_values(run, done)


def test_two_processes_give_the_rows_of_one(done, forks, tmp_path):
    ended = forks.run("eval", "--recipe", "toy/eval", *changes(*SMALL), "--out", tmp_path / "e", ranks=2)
    assert ended.code == 0, ended.err
    run = RunDir.open(tmp_path / "e")
    assert len(pngs(run.images_dir)) == len(pngs(done.images_dir))
    assert_equal_values(run, done)


def test_pictures_of_another_program_are_scored_without_a_model(done, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_model", lambda *args: pytest.fail("no model is needed"))
    folder = tmp_path / "theirs"
    shutil.copytree(done.images_dir / "geneval", folder)
    for path in list(folder.rglob("*.png")):
        renamed = path.rename(path.with_name(f"{int(path.stem):04d}.png"))  # the README's four digits
        if int(path.stem) == 1:
            Image.open(renamed).save(renamed.with_suffix(".webp"), lossless=True)
            renamed.unlink()
    run, _ = perform(tmp_path / "e", "eval.suites=[geneval]", f"eval.pictures={folder}")
    assert result(run, "geneval")["mean"] == result(done, "geneval")["mean"]
    assert not run.images_dir.exists()
    picture = next(folder.rglob("*.png"))
    Image.open(picture).resize((48, 40)).save(picture)
    assert result(perform(tmp_path / "g", "eval.suites=[geneval]", f"eval.pictures={folder}")[0], "geneval")["n"] == 8
    picture.unlink()
    with pytest.raises(RecipeError, match="1 of 8 pictures are missing"):
        perform(tmp_path / "f", "eval.suites=[geneval]", f"eval.pictures={folder}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("eval.fail_under={ocr: 0.5}", "that suite is not run"),
        ("eval.options={ocr: {reader: x}}", r"not among eval\.suites"),
        ("eval.options={quality: {nonsense: 1}}", r"eval\.options\.toy-quality"),
    ],
)
def test_unused_bars_and_options_are_refused(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        perform(tmp_path / "e", "eval.suites=[quality]", override)


def test_a_resumed_evaluation_scores_no_picture_twice(done, tmp_path, monkeypatch):
    with pytest.raises(Interrupted):
        perform(tmp_path / "e", progress=StopAt(3))
    run = RunDir.open(tmp_path / "e")
    (journal,) = run.scored_dir.iterdir()
    before = {(line["suite"], *key_of(line["row"])) for line in map(json.loads, journal.open())}
    journal.write_bytes(journal.read_bytes() + b'{"suite": "ocr", "ro')  # a line that the crash tore
    touched = next(key for key in before if key[0] == "geneval")[1:]
    request = next(r for r in requests("geneval") if r.key == touched)
    os.utime(run.images_dir / request.path, ns=(1, 1))
    scored = set()
    original = journals.score

    def counted(suite, reward, images, prompts, indices):
        scored.update((suite.name, p.task, p.id, p.text, i) for p, i in zip(prompts, indices, strict=True))
        return original(suite, reward, images, prompts, indices)

    monkeypatch.setattr(journals, "score", counted)
    perform(run.path, resume=True)
    assert {key[1:] for key in before & scored} == {touched}
    assert not run.scored_dir.exists()
    for name in SUITES:
        assert rows(run, name) == rows(done, name)


def requests(name):
    built = recipes.load(recipes.find("toy/eval"), overrides=[*SMALL, f"eval.suites=[{name}]"])
    return plan_requests(built).pictures


def test_judges_with_other_options_differ():
    named = (NamedReward("jpeg_compressibility", {"quality": quality}) for quality in (90, 90, 95))
    judges = [judge(Suite("s", "1", lambda split: [], reward), JpegReward()) for reward in named]
    assert judges[0] == judges[1] != judges[2]
