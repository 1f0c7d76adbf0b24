"""FLUX beyond the common contract: packed tokens, a grid by resolution, guidance as an input, its shape."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from support.families import FLUX
from support.tiny import FLUX_SEQUENCE, TEXTS, assemble_flux

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.options import Common
from flowopd_cli.cli.plan import memory
from flowopd_cli.cli.plan.check import check_names
from flowopd_cli.cli.plan.resolve import resolve
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family_of
from flowopd_cli.recipe.cost import arithmetic

GIB = 2**30


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("flux") / "dev"
    assemble_flux(0).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def schnell(tmp_path_factory):
    """A base whose network takes no guidance, and whose scheduler has one shift for all pictures."""
    place = tmp_path_factory.mktemp("flux") / "schnell"
    assemble_flux(0, guidance=False).save_pretrained(place)
    edit(place / "scheduler" / "scheduler_config.json", use_dynamic_shifting=False, shift=1.0)
    return place


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def point(model, rows=2, side=None):
    channels, own, _ = model.latent_shape
    shape = (rows, channels, side or own, own)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)), torch.full((rows,), 0.6)


@torch.no_grad()
def velocity(model, guidance, side=None):
    x, sigma = point(model, side=side)
    return model.velocity(x, sigma, model.encode(TEXTS[:2]), guidance=guidance)


def test_tokens_are_packed_as_the_pipeline_packs_them(folder):
    model = FLUX.load(folder)
    x = torch.randn(2, 4, 6, 4)
    assert torch.equal(model.packed(x), FluxPipeline._pack_latents(x, 2, 4, 6, 4))


def test_tokens_have_the_positions_of_their_rows_and_columns(folder):
    """The latents are not square, so exchanged rows and columns would differ."""
    model = FLUX.load(folder)
    x, sigma = point(model, side=6)
    cond, ids = model.encode(TEXTS[:2]), FluxPipeline._prepare_latent_image_ids(2, 3, 2, "cpu", torch.float32)
    with torch.no_grad():
        tokens = model.transformer(
            hidden_states=model.packed(x),
            timestep=sigma,
            guidance=torch.full((2,), 2.5),
            pooled_projections=cond.pooled,
            encoder_hidden_states=cond.embeds,
            txt_ids=torch.zeros(FLUX_SEQUENCE, 3),
            img_ids=ids,
        ).sample
    pixels = 4  # a latent pixel's side in the picture
    expected = FluxPipeline._unpack_latents(tokens, 6 * pixels, 4 * pixels, pixels)
    torch.testing.assert_close(velocity(model, 2.5, side=6), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("resolution", [16, 64, 1024, 2048])
def test_the_grid_is_the_pipelines_at_every_resolution(copied, resolution, kind):
    edit(copied / "scheduler" / "scheduler_config.json", time_shift_type=kind)
    model = FLUX.load(copied, resolution=resolution)
    tokens = math.prod(model.latent_shape[1:]) // 4
    scheduler = FLUX.plain(copied).scheduler
    for steps in (1, 2, 10):
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=calculate_shift(tokens))
        torch.testing.assert_close(model.sigmas(steps), scheduler.sigmas.double(), atol=1e-6, rtol=0)


def test_a_given_shift_replaces_the_schedulers(folder):
    # 2 sigma / (1 + sigma) at 3/4, 1/2, 1/4
    assert FLUX.load(folder).sigmas(4, 2.0).tolist() == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0])


@pytest.mark.parametrize("option", [{"use_karras_sigmas": True}, {"invert_sigmas": True}])
def test_a_grid_of_another_kind_is_refused_unless_a_shift_is_given(copied, option):
    edit(copied / "scheduler" / "scheduler_config.json", **option)
    model = FLUX.load(copied)
    with pytest.raises(ArtifactError, match=rf"the scheduler's {next(iter(option))} is not supported: use a copy"):
        model.sigmas(4)
    assert len(model.sigmas(4, 3.0)) == 5


def test_guidance_is_an_input_of_the_network(folder, monkeypatch):
    model, inputs = FLUX.load(folder), []
    forward = model.transformer.forward
    monkeypatch.setattr(model.transformer, "forward", lambda **kw: inputs.append(kw["guidance"]) or forward(**kw))
    for guidance in (1.0, 3.5, [2.0, 1.0]):
        velocity(model, guidance)
    assert [row.tolist() for row in inputs] == [[1.0, 1.0], [3.5, 3.5], [2.0, 1.0]]


def test_a_base_without_guidance_matches_the_pipeline_and_requires_guidance_one(schnell):
    model = FLUX.load(schnell)
    assert model.sigmas(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    bare = FLUX.plain(schnell).transformer
    x, sigma = point(model)
    cond = model.encode(TEXTS[:2])
    ids = torch.zeros(FLUX_SEQUENCE, 3), FluxPipeline._prepare_latent_image_ids(2, 2, 2, "cpu", torch.float32)
    with torch.no_grad():
        tokens = bare(model.packed(x), cond.embeds, cond.pooled, sigma, ids[1], ids[0]).sample
    expected = FluxPipeline._unpack_latents(tokens, 16, 16, 4)
    torch.testing.assert_close(velocity(model, 1.0), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(ArtifactError, match=r"takes no guidance: set sampling\.guidance, .* to 1"):
        velocity(model, 3.5)


def test_the_default_resolution_is_the_pipelines(folder):
    assert FLUX.load(folder, resolution=None).latent_shape == (4, 128, 128)
    assert FLUX.load(folder, resolution=24).latent_shape == (4, 6, 6)


def test_a_transformer_for_editing_pictures_is_refused(copied):
    edit(copied / "transformer" / "config.json", in_channels=16, out_channels=8)
    config = FluxTransformer2DModel.load_config(copied / "transformer")
    FluxTransformer2DModel.from_config(config).save_pretrained(copied / "transformer")
    with pytest.raises(ArtifactError, match="takes a picture beside the noise"):
        _ = FLUX.load(copied).latent_shape


def test_figures_of_a_dry_run_of_flux_dev():
    recipe = recipes.load(recipes.find("flux-dev/teacher-pickscore"))
    figures = memory.figures(recipe)
    assert figures["memory: base"] == f"{2 * 11_901_408_320 / GIB:.2f} GiB"
    assert figures["memory: text encoders, before training"] == f"{2 * (123_060_480 + 4_762_310_656) / GIB:.2f} GiB"
    counted = arithmetic(recipe)
    # six steps, five of them trained, one forward each whatever the guidance; no reference without a KL
    assert counted["of these rollout / labels / learning"] == "6 / 0 / 5"


def test_a_base_on_the_command_line_sets_the_family(folder, tmp_path):
    values = {"rewards": [{"name": "jpeg_compressibility"}], "prompts": [{"source": "toy:ocr"}]}
    for base in (str(folder), "black-forest-labs/FLUX.1-schnell"):
        recipe = resolve("teacher", Common(base=base, out=tmp_path / "t"), values).recipe
        assert (recipe.model.family, recipe.model.pretrained) == ("flux", base)
    over = Common(base="toy", recipe="flux-dev/teacher-pickscore", out=tmp_path / "t")
    assert resolve("teacher", over, {}).recipe.model.family == "sd3"


def test_a_base_of_another_family_than_the_recipes_is_refused(folder):
    recipe = recipes.build({"stage": "eval", "model": {"pretrained": str(folder), "family": "sd3"}})
    with pytest.raises(ArtifactError, match=r"family sd3: .* belongs to the family flux: use --set model\.family=flux"):
        check_names(recipe)
    assert family_of(str(folder)) == "flux"
