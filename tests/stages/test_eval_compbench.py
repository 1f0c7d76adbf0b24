"""Public suites on the toy base, by tiny judges: killed, resumed, other batches, two processes."""

import json
from pathlib import Path

import pytest
from support.forks import Kill
from support.tiny_compbench import blip, save_depth, save_dino, save_original_blip
from support.tiny_qwen3_vl import save_qwen3_vl
from support.tiny_scorers import save_clip
from support.tiny_unidet import save_unidet

from flowopd_cli.runs.run import RunDir
from flowopd_cli.suites.compbench import CATEGORIES
from flowopd_cli.system.files import sha256_file

SENTENCES = {
    "spatial": "a {0} dog on the left of a {1} cat",
    "3d_spatial": "a {0} dog behind a {1} cat",
    "numeracy": "two dogs and three cats near a {0} {1} boat",
    "non_spatial": "a {0} man is next to a {1} boat",
    "complex": "The {0} key is on the left of the {1} bowl.",
}
COLORS = ("red", "blue", "green", "white", "black", "yellow", "brown", "pink", "purple")
LIMIT = 8


def settings(name, overrides, root):
    folders = {"folder": "prompts", "blip": "blip/model_base_vqa.pth", "tokenizer": "blip", "clip": "clip"}
    options = {key: str(root / path) for key, path in {**folders, "depth": "depth"}.items()}
    options |= {"detector": f"grounding-dino={root / 'dino'}", "parser": "builtin"}
    options["blip"] += f"#sha256={sha256_file(Path(options['blip']))}"
    argv = ["eval", "--suite", "geneval,ocr,t2i-compbench,geneval2", "--limit", str(LIMIT), "--images-per-prompt", "1"]
    values = {"eval.options": {"t2i-compbench": options, "geneval2": geneval2(root)}, "eval.steps": 2, "eval.batch": 8}
    values |= overrides
    argv += [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [*argv, "--out", str(root / name)]


def geneval2(root):
    return {"prompts": str(root / "geneval2.jsonl"), "source": str(root / "qwen"), "dtype": "float32"}


def perform(forks, path, *argv):
    ended = forks.run(*argv)
    assert ended.code == 0, ended.err
    return RunDir.open(path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("compbench")
    for name, save in (("dino", save_dino), ("depth", save_depth), ("clip", save_clip)):
        (made / name).mkdir()
        save(made / name)
    save_original_blip(made / "blip", blip())
    (made / "qwen").mkdir()
    save_qwen3_vl(made / "qwen")
    with (made / "geneval2.jsonl").open("w") as file:
        for number, color in enumerate(COLORS):
            questions = [["How many pigs are in the image?", "two"], [f"Are the pigs {color}?", "Yes"]]
            row = {"prompt": f"two {color} pigs", "vqa_list": questions, "skills": ["count", "attribute"]}
            print(json.dumps({**row, "atom_count": 3 + number % 2}), file=file)
    (made / "prompts").mkdir()
    for category in CATEGORIES:
        sentence = SENTENCES.get(category, "a {0} bench and a {1} bowl")
        lines = [sentence.format(color, COLORS[-1 - i]) for i, color in enumerate(COLORS)]
        (made / "prompts" / f"{category}_val.txt").write_text("\n".join(lines))
    for kind, line in (("spatial", 0), ("action", 1)):
        text = SENTENCES["complex"].format(COLORS[line], COLORS[-1 - line])
        (made / "prompts" / f"complex_val_{kind}.txt").write_text(text)
    return made


@pytest.fixture(scope="module")
def whole(root, forks):
    return perform(forks, root / "whole", *settings("whole", {}, root))


def rows(run):
    return {
        path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in run.eval_dir.glob("*.jsonl")
    }


def pngs(run):
    return {path.relative_to(run.path).as_posix(): path.stat().st_mtime_ns for path in run.images_dir.rglob("*.png")}


def test_every_category_is_judged_and_named_after_its_judge(whole):
    found = rows(whole)
    assert len(found) == len(CATEGORIES) + 3
    assert all(len(own) == LIMIT for own in found.values())
    assert "t2i-compbench-spatial[grounding-dino]" in found
    total = json.loads(whole.eval_file("t2i-compbench").read_text())
    assert len(total["parts"]) == 4
    assert len(total["experimental"]) == 4
    figures = json.loads(whole.eval_file("geneval2").read_text())["figures"]
    assert list(figures) == ["am", "gm", "attribute", "count", "atoms-3", "atoms-4"]
    assert figures["gm"] == pytest.approx((figures["atoms-3"] + figures["atoms-4"]) / 2, abs=1e-6)


def check_same_rows(one, other):
    """Equal but for the rounding of scores, which depends on what shares a batch."""
    assert one.keys() == other.keys()
    for pair in (pair for name in one for pair in zip(one[name], other[name], strict=True)):
        (first, values), (second, others) = map(split, pair)
        assert first == second
        assert values == pytest.approx(others, abs=2e-6)


def split(row):
    """A row without its scores, and the scores."""
    rest = {key: value for key, value in row.items() if key not in ("value", "scores")}
    return rest, {"value": row["value"], **row["scores"]}


def test_a_killed_evaluation_goes_on_and_draws_nothing_twice(root, whole, forks):
    kill = Kill(change=250)  # a picture makes three, and its folders
    assert forks.run(*settings("killed", {}, root), kill=kill, below=root / "killed").killed
    before = pngs(RunDir.open(root / "killed"))
    assert 20 <= len(before) < len(pngs(whole))
    run = perform(forks, root / "killed", "eval", "--resume", root / "killed")
    after = pngs(run)
    assert {name: after[name] for name in before} == before
    assert after.keys() == pngs(whole).keys()
    check_same_rows(rows(run), rows(whole))


@pytest.mark.slow
def test_rows_of_geneval2_do_not_depend_on_kills_batches_and_processes(root, forks):
    argv = ["eval", "--suite", "geneval2", "--limit", "6", "--images-per-prompt", "1", "--set", "eval.steps=1"]
    expected, _ = check_kills_batches_and_processes(forks, root, "geneval2", argv, geneval2(root))
    assert len(expected["geneval2"]) == 6
    assert len({row["value"] for row in expected["geneval2"]}) > 1


@pytest.mark.slow
def test_over_unidet_the_columns_have_the_benchmarks_names_for_any_batch_processes_and_kill(forks, root):
    options = {"folder": str(root / "prompts"), "depth": str(root / "depth"), "parser": "builtin"}
    options |= {kind: str(save_unidet(root / f"unidet-{kind}", kind)) for kind in ("rs200", "r50")}
    options |= {"detector": "unidet", "categories": "spatial,3d_spatial,numeracy"}
    argv = ["eval", "--suite", "t2i-compbench", "--limit", "2", "--images-per-prompt", "1", "--set", "eval.steps=1"]
    expected, run = check_kills_batches_and_processes(forks, root, "t2i-compbench", argv, options)
    assert {name: len(own) for name, own in expected.items()} == {
        f"t2i-compbench-{name}": 2 for name in ("spatial", "3d_spatial", "numeracy")
    }
    total = json.loads(run.eval_file("t2i-compbench").read_text())
    assert (len(total["parts"]), total["experimental"]) == (3, {})


def check_kills_batches_and_processes(forks, root, suite, argv, options):
    """The rows and the run of an evaluation, the same killed and resumed, in batches of 8 and in two processes."""
    argv = [*argv, "--set", f"eval.options={json.dumps({suite: options})}"]
    one = root / f"{suite}-1"
    ended = forks.run(*argv, "--set", "eval.batch=1", "--out", one, below=one)
    assert ended.code == 0, ended.err
    expected = rows(RunDir.open(one))

    moments = [number for number, (_, path) in enumerate(ended.changes, 1) if ".png" in path]
    killed, kill = root / f"{suite}-killed", Kill(change=moments[len(moments) // 2])
    assert forks.run(*argv, "--set", "eval.batch=1", "--out", killed, kill=kill, below=killed).killed
    before = pngs(RunDir.open(killed))
    resumed = perform(forks, killed, "eval", "--resume", killed)
    assert 0 < len(before) < len(pngs(resumed))
    assert before.items() <= pngs(resumed).items()
    check_same_rows(rows(resumed), expected)

    for name, more in {"8": ("eval.batch=8",), "2": ("eval.batch=1", "--processes", "2")}.items():
        path = root / f"{suite}-by-{name}"
        other = rows(perform(forks, path, *argv, "--set", *more, "--out", path))
        assert other.keys() == expected.keys()
        for name, own in expected.items():
            pairs = [(first["value"], second["value"]) for first, second in zip(own, other[name], strict=True)]
            assert all(first == pytest.approx(second, abs=1e-4) for first, second in pairs)
    return expected, RunDir.open(one)
