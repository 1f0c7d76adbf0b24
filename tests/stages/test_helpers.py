"""What the stages share, each piece by itself."""

import pytest
import torch
from tiny import TEXTS

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.progress import Silent
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _fit, _model
from flowopd_cli.train.checkpoint import TrainState


def prompts(count):
    return {"a": [Prompt(str(i), f"{TEXTS[i % len(TEXTS)]} {i}", "a") for i in range(count)]}


@pytest.mark.parametrize(("rank", "world", "first"), [("0", "1", 0), ("0", "2", 0), ("1", "2", 5), ("2", "3", 6)])
def test_every_process_encodes_ahead_from_a_place_of_its_own(monkeypatch, rank, world, first):
    class Model:
        def encode_ahead(self, texts):
            self.asked = texts

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    _model.encode_ahead(model := Model(), {**prompts(10), "again": prompts(3)["a"]})
    texts = [prompt.text for prompt in prompts(10)["a"]]
    assert model.asked == texts[first:] + texts[:first]


@pytest.mark.parametrize("kept", [True, False])
def test_the_recipe_says_whether_embeddings_outlive_the_run(pipeline_folder, tmp_path, monkeypatch, kept):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))
    spec = ModelSpec(
        pretrained=str(pipeline_folder), device="cpu", max_sequence_length=4, resolution=None, cache_prompts=kept
    )
    _model.encode_ahead(_model.load_model(spec, ()), prompts(3))
    assert len(list((tmp_path / "embeddings").glob("*/*.safetensors"))) == kept


def test_a_base_is_refused_at_a_resolution_that_it_has_no_latents_for(pipeline_folder):
    spec = ModelSpec(pretrained=str(pipeline_folder), device="cpu", max_sequence_length=4, resolution=64)
    with pytest.raises(ArtifactError, match="positions for at most 16 pixels"):
        _model.load_model(spec, ())


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def stopped(tmp_path):
    """A run with checkpoints after iterations 1 and 2, and three rows of metrics."""
    run = RunDir.create(tmp_path / "r", "teacher")
    for iteration in (1, 2):
        run.save_checkpoint(iteration, TrainState(iteration, iteration, {"policy/x": torch.zeros(1)}).save, keep=2)
    for iteration in (1, 2, 3):
        run.log({"iteration": iteration})
    return run


def damage(run, *steps):
    for step in steps:
        next(run.checkpoint_dir(step).glob("*.safetensors")).write_bytes(b"torn")


@pytest.mark.parametrize(
    ("broken", "left", "said"), [((), 2, []), ((2,), 1, ["step-000002 is damaged: going on from"])]
)
def test_a_resumed_run_goes_on_from_its_newest_sound_checkpoint(stopped, broken, left, said):
    damage(stopped, *broken)
    progress = Notes()
    assert _fit.resume_state(stopped, True, progress).iteration == left
    assert len(stopped.rows()) == left
    assert [text in line for text, line in zip(said, progress.said, strict=True)] == [True] * len(said)


def test_a_run_whose_every_checkpoint_is_damaged_does_not_start_again_by_itself(stopped):
    damage(stopped, 1, 2)
    with pytest.raises(ArtifactError, match=r"step-000001, step-000002.* --force") as refused:
        _fit.resume_state(stopped, True, Notes())
    assert "\n" not in str(refused.value)
    assert len(stopped.rows()) == 3


def test_a_run_without_a_checkpoint_starts_with_the_first_iteration_and_says_so(tmp_path):
    run, progress = RunDir.create(tmp_path / "r", "teacher"), Notes()
    run.log({"iteration": 1})
    assert _fit.resume_state(run, True, progress) is None
    assert _fit.resume_state(run, False, progress) is None
    assert progress.said == ["no checkpoint yet: starting with the first iteration"]
    assert run.rows() == []
