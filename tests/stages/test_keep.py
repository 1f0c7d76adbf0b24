"""A new skill for a student: its frozen start teaches what it could do before."""

import pytest
from support import toyruns

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Silent

SMALL = (
    *toyruns.SMALL,
    "train.iterations=3",
    "train.sample_every=0",
    "train.groups=6",
    "train.group_size=1",
    "opd.extrapolate=1",
    toyruns.TWO_TASKS,
)
OLD = ("routing={geneval: {ref: base, guidance: 3}, ocr: {ref: base, guidance: 3}}", "adapter.init=null")


def perform(path, *overrides, resume=False):
    recipe = recipes.build(recipes.read(recipes.find("toy/distill")), overrides=[*SMALL, *overrides])
    run = RunDir.open(path) if resume else RunDir.create(path, recipe.stage)
    run_stage(Plan.of(recipe), run, Silent(), resume=resume)
    return run


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return perform(tmp_path_factory.mktemp("keep") / "student", *OLD, "anchor.beta=0")


@pytest.fixture(scope="module")
def skilled(student):
    """The student after it learned a third task; the overrides that taught it."""
    kept = "geneval: {ref: init}, ocr: {ref: init}, quality: {ref: base, guidance: 4}"
    prompts = "prompts=[{source: toy:geneval}, {source: toy:ocr}, {source: toy:quality}]"
    overrides = (f"adapter.init={student.path}", f"routing={{{kept}}}", prompts, "anchor.beta=0")
    before = (student.adapter_dir / "adapter_model.safetensors").read_bytes()
    run = perform(student.path.parent / "skilled", *overrides)
    assert (student.adapter_dir / "adapter_model.safetensors").read_bytes() == before
    return run, overrides


def test_the_frozen_start_agrees_with_the_student_at_first_and_stays_where_it_was(skilled):
    rows = skilled[0].rows()
    for task in ("geneval", "ocr"):
        assert rows[0][f"kl/{task}"] == pytest.approx(0, abs=1e-12)
        assert rows[2][f"kl/{task}"] > 1e-9
    assert rows[0]["kl/quality"] > 1e-6


def test_the_start_is_recorded_as_what_it_was_for(skilled, student):
    parents = {parent.role: parent for parent in skilled[0].manifest().parents}
    assert set(parents) == {"init", "teacher_geneval", "teacher_quality"}
    assert parents["init"].ref == parents["teacher_geneval"].ref == str(student.path)
    assert parents["init"].sha256 == parents["teacher_geneval"].sha256
    assert skilled[0].recipe().routing["ocr"].ref == str(student.path)


def test_it_resumes_to_the_bits_of_one_that_was_not_stopped(skilled, tmp_path):
    whole, overrides = skilled
    perform(tmp_path / "r", *overrides, "train.iterations=2")
    perform(tmp_path / "r", *overrides, resume=True)
    assert toyruns.figures(tmp_path / "r") == toyruns.figures(whole.path)
    names = ("adapter/adapter_model.safetensors", "checkpoints/step-000003/state.json")
    assert all((tmp_path / "r" / name).read_bytes() == (whole.path / name).read_bytes() for name in names)
