"""The command line through ``main``: stdout, stderr, exit codes, manifests; stages are replaced by small stand-ins."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import yaml
from support.tiny_adapters import TOY_SHA, pair, write_adapter

from flowopd_cli.cli import app as cli
from flowopd_cli.cli import launch
from flowopd_cli.cli.console import Console
from flowopd_cli.errors import ArtifactError, Interrupted
from flowopd_cli.runs.manifest import Base, Inputs
from flowopd_cli.runs.run import RunDir

TEACHER = {
    "stage": "teacher",
    "model": {"pretrained": "toy", "resolution": 32},
    "prompts": [{"source": "toy:geneval"}],
    "rewards": [{"name": "geneval", "options": {"soft": True}}],
    "train": {"iterations": 3, "groups": 8, "group_size": 12, "updates": 2},
}
DISTILL = {
    "stage": "distill",
    "model": {"pretrained": "toy", "resolution": 32},
    "prompts": [{"source": "toy:all"}],
    "routing": {"geneval": {"ref": "base"}, "ocr": {"ref": "base"}},
}


@pytest.fixture(autouse=True)
def workplace(monkeypatch, tmp_path):
    """An empty working directory with a few shipped recipes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    recipes = {}
    for name, data in {"toy/teacher-geneval": TEACHER, "toy/grpo-mix": mixture(), "toy/distill": DISTILL}.items():
        path = tmp_path / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
        recipes[name] = path
    for module in ("flowopd_cli.recipe", "flowopd_cli.recipe.reading"):
        monkeypatch.setattr(f"{module}.shipped", lambda: recipes)


def mixture():
    rewards = [{"name": "geneval", "task": "geneval", "weight": 0.5}, {"name": "ocr", "task": "ocr"}]
    return {**TEACHER, "rewards": rewards, "prompts": [{"source": "toy:all"}]}


@pytest.fixture
def stage(monkeypatch):
    """Replace a stage by a function and record the calls."""

    def install(name, act=lambda recipe, run, progress, **rest: {"metrics": {"reward": 0.5}}):
        calls = []

        def run(recipe, run, progress, *, adapters, **rest):
            calls.append((recipe, run, rest))
            print("a library that prints")
            return act(recipe, run, progress, adapters=adapters, **rest)

        monkeypatch.setitem(sys.modules, f"flowopd_cli.stages.{name}", types.SimpleNamespace(run=run))
        return calls

    return install


def trained(path, *, base=TOY_SHA, stage="teacher"):
    """A finished run with an adapter in it."""
    from flowopd_cli import recipe as recipes

    run = RunDir.create(path, stage)
    run.start(recipes.build(TEACHER))
    write_adapter(run.adapter_dir)
    run.declare(Inputs(base=Base(ref="toy", sha256=base)))
    run.finish("done")
    return run


def seconds(*argv):
    """CPU seconds of the fastest of three runs of a fresh interpreter."""
    durations = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "flowopd_cli", *map(str, argv)], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        durations.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(durations)


@pytest.fixture
def package_on_path(monkeypatch):
    root = str(Path(cli.__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", root)


@pytest.mark.usefixtures("package_on_path")
def test_help_is_quick():
    assert seconds("--help") < 0.4


def seconds_until(text, *argv):
    """Until a fresh interpreter has printed a text, and until it has ended."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "flowopd_cli", *map(str, argv)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout)
        assert any(text in line for line in lines)
        first = time.perf_counter() - started
        assert "memory" in "".join(lines)
    assert process.returncode == 0
    return first, time.perf_counter() - started


@pytest.mark.slow  # a time that only an idle machine keeps
@pytest.mark.usefixtures("package_on_path")
def test_dry_run_prints_its_arithmetic_at_once_and_its_memory_soon(tmp_path):
    recipe = tmp_path / "recipes/toy/teacher-geneval.yaml"
    first, whole = min(seconds_until("optimizer steps", "teacher", "--recipe", recipe, "--dry-run") for _ in range(3))
    assert first < 1.5
    assert whole < 8


@pytest.mark.usefixtures("package_on_path")
def test_help_imports_no_torch():
    code = (
        "import sys; sys.argv = ['flowopd', '--help']\nfrom flowopd_cli.cli.app import main\n"
        "try: main()\nexcept SystemExit as stop: code = stop.code or 0\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_version(flowopd):
    assert flowopd("--version")[1].startswith("flowopd 0.")


def test_dry_run_prints_recipe_and_arithmetic_and_writes_nothing(flowopd, tmp_path):
    code, out, err = flowopd("teacher", "--reward", "geneval", "--dry-run", "--out", "r")
    assert (code, err) == (0, "")
    assert yaml.safe_load(out)["rewards"][0] == {
        "name": "toy-geneval",
        "weight": 1.0,
        "task": None,
        "options": {"soft": True},
    }
    assert "#   optimizer steps" in out
    assert not (tmp_path / "r").exists()


def test_dry_run_as_json(flowopd):
    _, out, _ = flowopd("distill", "--dry-run", "--json", "--set", "train.iterations=4", "--beta", "0.5", "--seed", "9")
    found = json.loads(out)
    assert found["arithmetic"]["optimizer steps"] == 8
    assert found["recipe"]["anchor"]["beta"] == 0.5
    assert found["recipe"]["seed"] == 9


def test_a_run_prints_its_path_alone_and_closes_its_manifest(flowopd, stage, tmp_path):
    calls = stage("teacher")
    code, out, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert (code, out) == (0, "r\n")
    assert "a library that prints" in err
    manifest = RunDir.open(tmp_path / "r").manifest()
    assert (manifest.status, manifest.metrics) == ("done", {"reward": 0.5})
    assert calls[0][2] == {"resume": False}


def test_json_result_and_fresh_name(flowopd, stage):
    stage("teacher")
    found = json.loads(flowopd("teacher", "--reward", "geneval", "--json", "--quiet")[1])
    assert found["run"].startswith("runs/teacher-")
    assert found["metrics"] == {"reward": 0.5}


def test_used_directory(flowopd, stage):
    stage("teacher")
    flowopd("teacher", "--reward", "geneval", "--out", "r")
    code, out, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert (code, out) == (2, "")
    assert "--resume r" in err
    assert flowopd("teacher", "--reward", "geneval", "--out", "r", "--force")[0] == 0


def test_rewards_on_the_command_line(flowopd):
    def resolved(*argv):
        return json.loads(flowopd("teacher", *argv, "--dry-run", "--json")[1])["recipe"]

    weighed = resolved("--reward", "geneval=0.25")
    assert (weighed["rewards"][0]["weight"], weighed["rewards"][0]["options"]) == (0.25, {"soft": True})
    mixed = resolved("--reward", "geneval", "--reward", "ocr=2")
    assert [(r["name"], r["weight"], r["task"]) for r in mixed["rewards"]] == [
        ("toy-geneval", 0.5, "geneval"),
        ("toy-ocr", 2.0, "ocr"),
    ]
    Path("mine.py").write_text("def bright(images, prompts): return images.mean((1, 2, 3))\n", encoding="utf-8")
    own = resolved("--reward", "mine:bright", "--prompts", "toy:ocr,split=validation,limit=5")
    assert own["rewards"][0]["name"] == "mine:bright"
    assert own["prompts"][0]["limit"] == 5
    assert own["prompts"][0]["split"] == "validation"


def test_distill_flags_reach_the_recipe(flowopd):
    trained("a"), trained("b"), trained("c")
    argv = ["--init", "a", "--teacher", "geneval=a", "--teacher", "ocr=b,guidance=2", "--anchor", "c,guidance=3"]
    code, out, _ = flowopd("distill", *argv, "--estimator", "score", "--dry-run", "--json", "--processes", "1")
    assert code == 0
    recipe = json.loads(out)["recipe"]
    assert recipe["adapter"]["init"] == "a"
    assert recipe["routing"]["ocr"] == {"ref": "b", "guidance": 2.0}
    assert recipe["anchor"]["ref"] == "c"
    assert recipe["anchor"]["guidance"] == 3.0
    assert recipe["opd"]["estimator"] == "score"


def test_a_teacher_flag_names_the_teachers_and_keeps_what_the_recipe_says_of_their_tasks(flowopd):
    trained("a")
    Path("mine.yaml").write_text(yaml.safe_dump({"stage": "distill", "model": {"pretrained": "toy"},
        "prompts": [{"source": "toy:ocr"}], "anchor": {"beta": 0},
        "routing": {"ocr": {"ref": "old", "guidance": 3}, "geneval": {"ref": "old"}}}))  # fmt: skip
    argv = ["distill", "--recipe", "mine.yaml", "--dry-run", "--json"]
    recorded = json.loads(flowopd(*argv, "--teacher", "ocr=a")[1])["recipe"]["routing"]
    assert recorded == {"ocr": {"ref": "a", "guidance": 3.0}}
    said = json.loads(flowopd(*argv, "--teacher", "ocr=a,guidance=2")[1])["recipe"]["routing"]
    assert said == {"ocr": {"ref": "a", "guidance": 2.0}}


def test_merge_and_eval_take_the_base_from_the_runs_they_name(flowopd, stage):
    trained("a"), trained("b")
    merged = json.loads(flowopd("merge", "a", "b", "--weights", "1,0.5", "--method", "ties", "--dry-run", "--json")[1])
    assert merged["recipe"]["model"]["pretrained"] == "toy"
    assert merged["recipe"]["model"]["resolution"] == 32
    assert merged["recipe"]["merge"]["weights"] == [1.0, 0.5]
    calls = stage("eval")
    argv = [
        "--suite",
        "geneval,ocr",
        "--adapter",
        "a",
        "--images-per-prompt",
        "2",
        "--split",
        "validation",
        "--seed",
        "5",
    ]
    assert flowopd("eval", *argv, "--batch", "3", "--limit", "4", "--quiet")[0] == 0
    spec = calls[0][0].eval
    assert (spec.suites, spec.images, spec.split, spec.seed, spec.batch, spec.limit) == (
        ("toy-geneval", "toy-ocr"),
        2,
        "validation",
        5,
        3,
        4,
    )


def test_push_dry_run_is_the_stage_itself(flowopd, stage):
    trained("a")
    calls = stage("push")
    assert flowopd("push", "a", "--repo", "me/m", "--private", "--dry-run", "--out", "p")[:2] == (0, "p\n")
    recipe = calls[0][0]
    assert recipe.push.dry_run
    assert (recipe.run, recipe.push.repo, recipe.push.private) == ("a", "me/m", True)
    assert (recipe.push.revision, recipe.push.message) == (None, "Upload by flowopd push")


def test_a_push_that_began_as_a_dry_run_stays_one(flowopd, stage):
    def stops(recipe, run, progress, **rest):
        raise Interrupted("stopped")

    trained("a")
    stage("push", stops)
    code, _, err = flowopd("push", "a", "--repo", "me/m", "--dry-run", "--out", "p")
    assert (code, err.strip().rpartition(": ")[2]) == (130, "flowopd push --resume p --dry-run")
    assert flowopd("push", "a", "--dry-run", "--out", "q")[0] == 130
    calls = stage("push")
    assert flowopd("push", "--resume", "p")[:2] == (0, "p\n")
    assert flowopd("push", "--resume", "q")[:2] == (0, "q\n")
    assert [(recipe.push.dry_run, rest["resume"]) for recipe, _, rest in calls] == [(True, True)] * 2
    code, _, err = flowopd("push", "--resume", "p")
    assert (code, len(calls)) == (0, 2)
    assert "p is already done; nothing was uploaded: push again without --dry-run, with another --out" in err
    assert flowopd("push", "--resume", "p", "--set", "push.dry_run=false")[0] == 0
    assert not calls[2][0].push.dry_run


def test_a_push_that_was_to_upload_can_be_gone_on_with_as_a_dry_run(flowopd, stage):
    def stops(recipe, run, progress, **rest):
        raise Interrupted("stopped")

    trained("a")
    stage("push", stops)
    code, _, err = flowopd("push", "a", "--repo", "me/m", "--out", "p")
    assert (code, err.strip().rpartition(": ")[2]) == (130, "flowopd push --resume p")
    calls = stage("push")
    assert flowopd("push", "--resume", "p", "--dry-run")[0] == 0
    assert calls[0][0].push.dry_run


@pytest.mark.parametrize(("flag", "private"), [("--private", True), ("--public", False), ("--quiet", None)])
def test_push_takes_branch_message_and_visibility(flowopd, stage, flag, private):
    trained("a")
    calls = stage("push")
    argv = ("--repo", "me/m", "--revision", "v2/try", "--message", "better", flag, "--out", "p")
    assert flowopd("push", "a", *argv)[0] == 0
    spec = calls[0][0].push
    assert (spec.revision, spec.message, spec.private) == ("v2/try", "better", private)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--repo m", "--repo m: is no repository of the Hub: write it as OWNER/NAME"),
        ("--repo me/m/n", "write it as OWNER/NAME"),
        ("--repo https://huggingface.co/me/m", "write it as OWNER/NAME"),
        ("--repo me/m --revision a..b", "--revision a..b: is no name of a branch"),
        (f"--repo me/m --revision {'a' * 40}", "is no name of a branch, to which alone a push can go"),
        ("--repo me/m --revision refs/pr/1", "is no name of a branch"),
        ("--repo me/m --eval none", "none: no such directory"),
        ("--repo me/m --message=", "push.message"),
    ],
)
def test_a_push_to_no_place_is_refused_before_anything_is_done(flowopd, stage, tmp_path, argv, words):
    trained("a")
    calls = stage("push")
    code, out, err = flowopd("push", "a", *argv.split(), "--out", "p")
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert calls == []
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("teacher", "teacher needs a reward"),
        ("teacher --reward genevl", "did you mean 'geneval'"),
        ("teacher --reward geneval=much", "'much' is not a number"),
        ("teacher --reward geneval,tsak=ocr", "did you mean 'task'"),
        ("teacher --reward geneval --set train.itertions=3", "did you mean 'iterations'"),
        ("teacher --reward geneval --prompts toy:genevl", "did you mean 'toy:geneval'"),
        ("teacher --reward geneval --prompts none.jsonl", "none.jsonl: no such file"),
        ("teacher --reward geneval,task=geneval --prompts toy:all", "prompts of task 'ocr' have no reward"),
        ("teacher --reward geneval --base tyo --recipe toy/grpo-mix", "did you mean 'toy'"),
        ("teacher --reward geneval --base ./none --recipe toy/grpo-mix", "no such folder"),
        ("teacher --reward geneval --base recipes --recipe toy/grpo-mix", "no model_index.json"),
        ("teacher --reward geneval --base me/model", "teacher needs prompts"),
        ("teacher --recipe toy/destill", "did you mean 'toy/distill'"),
        ("teacher --recipe toy/distill", "is a distill recipe, but the command is teacher"),
        ("coldstart", "coldstart needs a teacher"),
        ("merge", "merge needs the runs to merge"),
        ("merge a b --weights 1,x", "write numbers with commas"),
        ("merge none", "adapters.0: none: no such run directory"),
        ("merge base base", "base is no adapter"),
        ("distill --teacher geneval=none --teacher ocr=base", "routing.geneval: none: no such run"),
        ("distill --teacher geneval=base", "prompts of task 'ocr' have no teacher: add --teacher ocr=REF"),
        ("distill --teacher geneval", "write it as TASK=REF"),
        ("distill --teacher ocr=base --teacher ocr=base", "named twice"),
        ("distill --init none", "adapter.init: none: no such run"),
        ("distill --anchor none", "anchor: none: no such run"),
        ("eval --suite genevl", "did you mean 'geneval'"),
        ("teacher --reward geneval --prompts toy:all,task=foo", "no prompt in it of task 'foo'; it has geneval, ocr"),
        ("teacher --reward geneval --out /dev/null/x", "/dev/null/x: cannot be written (Not a directory)"),
        ("distill --set opd.log_rewards_every=1", "opd.log_rewards_every has no rewards to log"),
        ("eval --adapter none", "adapter: none"),
        ("push none", "none: no such directory"),
        ("push recipes", "recipes: not a run directory"),
        ("push", "push needs the run to publish"),
        ("teacher --resume none", "none: no such directory"),
        ("teacher --resume none --seed 3", "leave out --seed"),
        ("teacher --resume none --reward geneval", "leave out a flag of the recipe"),
        ("recipes show nothing", "no recipe 'nothing'"),
        ("demo --out recipes", "is not empty, and toy is no part of a demo"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(flowopd, argv, words):
    code, out, err = flowopd(*argv.split())
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("flowopd: error: ")
    assert words in err


def test_an_unknown_flag_is_exit_code_2(flowopd):
    assert flowopd("teacher", "--rewrad", "geneval")[0] == 2


def test_adapters_of_two_bases_are_refused_before_anything_is_loaded(flowopd):
    trained("a"), trained("b", base="c" * 64)
    code, _, err = flowopd("distill", "--teacher", "geneval=a", "--teacher", "ocr=b", "--dry-run")
    assert code == 2
    assert "different bases" in err


@pytest.mark.parametrize(
    ("argv", "read"),
    [
        ("merge a b --out a", "a"),
        ("merge a b --out b/../b", "b"),
        ("merge a/adapter b --out a", "a/adapter"),
        ("distill --init a --out a", "a"),
        ("distill --teacher geneval=a --teacher ocr=base --out a", "a"),
        ("distill --anchor a --out a", "a"),
        ("coldstart --teacher geneval=a --teacher ocr=b --set prompts=[{source:\u00a0toy:all}] --out b", "b"),
        ("teacher --reward geneval --set adapter.init=a --out a", "a"),
        ("eval --adapter a --out a", "a"),
        ("push a --repo me/m --out a", "a"),
        ("push a --repo me/m --eval b --out b", "b"),
    ],
)
def test_force_never_deletes_what_the_command_reads(flowopd, argv, read):
    recorded = trained("a").adapter_dir / "adapter_config.json", trained("b").adapter_dir / "adapter_config.json"
    code, _, err = flowopd(*(part.replace("\u00a0", " ") for part in argv.split(" ")), "--force")
    assert code == 2
    assert f"{read} is what this command reads; give --out another name" in err
    assert all(path.is_file() for path in recorded)


def test_push_without_a_repository_leaves_no_run(flowopd, stage, tmp_path):
    trained("a")
    stage("push")
    code, _, err = flowopd("push", "a", "--out", "p")
    assert code == 2
    assert "--repo OWNER/NAME" in err
    assert not (tmp_path / "p").exists()
    assert flowopd("push", "a", "--out", "p", "--dry-run")[0] == 0


def test_a_start_from_an_adapter_records_that_adapters_shape(flowopd, stage, tmp_path):
    config = {"r": 16, "lora_alpha": 16.0, "target_modules": ["attn.to_q"]}
    write_adapter(trained("a").adapter_dir, pair(rank=16), **config)
    calls = stage("distill")
    code, _, err = flowopd("distill", "--init", "a", "--out", "r")
    assert code == 0
    assert "note: adapter.rank is 16, as in a" in err
    written = RunDir.open(tmp_path / "r").recipe().adapter
    assert (written.rank, written.alpha, written.targets) == (16, 16, ("attn.to_q",))
    assert calls[0][0].adapter == written
    code, _, err = flowopd("distill", "--init", "a", "--set", "adapter.rank=32", "--out", "s")
    assert code == 2
    assert "starts from a, whose rank is 16" in err


def test_a_rank_that_the_method_cannot_have(flowopd):
    trained("a"), trained("b")

    def merge(*argv):
        return flowopd("merge", "a", "b", "--dry-run", "--json", *argv)

    code, _, err = merge("--method", "exact", "--rank", "4")
    assert code == 2
    assert "rank 4 has no meaning for method exact" in err
    assert merge("--set", "merge.method=factor_average", "--set", "merge.rank=4")[0] == 2
    assert json.loads(merge("--method", "exact")[1])["recipe"]["merge"]["rank"] is None
    assert json.loads(merge("--rank", "4")[1])["recipe"]["merge"]["rank"] == 4
    shelved = {"stage": "merge", "model": {"pretrained": "toy"}, "merge": {"rank": 32}, "adapters": ["x"]}
    Path("m.yaml").write_text(yaml.safe_dump(shelved), encoding="utf-8")
    recorded = json.loads(merge("--recipe", "m.yaml", "--method", "exact")[1])["recipe"]["merge"]
    assert (recorded["method"], recorded["rank"]) == ("exact", None)


def test_prompt_files_name_their_tasks(flowopd, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "task": "poetry"}\n\n', encoding="utf-8")
    code, _, err = flowopd("distill", "--set", "prompts=[{source: p.jsonl}]", "--dry-run")
    assert code == 2
    assert "task 'poetry' have no teacher" in err
    (tmp_path / "p.jsonl").write_text("oops\n", encoding="utf-8")
    assert "p.jsonl:1: not JSON" in flowopd("distill", "--set", "prompts=[{source: p.jsonl}]", "--dry-run")[2]


def test_an_idle_teacher_is_remarked_on(flowopd):
    argv = ["distill", "--set", "prompts=[{source: 'toy:ocr'}]", "--dry-run"]
    code, out, err = flowopd(*argv)
    assert code == 0
    assert "note: teacher 'geneval' is loaded, but no prompt has its task" in err
    assert flowopd(*argv, "--quiet")[1:] == (out, "")


def test_interruption_says_how_to_go_on_and_resume_goes_on(flowopd, stage, tmp_path):
    def stops(recipe, run, progress, **rest):
        raise Interrupted("stopped after iteration 1 of 3")

    stage("teacher", stops)
    code, out, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert (code, out) == (130, "")
    assert "stopped after iteration 1 of 3; go on with: flowopd teacher --resume r" in err
    assert RunDir.open(tmp_path / "r").manifest().status == "interrupted"

    calls = stage("teacher")
    assert flowopd("distill", "--resume", "r")[0] == 2
    code, out, err = flowopd("teacher", "--resume", "r", "--set", "train.weight_decay=1", "--set", "train.micro=2")
    assert (code, out, calls) == (2, "", [])
    assert "--set train.weight_decay: r goes on as it began; on --resume only model.cache_prompts, " in err
    code, out, _ = flowopd("teacher", "--resume", "r", "--set", "train.iterations=7", "--processes", "1")
    assert (code, out) == (0, "r\n")
    assert calls[0][2] == {"resume": True}
    assert calls[0][0].train.iterations == 7
    assert RunDir.open(tmp_path / "r").recipe().train.iterations == 7

    calls = stage("teacher")
    code, out, err = flowopd("teacher", "--resume", "r")
    assert (code, out, calls) == (0, "r\n", [])
    assert "already done" in err


def test_ctrl_c_outside_the_loop(flowopd, stage):
    def stops(recipe, run, progress, **rest):
        raise KeyboardInterrupt

    stage("teacher", stops)
    code, _, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert code == 130
    assert "--resume r" in err


def test_sigterm_outside_the_loop_is_like_ctrl_c(flowopd, stage, tmp_path):
    def is_told_to_stop(recipe, run, progress, **rest):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    before = signal.getsignal(signal.SIGTERM)
    stage("eval", is_told_to_stop)
    code, _, err = flowopd("eval", "--out", "r")
    assert code == 143
    assert "stopped; go on with: flowopd eval --resume r" in err
    assert RunDir.open(tmp_path / "r").manifest().status == "interrupted"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_failing_stage_leaves_a_failed_manifest(flowopd, stage, monkeypatch, tmp_path):
    def fails(recipe, run, progress, **rest):
        raise ArtifactError("a: was trained\non another base")

    stage("teacher", fails)
    code, _, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert code == 2
    assert "error: a: was trained on another base" in err
    assert RunDir.open(tmp_path / "r").manifest().status == "failed"

    def breaks(recipe, run, progress, **rest):
        raise ZeroDivisionError

    stage("teacher", breaks)
    monkeypatch.setattr(sys, "argv", ["flowopd", "teacher", "--reward", "geneval", "--out", "s"])
    with pytest.raises(ZeroDivisionError):
        cli.main()
    assert RunDir.open(tmp_path / "s").manifest().status == "failed"


def test_lists(flowopd):
    assert "toy-quality" in flowopd("rewards", "ls")[1]
    listed = [line.split()[0] for line in flowopd("recipes", "ls")[1].splitlines()]
    assert listed == ["RECIPE", "toy/distill", "toy/grpo-mix", "toy/teacher-geneval"]
    assert yaml.safe_load(flowopd("recipes", "show", "toy/distill")[1]) == DISTILL


def test_demo_prints_the_report_or_json(flowopd, monkeypatch):
    from flowopd_cli.cli.demo import Demo

    seen = []

    def run(chain, execute, progress):
        seen.append((chain.out.name, chain.seed, chain.quick, chain.baseline, chain.ablation))
        return {"report": "demo/report.html", "models": {}}

    monkeypatch.setattr(Demo, "run", run)
    assert flowopd("demo", "--out", "d", "--quick", "--seed", "3")[1] == "demo/report.html\n"
    assert json.loads(flowopd("demo", "--baseline", "--ablation", "--json")[1]) == {
        "report": "demo/report.html",
        "models": {},
    }
    assert seen[0] == ("d", 3, True, False, False)
    assert seen[1][3:] == (True, True)


def test_several_processes_run_the_same_command_again(flowopd, monkeypatch):
    seen = []
    monkeypatch.setattr(launch, "relaunch", lambda argv, processes, device: seen.append((argv, processes)) or 7)
    code, out, _ = flowopd("teacher", "--reward", "geneval", "--processes", "2")
    assert (code, out) == (7, "")
    argv, processes = seen[0]
    assert processes == 2
    assert argv[:4] == ["teacher", "--reward", "geneval", "--processes"]
    assert argv[-2] == "--out"


def test_a_launched_copy_above_rank_0_writes_and_prints_nothing(flowopd, stage, monkeypatch, tmp_path):
    calls = stage("teacher")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    assert flowopd("teacher", "--reward", "geneval", "--processes", "2", "--out", "r")[:2] == (0, "")
    assert calls[0][1].writes is False
    assert not (tmp_path / "r").exists()


def test_plain_progress_shows_rate_reward_loss_and_eta(capsys):
    console = Console()
    console.start(4, "teacher ocr", 1)
    for loss in (0.5, 0.25, 0.125):
        console.step({"reward": 0.75, "loss": loss})
    console.done()
    console.table("Results", ("model", "ocr"), [("base", 0.5)])
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("teacher ocr 2/4")
    assert lines[1].startswith("teacher ocr 4/4")
    assert "reward 0.7500  loss 0.1250  eta 0 s" in lines[1]
    assert "base" in captured.err


def test_live_progress_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    console = Console()
    console.start(2, "distill")
    console.step({"loss": 0.5})
    console.note("half way")
    console.start(1, "eval")
    console.done()
    assert "half way" in capsys.readouterr().err


def test_quiet_console_speaks_only_results(capsys):
    console = Console(quiet=True)
    console.start(1, "x")
    console.step({})
    console.note("n")
    console.table("t", ("a",), [("b",)])
    console.result("r")
    assert capsys.readouterr() == ("r\n", "")


def test_what_the_system_refuses_is_one_line(flowopd, stage):
    def act(recipe, run, progress, **rest):
        raise OSError(28, "No space left on device", "/mnt/full/x?token=S3CRET")

    stage("teacher", act)
    code, _, err = flowopd("teacher", "--reward", "geneval", "--out", "r")
    assert code == 2
    assert err.splitlines()[-1] == "flowopd: error: /mnt/full/x?token=***: No space left on device"


@pytest.mark.parametrize("flag", ["--adapter", "--recipe", "--base", "--images", "--import-scores", "--resume"])
def test_names_that_no_file_can_have_are_one_line(flowopd, flag):
    code, _, err = flowopd("eval", flag, "x" * 5000)
    assert code == 2
    assert err.count("\n") == 1
    assert len(err) < 6000
