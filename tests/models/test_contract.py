"""The contract of every family, against diffusers' pipeline, on a tiny random one of each."""

import copy
import json
import shutil

import pytest
import torch
from support.families import FAMILIES, SHARED
from support.tiny import TEXTS, add_adapters, make_draw, make_sampler

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import write_diffusers
from flowopd_cli.models.files.families import family
from flowopd_cli.models.files.pipelines import base_fingerprint
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.random_weights import make_random
from flowopd_cli.models.reference import Request, plain_picture, plain_pipeline
from flowopd_cli.models.texts import ENCODE_BATCH
from flowopd_cli.registry import MODELS
from flowopd_cli.train.collect import rollout, with_images

SIGMA = torch.tensor([0.9, 0.5, 0.2])
shared = pytest.mark.parametrize("tiny", SHARED, indirect=True, scope="module")


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request):
    """Each family in turn."""
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    place = tmp_path_factory.mktemp("families") / tiny.family
    tiny.assemble(0).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def plain(tiny, folder):
    """The folder as a diffusers pipeline."""
    return tiny.plain(folder)


@pytest.fixture(scope="module")
def loaded(tiny, folder):
    model = tiny.load(folder)
    model.encode(TEXTS)
    model.release_encoders()
    return model


@pytest.fixture
def model(loaded):
    return copy.deepcopy(loaded)


@pytest.fixture
def adapted(model):
    """The model with ``policy``, ``other`` and ``third``, all different."""
    return add_adapters(model)


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the pipeline that may be edited."""
    return shutil.copytree(folder, tmp_path / "copy")


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def latents(model, rows=3, seed=0):
    return torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def velocity(model, name=None, guidance=2.0, **more):
    with model.adapters.use(name):
        return model.velocity(latents(model), SIGMA, model.encode(TEXTS[:3]), guidance=guidance, **more)


def gradients(model):
    with model.adapters.use("policy"):
        out = model.velocity(latents(model), SIGMA, model.encode(TEXTS[:3]), guidance=2.0)
        out.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.adapters.trainable().items()}
    for parameter in model.adapters.trainable().values():
        parameter.grad = None
    return gradients


def assert_same_parts(cond, expected):
    """All tensors of two conditionings are equal."""
    assert cond.embeds is not None
    for name, part in vars(expected).items():
        found = getattr(cond, name)
        assert found is part is None or torch.equal(found, part), name


def assert_same(found, expected):
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-4
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6 * max(1.0, largest), rtol=1e-5)


@shared
@pytest.mark.parametrize(("part", "text", "message"), [
    ("scheduler/scheduler_config.json", '{"_class_name": "SCMScheduler"}', "scheduler is SCMScheduler, this"),
    ("tokenizer", None, "no vocabulary in it"),
])  # fmt: skip
def test_a_base_is_refused_without_its_own_scheduler_or_vocabulary(tiny, folder, tmp_path, part, text, message):
    base = shutil.copytree(folder, tmp_path / "base")
    if text is None:
        shutil.rmtree(base / part)
    else:
        (base / part).write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        tiny.load(base).encode(TEXTS)


@pytest.mark.parametrize(("steps", "guidance"), [(1, 3.5), (2, 1.0), (10, 3.5)])
def test_ode_pictures_match_diffusers(tiny, model, plain, guidance, steps):
    draw = make_draw("ab", "01")
    sampler = make_sampler(model, steps=steps, kernel="ode", guidance=guidance)
    rolled = with_images(model, rollout(model, sampler, draw, adapter=None))
    start = rolled.trajectory.latents[:, 0]
    options = {"num_inference_steps": steps, **tiny.call(guidance)}
    if steps == 1 and plain.scheduler.config.get("shift_terminal"):
        pytest.skip("diffusers divides by zero")
    noises = model.packed(start).split(1)  # a pipeline may take one negative prompt for a list of prompts
    pictures = [plain(prompt=p.text, latents=x, **options).images for p, x in zip(draw.prompts, noises, strict=True)]
    theirs = torch.cat(pictures)
    assert float(theirs.std()) > 0.05
    torch.testing.assert_close(rolled.images, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_grid_falls_from_one_to_zero_and_takes_a_shift(model, steps):
    grid = model.sigmas(steps)
    assert grid.dtype == torch.float64
    assert (len(grid), grid[0].item(), grid[-1].item()) == (steps + 1, 1.0, 0.0)
    assert bool((grid.diff() < 0).all())
    if steps > 1:
        assert bool((model.sigmas(steps, 9.0) > model.sigmas(steps, 2.0))[1:-1].all())


def test_each_row_has_a_guidance_and_a_sigma_of_its_own(model):
    scales, cond = [1.0, 2.0, 4.5], model.encode(TEXTS[:3])
    together = velocity(model, guidance=scales)
    for row, scale in enumerate(scales):
        one = slice(row, row + 1)
        alone = model.velocity(latents(model)[one], SIGMA[one], cond[one], guidance=scale)
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(velocity(model, guidance=1.0), velocity(model, guidance=4.5), atol=1e-4)


def test_rows_go_through_the_transformer_as_often_as_the_family_says(tiny, model):
    rows = []
    hook = model.transformer.register_forward_pre_hook(
        lambda module, inputs, named: rows.append(len(named.get("hidden_states", named.get("x")))), with_kwargs=True
    )
    for guidance in (1.0, 4.5):
        velocity(model, guidance=guidance)
    hook.remove()
    assert rows == [3 * family(tiny.family).halves(guidance) for guidance in (1.0, 4.5)]
    assert family(tiny.family).classifier_free == model.classifier_free


def test_rows_of_several_adapters_share_a_forward(adapted):
    names = ["other", None, "third"]
    mixed = velocity(adapted, guidance=[2.0, 1.0, 3.5], adapters=names)
    for row, (name, guidance) in enumerate(zip(names, [2.0, 1.0, 3.5], strict=True)):
        torch.testing.assert_close(mixed[row], velocity(adapted, name, guidance)[row], atol=1e-5, rtol=1e-5)


def test_adapters_differ_and_leave_the_base_unchanged(model):
    base = velocity(model)
    adapted = add_adapters(model)
    velocities = [velocity(adapted, name) for name in (None, "policy", "other", "third")]
    assert torch.equal(velocities[0], base)
    assert all(float((a - b).abs().max()) > 1e-3 for i, a in enumerate(velocities) for b in velocities[i + 1 :])
    trainable = {name for name, parameter in adapted.transformer.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".policy." in name for name in trainable)


def test_a_saved_adapter_computes_the_same_here_and_in_diffusers(tiny, adapted, folder, tmp_path):
    adapted.adapters.save("other", tmp_path / "peft", "owner/base", adapted.fingerprint)
    fresh = tiny.load(folder)
    fresh.adapters.load("again", tmp_path / "peft")
    assert torch.equal(velocity(fresh, "again"), velocity(adapted, "other"))
    write_diffusers(tmp_path / "hub", adapted.adapters.factors("other"))
    sampler = make_sampler(adapted, kernel="ode", guidance=3.0)
    rolled = with_images(adapted, rollout(adapted, sampler, make_draw("a", "0"), adapter="other"))
    start, side = adapted.packed(rolled.trajectory.latents[:, 0]), tiny.options["resolution"]
    options = family(tiny.family).pipeline_guidance(3.0) | adapted.plain_options
    request = Request(rolled.prompts[0].text, start, side, 4, tiny.options["max_sequence_length"], options)
    pipeline = plain_pipeline(folder, torch.float32)
    adapted.prepare_plain(pipeline)
    bare = plain_picture(pipeline, None, request)
    torch.testing.assert_close(plain_picture(pipeline, tmp_path / "hub", request), rolled.images, atol=1e-5, rtol=0)
    assert float((bare - rolled.images).abs().max()) > 1e-3


def test_checkpointed_gradients_are_equal(adapted):
    expected, blocks = gradients(adapted), []
    adapted.checkpoint_gradients()
    for block in adapted.blocks:
        block.register_forward_pre_hook(lambda *_: blocks.append(1))
    assert_same(gradients(adapted), expected)
    assert len(blocks) == 2 * len(adapted.blocks)  # each twice: forward, and again for backward


@pytest.mark.parametrize("full", [False, True])
def test_every_trained_weight_gets_a_gradient(tiny, folder, full):
    model = tiny.load(folder, targets=("all-linear",))
    if full:
        model.adapters.add_full("policy", trainable=True)
    else:
        add_adapters(model)
    trained = gradients(model)
    assert trained
    assert not [name for name, gradient in trained.items() if gradient is None or not gradient.isfinite().all()]


@pytest.mark.parametrize("name", [pytest.param("sdpa", marks=pytest.mark.slow), "sdpa-math"])
def test_attention_backends_match_diffusers(tiny, adapted, folder, name):
    other = add_adapters(tiny.load(folder, attention=name))
    torch.testing.assert_close(velocity(other, "other"), velocity(adapted, "other"), atol=1e-5, rtol=1e-5)
    assert_same(gradients(other), gradients(adapted))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["aot_eager", "default"])
def test_compiled_and_checkpointed_gradients_are_equal(tiny, adapted, folder, way):
    other = add_adapters(tiny.load(folder, compile=way))
    other.checkpoint_gradients()
    for (name, found), expected in zip(gradients(other).items(), gradients(adapted).values(), strict=True):
        # fused kernels sum in another order
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4, msg=name)


def test_encoding_matches_the_pipeline(tiny, model, plain):
    theirs = tiny.embeddings(plain, list(TEXTS), tiny.options["max_sequence_length"])
    cond = model.encode(TEXTS)
    ours = {"embeds": cond.unpadded(), "pooled": cond.pooled}
    ours |= {"neg_embeds": cond.negative.unpadded(), "neg_pooled": cond.neg_pooled} if model.classifier_free else {}
    assert theirs.keys() == {name for name, part in ours.items() if part is not None}
    for name, rows in theirs.items():
        for row, expected in zip(ours[name], rows, strict=True):
            torch.testing.assert_close(row, expected, atol=1e-6, rtol=1e-5)


@pytest.fixture
def encoded(tiny, folder, monkeypatch):
    """A model that has seen no text, and the texts of every call of its encoders."""
    fresh, batches = tiny.load(folder), []
    original = fresh._embed
    monkeypatch.setattr(fresh, "_embed", lambda texts: batches.append(list(texts)) or original(texts))
    return fresh, batches


@shared
def test_a_text_is_encoded_once_in_batches_of_one_size(encoded):
    fresh, batches = encoded
    first = fresh.encode([TEXTS[0], TEXTS[1], TEXTS[0]])
    again = fresh.encode([TEXTS[1], TEXTS[0]])
    assert [text for batch in batches for text in batch if text] == [TEXTS[0], TEXTS[1]]
    assert [len(batch) for batch in batches] == [ENCODE_BATCH]
    assert torch.equal(first.embeds[[1, 0]], again.embeds)
    assert torch.equal(first.embeds[0], first.embeds[2])


def test_an_embedding_is_independent_of_its_batch(tiny, model, folder):
    together, alone = model.encode(TEXTS), tiny.load(folder).encode(TEXTS[2:3])
    assert_same_parts(together[2:3], alone)


@shared
def test_encoding_ahead_releases_the_encoders(encoded):
    fresh, batches = encoded
    texts = [f"{text} {i}" for i in range(9) for text in TEXTS]
    fresh.encode_ahead([*texts, *texts])
    assert [len(batch) for batch in batches] == [ENCODE_BATCH] * 3
    assert [text for batch in batches for text in batch if text] == texts
    assert fresh._encoders is None
    fresh.encode(texts)
    assert fresh._encoders is None


@shared
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_second_model_reads_what_the_first_encoded_and_loads_no_encoder(tiny, folder, tmp_path, monkeypatch, dtype):
    plain = tiny.load(folder, dtype=dtype).encode(TEXTS)
    tiny.load(folder, dtype=dtype, prompt_cache=tmp_path).encode_ahead(TEXTS)

    def loaded(self):
        raise AssertionError("encoders are loaded")

    monkeypatch.setattr(PipelineModel, "_pipeline", loaded)
    second = tiny.load(folder, dtype=dtype, prompt_cache=tmp_path)
    second.encode_ahead(TEXTS)
    cond = second.encode(TEXTS)
    assert_same_parts(cond, plain)


@shared
def test_other_encoders_lengths_and_precisions_share_no_embedding(tiny, folder, copied, tmp_path):
    edit(copied / "tokenizer" / "tokenizer_config.json", note="changed")
    options = ({}, {"max_sequence_length": 5}, {"dtype": "bfloat16"})
    models = [tiny.load(folder, prompt_cache=tmp_path, **more) for more in options]
    models.append(tiny.load(copied, prompt_cache=tmp_path))
    assert len({one.prompts.folder for one in models}) == 4
    assert tiny.load(folder, prompt_cache=tmp_path).prompts.folder == models[0].prompts.folder


def test_bfloat16_gives_float32_velocities(tiny, folder):
    model = tiny.load(folder, dtype="bfloat16")
    assert model.encode(TEXTS[:1]).embeds.dtype == model.transformer.dtype == torch.bfloat16
    assert velocity(model).dtype == torch.float32


def test_a_resolution_between_patches_is_refused(tiny, folder):
    resolution = tiny.options["resolution"]
    with pytest.raises(ArtifactError, match=rf"model\.resolution {resolution + 1} is not a multiple of \d+ pixels"):
        _ = tiny.load(folder, resolution=resolution + 1).latent_shape


@shared
def test_the_fingerprint_follows_the_weights_and_the_configuration(tiny, model, folder, copied, tmp_path):
    known = model.fingerprint
    assert known == base_fingerprint(folder) == base_fingerprint(copied)
    tiny.assemble(1).transformer.save_pretrained(tmp_path / "other" / "transformer")
    assert base_fingerprint(tmp_path / "other") != known
    edit(copied / "transformer" / "config.json", note="changed")
    assert base_fingerprint(copied) != known


@shared
def test_a_base_of_another_family_is_refused(tiny, copied):
    edit(copied / "transformer" / "config.json", _class_name="PixArtTransformer2DModel")
    with pytest.raises(ArtifactError, match=r"its transformer is PixArtTransformer2DModel, .* model\.family=NAME"):
        tiny.load(copied)


def test_the_memory_is_measured_without_the_weights(tiny, model, folder):
    options = LoadOptions(**tiny.options, dtype="float32")
    measured = measure(tiny.family, str(folder), options, 4)
    tensors = [*model.transformer.parameters(), *model.transformer.buffers()]
    assert measured.parameters == sum(tensor.numel() for tensor in tensors)
    row = model.encode(TEXTS[:1])
    assert measured.conditioning >= row.embeds.nbytes + (0 if row.pooled is None else row.pooled.nbytes)
    assert measured.latent == 4 * latents(model, rows=1).numel()
    model.adapters.add("policy", 4, 4, seed=0, trainable=True)
    assert measured.adapter == sum(weight.numel() for weight in model.adapters.trainable().values())


@shared
def test_a_random_model_of_a_shape_runs(tiny):
    shape = next(shape for name, shape in family(tiny.family).shapes.items() if name.endswith("small"))
    options = LoadOptions(**{**tiny.options, "resolution": 64}, device="cpu")
    one = make_random(MODELS.load(tiny.family), shape, options)
    assert isinstance(one, PipelineModel)
    cond = one.encode(TEXTS[:3])
    out = one.velocity(latents(one), SIGMA, cond, guidance=2.0)
    assert out.shape == (3, *one.latent_shape)
    assert bool(out.isfinite().all())
    assert torch.equal(one.encode(TEXTS[:1]).embeds[0], cond.embeds[0])
