"""Run directories with damaged or foreign files."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import TEXTS, as_json, both, edited, folder, guarded, mutated
from support.tiny_adapters import TOY_SHA, pair, write_adapter

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.check import check
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.runs.adapter_ref import AdapterRef, recorded_base
from flowopd_cli.runs.inspect import listing, verify
from flowopd_cli.runs.lock import Lock
from flowopd_cli.runs.manifest import LOCK, MANIFEST, Base, Inputs, Parent, read_manifest
from flowopd_cli.runs.reported import reported
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing import card
from flowopd_cli.system.files import is_intact
from flowopd_cli.system.text import columns

TEACHER = {"stage": "teacher", "prompts": [{"source": "toy:geneval"}], "rewards": [{"name": "toy-geneval"}]}
EVAL = {"stage": "eval", "model": {"pretrained": "toy"}, "adapter": "student"}
RESULT = {"suite": "ocr", "version": "1", "mean": 0.5, "stderr": 0.1, "n": 4, "exact": False, "protocol": {"seed": 1}}


def make(box):
    """A finished training with a checkpoint, and an evaluation of it beside it."""
    run = RunDir.create(box / "student", "teacher")
    run.start(recipes.build({**TEACHER, "model": {"pretrained": "toy"}}))
    write_adapter(run.adapter_dir, pair(), r=4)
    run.declare(Inputs(base=Base(ref="toy", sha256=TOY_SHA), parents=(Parent(role="init", ref="base"),)))
    for step in (1, 2):
        run.log({"iteration": step, "reward": 0.5, "kl": None})
        run.save_checkpoint(step, lambda path: (path / "state.json").write_text("{}"), 2)
    run.finish("done", {"reward": 0.5})
    judged = RunDir.create(box / "eval", "eval")
    judged.start(recipes.build({**EVAL, "adapter": str(run.path)}))
    policy = AdapterRef.parse(str(run.path)).resolve().parent("policy")
    judged.declare(Inputs(base=Base(ref="toy", sha256=TOY_SHA), parents=(policy,)))
    judged.write_eval("ocr", json.dumps(RESULT))
    judged.finish("done")
    return run, judged


def look(box, run):
    """Everything that reads a run, which may refuse it and must not write."""
    with guarded(box / "nowhere"):
        rows = [(r["run"], r["stage"], r["status"], r["created"], str(r["figures"])) for r in listing(box)]
        assert columns(rows).isprintable() or "\n" in columns(rows)
    with guarded(box / "nowhere"):
        found = list(verify(run.path))
        assert all(isinstance(finding.fault, str) for finding in found)
    reference = str(run.path)
    for read in (
        *(run.manifest, run.recipe, run.rows, run.checkpoints.newest, run.checkpoints.provenance, run.events),
        lambda: Plan.of(run.recipe()),
        lambda: AdapterRef.parse(reference).resolve().parent("init"),
        lambda: recorded_base(run.path),
        lambda: check(recipes.build({**EVAL, "adapter": reference})),
        Lock(run.path / LOCK).taken,
        lambda: card.build(card.Card("t", run.manifest(), reported(run, []).rows, "me/t")),
        lambda: reported(run, [str(box / "eval")]),
    ):
        with guarded(box / "nowhere"):
            read()


def manifest_of_a_run(tree):
    with folder() as box:
        run, _ = copied(box)
        (run.path / MANIFEST).write_bytes(tree if isinstance(tree, bytes) else as_json(tree))
        with guarded(box / "nowhere"):
            manifest = read_manifest(run.path)
            assert manifest.model_validate_json(manifest.model_dump_json()) == manifest
        look(box, run)


with folder() as _made:
    make(_made)
    TEMPLATE = {path.relative_to(_made): path.read_bytes() for path in _made.rglob("*") if path.is_file()}


def copied(box):
    """The runs of :func:`make`, without its many syncs to disk."""
    for name, content in TEMPLATE.items():
        (box / name).parent.mkdir(parents=True, exist_ok=True)
        (box / name).write_bytes(content)
    return RunDir(box / "student"), RunDir(box / "eval")


BYTES = TEMPLATE[Path("student", MANIFEST)]
SOUND = json.loads(BYTES)
METRICS, RECIPE = TEMPLATE[Path("student/metrics.jsonl")], TEMPLATE[Path("student/recipe.yaml")]
SUMS = TEMPLATE[Path("student/checkpoints/step-000002/checksums.json")]
TREES = st.one_of(mutated(SOUND), edited(BYTES))
test_manifest_of_a_run, test_manifest_of_a_run_at_length = both(given(tree=TREES), manifest_of_a_run, 10, 700)


def files_of_a_run(files):
    with folder() as box:
        run, judged = copied(box)
        for name, content in files.items():
            path = (judged if name.startswith("eval/") else run).path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        look(box, run)
        with guarded(run.path):
            run.go_back(1)
        with guarded(box / "nowhere"):
            is_intact(run.checkpoints.path(2))


OWNER = {"pid": 1, "birth": "1", "host": "h"}
FILES = st.fixed_dictionaries(
    {},
    optional={
        "metrics.jsonl": edited(METRICS),
        "recipe.yaml": edited(RECIPE),
        "checkpoints/step-000002/checksums.json": st.one_of(
            edited(SUMS), st.dictionaries(TEXTS, TEXTS, max_size=3).map(as_json)
        ),
        "checkpoints/step-000003/state.json": edited(b"{}"),
        "checkpoints/step-\u0661/x": st.just(b""),
        "eval/ocr.json": st.one_of(mutated(RESULT).map(as_json), edited(json.dumps(RESULT).encode())),
        "eval/other.json": st.one_of(mutated(RESULT).map(as_json), edited(b'["a"]')),
        "adapter/adapter_config.json": st.one_of(mutated({"r": 4}).map(as_json), edited(b'{"r": 4}')),
        ".lock": st.one_of(mutated(OWNER).map(as_json), edited(json.dumps(OWNER).encode())),
    },
)
test_files_of_a_run, test_files_of_a_run_at_length = both(given(files=FILES), files_of_a_run, 10, 700)


def test_the_run_that_is_damaged_here_is_sound(tmp_path):
    run, judged = copied(tmp_path)
    assert run.manifest().status == judged.manifest().status == "done"
    assert run.checkpoints.newest()[0] == 2
    assert {finding.fault for finding in verify(run.path)} == {""}
    assert [found.of for found in reported(run, []).rows] == ["this model"]
