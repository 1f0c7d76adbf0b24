"""Lumina-Image-2 beyond the common contract: direction of time, guidance that keeps norms, system prompt, its grid."""

import pytest
import torch
from support.families import LUMINA2
from support.tiny import TEXTS
from support.tiny_lumina2 import assemble_lumina2

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family, family_of
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure

BASE = "Alpha-VLLM/Lumina-Image-2.0"
SIGMA = torch.tensor([0.9, 0.3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("lumina2") / "base"
    LUMINA2.assemble(0).save_pretrained(place)
    return place


@pytest.fixture
def model(folder):
    return LUMINA2.load(folder)


def latents(model):
    return torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def plain(model, half):
    """The network's own output for one half of a conditioning."""
    return model.transformer(latents(model), 1 - SIGMA, half.embeds, half.mask).sample


@torch.no_grad()
def test_the_network_is_given_one_minus_sigma_and_returns_the_negative_velocity(model):
    cond = model.encode(TEXTS[:2])
    velocity = model.velocity(latents(model), SIGMA, cond, guidance=1.0)
    torch.testing.assert_close(velocity, -plain(model, cond.positive), atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_guidance_turns_each_line_and_keeps_its_norm(model):
    cond = model.encode(TEXTS[:2])
    negative, positive = -plain(model, cond.negative), -plain(model, cond.positive)
    velocity = model.velocity(latents(model), SIGMA, cond, guidance=4.0)
    direction = torch.nn.functional.normalize(4 * positive - 3 * negative, dim=-1)
    torch.testing.assert_close(velocity, direction * positive.norm(dim=-1, keepdim=True), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_of_a_text_changes_nothing(folder):
    texts = ["ab", "abcd"]
    short, long = (LUMINA2.load(folder, max_sequence_length=length) for length in (8, 20))
    velocities = [model.velocity(latents(model), SIGMA, model.encode(texts), guidance=2.0) for model in (short, long)]
    torch.testing.assert_close(*velocities, atol=1e-5, rtol=1e-5)


def test_the_empty_prompt_of_guidance_has_no_system_prompt(model):
    cond = model.encode(["a"])
    assert (int(cond.mask.sum()), int(cond.neg_mask.sum())) == (3, 1)


def test_more_tokens_than_the_network_has_positions_are_refused(folder):
    with pytest.raises(ArtifactError, match=r"model\.max_sequence_length 64: .* positions for 63 tokens of text"):
        LUMINA2.load(folder, max_sequence_length=64).encode(TEXTS)
    assert LUMINA2.load(folder, max_sequence_length=63).encode(TEXTS).embeds.shape[1] == 63


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_grid_is_the_pipelines(tmp_path, dynamic):
    """With a shift by the size of the picture, too, which the pipeline takes from the number of channels."""
    assemble_lumina2(0, use_dynamic_shifting=dynamic).save_pretrained(tmp_path)
    pipeline = LUMINA2.plain(tmp_path)
    pipeline("a", num_inference_steps=5, **{**LUMINA2.call(1.0), "output_type": "latent"})
    torch.testing.assert_close(LUMINA2.load(tmp_path).sigmas(5).float(), pipeline.scheduler.sigmas, atol=1e-6, rtol=0)


def test_the_published_shape():
    base = measure("lumina2", BASE, LoadOptions(dtype="bfloat16", resolution=512), 0)
    assert base.parameters == 2_609_769_152
    assert base.encoders == 2_614_341_888
    assert family_of(BASE) == "lumina2"
    assert family("lumina2").licenses[BASE] == {"license": "apache-2.0"}
