"""A full disk at any kind of write: one line with path and space, exit code 4, and no lost work."""

import pytest
from support import toyruns

from flowopd_cli.runs.manifest import status_now
from flowopd_cli.runs.run import RunDir

FULL = """
import errno, fnmatch, io
really, seen = io.open, 0
def opened(file, mode="r", *rest, **named):
    global seen
    handle = really(file, mode, *rest, **named)
    if fnmatch.fnmatch(str(file), {pattern!r}) and set(mode) & set("wax"):
        seen += 1
        if seen == {nth}:
            write = handle.write
            def refuse(data):
                write(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            handle.write = refuse
    return handle
io.open = opened
"""
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
"""


def check_refused(ended, path, reason="No space left on device"):
    """One line that names the path, the reason and the space; exit code 4."""
    assert ended.code == 4, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("flowopd: error: ")]
    assert line.startswith(f"flowopd: error: {path}: cannot be written ({reason}; ")
    assert "bytes are free there" in line
    assert "Traceback" not in ended.err
    return line


@pytest.mark.parametrize(
    ("pattern", "nth", "name", "checkpoint"),
    [
        ("*/r/..lock.*", 1, ".lock", None),
        ("*/r/.manifest.json.*", 1, "manifest.json", None),
        ("*/r/.recipe.yaml.*", 1, "recipe.yaml", None),
        pytest.param("*/r/.manifest.json.*", 2, "manifest.json", None, marks=pytest.mark.slow),
        pytest.param("*/r/metrics.jsonl", 1, "metrics.jsonl", None, marks=pytest.mark.slow),
        ("*/r/metrics.jsonl", 4, "metrics.jsonl", 2),
        pytest.param("*/r/checkpoints/*/state.safetensors", 1, "checkpoints/step-000002", None, marks=pytest.mark.slow),
        ("*/r/checkpoints/*/state.safetensors", 2, "checkpoints/step-000004", 2),
        pytest.param("*/r/checkpoints/*/state.json", 2, "checkpoints/step-000004", 2, marks=pytest.mark.slow),
        ("*/r/checkpoints/*/origin.json", 2, "checkpoints/step-000004", 2),
        ("*/r/checkpoints/*/.checksums.json.*", 3, "checkpoints/step-000005", 4),
        ("*/r/samples/.000003.png.*", 1, "samples/000003.png", 3),
        ("*/.staging-best/.adapter_model.safetensors.*", 2, "best", 2),
        ("*/.staging-adapter/.adapter_model.safetensors.*", 1, "adapter", 5),
        pytest.param("*/.staging-adapter/.adapter_config.json.*", 1, "adapter", 5, marks=pytest.mark.slow),
    ],
)
def test_a_training_on_a_full_disk_loses_nothing(forks, whole, tmp_path, pattern, nth, name, checkpoint):
    """``checkpoint`` is the newest one left; the resumed run ends like an undisturbed one."""
    path = tmp_path / "r"
    command = toyruns.teacher("quality", "train.keep_best.metric=step")  # each checkpoint is the best
    reference = whole.variant("teacher", "train.keep_best.metric=step")
    ended = forks.run(*command, "--out", path, before=FULL.format(pattern=pattern, nth=nth))
    assert ended.code == 4, ended.err
    if "*" not in name:
        line = check_refused(ended, path / name)
        assert line.endswith(f"then resume with: flowopd teacher --resume {path}") == (checkpoint is not None)
    newest = RunDir(path).checkpoints.newest()
    assert (newest and newest[0]) == checkpoint
    assert not [name for name in toyruns.listing(path) if ".staging-" in name or name.endswith(".part")]
    if (path / "manifest.json").exists():
        assert status_now(path) in {"failed", "interrupted"}
    again = forks.run(*toyruns.going_on(command, path))
    assert again.code == 0, again.err
    toyruns.check_same_end(path, reference)


def test_a_file_size_limit_of_the_system(forks, whole, tmp_path):
    path, reference = tmp_path / "r", whole.paths["teacher"]
    state = RunDir(reference).checkpoints.newest()[1] / "state.safetensors"
    ended = forks.run(*whole.commands["teacher"], "--out", path, before=LIMITED.format(size=state.stat().st_size - 1))
    line = check_refused(ended, path / "checkpoints" / "step-000002", "File too large")
    assert "raise the limit of file sizes (ulimit -f)" in line
    assert status_now(path) == "failed"
    assert forks.run("teacher", "--resume", path).code == 0
    toyruns.check_same_end(path, reference)


def test_a_failed_last_manifest_leaves_an_interrupted_run(forks, whole, tmp_path):
    """The one write that says that all is done; the adapter is there by then."""
    path = tmp_path / "r"
    last = sum("/.manifest.json." in change[1] and change[0] == "open" for change in whole.made["teacher"].changes)
    full = FULL.format(pattern="*/r/.manifest.json.*", nth=last)
    check_refused(forks.run(*whole.commands["teacher"], "--out", path, before=full), path / "manifest.json")
    assert status_now(path) == "interrupted"
    assert forks.run("teacher", "--resume", path).code == 0
    toyruns.check_same_end(path, whole.paths["teacher"])


LITTLE = toyruns.changes("eval.limit=3", "eval.images=2", "eval.steps=2", "eval.batch=2")
EVALUATION = ["eval", "--suite", "quality", *LITTLE]


@pytest.fixture(scope="module")
def evaluated(forks, tmp_path_factory):
    path = tmp_path_factory.mktemp("evaluated") / "e"
    ended = forks.run(*EVALUATION, "--out", path)
    assert ended.code == 0, ended.err
    return path


@pytest.mark.parametrize(
    ("pattern", "nth", "named"),
    [
        ("*/r/images/quality/*", 3, "images/quality/"),
        ("*/r/images/.drawn.json.*", 1, "images/drawn.json"),
        ("*/r/eval/.scored/0", 2, "eval/.scored/0"),
        ("*/r/eval/.quality.jsonl.*", 1, "eval/quality.jsonl"),
        ("*/r/eval/.quality.json.*", 1, "eval/quality.json"),
        ("*/r/samples/*", 1, "samples/eval.png"),
    ],
)
def test_an_evaluation_on_a_full_disk_is_resumed(forks, evaluated, tmp_path, pattern, nth, named):
    path = tmp_path / "r"
    ended = forks.run(*EVALUATION, "--out", path, before=FULL.format(pattern=pattern, nth=nth))
    assert ended.code == 4, ended.err
    (line,) = [line for line in ended.err.splitlines() if line.startswith("flowopd: error: ")]
    assert line.startswith(f"flowopd: error: {path / named}")
    assert "No space left on device; " in line
    assert status_now(path) == "failed"
    assert forks.run("eval", "--resume", path).code == 0
    for name in ("eval/quality.json", "eval/quality.jsonl"):
        assert (path / name).read_bytes() == (evaluated / name).read_bytes()
    assert toyruns.listing(path) == toyruns.listing(evaluated)


def test_a_merge_on_a_full_disk_can_be_repeated(forks, whole, tmp_path):
    path = tmp_path / "r"
    command = ["merge", whole.paths["teacher"], whole.paths["other"], "--method", "exact"]
    full = FULL.format(pattern="*/.adapter_model.safetensors.*", nth=1)
    check_refused(forks.run(*command, "--out", path, before=full), path / "adapter")
    assert not (path / "adapter").exists()
    assert forks.run("merge", "--resume", path).code == 0
    assert status_now(path) == "done"
