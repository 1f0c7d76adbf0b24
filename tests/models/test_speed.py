"""Compilation, attention backends and activation checkpoints compute the same as a plain transformer."""

import logging

import pytest
import torch
import torch._dynamo.testing
from support.tiny import TEXTS, add_adapters, load

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models import speed
from flowopd_cli.models.attention import BACKENDS
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.recipe.fields import Attention

SIGMA = torch.tensor([0.9, 0.5, 0.2])
logging.getLogger("torch._dynamo").setLevel(logging.ERROR)


@pytest.fixture
def make(pipeline_folder):
    """Makes adapted models, their texts encoded, with options of ``load``."""

    def made(**options):
        model = add_adapters(load(pipeline_folder, **options))
        model.encode_ahead(TEXTS)
        return model

    return made


def latents():
    return torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0))


def velocity(model, name, guidance=1.0):
    with model.adapters.use(name), torch.no_grad():
        return model.velocity(latents(), SIGMA, model.encode(TEXTS[:3]), guidance=guidance)


def gradients(model, *, backward_under="policy"):
    """The policy's gradients; the backward may come under another adapter than the forward."""
    with model.adapters.use("policy"):
        total = model.velocity(latents(), SIGMA, model.encode(TEXTS[:3]), guidance=2.0).square().sum()
    with model.adapters.use(backward_under):
        total.backward()
    parameters = model.adapters.trainable()
    gradients = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return gradients


def assert_same(found, expected):
    assert all(value is not None for value in found.values())
    assert max(float(value.abs().max()) for value in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["other", None])
def test_checkpointed_gradients_survive_a_switch_before_backward(make, name):
    model = make()
    expected = gradients(model)
    model.checkpoint_gradients()
    assert_same(gradients(model, backward_under=name), expected)
    assert model.adapters.active is None


def test_a_forward_without_gradients_saves_no_checkpoint(make, monkeypatch):
    model = make()
    expected = velocity(model, "other")
    model.checkpoint_gradients()
    monkeypatch.setattr(speed, "checkpoint", None)
    assert torch.equal(velocity(model, "other"), expected)


def test_blocks_of_one_kind_are_compiled_once_for_each_adapter_and_follow_its_switch(make, monkeypatch):
    torch._dynamo.reset()
    compiled = torch._dynamo.testing.CompileCounter()
    monkeypatch.setitem(speed.COMPILE, "counted", {"backend": compiled})
    plain, model = make(), make(compile="counted")
    for name in ("other", None, "other", None):
        torch.testing.assert_close(velocity(model, name), velocity(plain, name), atol=1e-6, rtol=1e-6)
    assert compiled.frame_count == 2 * 2  # the last block of the two is of a kind of its own


@pytest.mark.parametrize(("name", "reason"), [("flash", "flash-attn"), ("flex", "CPU"), ("sdpa-cudnn", "backend")])
def test_unavailable_attention_is_a_one_line_error(pipeline_folder, name, reason):
    with pytest.raises(
        ArtifactError, match=rf"model\.attention {name} cannot work here .*{reason}.*: use auto"
    ) as found:
        load(pipeline_folder, attention=name)
    assert "\n" not in str(found.value)


def test_unknown_options_are_refused(pipeline_folder):
    with pytest.raises(ArtifactError, match=r"model\.attention 'quick' is none of auto, sdpa"):
        load(pipeline_folder, attention="quick")
    with pytest.raises(ArtifactError, match=r"model\.compile 'fast' is none of none, default"):
        load(pipeline_folder, compile="fast")


def test_the_recipe_has_the_options_of_the_model():
    assert set(Attention.__args__) == {"auto", *BACKENDS}
    assert set(ModelSpec.model_fields["compile"].annotation.__args__) == {"none", *speed.COMPILE}


@pytest.mark.parametrize(("allowed", "precision"), [(True, "high"), (False, "highest")])
def test_tf32_is_set_on_cuda_only(monkeypatch, allowed, precision):
    precisions = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", precisions.append)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    speed.allow_tf32(torch.device("cpu"), allowed)
    assert precisions == []
    speed.allow_tf32(torch.device("cuda", 0), allowed)
    assert precisions == [precision]
    assert torch.backends.cudnn.allow_tf32 == allowed


def test_adapters_of_a_bfloat16_base_are_float32(make):
    model = make(dtype="bfloat16")
    model.checkpoint_gradients()
    assert {value.dtype for value in gradients(model).values()} == {torch.float32}
