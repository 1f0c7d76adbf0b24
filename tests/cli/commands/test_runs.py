"""``flowopd runs ls`` and ``verify`` on small runs written here."""

import json

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.runs.manifest import LOCK, Inputs, Parent
from flowopd_cli.runs.run import RunDir

DATA = {"stage": "merge", "model": {"pretrained": "toy"}, "adapters": ["a"]}


@pytest.fixture
def make(tmp_path):
    """A finished run with a figure and a file."""

    def make(name, status="done"):
        run = RunDir.create(tmp_path / "runs" / name, "merge")
        run.start(recipes.build(DATA))
        run.write_eval("some", json.dumps({"mean": 1}))
        run.save_checkpoint(5, lambda folder: (folder / "state").write_bytes(b"state"), keep=2)
        run.declare(Inputs(parents=(Parent(role="init", ref="base"),)))
        if status == "running":
            run._lock.release()  # as a killed process leaves it, but for the file
        else:
            run.finish(status, {"rank": 32, "kind": "text"})
        return run

    return make


def test_runs_are_listed_oldest_first_with_how_they_ended(make, flowopd, tmp_path):
    make("b")
    make("deep/a", "interrupted")
    make("c", "running")
    (tmp_path / "runs" / "d").mkdir()
    (tmp_path / "runs" / "d" / "manifest.json").write_text("{")
    code, out, _ = flowopd("runs", "ls", tmp_path / "runs", "--json")
    assert code == 0
    rows = {row["run"].rpartition("runs/")[2]: row for row in json.loads(out)}
    statuses = {"b": "done", "deep/a": "interrupted", "c": "interrupted", "d": "damaged"}
    assert {name: row["status"] for name, row in rows.items()} == statuses
    assert rows["b"]["figures"] == {"rank": 32}
    code, out, _ = flowopd("runs", "ls", tmp_path / "runs")
    assert next(line.split()[:3] for line in out.splitlines()) == ["RUN", "STAGE", "STATUS"]


def test_a_run_whose_process_lives_is_running(make, flowopd, tmp_path):
    run = make("a", "running")
    run._lock.acquire()
    assert (run.path / LOCK).is_file()
    _, out, _ = flowopd("runs", "ls", tmp_path / "runs", "--json")
    assert json.loads(out)[0]["status"] == "running"
    assert flowopd("runs", "verify", run.path)[0] == 0
    run._lock.release()
    code, out, _ = flowopd("runs", "verify", run.path)
    assert code == 3
    assert f"flowopd merge --resume {run.path}" in out


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: run.eval_file("some").unlink(), "missing"),
        (lambda run: run.eval_file("some").write_text("longer than it was"), "bytes, not"),
        (lambda run: run.eval_file("some").write_text(json.dumps({"mean": 2})), "content has changed"),
        (lambda run: (run.checkpoints.path(5) / "state").write_bytes(b"stale"), "damaged or incomplete"),
        (lambda run: run.declare(Inputs(parents=(Parent(role="t", ref="gone", sha256="0"),))), "no such run directory"),
    ],
)
def test_what_changed_is_named_and_ends_with_3(make, flowopd, damage, words):
    run = make("a")
    code, out, err = flowopd("runs", "verify", run.path)
    assert (code, out.strip(), "all as in the manifest" in err) == (0, str(run.path), True)
    damage(run)
    code, out, _ = flowopd("runs", "verify", run.path, "--json")
    assert code == 3
    result = json.loads(out)
    assert not result["ok"]
    (fault,) = [finding["fault"] for finding in result["findings"] if not finding["ok"]]
    assert words in fault


def test_what_others_wrote_into_a_manifest_leads_nowhere(make, flowopd, tmp_path):
    run = make("a")
    (tmp_path / "elsewhere").write_text("x")
    path = run.path / "manifest.json"
    tree = json.loads(path.read_text())
    tree["artifacts"] = [
        {"path": name, "sha256": "0", "bytes": 1} for name in ("../../elsewhere", "/etc/hostname", "x\x1b[2J")
    ]
    tree["parents"] = [{"role": "a\x1b[2J", "ref": "hub:..", "sha256": None}, {"role": "b", "ref": "", "sha256": None}]
    tree["metrics"] = {"big": 10**400, "sound": 1}
    path.write_text(json.dumps(tree))
    code, out, _ = flowopd("runs", "verify", run.path)
    assert code == 3
    assert out.count("is outside the run") == 3
    assert "write it as hub:<owner>/<name>" in out
    assert "\x1b" not in out
    code, out, _ = flowopd("runs", "ls", tmp_path / "runs")
    assert (code, "sound 1" in out, "big" in out) == (0, True, False)


def test_what_is_no_run_is_one_line(flowopd, tmp_path):
    assert "no such folder" in flowopd("runs", "ls", tmp_path / "none")[2]
    code, _, err = flowopd("runs", "verify", tmp_path)
    assert code == 2
    assert "not a run directory" in err


def test_how_a_run_stands_is_one_word(make, flowopd, tmp_path):
    make("a")
    make("b", "running")
    make("c", "failed")
    killed = make("d", "interrupted")
    killed.recipe_file.unlink()
    (tmp_path / "empty").mkdir()
    runs = [tmp_path / "runs" / name for name in "abcd"]
    code, out, _ = flowopd("runs", "status", *runs, tmp_path / "empty", tmp_path / "nothing")
    assert (code, out.split()) == (0, ["done", "interrupted", "failed", "unbegun", "absent", "absent"])
    (tmp_path / "empty" / LOCK).touch()  # killed between its lock and its manifest
    assert flowopd("runs", "status", tmp_path / "empty")[:2] == (0, "absent\n")
    (tmp_path / "empty" / "file").touch()
    assert flowopd("runs", "status", tmp_path / "empty")[0] == 2
