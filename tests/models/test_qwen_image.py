"""Qwen-Image beyond the common contract: norms under guidance, its grid, texts of different lengths, idle modules."""

import pytest
import torch
from diffusers import QwenImageTransformer2DModel
from support.families import QWEN_IMAGE
from support.tiny import TEXTS, add_adapters, randomize

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family, family_of
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure

SIGMA = torch.tensor([0.9, 0.5, 0.2])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("qwen-image") / "base"
    QWEN_IMAGE.assemble(0).save_pretrained(place)
    return place


@pytest.fixture
def model(folder):
    return QWEN_IMAGE.load(folder)


def inputs(model):
    latents = torch.randn(3, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return latents, SIGMA, model.encode(TEXTS[:3])


def plain_velocity(model, folder, latents, sigma, text):
    """One row through diffusers' transformer, given what its pipeline makes of the text, in tokens."""
    embeds, mask = QWEN_IMAGE.plain(folder).encode_prompt(text)
    assert mask is None
    shape = [(1, *(side // 2 for side in latents.shape[2:]))]
    places = {"hidden_states": model.packed(latents), "img_shapes": [shape]}
    return model.transformer(**places, timestep=sigma, encoder_hidden_states=embeds, return_dict=False)[0]


@torch.no_grad()
def test_a_guided_velocity_has_the_norms_of_the_prompts_own(model, folder):
    latents, sigma, cond = inputs(model)
    guided = model.packed(model.velocity(latents, sigma, cond, guidance=3.0))
    for row, text in enumerate(TEXTS[:3]):
        one = slice(row, row + 1)
        prompt, empty = (plain_velocity(model, folder, latents[one], sigma[one], text) for text in (text, ""))
        combined = empty + 3.0 * (prompt - empty)
        expected = combined * (prompt.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True))
        torch.testing.assert_close(guided[one], expected, atol=1e-5, rtol=1e-5)
        assert float((combined - expected).abs().max()) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize(("texts", "guidance"), [(TEXTS[:3], 2.0), ([TEXTS[0]] * 3, 1.0)])
def test_padding_of_a_text_changes_nothing(folder, texts, guidance):
    model, longer = QWEN_IMAGE.load(folder), QWEN_IMAGE.load(folder, max_sequence_length=64)
    latents, velocities = inputs(model)[0], []
    for one in (model, longer):
        cond = one.encode(texts)
        assert cond.embeds.shape[1] == one.max_sequence_length
        velocities.append(one.velocity(latents, SIGMA, cond, guidance=guidance))
    torch.testing.assert_close(*velocities, atol=1e-5, rtol=1e-5)
    alone = [model.velocity(latents[row, None], SIGMA[row, None], model.encode([texts[row]]), guidance=guidance)
             for row in range(3)]  # fmt: skip
    torch.testing.assert_close(torch.cat(alone), velocities[0], atol=1e-5, rtol=1e-5)


def test_the_grid_is_that_of_the_pipeline(folder):
    pipeline = QWEN_IMAGE.plain(folder)
    pipeline(prompt=TEXTS[0], num_inference_steps=7, **QWEN_IMAGE.call(1.0))
    torch.testing.assert_close(QWEN_IMAGE.load(folder).sigmas(7).float(), pipeline.scheduler.sigmas, atol=1e-6, rtol=0)


def test_idle_modules_are_those_without_a_gradient(model):
    """In training of all weights of a plain transformer."""
    latents, sigma, cond = inputs(model)
    plain = QwenImageTransformer2DModel.from_config(model.transformer.config)
    plain(
        hidden_states=model.packed(latents),
        timestep=sigma,
        encoder_hidden_states=cond.embeds,
        encoder_hidden_states_mask=cond.mask,
        img_shapes=[[(1, 2, 2)]] * 3,
    ).sample.square().sum().backward()
    idle = {name for name, weight in plain.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert idle == {name for name, _ in plain.named_parameters() if name.startswith(model.idle_modules)}
    model.adapters.add_full("policy", trainable=True)
    assert model.adapters.trainable().keys() == {name for name, _ in plain.named_parameters()} - idle
    assert model.adapters.state("policy").keys() >= idle


def test_an_adapter_on_an_idle_module_is_kept_and_not_trained(model, folder, tmp_path):
    add_adapters(model)
    idle = {name for name in model.adapters.state("policy") if name.startswith(model.idle_modules)}
    assert idle
    assert model.adapters.trainable().keys() == model.adapters.state("policy").keys() - idle
    model.adapters.save("policy", tmp_path, "owner/base", model.fingerprint)
    other = QWEN_IMAGE.load(folder)
    other.adapters.load("policy", tmp_path, trainable=True)
    assert other.adapters.digest("policy") == model.adapters.digest("policy")
    assert other.adapters.trainable().keys() == model.adapters.trainable().keys()
    latents, sigma, cond = inputs(model)
    randomize(model, "other", seed=3)
    before, state = [], model.adapters.state("other")
    for changed in (state, {name: value + (name in idle) for name, value in state.items()}):
        model.adapters.load_state("other", changed)
        with torch.no_grad(), model.adapters.use("other"):
            before.append(model.velocity(latents, sigma, cond, guidance=2.0))
    assert torch.equal(*before)


@pytest.mark.parametrize("setting", ["zero_cond_t", "use_additional_t_cond"])
def test_a_network_that_takes_pictures_is_refused(tmp_path, setting):
    QWEN_IMAGE.assemble(0, **{setting: True}).save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="takes pictures beside the noise"):
        _ = QWEN_IMAGE.load(tmp_path).latent_shape


def test_the_pipeline_takes_its_guidance_with_a_negative_prompt():
    assert family("qwen-image").pipeline_guidance(4.0) == {"true_cfg_scale": 4.0, "negative_prompt": ""}
    assert family("qwen-image").pipeline_guidance(1.0) == {"true_cfg_scale": 1.0}


def test_the_published_shape_and_its_memory():
    base = measure("qwen-image", "Qwen/Qwen-Image", LoadOptions(dtype="bfloat16", resolution=512), 0)
    width = 24 * 128
    idle = 2 * (width + 1) * width + 128 + 2 * 4 * width**2 + 5 * width
    assert (base.parameters, base.parameters - base.trainable) == (20_430_401_088, idle)
    assert base.encoders == 8_292_166_656
    assert family_of("Qwen/Qwen-Image-2512") == "qwen-image"
    assert family("qwen-image").licenses["Qwen/Qwen-Image"] == {"license": "apache-2.0"}
