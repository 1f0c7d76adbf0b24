"""What a stage does not load: encoders for known prompts, an autoencoder without pictures; what it computes again."""

import pytest
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from support.tiny import TARGETS, TEXTS

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.plan.resolve import Plan
from flowopd_cli.cli.stage import run_stage
from flowopd_cli.errors import RecipeError
from flowopd_cli.models.sd3 import SD3Model
from flowopd_cli.recipe import TrainSpec
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.training.fit import save_memory
from flowopd_cli.system.progress import Silent


@pytest.fixture
def distill(pipeline_folder, tmp_path, monkeypatch):
    """Distills the base into an adapter of it; returns what the adapter became."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))

    def run(name, *overrides):
        model = {"pretrained": str(pipeline_folder), "device": "cpu", "resolution": None, "max_sequence_length": 4}
        train = {
            "iterations": 2,
            "groups": 2,
            "group_size": 2,
            "micro": 3,
            "lr": 0.01,
            "ema_every": 1,
            "sample_every": 0,
        }
        tree = {
            "stage": "distill",
            "model": model,
            "adapter": {"rank": 4, "alpha": 8, "targets": list(TARGETS)},
            "sampling": {"steps": 3, "guidance": 1.0},
            "prompts": [{"source": str(tmp_path / "a.txt"), "task": "a"}],
            "routing": {"a": {"ref": "base", "guidance": 2.0}},
            "train": train,
        }
        plan = Plan.of(recipes.build(tree, overrides=overrides))
        run_stage(plan, RunDir.create(tmp_path / name, "distill"), Silent())
        return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    return run


def forbid(monkeypatch, owner, name):
    def called(*args, **kwargs):
        raise AssertionError(f"{name} is called")

    monkeypatch.setattr(owner, name, called)


def same(one, two):
    return one.keys() == two.keys() and all(bool((one[key] == two[key]).all()) for key in one)


def test_a_second_run_loads_no_encoder_and_no_distillation_an_autoencoder(distill, monkeypatch):
    forbid(monkeypatch, AutoencoderKL, "from_pretrained")
    without = distill("without", "model.cache_prompts=false")
    first = distill("first")
    forbid(monkeypatch, SD3Model, "_pipeline")
    assert same(distill("second"), first)
    assert same(first, without)


def test_activations_that_are_computed_again_train_the_same_adapter(distill):
    plain, again = distill("plain"), distill("again", "train.gradient_checkpointing=true")
    assert max(float((plain[key] - again[key]).abs().max()) for key in plain) < 1e-6
    assert any(float(value.abs().max()) > 1e-3 for key, value in again.items() if "lora_B" in key)


def test_a_family_that_cannot_compute_again_says_so():
    save_memory(object(), TrainSpec())
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing: this model family cannot"):
        save_memory(object(), TrainSpec(gradient_checkpointing=True))
