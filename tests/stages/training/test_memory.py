"""Parts that a training does not load, and activation checkpointing."""

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
    """Distills the base into an adapter; returns the weights of the adapter."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))

    def run(name, *overrides):
        model = {"pretrained": str(pipeline_folder), "device": "cpu", "resolution": None, "max_sequence_length": 4}
        train = {"iterations": 2, "groups": 2, "group_size": 2, "micro": 3, "lr": 0.01, "ema_every": 1}
        tree = {
            "stage": "distill",
            "model": model,
            "adapter": {"rank": 4, "alpha": 8, "targets": list(TARGETS)},
            "sampling": {"steps": 3, "guidance": 1.0},
            "prompts": [{"source": str(tmp_path / "a.txt"), "task": "a"}],
            "routing": {"a": {"ref": "base", "guidance": 2.0}},
            "train": {**train, "sample_every": 0},
        }
        plan = Plan.of(recipes.build(tree, overrides=overrides))
        run_stage(plan, RunDir.create(tmp_path / name, "distill"), Silent())
        return load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")

    return run


def same(one, two):
    return one.keys() == two.keys() and all(bool((one[key] == two[key]).all()) for key in one)


def test_a_second_run_loads_no_encoder_and_no_distillation_an_autoencoder(distill, monkeypatch):
    monkeypatch.setattr(AutoencoderKL, "from_pretrained", lambda *args, **kwargs: pytest.fail("loads an autoencoder"))
    without = distill("without", "model.cache_prompts=false")
    first = distill("first")
    monkeypatch.setattr(SD3Model, "_pipeline", lambda self: pytest.fail("loads encoders"))
    assert same(distill("second"), first)
    assert same(first, without)


def test_gradient_checkpointing_trains_the_same_adapter(distill):
    plain, again = distill("plain"), distill("again", "train.gradient_checkpointing=true")
    assert max(float((plain[key] - again[key]).abs().max()) for key in plain) < 1e-6
    assert any(float(value.abs().max()) > 1e-3 for key, value in again.items() if "lora_B" in key)


def test_a_family_without_checkpointing_is_refused():
    save_memory(object(), TrainSpec())
    with pytest.raises(RecipeError, match=r"train\.gradient_checkpointing: this model family cannot"):
        save_memory(object(), TrainSpec(gradient_checkpointing=True))
