"""Grids of sigmas by schedulers' settings, against diffusers' own scheduler."""

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.grids import check_grid, even_grid, shift_of

DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}


@pytest.mark.parametrize(
    "settings",
    [{"shift": 6.0}, DYNAMIC, {**DYNAMIC, "time_shift_type": "linear"}, {**DYNAMIC, "shift_terminal": 0.02}],
)
@pytest.mark.parametrize("steps", [2, 10])
def test_a_grid_is_the_schedulers(settings, steps):
    scheduler, tokens = FlowMatchEulerDiscreteScheduler(**settings), 1024
    config = scheduler.config
    mu = calculate_shift(tokens, 256, config.max_image_seq_len, config.base_shift, config.max_shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    grid = even_grid(steps, shift_of(config, tokens), config.shift_terminal)
    torch.testing.assert_close(grid.float(), scheduler.sigmas, atol=1e-6, rtol=0)


def test_one_step_goes_from_one_to_zero_whatever_the_terminal():
    assert even_grid(1, 3.0, 0.02).tolist() == [1.0, 0.0]


def test_another_kind_of_grid_is_refused():
    with pytest.raises(ArtifactError, match=r"a base: the scheduler's use_beta_sigmas is not supported: use a copy"):
        check_grid({"use_beta_sigmas": True}, "a base")
