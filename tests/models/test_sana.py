"""SANA beyond the common contract: its instruction, its solver's shift, its mask, normalized queries."""

import json

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from support.families import SANA
from support.tiny import TEXTS

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("sana") / "base"
    SANA.assemble(0).save_pretrained(place)
    return place


def test_the_grid_is_that_of_euler_steps_with_the_solvers_shift(folder):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    torch.testing.assert_close(SANA.load(folder).sigmas(7).float(), scheduler.sigmas, atol=1e-6, rtol=0)


def test_a_solver_of_other_predictions_is_refused_unless_a_shift_is_given(tmp_path):
    SANA.assemble(0).save_pretrained(tmp_path)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "epsilon"}))
    model = SANA.load(tmp_path)
    with pytest.raises(ArtifactError, match="no flow: use a copy of the base"):
        model.sigmas(4)
    assert len(model.sigmas(4, 3.0)) == 5


@torch.no_grad()
def test_masked_tokens_of_a_text_change_nothing(folder):
    model = SANA.load(folder)
    latents, sigma, cond = torch.randn(2, *model.latent_shape), torch.tensor([0.9, 0.3]), model.encode(TEXTS[:2])
    short = cond.mask.clone()
    short[:, 3:] = False
    changed = cond.embeds.masked_fill(~short[..., None], 7.0)
    velocities = [
        model.velocity(latents, sigma, type(cond)(embeds, mask=short), guidance=1.0)
        for embeds in (cond.embeds, changed)
    ]
    torch.testing.assert_close(*velocities, atol=1e-6, rtol=1e-5)


def test_a_backend_normalizes_queries_over_all_heads(tmp_path):
    """As in SANA-1.5."""
    SANA.assemble(0, qk_norm="rms_norm_across_heads").save_pretrained(tmp_path)
    velocities = []
    for attention in ("auto", "sdpa"):
        model = SANA.load(tmp_path, attention=attention)
        latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
        cond = model.encode(TEXTS[:2])
        with torch.no_grad():
            velocities.append(model.velocity(latents, torch.tensor([0.9, 0.3]), cond, guidance=2.0))
    torch.testing.assert_close(*velocities, atol=1e-5, rtol=1e-5)


def test_the_published_shapes():
    options = LoadOptions(dtype="bfloat16", resolution=512)
    small, large = (
        measure("sana", f"Efficient-Large-Model/Sana_{n}M_512px_diffusers", options, 0) for n in (600, 1600)
    )
    assert small.parameters == pytest.approx(0.59e9, rel=0.02)
    assert large.parameters == pytest.approx(1.6e9, rel=0.02)
    assert small.encoders == 2_614_341_888
