"""Sets of all weights beside adapters on one frozen base."""

import copy

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from support.tiny import LARGER, TEXTS, assemble, load, make_draw, make_sampler, randomize

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import read_adapter
from flowopd_cli.models.files.full_weights import WEIGHTS
from flowopd_cli.train import collect, labels
from flowopd_cli.train.routes import Route, Teacher, sole

ROWS = 3


def arguments(model):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(ROWS, *model.latent_shape, generator=generator)
    return latents, torch.tensor([0.2, 0.5, 0.9]), model.encode(TEXTS[:ROWS])


@torch.no_grad()
def velocity(model, name):
    with model.adapters.use(name):
        return model.velocity(*arguments(model), guidance=2.0)


def move(model, name="policy", scale=0.05):
    """Add noise to all weights of a set."""
    generator = torch.Generator().manual_seed(5)
    state = model.adapters.state(name)
    noise = {key: scale * torch.randn(value.shape, generator=generator) for key, value in state.items()}
    model.adapters.load_state(name, {key: value + noise[key].to(value) for key, value in state.items()})


@pytest.fixture
def full(model):
    """The tiny model with all its weights as the trainable ``policy``, which differs from the base."""
    model.adapters.add_full("policy", trainable=True)
    move(model)
    return model


def reference(model, name, dtype=torch.float32):
    """The velocity by a transformer of its own that has the weights of a set."""
    other = copy.copy(model)
    other.transformer = SD3Transformer2DModel.from_config(model.transformer.config).to(dtype)
    buffers = {key: t for key, t in model.transformer.state_dict().items() if "pos_embed.pos_embed" in key}
    other.transformer.load_state_dict({**model.adapters.state(name), **buffers})
    other.adapters = type(model.adapters)(other.transformer, ())
    return velocity(other, None)


def test_a_new_set_is_the_base_and_later_has_its_own_velocity(model):
    base = velocity(model, None)
    digest = model.adapters.digest(None)
    model.adapters.add_full("policy", trainable=True)
    assert torch.equal(velocity(model, "policy"), base)
    move(model)
    assert torch.equal(velocity(model, "policy"), reference(model, "policy"))
    assert not torch.allclose(velocity(model, "policy"), base)
    assert torch.equal(velocity(model, None), base)
    assert model.adapters.digest(None) == digest


def test_gradients_reach_the_set_alone_and_are_those_of_a_plain_transformer(full):
    plain = copy.deepcopy(full.transformer)
    plain.load_state_dict(full.adapters.state("policy"), strict=False)
    plain.requires_grad_(True)
    latents, sigma, cond = arguments(full)
    with full.adapters.use("policy"):
        full.velocity(latents, sigma, cond, guidance=1.0).square().sum().backward()
    inputs = {"encoder_hidden_states": cond.embeds, "pooled_projections": cond.pooled, "timestep": 1000 * sigma}
    plain(hidden_states=latents, **inputs).sample.square().sum().backward()
    expected = dict(plain.named_parameters())
    for key, parameter in full.adapters.trainable().items():
        torch.testing.assert_close(parameter.grad, expected[key].grad, msg=key)
    assert all(parameter.grad is None for parameter in full.transformer.parameters())


def test_a_set_on_a_bfloat16_base_is_float32_and_rounded_for_a_forward(pipeline_folder):
    model = load(pipeline_folder, dtype="bfloat16")
    base = velocity(model, None)
    model.adapters.add_full("policy", trainable=True)
    assert torch.equal(velocity(model, "policy"), base)
    move(model)
    assert torch.equal(velocity(model, "policy"), reference(model, "policy", torch.bfloat16))
    with model.adapters.use("policy"):
        model.velocity(*arguments(model), guidance=1.0).sum().backward()
    parameters = model.adapters.trainable().values()
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    assert all(parameter.grad is not None for parameter in parameters)


@pytest.mark.parametrize("device", [None, torch.device("cpu")])
def test_copies_are_frozen_and_averaged(full, device):
    bank = full.adapters
    bank.copies_device = device
    bank.copy("policy", "policy_ema")
    before = bank.state("policy_ema")
    drawn = velocity(full, "policy_ema")
    assert torch.equal(drawn, velocity(full, "policy"))
    move(full)
    assert torch.equal(velocity(full, "policy_ema"), drawn)
    with bank.use("policy_ema"):
        velocity(full, "policy_ema")
        bank.ema("policy", "policy_ema", 0.75)
        averaged = velocity(full, "policy_ema")
    policy = bank.state("policy")
    for key, value in bank.state("policy_ema").items():
        torch.testing.assert_close(value, 0.75 * before[key] + 0.25 * policy[key])
    assert torch.equal(averaged, reference(full, "policy_ema"))
    assert bank.trainable().keys() == policy.keys()


@pytest.mark.parametrize("order", ["set first", "adapter first"])
def test_adapters_and_sets_share_a_base(model, order):
    bare = velocity(model, None)

    def add_adapter():
        model.adapters.add("lora", 4, 8.0, seed=1, trainable=False)
        randomize(model, "lora", seed=2)
        return velocity(model, "lora")

    alone = add_adapter() if order == "adapter first" else None
    model.adapters.add_full("policy", trainable=True)
    move(model)
    trained = velocity(model, "policy")
    adapted = add_adapter() if alone is None else velocity(model, "lora")
    assert alone is None or torch.equal(adapted, alone)
    assert not torch.allclose(adapted, bare)
    assert torch.equal(velocity(model, "policy"), trained)
    assert torch.equal(velocity(model, None), bare)
    assert model.adapters.names in {("policy", "lora"), ("lora", "policy")}


def test_rows_of_several_sets_take_a_forward_each(full):
    full.adapters.copy("policy", "policy_ema")
    move(full)
    sampler, draw = make_sampler(full), make_draw()
    rolled = collect.rollout(full, sampler, draw)
    routes = {task: Route(sole(Teacher(name, 1.0))) for task, name in (("a", "policy_ema"), ("b", None))}
    both = labels.with_labels(full, sampler, rolled, routes, Teacher("policy", 1.0)).target_velocity
    for name, rows in (("policy_ema", [0, 1]), (None, [2, 3])):
        alone = {task: Route(sole(Teacher(name, 1.0))) for task in "ab"}
        expected = labels.with_labels(full, sampler, rolled, alone, None).target_velocity
        torch.testing.assert_close(both[rows], expected[rows])
    with pytest.raises(ArtifactError, match="share a forward"):
        full.velocity(*arguments(full), guidance=1.0, adapters=["policy", None, None])


@pytest.mark.parametrize("options", [{"offload": True}, {"compile": "eager"}])
def test_a_set_is_drawn_by_an_offloaded_and_by_a_compiled_model(full, pipeline_folder, tmp_path, options):
    full.adapters.save("policy", tmp_path, str(pipeline_folder), full.fingerprint)
    other = load(pipeline_folder, **options)
    base = velocity(other, None)
    other.adapters.load("teacher", tmp_path)
    torch.testing.assert_close(velocity(other, "teacher"), velocity(full, "policy"))
    torch.testing.assert_close(velocity(other, None), base)


@pytest.mark.parametrize("other", [None, "policy_ema"])
def test_checkpointed_gradients_survive_a_switch_before_backward(full, other):
    full.adapters.copy("policy", "policy_ema")
    move(full)

    def gradients():
        with full.adapters.use("policy"):
            loss = full.velocity(*arguments(full), guidance=1.0).square().sum()
        with full.adapters.use(other):
            loss.backward()
        found = {key: parameter.grad for key, parameter in full.adapters.trainable().items()}
        for parameter in full.adapters.trainable().values():
            parameter.grad = None
        return found

    plain = gradients()
    full.checkpoint_gradients()
    full.transformer.train()
    for key, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[key], msg=key)


def test_a_saved_set_loads_in_plain_diffusers_and_as_a_frozen_set(full, pipeline_folder, tmp_path):
    full.adapters.save("policy", tmp_path / "saved", str(pipeline_folder), full.fingerprint)
    plain = SD3Transformer2DModel.from_pretrained(tmp_path / "saved")
    other = load(pipeline_folder)
    other.adapters.load("teacher", tmp_path / "saved")
    assert torch.equal(velocity(other, "teacher"), velocity(full, "policy"))
    assert not other.adapters.trainable()
    base = other.adapters.digest(None)
    other.adapters.fold("teacher", undo=True)
    other.adapters.remove("teacher")
    assert (other.adapters.digest(None), other.adapters.names) == (base, ())
    other.adapters.load("teacher", tmp_path / "saved")
    other.adapters.fold("teacher")
    assert torch.equal(velocity(other, "teacher"), velocity(full, "policy"))
    other.transformer, other.adapters = plain, type(other.adapters)(plain, ())
    assert torch.equal(velocity(other, None), velocity(full, "policy"))
    full.adapters.save("policy", tmp_path / "again", str(pipeline_folder), full.fingerprint)
    for file in (tmp_path / "saved").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


@pytest.mark.parametrize("start", ["the base", "a LoRA"])
def test_a_set_on_a_bfloat16_base_starts_from_the_weights_of_its_files(pipeline_folder, trainee, tmp_path, start):
    model, stored = load(pipeline_folder, dtype="bfloat16"), load_file(pipeline_folder / "transformer" / WEIGHTS)
    lora = None
    if start == "a LoRA":
        lora = tmp_path / "lora"
        trainee.adapters.save("policy", lora, str(pipeline_folder), model.fingerprint)
        stored |= {f"{k}.weight": stored[f"{k}.weight"] + f.delta().float() for k, f in read_adapter(lora)[1].items()}
    model.adapters.add_full("policy", lora, trainable=True)
    model.adapters.save("policy", tmp_path / "full", str(pipeline_folder), model.fingerprint)
    saved = load_file(tmp_path / "full" / WEIGHTS)
    assert saved.keys() == stored.keys() > model.adapters.state("policy").keys()  # and a buffer
    assert any(not torch.equal(value, value.bfloat16().float()) for value in stored.values())
    for name, value in stored.items():
        assert saved[name].dtype == torch.float32
        assert torch.equal(saved[name], value), name


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_set_trained_on_a_bfloat16_base_is_that_of_plain_diffusers(pipeline_folder, tmp_path, dtype):
    """In the precision of the training and in another one, in which the buffers are those of the base again."""
    model = load(pipeline_folder, dtype="bfloat16")
    model.adapters.add_full("policy", trainable=True)
    move(model)
    model.adapters.save("policy", tmp_path, str(pipeline_folder), model.fingerprint)
    ours, plain = load(pipeline_folder, dtype=dtype), load(pipeline_folder, dtype=dtype)
    ours.adapters.load("teacher", tmp_path)
    plain.transformer = SD3Transformer2DModel.from_pretrained(tmp_path, torch_dtype=plain.dtype)
    plain.adapters = type(plain.adapters)(plain.transformer, ())
    assert torch.equal(velocity(plain, None), velocity(ours, "teacher"))
    assert torch.equal(velocity(plain, None), velocity(model, "policy")) == (dtype == "bfloat16")


def test_a_set_starts_from_another_set_or_from_an_adapter(full, trainee, pipeline_folder, tmp_path):
    full.adapters.save("policy", tmp_path / "full", str(pipeline_folder), full.fingerprint)
    trainee.adapters.save("policy", tmp_path / "lora", str(pipeline_folder), full.fingerprint)
    model = load(pipeline_folder)
    model.adapters.add_full("one", tmp_path / "full", trainable=True)
    assert torch.equal(velocity(model, "one"), velocity(full, "policy"))
    model.adapters.add_full("two", tmp_path / "lora", trainable=True)
    torch.testing.assert_close(velocity(model, "two"), velocity(trainee, "policy"))


def test_a_folder_that_lacks_weights_is_refused(full, tmp_path):
    saved = tmp_path / "saved"
    full.adapters.save("policy", saved, "tiny", "0")
    weights, first = saved / WEIGHTS, saved / WEIGHTS.replace(".", "-00001-of-00002.")
    tensors = load_file(weights)
    weights.unlink()
    key, tensor = tensors.popitem()
    save_file(tensors, first)
    with pytest.raises(ArtifactError, match="1 of its 2 files of weights are there"):
        full.adapters.load("teacher", saved)
    save_file({key: tensor}, saved / first.name.replace("00001", "00002"))
    full.adapters.load("teacher", saved)
    first.rename(weights)
    with pytest.raises(ArtifactError, match=f"{key} is missing in it, "):
        full.adapters.load("other", saved)


def test_a_set_of_another_base_is_refused(full, tmp_path):
    assemble(1, **LARGER).save_pretrained(tmp_path / "larger")
    larger = load(tmp_path / "larger")
    full.adapters.save("policy", tmp_path / "saved", "tiny", "0")
    with pytest.raises(ArtifactError, match=r"was made for another base: .* in it, \(.*\) here"):
        larger.adapters.load("teacher", tmp_path / "saved")
    quantized = load(tmp_path / "larger", quantize="int8")
    with pytest.raises(ArtifactError, match=r"a sharded or quantized base takes no full model.* set model.shard"):
        quantized.adapters.load("teacher", tmp_path / "saved")
    with pytest.raises(ArtifactError, match="taken"):
        full.adapters.add_full("policy", trainable=False)
