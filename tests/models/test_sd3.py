"""The SD3 family against diffusers' own pipeline, on a tiny random one."""

import json
import shutil

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from tiny import SEQUENCE, TEXTS, assemble, load, make_draw, make_sampler

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models import folders
from flowopd_cli.models.folders import base_fingerprint
from flowopd_cli.models.pipeline import ENCODE_BATCH
from flowopd_cli.models.sd3 import SD3Model
from flowopd_cli.train.collect import rollout, with_images


@pytest.fixture
def copied(pipeline_folder, tmp_path):
    """A copy of the tiny pipeline that may be edited."""
    return shutil.copytree(pipeline_folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def latents(rows, seed=0):
    return torch.randn(rows, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def counted(model, monkeypatch):
    """The rows of every call of the transformer."""
    rows, forward = [], model.transformer.forward

    def count(*args, **kwargs):
        rows.append(len(kwargs["hidden_states"]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.transformer, "forward", count)
    return rows


@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_ode_pictures_are_those_of_diffusers(model, pipeline_folder, guidance):
    draw = make_draw("ab", "01")
    rolled = with_images(
        model, rollout(model, make_sampler(model, steps=6, kernel="ode", guidance=guidance), draw, adapter=None)
    )
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        [prompt.text for prompt in draw.prompts],
        latents=rolled.trajectory.latents[:, 0].clone(),
        num_inference_steps=6,
        guidance_scale=guidance,
        max_sequence_length=SEQUENCE,
        height=8,
        width=8,
        output_type="pt",
    ).images
    assert float(theirs.std()) > 0.05
    torch.testing.assert_close(rolled.images, theirs, atol=1e-5, rtol=0)


def test_guidance_is_a_line_through_the_negative_and_the_positive_velocity(model):
    x, sigma, cond = latents(2), torch.tensor([0.9, 0.4]), model.encode(TEXTS[:2])
    empty = model.encode(["", ""])
    with torch.no_grad():
        positive, negative = (model.velocity(x, sigma, c, guidance=1.0) for c in (cond, empty))
        guided = model.velocity(x, sigma, cond, guidance=4.5)
    assert not torch.allclose(positive, negative, atol=1e-3)
    torch.testing.assert_close(guided, negative + 4.5 * (positive - negative), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 3), (4.5, 6), (0.0, 6)])
def test_the_negative_half_is_skipped_at_guidance_one(model, counted, guidance, rows):
    model.velocity(latents(3), torch.full((3,), 0.5), model.encode(TEXTS[:3]), guidance=guidance)
    assert counted == [rows]


def test_velocity_takes_a_sigma_of_its_own_for_each_row(model):
    x, cond = latents(2), model.encode(TEXTS[:2])
    together = model.velocity(x, torch.tensor([0.9, 0.2]), cond, guidance=1.0)
    for row, sigma in enumerate((0.9, 0.2)):
        alone = model.velocity(x[row : row + 1], torch.tensor([sigma]), cond[row : row + 1], guidance=1.0)
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-5)


def test_guidance_without_the_empty_prompt_is_refused(model):
    cond = model.encode(TEXTS[:1])
    bare = type(cond)(cond.embeds, cond.pooled)
    with pytest.raises(ValueError, match="empty prompt"):
        model.velocity(latents(1), torch.ones(1), bare, guidance=2.0)


def test_encoding_is_that_of_the_pipeline(model, pipeline_folder):
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline_folder, text_encoder_3=None, tokenizer_3=None)
    theirs = pipe.encode_prompt(list(TEXTS), None, None, max_sequence_length=SEQUENCE)
    cond = model.encode(TEXTS)
    got = (cond.embeds, cond.neg_embeds, cond.pooled, cond.neg_pooled)
    for ours, reference in zip(got, theirs, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-5)


@pytest.fixture
def encoded(model, monkeypatch):
    """The texts of every call of the encoders, in batches filled up with the empty text."""
    pipe, batches = model._pipeline(), []
    original = pipe.encode_prompt
    monkeypatch.setattr(
        pipe, "encode_prompt", lambda texts, *a, **kw: batches.append(list(texts)) or original(texts, *a, **kw)
    )
    return batches


def test_a_text_is_encoded_once_in_batches_of_one_size(model, encoded):
    first = model.encode([TEXTS[0], TEXTS[1], TEXTS[0]])
    again = model.encode([TEXTS[1], TEXTS[0]])
    assert [text for batch in encoded for text in batch if text] == [TEXTS[0], TEXTS[1]]
    assert [len(batch) for batch in encoded] == [ENCODE_BATCH]
    assert torch.equal(first.embeds[[1, 0]], again.embeds)
    assert torch.equal(first.embeds[0], first.embeds[2])


def test_a_text_has_one_embedding_whatever_its_company(model, pipeline_folder):
    together, alone = model.encode(TEXTS), load(pipeline_folder).encode(TEXTS[2:3])
    assert torch.equal(together.embeds[2], alone.embeds[0])
    assert torch.equal(together.pooled[2], alone.pooled[0])


def test_texts_are_encoded_ahead_and_the_encoders_go(model, encoded):
    texts = [f"{text} {i}" for i in range(9) for text in TEXTS]
    model.encode_ahead([*texts, *texts])
    assert [len(batch) for batch in encoded] == [ENCODE_BATCH] * 3
    assert [text for batch in encoded for text in batch if text] == texts
    assert model._encoders is None
    model.encode(texts)
    assert model._encoders is None


def test_rows_are_kept_in_the_hosts_memory_and_come_on_the_models_device(model):
    model.encode_ahead(TEXTS)
    model.device = torch.device("meta")
    cond = model.encode(TEXTS)
    assert {part.device.type for row in model.prompts.find(TEXTS).values() for part in row} == {"cpu"}
    assert {getattr(cond, name).device.type for name in ("embeds", "pooled", "neg_embeds", "neg_pooled")} == {"meta"}


def forbid_encoders(monkeypatch):
    """Fail where text encoders would be loaded."""

    def loaded(self):
        raise AssertionError("encoders are loaded")

    monkeypatch.setattr(SD3Model, "_pipeline", loaded)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_model_reads_what_the_first_encoded_and_loads_no_encoder(
    pipeline_folder, tmp_path, monkeypatch, dtype
):
    plain = load(pipeline_folder, dtype=dtype).encode(TEXTS)
    load(pipeline_folder, dtype=dtype, prompt_cache=tmp_path).encode_ahead(TEXTS)
    forbid_encoders(monkeypatch)
    second = load(pipeline_folder, dtype=dtype, prompt_cache=tmp_path)
    second.encode_ahead(TEXTS)
    cond = second.encode(TEXTS)
    for name in ("embeds", "pooled", "neg_embeds", "neg_pooled"):
        assert torch.equal(getattr(cond, name), getattr(plain, name))


def test_other_encoders_lengths_and_precisions_share_no_embedding(pipeline_folder, copied, tmp_path):
    edit(copied / "tokenizer" / "tokenizer_config.json", note="changed")
    options = ({}, {"max_sequence_length": 5}, {"dtype": "bfloat16"})
    models = [load(pipeline_folder, prompt_cache=tmp_path, **more) for more in options]
    models.append(load(copied, prompt_cache=tmp_path))
    assert len({model.prompts.folder for model in models}) == 4
    assert load(pipeline_folder, prompt_cache=tmp_path).prompts.folder == models[0].prompts.folder


def test_a_transformer_of_its_own_shares_its_encoders_embeddings(pipeline_folder, copied, tmp_path):
    assemble(seed=1).transformer.save_pretrained(copied / "transformer")
    folders = {load(place, prompt_cache=tmp_path).prompts.folder for place in (pipeline_folder, copied)}
    assert len(folders) == 1


def test_released_encoders_are_not_needed_for_known_texts(model):
    before = model.encode(TEXTS)
    model.release_encoders()
    assert model._encoders is None
    assert torch.equal(model.encode(TEXTS).embeds, before.embeds)
    assert model._encoders is None
    model.encode(["a new text"])
    assert model._encoders is not None


def test_only_adapters_would_be_trained(model):
    model.encode(TEXTS[:1])
    assert not any(parameter.requires_grad for parameter in model.transformer.parameters())
    assert not model.transformer.training


def test_pictures_lie_between_zero_and_one(model):
    images = model.decode(10 * latents(2))
    assert images.shape == (2, 3, 8, 8)
    assert images.dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)


def test_bfloat16_gives_float32_velocities(pipeline_folder):
    model = load(pipeline_folder, dtype="bfloat16")
    cond = model.encode(TEXTS[:1])
    assert cond.embeds.dtype == model.transformer.dtype == torch.bfloat16
    assert model.velocity(latents(1), torch.ones(1), cond, guidance=4.5).dtype == torch.float32


def test_automatic_precision_on_the_cpu_is_float32(pipeline_folder):
    assert load(pipeline_folder).transformer.dtype == torch.float32


@pytest.mark.parametrize(("resolution", "shape"), [(None, (4, 4, 4)), (8, (4, 4, 4)), (4, (4, 2, 2))])
def test_latents_follow_the_resolution(pipeline_folder, resolution, shape):
    assert load(pipeline_folder, resolution=resolution).latent_shape == shape


def test_a_resolution_between_patches_is_refused(pipeline_folder):
    with pytest.raises(ArtifactError, match=r"model\.resolution 6 is not a multiple of 4"):
        _ = load(pipeline_folder, resolution=6).latent_shape


def test_a_resolution_beyond_the_positions_of_the_base_is_refused(pipeline_folder):
    with pytest.raises(
        ArtifactError, match=r"model\.resolution 20: this base has positions for at most 16 pixels, so lower it"
    ):
        _ = load(pipeline_folder, resolution=20).latent_shape


def test_sigmas_take_the_schedulers_shift_unless_another_is_given(model):
    assert model.sigmas(10)[1].item() == pytest.approx(0.9601, abs=1e-4)
    assert torch.equal(model.sigmas(10), model.sigmas(10, 3.0))
    assert model.sigmas(10, 1.0)[5].item() == pytest.approx(0.445, abs=1e-3)


def test_a_shift_by_resolution_wants_a_number_and_takes_it(copied):
    edit(copied / "scheduler" / "scheduler_config.json", use_dynamic_shifting=True)
    model = load(copied)
    with pytest.raises(ArtifactError, match=r"set sampling\.shift to a number"):
        model.sigmas(10)
    assert model.sigmas(10, 3.0)[1].item() == pytest.approx(0.9601, abs=1e-4)


def test_fingerprint_follows_the_weights_and_the_configuration(pipeline_folder, copied, tmp_path):
    known = base_fingerprint(pipeline_folder)
    assert known == base_fingerprint(copied) == load(copied).fingerprint
    assemble(seed=1).transformer.save_pretrained(tmp_path / "other" / "transformer")
    assert base_fingerprint(tmp_path / "other") != known
    edit(copied / "transformer" / "config.json", note="changed")
    assert base_fingerprint(copied) != known


def test_fingerprint_of_large_files_reads_both_ends(pipeline_folder, copied, monkeypatch):
    monkeypatch.setattr(folders, "WHOLE_FILE_BYTES", 4096)
    monkeypatch.setattr(folders, "EDGE_BYTES", 64)
    known = base_fingerprint(copied)
    assert known == base_fingerprint(pipeline_folder)
    weights = next((copied / "transformer").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert base_fingerprint(copied) != known


def test_what_is_no_pipeline_is_refused(copied, tmp_path):
    with pytest.raises(ArtifactError, match="not a diffusers pipeline"):
        load(tmp_path)
    edit(copied / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    with pytest.raises(
        ArtifactError, match=r"is FluxTransformer2DModel, this family's is SD3Trans.*: .* model\.family"
    ):
        load(copied)
    with pytest.raises(ArtifactError, match=r"no such folder, and not a Hub id .* check --base"):
        load("nowhere")


def test_a_hub_id_is_fetched_without_its_pickles(pipeline_folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, **kw: asked.append((repo, kw)) or str(pipeline_folder)
    )
    assert load("owner/name", revision="abc").folder == pipeline_folder
    assert [(repo, kw["revision"]) for repo, kw in asked] == [("owner/name", "abc")] * 2
    assert not any(pattern.endswith((".bin", ".pt", "*")) for _, kw in asked for pattern in kw["allow_patterns"])


def test_a_hub_id_of_another_family_is_refused_before_its_weights_are_fetched(copied, monkeypatch):
    edit(copied / "transformer" / "config.json", _class_name="FluxTransformer2DModel")
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **kw: asked.append(kw) or str(copied))
    with pytest.raises(ArtifactError, match=r"owner/name: its transformer is FluxTransformer2DModel"):
        load("owner/name")
    assert [kw["allow_patterns"] for kw in asked] == [["transformer/config.json"]]


def test_a_failed_download_is_one_line_with_the_way_out(monkeypatch):
    def fail(repo, **kwargs):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ArtifactError, match=r"owner/name: cannot be fetched \(no network\)"):
        load("owner/name")
