"""Z-Image beyond the common contract: direction of time, texts of different lengths, its convention of guidance."""

import json
import shutil

import diffusers
import pytest
import torch
from support.families import Z_IMAGE
from support.tiny import TEXTS, add_adapters, make_draw, make_sampler

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.models.files.families import family, family_of
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure
from flowopd_cli.recipe import ModelSpec, TeacherSpec
from flowopd_cli.train.collect import rollout, with_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("z-image") / "base"
    Z_IMAGE.assemble(0).save_pretrained(place)
    return place


@pytest.fixture
def model(folder):
    return Z_IMAGE.load(folder)


@torch.no_grad()
def test_the_network_is_given_one_minus_sigma_and_returns_the_negative_velocity(model):
    latents, sigma = torch.randn(2, *model.latent_shape), torch.tensor([0.9, 0.3])
    cond = model.encode(TEXTS[:2])
    plain = model.transformer(list(latents.unsqueeze(2)), 1 - sigma, cond.unpadded()).sample
    velocity = model.velocity(latents, sigma, cond, guidance=1.0)
    torch.testing.assert_close(velocity, -torch.stack(plain).squeeze(2), atol=1e-6, rtol=1e-5)


def test_padding_of_a_text_changes_nothing(folder):
    cond = [Z_IMAGE.load(folder, max_sequence_length=length).encode(TEXTS[:2]) for length in (40, 60)]
    model = Z_IMAGE.load(folder)
    latents, sigma = torch.randn(2, *model.latent_shape), torch.tensor([0.9, 0.3])
    with torch.no_grad():
        short, long = (model.velocity(latents, sigma, rows, guidance=2.0) for rows in cond)
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)


def test_the_pipeline_counts_guidance_from_zero():
    assert family("z-image").pipeline_guidance(5.0) == {"guidance_scale": 4.0}
    assert family_of("Tongyi-MAI/Z-Image-Turbo") == "z-image"


@pytest.mark.parametrize(
    "rules", [{"guidance_limit": 0.9}, {"guidance_until": 0.3}, {"guidance_limit": 1.1, "guidance_until": 0.5}]
)
def test_rules_of_guidance_draw_the_pipelines_picture(folder, rules):
    draw, pictures = make_draw("ab", "01"), []
    for given in ({}, rules):
        model = Z_IMAGE.load(folder, **given)
        sampler = make_sampler(model, steps=6, kernel="ode", guidance=3.5)
        rolled = with_images(model, rollout(model, sampler, draw, adapter=None))
        pictures.append(rolled.images)
    assert not torch.allclose(*pictures, atol=1e-3)
    call = Z_IMAGE.call(3.5) | family("z-image").call(3.5, LoadOptions(**rules))
    texts, start = [prompt.text for prompt in draw.prompts], rolled.trajectory.latents[:, 0]
    theirs = Z_IMAGE.plain(folder)(texts, latents=start, num_inference_steps=6, **call).images
    torch.testing.assert_close(pictures[1], theirs, atol=1e-5, rtol=0)


def test_a_rule_of_guidance_is_refused_where_the_pipeline_has_none():
    model = {"family": "sd3", "guidance_limit": 1.0}
    with pytest.raises(RecipeError, match="guidance_limit: the pipeline of the family sd3 has no such rule"):
        recipes.build({"stage": "eval", "model": model})
    student = ModelSpec(family="z-image", guidance_until=0.5)
    for base, until in (("z-image", 0.5), ("flux", None)):
        own = TeacherSpec(ref="runs/t", base="owner/large", family=base).own_model(student)
        assert own.guidance_until == until


def test_turbo_takes_no_guidance(folder, tmp_path):
    turbo = shutil.copytree(folder, tmp_path / "turbo")
    path = turbo / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shift": 3.0}))
    model = Z_IMAGE.load(turbo)
    given = torch.zeros(2, *model.latent_shape), torch.ones(2), model.encode(TEXTS[:2])
    with pytest.raises(ArtifactError, match=r"takes no guidance: set sampling\.guidance, eval\.guidance"):
        model.velocity(*given, guidance=[1.0, 4.5])
    assert model.velocity(*given, guidance=1.0).isfinite().all()


def test_a_version_of_diffusers_with_another_grid_is_refused(folder, monkeypatch):
    monkeypatch.setattr(diffusers, "__version__", "0.38.1")
    with pytest.raises(ArtifactError, match=r"needs diffusers 0\.39 or later, 0\.38\.1 is .* 'diffusers>=0\.39'"):
        Z_IMAGE.load(folder)
    monkeypatch.setattr(diffusers, "__version__", "0.39.0.dev0")
    Z_IMAGE.load(folder)


def test_adapters_outside_the_blocks_share_no_forward(folder):
    model = add_adapters(Z_IMAGE.load(folder, targets=("all-linear",)))
    assert not model.adapters.mixes
    with pytest.raises(ArtifactError, match="cannot mix adapters in one batch: an adapted module takes all rows"):
        model.velocity(
            torch.zeros(1, *model.latent_shape),
            torch.ones(1),
            model.encode(TEXTS[:1]),
            guidance=1.0,
            adapters=["other"],
        )


def test_a_tokenizer_without_a_chat_template_is_named(folder, tmp_path):
    copy = Z_IMAGE.assemble(0)
    copy.tokenizer.chat_template = None
    copy.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="no working chat template"):
        Z_IMAGE.load(tmp_path).truncated(["a" * 100])


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no') }}"])
def test_a_broken_chat_template_is_named(folder, tmp_path, template):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ArtifactError, match="no working chat template"):
        Z_IMAGE.load(tmp_path).truncated(["a" * 100])


def test_a_length_that_the_template_fills_is_refused(folder):
    assert Z_IMAGE.load(folder, max_sequence_length=7).truncated(["aa"])
    with pytest.raises(ArtifactError, match=r"max_sequence_length no token of a prompt is read"):
        Z_IMAGE.load(folder, max_sequence_length=6).truncated(["aa"])


def test_the_published_shape_and_its_memory():
    base = measure("z-image", "Tongyi-MAI/Z-Image", LoadOptions(dtype="bfloat16", resolution=512), 0)
    assert base.parameters == 6_154_908_736
    assert base.encoders == 4_022_468_096
    assert json.dumps(dict(family("z-image").licenses["Tongyi-MAI/Z-Image"])) == '{"license": "apache-2.0"}'
