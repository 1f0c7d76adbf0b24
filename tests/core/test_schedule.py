"""Sigma grids against the published table and against diffusers' own scheduler."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.schedule import flow_sigmas, shift_sigmas, stretch_sigmas

SD35 = [1.0, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.2780, 0.0089, 0.0]


def test_ten_steps_of_sd35():
    torch.testing.assert_close(flow_sigmas(10, 3.0), torch.tensor(SD35).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shift", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_equals_the_euler_scheduler(steps, shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(flow_sigmas(steps, shift).float(), scheduler.sigmas, atol=1e-6, rtol=1e-6)


@given(st.integers(1, 60), st.floats(0.5, 8.0))
def test_grid_falls_from_one_to_zero(steps, shift):
    sigmas = flow_sigmas(steps, shift)
    assert len(sigmas) == steps + 1
    assert sigmas.dtype == torch.float64
    assert (sigmas[0], sigmas[-1]) == (1, 0)
    assert (sigmas.diff() < 0).all()


@given(st.floats(0.001, 0.999), st.floats(0.2, 8.0))
def test_shift_is_undone_by_its_inverse(sigma, shift):
    there = shift_sigmas(torch.tensor([sigma]).double(), shift)
    torch.testing.assert_close(shift_sigmas(there, 1 / shift), torch.tensor([sigma]).double())


@pytest.mark.parametrize(("steps", "shift"), [(0, 3.0), (-1, 3.0), (10, 0.0), (10, -1.0)])
def test_no_step_or_no_shift_is_refused(steps, shift):
    with pytest.raises(ValueError, match=f"got {steps} and"):
        flow_sigmas(steps, shift)


def test_a_stretched_grid_ends_at_its_terminal_and_keeps_its_proportions():
    grid = torch.tensor([1.0, 0.8, 0.4]).double()
    # distances from 1 of 0, 0.2 and 0.6, times (1 - 0.1) / 0.6
    assert stretch_sigmas(grid, 0.1).tolist() == pytest.approx([1.0, 0.7, 0.1])
