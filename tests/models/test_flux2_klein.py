"""FLUX.2-klein beyond the common contract: places of tokens, its grid, distilled bases, modulations of all blocks."""

import math

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from support.families import FLUX2_KLEIN
from support.tiny import TEXTS, add_adapters
from support.tiny_klein import assemble_klein

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import write_diffusers
from flowopd_cli.models.files.families import family, family_of
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure

MODULATIONS = ("double_stream_modulation_img.linear", "single_stream_modulation.linear")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("klein") / "base"
    assemble_klein(0).save_pretrained(place)
    return place


def theirs(model, latents, sigma, cond):
    """The velocity by diffusers' network and the pipeline's own layout."""
    packed = Flux2KleinPipeline._patchify_latents(latents)
    ids = Flux2KleinPipeline._prepare_latent_ids(packed)
    tokens = model.transformer(
        hidden_states=Flux2KleinPipeline._pack_latents(packed),
        timestep=sigma,
        encoder_hidden_states=cond.embeds,
        txt_ids=Flux2KleinPipeline._prepare_text_ids(cond.embeds),
        img_ids=ids,
    ).sample
    rows = Flux2KleinPipeline._unpack_latents_with_ids(tokens, ids, *packed.shape[2:])
    return Flux2KleinPipeline._unpatchify_latents(rows)


def inputs(model, side=4):
    latents = torch.randn(2, 4, 6, side, generator=torch.Generator().manual_seed(0))
    return latents, torch.tensor([0.9, 0.3]), model.encode(TEXTS[:2])


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_velocity_is_the_networks_guided_by_the_empty_prompt(folder, guidance):
    """The latents are not square, so exchanged rows and columns would differ."""
    model = FLUX2_KLEIN.load(folder)
    latents, sigma, cond = inputs(model)
    negative, positive = (theirs(model, latents, sigma, half) for half in (cond.negative, cond.positive))
    expected = negative + guidance * (positive - negative)
    velocity = model.velocity(latents, sigma, cond, guidance=guidance)
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)
    assert torch.equal(model.packed(latents), Flux2KleinPipeline._patchify_latents(latents))


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("resolution", [16, 512, 1024])
def test_the_grid_is_the_pipelines_at_every_resolution_and_number_of_steps(folder, resolution, dynamic):
    model = FLUX2_KLEIN.load(folder, resolution=resolution)
    tokens, scheduler = math.prod(model.latent_shape[1:]) // 4, FLUX2_KLEIN.plain(folder).scheduler
    assert (tokens > 4300) == (resolution == 1024)
    for one in (model._scheduler, scheduler):
        one.register_to_config(use_dynamic_shifting=dynamic)
    for steps in (1, 4, 10, 50):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
        torch.testing.assert_close(model.sigmas(steps), scheduler.sigmas.double(), atol=1e-6, rtol=0)


def test_the_default_resolution_is_the_pipelines(folder):
    assert FLUX2_KLEIN.load(folder, resolution=None).latent_shape == (4, 128, 128)
    assert FLUX2_KLEIN.load(folder, resolution=24).latent_shape == (4, 6, 6)


@torch.no_grad()
def test_a_distilled_base_is_drawn_without_guidance(tmp_path):
    assemble_klein(0, distilled=True).save_pretrained(tmp_path)
    model = FLUX2_KLEIN.load(tmp_path)
    latents, sigma, cond = inputs(model)
    velocity = model.velocity(latents, sigma, cond, guidance=1.0)
    torch.testing.assert_close(velocity, theirs(model, latents, sigma, cond), atol=1e-5, rtol=0)
    for guidance in (3.5, [1.0, 2.0]):
        with pytest.raises(ArtifactError, match=r"takes no guidance: set sampling\.guidance, .* to 1"):
            model.velocity(latents, sigma, cond, guidance=guidance)


def test_flux2_dev_is_refused(tmp_path):
    assemble_klein(0, guidance_embeds=True).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match=r"takes guidance as an input, as FLUX\.2-dev"):
        _ = FLUX2_KLEIN.load(tmp_path).latent_shape


@torch.no_grad()
def test_adapters_on_the_modulations_of_all_blocks_share_a_forward_and_load_in_diffusers(folder, tmp_path):
    model = add_adapters(FLUX2_KLEIN.load(folder, targets=MODULATIONS))
    latents, sigma, cond = inputs(model)
    mixed = model.velocity(latents, sigma, cond, guidance=2.0, adapters=["other", None])
    alone = []
    for name in ("other", None):
        with model.adapters.use(name):
            alone.append(model.velocity(latents, sigma, cond, guidance=2.0))
    torch.testing.assert_close(mixed, torch.stack([alone[0][0], alone[1][1]]), atol=1e-5, rtol=1e-5)
    assert float((alone[0] - alone[1]).abs().max()) > 1e-3
    write_diffusers(tmp_path, model.adapters.factors("other"))
    plain = FLUX2_KLEIN.plain(folder)
    plain.load_lora_weights(tmp_path)
    with model.adapters.use("other"):
        velocity = model.velocity(latents, sigma, cond, guidance=1.0)
    torch.testing.assert_close(theirs(plain, latents, sigma, cond), velocity, atol=1e-5, rtol=1e-5)


def test_every_weight_of_a_full_model_has_a_gradient(folder):
    model = FLUX2_KLEIN.load(folder)
    model.adapters.add_full("policy", trainable=True)
    with model.adapters.use("policy"):
        model.velocity(*inputs(model), guidance=2.0).square().sum().backward()
    assert [name for name, weight in model.adapters.trainable().items() if weight.grad is None] == []


def test_the_published_shapes_and_licenses():
    options, facts = LoadOptions(dtype="bfloat16", resolution=512), family("flux2-klein")
    for kind in ("base-", ""):
        small, large = (f"black-forest-labs/FLUX.2-klein-{kind}{size}B" for size in (4, 9))
        counts = [measure("flux2-klein", name, options, 0) for name in (small, large)]
        assert [count.parameters for count in counts] == [3_875_544_576, 9_078_581_248]
        assert [count.encoders for count in counts] == [4_022_468_096, 8_190_735_360]
        assert family_of(small) == family_of(large) == "flux2-klein"
        assert dict(facts.licenses[small]) == {"license": "apache-2.0"}
        assert facts.licenses[large]["license_name"] == "flux-non-commercial-license"
        assert large in facts.licenses[large]["license_link"]
