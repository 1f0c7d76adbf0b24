"""Optimizers by name, and that a checkpoint brings each of them back."""

import importlib.util
import sys
from types import ModuleType

import pytest
import torch

from flowopd_cli.errors import MissingDependency
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.loop import make_optimizer


def test_the_eight_bit_one_is_that_of_bitsandbytes(monkeypatch):
    class AdamW8bit(torch.optim.SGD):
        pass

    package, module = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    module.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module)
    made = make_optimizer("adamw8bit", [torch.nn.Parameter(torch.ones(2))], 0.1, 0.2)
    assert type(made) is AdamW8bit
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.1, 0.2)


def test_without_bitsandbytes_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingDependency, match=r"bitsandbytes is not installed: pip install 'flowopd\[int8\]'"):
        make_optimizer("adamw8bit", [torch.nn.Parameter(torch.ones(2))], 0.1, 0.2)


class Wrapped(torch.optim.AdamW):
    """An optimizer whose state holds what that of bitsandbytes does: a mapping, bytes, a count that is no tensor."""

    def state_dict(self):
        told = super().state_dict()
        told["state"] = {0: {"step": 3, "hidden": {"state1": torch.arange(4, dtype=torch.uint8)}}}
        return told

    def load_state_dict(self, told):
        self.taken = told["state"]


def test_a_state_of_another_kind_survives_a_checkpoint(trainee, tmp_path):
    trainee.adapters.copy("policy", "policy_ema")
    optimizer = Wrapped(trainee.adapters.trainable().values())
    state = TrainState()
    state.capture(trainee, optimizer)
    state.save(tmp_path)
    TrainState.load(tmp_path).restore(trainee, optimizer)
    assert optimizer.taken[0]["step"] == 3
    assert type(optimizer.taken[0]["step"]) is int
    assert torch.equal(optimizer.taken[0]["state1"], torch.arange(4, dtype=torch.uint8))


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs the extra int8")
def test_bitsandbytes_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(make_trainee, tmp_path):
    def steps(model, optimizer, count, first):
        for step in range(first, first + count):
            for index, parameter in enumerate(model.adapters.trainable().values()):
                generator = torch.Generator().manual_seed(100 * step + index)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()

    def big(model):
        model.adapters.add("large", 128, 128.0, seed=0, trainable=False)  # above what stays in 32 bits
        model.adapters._trainable = {"large"}
        return model, make_optimizer("adamw8bit", list(model.adapters.trainable().values()), 0.01, 0.0)

    (whole, optimizer), (stopped, first) = big(make_trainee()), big(make_trainee())
    for model in (whole, stopped):
        model.adapters.copy("policy", "policy_ema")
    steps(whole, optimizer, 4, 0)
    steps(stopped, first, 2, 0)
    state = TrainState()
    state.capture(stopped, first)
    state.save(tmp_path)
    second = make_optimizer("adamw8bit", list(stopped.adapters.trainable().values()), 0.01, 0.0)
    TrainState.load(tmp_path).restore(stopped, second)
    steps(stopped, second, 2, 2)
    moments = second.state[next(iter(stopped.adapters.trainable().values()))]
    assert moments["state1"].dtype == torch.uint8
    for name, value in whole.adapters.trainable().items():
        assert torch.equal(stopped.adapters.trainable()[name], value)
