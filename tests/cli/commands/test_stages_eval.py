"""``flowopd eval``: thresholds and their exit code, pictures and scores of other programs, errors of one process."""

import csv
import json
import shutil
import sys

import pytest

from flowopd_cli.cli import app as cli
from flowopd_cli.runs.run import RunDir

SMALL = ("--limit", "6", "--images-per-prompt", "1", "--batch", "4", "--set", "eval.steps=2")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A finished evaluation of the toy base in ``done``."""
    made = tmp_path_factory.mktemp("cli-eval")
    assert call("eval", "--base", "toy", "--suite", "geneval, quality", *SMALL, "--out", made / "done") == 0
    return made


def call(*argv):
    before, sys.argv = sys.argv, ["flowopd", *map(str, argv)]
    try:
        return cli.run()
    finally:
        sys.argv = before


def result(run, suite):
    return json.loads(RunDir.open(run).eval_file(suite).read_text())


def test_a_suite_under_its_threshold_exits_with_3(root, capsys):
    quality = ("eval", "--base", "toy", "--suite", "quality", *SMALL)
    assert call(*quality, "--fail-under", "quality=0.99", "--json", "--quiet", "--out", root / "low") == 3
    out, err = capsys.readouterr()
    assert json.loads(out)["below"] == [err.strip()]
    assert err.startswith("quality: 0.")
    assert call("eval", "--resume", root / "low") == 3
    assert "already done" in capsys.readouterr().err
    assert call("eval", "--resume", root / "low", "--fail-under", "quality=0.01") == 0
    assert call("eval", "--resume", root / "low") == 3
    assert call("eval", "--resume", root / "low", "--fail-under", "geneval=0.01") == 2
    assert "--fail-under geneval: no such result" in capsys.readouterr().err
    assert call("eval", "--resume", root / "low", "--fail-under", "quality=0.9", "--suite", "ocr") == 2
    assert "leave out a flag of the recipe" in capsys.readouterr().err


def test_a_threshold_given_on_resume_is_recorded_only_by_a_run_that_goes_on(root, tmp_path):
    shutil.copytree(root / "done", tmp_path / "e")
    before = (tmp_path / "e" / "recipe.yaml").read_bytes()
    assert call("eval", "--resume", tmp_path / "e", "--fail-under", "quality=0.99") == 3
    assert (tmp_path / "e" / "recipe.yaml").read_bytes() == before
    RunDir(tmp_path / "e").finish("interrupted")
    assert call("eval", "--resume", tmp_path / "e", "--fail-under", "quality=0.99") == 3
    assert RunDir.open(tmp_path / "e").manifest().status == "done"
    assert RunDir.open(tmp_path / "e").recipe().eval.fail_under == {"quality": 0.99}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--fail-under", "geneval=nan"], "SUITE=NUMBER"),
        (["--fail-under", "qualty=0.5"], "did you mean 'quality'"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--import-scores", "nowhere"], "--import-scores nowhere: no such folder"),
        (["--images", "a", "--import-scores", "b"], "name one of them"),
        (["--set", "eval.options={quality: {nonsense: 1}}"], "nonsense"),
    ],
)
def test_mistakes_are_refused_before_there_is_a_run(tmp_path, capsys, flags, words):
    assert call("eval", "--base", "toy", "--suite", "geneval,quality", *flags, "--out", tmp_path / "e") == 2
    out, err = capsys.readouterr()
    assert words in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "e").exists()


def test_options_go_by_the_short_name_of_the_suite(root, tmp_path):
    argv = ("eval", "--base", "toy", "--suite", "geneval", "--images", root / "done" / "images", *SMALL)
    assert call(*argv, "--set", "eval.options={geneval: {nothing: 1}}", "--out", tmp_path / "e") == 2
    assert call(*argv, "--set", "eval.options={geneval: {}}", "--out", tmp_path / "f") == 0


def test_pictures_of_other_prompts_are_not_scored(root, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(root / "done" / "images" / "geneval", other)
    note = next(other.rglob("metadata.jsonl"))
    note.write_text(json.dumps({**json.loads(note.read_text()), "prompt": "a photo of a bench"}))
    argv = ("eval", "--base", "toy", "--suite", "geneval", "--images", other, *SMALL)
    assert call(*argv, "--out", tmp_path / "e") == 2
    assert "is of 'a photo of a bench'" in capsys.readouterr().err


def test_pictures_in_any_layout_are_listed_in_a_csv(root, tmp_path, capsys):
    rows = [json.loads(line) for line in RunDir(root / "done").eval_file("geneval").with_suffix(".jsonl").open()]
    (tmp_path / "flat").mkdir()
    with (tmp_path / "list.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("prompt", "file"))
        for number, row in enumerate(reversed(rows)):
            shutil.copy(root / "done" / "images" / row["picture"], tmp_path / "flat" / f"{number}.png")
            table.writerow((row["text"], f"{number}.png"))
    argv = ("eval", "--base", "toy", "--images", tmp_path / "flat", "--images-csv", tmp_path / "list.csv", "--quiet")
    assert call(*argv, "--suite", "geneval", "--images-per-prompt", "1", "--out", tmp_path / "e") == 0
    found, drawn = result(tmp_path / "e", "geneval"), result(root / "done", "geneval")
    assert (found["mean"], found["n"], found["by_tag"]) == (drawn["mean"], drawn["n"], drawn["by_tag"])
    assert found["version"].startswith(f"{drawn['version']}+")  # six prompts of many
    assert (found["exact"], found["published"]) == (False, {})
    assert "on other prompts than the suite's own" in found["note"]
    lines = [json.loads(line) for line in RunDir(tmp_path / "e").eval_file("geneval").with_suffix(".jsonl").open()]
    assert {line["prompt"] for line in lines} == {row["prompt"] for row in rows}
    assert {line["picture"] for line in lines} == {path.name for path in (tmp_path / "flat").iterdir()}
    capsys.readouterr()
    (tmp_path / "flat" / "0.png").unlink()
    assert call(*argv, "--suite", "quality", "--out", tmp_path / "f") == 2
    assert f"line 2: 1 of 6 files are not in {tmp_path / 'flat'}, the first is 0.png" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_without_a_base_the_pictures_of_others_are_those_of_the_public_suites(tmp_path, capsys):
    metadata = [{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metadata))
    scores = [{"tag": "single_object", "metadata": json.dumps(metadata[0]), "correct": i % 2 == 0} for i in range(4)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    assert call("eval", "--suite", "geneval", "--import-scores", tmp_path, "--out", tmp_path / "e") == 0
    assert result(tmp_path / "e", "geneval")["mean"] == 0.5
    assert result(tmp_path / "e", "geneval")["stderr"] is None
    (tmp_path / "other").mkdir()
    own = f"eval.options={{geneval: {{prompts: {tmp_path / 'm.jsonl'}}}}}"
    argv = ("eval", "--suite", "geneval", "--images", tmp_path / "other", "--set", own)
    assert call(*argv, "--out", tmp_path / "f") == 2
    assert "4 of 4 pictures are missing, the first is geneval/00000/samples/00000.png" in capsys.readouterr().err


def test_an_error_of_one_process_is_the_error_of_all(root, forks, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(root / "done" / "images" / "geneval", other)
    second = sorted(other.rglob("*.png"))[1]
    second.write_bytes(second.read_bytes()[:60])
    argv = ("eval", "--base", "toy", "--suite", "geneval", "--images", other, *SMALL, "--out", tmp_path / "e")
    ended = forks.run(*argv, ranks=2)
    assert ended.code == 2, ended.err
    assert f"flowopd: error: {second}: cannot be read as a picture" in ended.err
    assert RunDir.open(tmp_path / "e").manifest().status == "failed"
