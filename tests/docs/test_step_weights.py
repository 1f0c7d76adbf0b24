"""The table of step weights in docs/method.md is that of the kernels."""

from pathlib import Path

import pytest
import torch

from flowopd_cli.core.losses import step_weights
from flowopd_cli.core.schedule import flow_sigmas
from flowopd_cli.core.steps import kl, make_kernel

PAGE = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.mark.parametrize("kernel", ["flow_sde", "cps"])
@pytest.mark.parametrize("name", ["kl", "kl_no_dt", "velocity"])
def test_the_table_of_step_weights(kernel, name):
    """Shares of the loss of equal errors of the velocity at the nine trained steps of ten at shift 3."""
    sigmas = flow_sigmas(10, 3.0).double()
    step, now, then = make_kernel(kernel, 0.7, sigmas), sigmas[:9], sigmas[1:10]
    zero, one = torch.zeros(9, 1, 1, 1).double(), torch.ones(9, 1, 1, 1).double()
    loss = step_weights(name, now, then, step) * kl(step(one, zero, now, then), step(zero, zero, now, then))
    shares = " | ".join(f"{100 * share:.1f}" for share in (loss / loss.sum()).tolist())
    assert f"| `{kernel}` | `{name}` | {shares} |" in PAGE.read_text()
