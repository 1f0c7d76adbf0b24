"""A transformer that stays in the host's memory and is copied to the device for each forward."""

from dataclasses import replace

import pytest
import torch
from support.families import FAMILIES
from support.tiny import TEXTS, randomize

from flowopd_cli.core.types import Conditioning

META = torch.device("meta")


@pytest.fixture(params=sorted(FAMILIES))
def models(request, tmp_path):
    """A family's tiny model with an adapter, as usual and offloaded."""
    family = FAMILIES[request.param]
    family.assemble(0).save_pretrained(tmp_path)
    loaded = family.load(tmp_path), family.load(tmp_path, offload=True)
    for model in loaded:
        model.adapters.add("teacher", 4, 8.0, seed=0, trainable=False)
        randomize(model, "teacher", seed=1)
    return loaded


def inputs(model, device="cpu"):
    x = torch.randn(len(TEXTS), *model.latent_shape, generator=torch.Generator().manual_seed(0))
    cond = model.encode(TEXTS)
    if device != "cpu":  # the length of a text cannot be read on the meta device
        cond = replace(cond, mask=None, neg_mask=None)
    moved = Conditioning(*(None if part is None else part.to(device) for part in vars(cond).values()))
    return x.to(device), torch.full((len(TEXTS),), 0.5, device=device), moved


@torch.no_grad()
def test_an_offloaded_model_answers_the_same(models):
    plain, offloaded = models
    x, sigma, cond = inputs(plain)
    for name in (None, "teacher"):
        velocities = []
        for model in (plain, offloaded):
            with model.adapters.use(name):
                velocities.append(model.velocity(x, sigma, cond, guidance=2.0))
        assert torch.equal(*velocities)
    mixed = [None, "teacher", "teacher", None]
    velocities = [model.velocity(x, sigma, cond, guidance=2.0, adapters=mixed) for model in models]
    assert torch.equal(*velocities)


@torch.no_grad()
def test_a_forward_runs_on_the_device_and_the_weights_stay(models):
    """The meta device stands for a GPU: a module with a weight elsewhere could not be evaluated there."""
    _, model = models
    x, sigma, cond = inputs(model, META)
    before = {name: tensor.data_ptr() for name, tensor in model.transformer.state_dict().items()}
    model.device = META
    for name in (None, "teacher"):
        with model.adapters.use(name):
            assert model.velocity(x, sigma, cond, guidance=2.0).device == META
    assert {name: tensor.data_ptr() for name, tensor in model.transformer.state_dict().items()} == before
    assert {tensor.device.type for tensor in model.transformer.state_dict().values()} == {"cpu"}


@torch.no_grad()
def test_prompts_of_another_precision_are_converted(models):
    for model in models:
        x, sigma, cond = inputs(model)
        expected = model.velocity(x, sigma, cond, guidance=2.0)
        floats = {n: p.double() for n, p in vars(cond).items() if p is not None and p.is_floating_point()}
        double = replace(cond, **floats)
        assert torch.equal(model.velocity(x, sigma, double, guidance=2.0), expected)
