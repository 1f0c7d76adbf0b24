"""Training state: what is captured, written, read and put back."""

import pytest
import torch
from support.tiny import load

from flowopd_cli.errors import ArtifactError
from flowopd_cli.train.checkpoint import TrainState


def optimizer_of(model):
    return torch.optim.AdamW(model.adapters.trainable().values(), lr=0.01)


def trained(model, steps=2):
    """An optimizer that has made a few steps of the policy on made-up gradients."""
    optimizer = optimizer_of(model)
    for step in range(steps):
        for index, parameter in enumerate(model.adapters.trainable().values()):
            parameter.grad = torch.full_like(parameter, 0.1 * (step + 1) + index)
        optimizer.step()
    return optimizer


@pytest.fixture
def captured(trainee):
    """A state of iteration 3, step 6, and the model it was taken from."""
    state = TrainState.fresh(trainee)
    optimizer = trained(trainee)
    state.iteration, state.step = 3, 6
    state.capture(trainee, optimizer)
    return state


def test_a_fresh_state_starts_the_average_at_the_policy(trainee):
    state = TrainState.fresh(trainee)
    assert (state.iteration, state.step, state.tensors) == (0, 0, {})
    assert trainee.adapters.digest("policy_ema") == trainee.adapters.digest("policy")


def test_a_state_on_disk_is_bitwise_the_same(captured, tmp_path):
    captured.save(tmp_path)
    read = TrainState.load(tmp_path)
    assert (read.iteration, read.step) == (3, 6)
    assert read.tensors.keys() == captured.tensors.keys()
    assert all(torch.equal(read.tensors[name], value) for name, value in captured.tensors.items())


def test_a_captured_state_is_a_copy(trainee):
    state, optimizer = TrainState.fresh(trainee), trained(trainee)
    state.capture(trainee, optimizer)
    before = {name: value.clone() for name, value in state.tensors.items()}
    optimizer.step()
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())


def test_another_process_goes_on_from_the_same_weights_and_moments(trainee, captured, pipeline_folder, tmp_path):
    captured.save(tmp_path)
    other = load(pipeline_folder)
    other.adapters.add("policy", 4, 8.0, seed=99, trainable=True)
    optimizer = optimizer_of(other)
    TrainState.load(tmp_path).restore(other, optimizer)
    for role in ("policy", "policy_ema"):
        assert other.adapters.digest(role) == trainee.adapters.digest(role)
    again = TrainState(3, 6)
    again.capture(other, optimizer)
    assert all(torch.equal(again.tensors[name], value) for name, value in captured.tensors.items())
    assert again.tensors.keys() == captured.tensors.keys()


def test_a_state_of_another_adapter_is_refused(captured, pipeline_folder):
    other = load(pipeline_folder)
    other.adapters.add("policy", 2, 8.0, seed=0, trainable=True)
    with pytest.raises(ArtifactError, match="the stored state does not fit"):
        captured.restore(other, optimizer_of(other))
