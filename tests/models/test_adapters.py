"""The adapter bank: the active and the trainable adapter, copies, averages and files."""

import json

import pytest
import torch
from peft import PeftModel, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from support.tiny import TARGETS, TEXTS, assemble_flux, load, randomize
from torch import nn

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.models.adapters import AdapterBank


def velocity(model, name):
    """The velocity under an adapter at one fixed point."""
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    with model.adapters.use(name), torch.no_grad():
        return model.velocity(x, torch.tensor([0.9, 0.3]), model.encode(TEXTS[:2]), guidance=1.0)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def backward(model, name):
    x = torch.zeros(1, 4, 4, 4)
    with model.adapters.use(name):
        model.velocity(x, torch.ones(1), model.encode(TEXTS[:1]), guidance=1.0).sum().backward()


def test_a_fresh_adapter_changes_nothing(model):
    before = velocity(model, None)
    model.adapters.add("policy", 4, 8.0, seed=0, trainable=True)
    assert torch.equal(velocity(model, "policy"), before)


def test_a_fresh_adapter_is_a_function_of_its_seed(model):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        model.adapters.add(name, 4, 8.0, seed=seed, trainable=False)
    one, same, other = (model.adapters.state(name) for name in ("one", "same", "other"))
    assert equal(one, same)
    assert not equal(one, other)
    spread = torch.cat([t.flatten() for key, t in one.items() if key.endswith("lora_A")]).std()
    assert float(spread) == pytest.approx(1 / 4, rel=0.1)  # about a thousand draws


def test_only_targets_have_adapters(trainee):
    modules = trainee.adapters.factors("policy")
    assert len(modules) == 2 * len(TARGETS)
    assert all(module.endswith(TARGETS) for module in modules)


def test_an_adapter_adds_its_scaled_product_to_the_weights(trainee):
    expected = velocity(trainee, "other")
    factors, modules = trainee.adapters.factors("other"), dict(trainee.transformer.named_modules())
    with torch.no_grad():
        for name, pair in factors.items():
            modules[name].base_layer.weight += pair.delta().float()
    assert {pair.scale for pair in factors.values()} == {2.0}
    torch.testing.assert_close(velocity(trainee, None), expected, atol=1e-5, rtol=1e-4)


def test_a_folded_adapter_computes_the_same_without_its_products(trainee, monkeypatch):
    others = {name: velocity(trainee, name) for name in (None, "other", "third")}
    trainee.adapters.fold("other")
    (layer, *_) = trainee.adapters._layers("other").values()
    with monkeypatch.context() as patch:
        patch.setattr(layer.lora_A["other"], "forward", lambda rows: pytest.fail("its product was computed"))
        assert torch.allclose(velocity(trainee, "other"), others["other"], atol=1e-5)
    assert not torch.equal(others["other"], others[None])
    assert torch.allclose(velocity(trainee, None), others[None], atol=1e-5)


@pytest.mark.parametrize("name", [None, "policy", "other"])
def test_trainable_adapters_and_low_precision_are_not_folded(trainee, name):
    if name == "other":
        trainee.adapters.transformer.to(torch.bfloat16)
    before = trainee.adapters.digest(None)
    trainee.adapters.fold(name)
    assert trainee.adapters.digest(None) == before


def test_use_restores_the_previous_adapter(trainee):
    bank, expected = trainee.adapters, velocity(trainee, "policy")
    with bank.use("policy"):
        with pytest.raises(KeyError), bank.use("other"), bank.use(None):
            raise KeyError
        bank.add("late", 2, 2.0, seed=9, trainable=False)
        assert bank.active == "policy"
        assert torch.equal(velocity(trainee, "policy"), expected)
    assert bank.active is None


def test_an_unknown_adapter_is_named_with_those_there_are(trainee):
    with (
        pytest.raises(ArtifactError, match="no adapter 'teacher'; there are: policy, other, third"),
        trainee.adapters.use("teacher"),
    ):
        pass
    assert trainee.adapters.active is None


def test_only_the_policy_is_trainable_whoever_is_active(trainee):
    for name in ("policy", "other", None):
        with trainee.adapters.use(name):
            names = {n for n, p in trainee.transformer.named_parameters() if p.requires_grad}
            assert len(names) == 4 * len(TARGETS)
            assert all(".policy." in n for n in names)
    assert {id(p) for p in trainee.adapters.trainable().values()} == {
        id(p) for p in trainee.transformer.parameters() if p.requires_grad
    }


def test_gradients_reach_the_policy_only(trainee):
    backward(trainee, "policy")
    with_gradient = {n for n, p in trainee.transformer.named_parameters() if p.grad is not None}
    assert len(with_gradient) == len(trainee.adapters.trainable())
    assert all(".policy." in n for n in with_gradient)
    with trainee.adapters.use("other"):
        x = torch.zeros(1, 4, 4, 4)
        assert not trainee.velocity(x, torch.ones(1), trainee.encode(TEXTS[:1]), guidance=1.0).requires_grad


def test_a_copy_is_equal_frozen_and_independent(trainee):
    bank = trainee.adapters
    bank.copy("policy", "policy_ema")
    assert equal(bank.state("policy"), bank.state("policy_ema"))
    assert torch.equal(velocity(trainee, "policy"), velocity(trainee, "policy_ema"))
    known, digest = bank.state("policy_ema"), bank.digest("policy_ema")
    assert bank.digest("policy") == digest
    randomize(trainee, "policy", seed=5)
    assert bank.digest("policy") != digest
    assert equal(bank.state("policy_ema"), known)
    bank.copy("policy", "policy_ema")
    assert equal(bank.state("policy"), bank.state("policy_ema"))
    assert not any("policy_ema" in n for n, p in trainee.transformer.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_the_average_is_its_formula(trainee, decay):
    old, new = trainee.adapters.state("other"), trainee.adapters.state("policy")
    trainee.adapters.ema("policy", "other", decay)
    for key, value in trainee.adapters.state("other").items():
        torch.testing.assert_close(value, decay * old[key] + (1 - decay) * new[key], atol=1e-6, rtol=1e-5)
    assert equal(trainee.adapters.state("policy"), new)


def test_a_state_of_other_names_or_shapes_is_refused(trainee):
    state = trainee.adapters.state("policy")
    trainee.adapters.add("wide", 8, 8.0, seed=0, trainable=False)
    with pytest.raises(ArtifactError, match="adapter policy: the stored state does not fit"):
        trainee.adapters.load_state("policy", trainee.adapters.state("wide"))
    with pytest.raises(ArtifactError, match="does not fit"):
        trainee.adapters.load_state("policy", {**state, "more": torch.zeros(1)})


@pytest.mark.parametrize("name", ["policy", "with.dot"])
def test_a_name_that_is_taken_or_dotted_is_refused(trainee, name):
    with pytest.raises(ArtifactError, match="is taken or has a dot"):
        trainee.adapters.add(name, 4, 4.0, seed=0, trainable=False)


def test_a_round_trip_through_a_folder_is_bitwise(trainee, pipeline_folder, tmp_path):
    trainee.adapters.save("policy", tmp_path, "owner/base", "sha")
    fresh = load(pipeline_folder)
    fresh.adapters.load("loaded", tmp_path)
    assert equal(trainee.adapters.state("policy"), fresh.adapters.state("loaded"))
    assert torch.equal(velocity(trainee, "policy"), velocity(fresh, "loaded"))


def test_adapters_may_differ_in_ranks_modules_and_scales(trainee):
    generator = torch.Generator().manual_seed(0)
    first, second = list(trainee.adapters.factors("policy"))[:2]
    factors = {}
    for module, rank, scale in ((first, 2, 0.3), (second, 7, 1.5)):
        a, b = torch.randn(rank, 32, generator=generator), torch.randn(32, rank, generator=generator)
        factors[module] = LoraFactors(a, b, scale)
    trainee.adapters.load("mixed", factors)
    sizes = {module: (pair.a.shape[0], pair.scale) for module, pair in trainee.adapters.factors("mixed").items()}
    assert sizes == {first: (2, pytest.approx(0.3)), second: (7, pytest.approx(1.5))}
    before = velocity(trainee, None)
    assert not torch.allclose(velocity(trainee, "mixed"), before, atol=1e-3)
    assert torch.equal(velocity(trainee, None), before)


@pytest.mark.parametrize("targets", [("proj_out",), ("attn.to_q",), ("attention",), ("all-linear",)])
def test_words_and_targets_of_flux_are_saved_as_targets_that_match_them_alone(targets, tmp_path):
    linear = [name for name, m in assemble_flux(0).transformer.named_modules() if isinstance(m, nn.Linear)]
    endings = {"attention": ".attn.", "all-linear": ""}
    layers = {name for name in linear if endings.get(targets[0], targets[0]) in name}
    bank = AdapterBank(assemble_flux(0).transformer, targets)
    bank.add("policy", 2, 2.0, seed=0, trainable=True)
    bank.save("policy", tmp_path, "owner/base", "sha")
    assert set(bank.factors("policy")) == layers
    wrapped = PeftModel.from_pretrained(assemble_flux(0).transformer, tmp_path)
    assert {
        name.removeprefix("base_model.model.") for name, m in wrapped.named_modules() if isinstance(m, LoraLayer)
    } == layers
    assert isinstance(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"], list)


def test_the_outermost_layer_is_adapted_alone_with_its_own_rank_and_scale(tmp_path):
    a, b = torch.randn(2, 32), torch.randn(16, 2)
    factors = {
        "proj_out": LoraFactors(a, b, 0.25),
        "single_transformer_blocks.1.proj_out": LoraFactors(torch.randn(3, 160), torch.randn(32, 3), 2.0),
    }
    bank = AdapterBank(assemble_flux(0).transformer, ("attn.to_q",))
    bank.load("first", factors)
    bank.load("second", {"proj_out": factors["proj_out"]})
    shapes = {module: (len(pair.a), pair.scale) for module, pair in bank.factors("first").items()}
    assert shapes == {"single_transformer_blocks.1.proj_out": (3, 2.0), "proj_out": (2, 0.25)}
    assert set(bank.factors("second")) == {"proj_out"}
    bank.save("second", tmp_path, "owner/base", "sha")
    wrapped = PeftModel.from_pretrained(assemble_flux(0).transformer, tmp_path)
    assert [name for name, m in wrapped.named_modules() if isinstance(m, LoraLayer)] == ["base_model.model.proj_out"]


def test_layers_that_peft_adapts_otherwise_are_refused(monkeypatch):
    def inject(config, *arguments, **options):
        config.rank_pattern = {}
        return inject_adapter_in_model(config, *arguments, **options)

    monkeypatch.setattr("flowopd_cli.models.adapters.inject_adapter_in_model", inject)
    factors = {
        "0": LoraFactors(torch.ones(2, 3), torch.ones(3, 2)),
        "1": LoraFactors(torch.ones(1, 3), torch.ones(3, 1)),
    }
    with pytest.raises(
        ArtifactError, match=r"adapter new: PEFT gave . rank and scale .*: install another version of PEFT"
    ):
        AdapterBank(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), ()).load("new", factors)


def test_a_layer_that_is_not_linear_has_no_adapter(trainee):
    factors = {"pos_embed.proj": LoraFactors(torch.zeros(2, 4), torch.zeros(4, 2))}
    with pytest.raises(ArtifactError, match=r"this one has no linear layer, but a Conv2d, pos_embed\.proj"):
        trainee.adapters.load("new", factors)


def test_an_adapter_of_another_base_is_refused(trainee):
    module = next(iter(trainee.adapters.factors("policy")))
    with pytest.raises(ArtifactError, match=r"was made for another base: this one has no module blocks\.7"):
        trainee.adapters.load("new", {"blocks.7": LoraFactors(torch.zeros(2, 4), torch.zeros(4, 2))})
    with pytest.raises(ArtifactError, match=r"another base: .* is \(32, 32\) here, the adapter expects \(64, 64\)"):
        trainee.adapters.load("new", {module: LoraFactors(torch.zeros(2, 64), torch.zeros(64, 2))})
    assert "new" not in trainee.adapters.names


def test_targets_that_match_no_module_are_refused():
    bank = AdapterBank(nn.Sequential(nn.Linear(3, 4)), ["attn.to_q"])
    with pytest.raises(RecipeError, match=r"adapter.targets: 'attn\.to_q' matches no linear layer"):
        bank.add("policy", 2, 2.0, seed=0, trainable=True)
    assert bank.names == ()


@pytest.mark.parametrize("undo", [True, False])
def test_a_removed_adapter_leaves_the_base_as_it_was(trainee, undo):
    bank = trainee.adapters
    base, others, digest = velocity(trainee, None), velocity(trainee, "other"), bank.digest(None)
    factors, third = bank.factors("other"), bank.factors("third")
    if undo:
        bank.fold("other", undo=True)
        assert bank.digest(None) != digest
    bank.remove("other")
    assert bank.digest(None) == digest
    assert bank.names == ("policy", "third")
    assert torch.equal(velocity(trainee, None), base)
    bank.load("other", factors)
    assert torch.equal(velocity(trainee, "other"), others)
    bank.remove("other")
    bank.load("other", third)
    assert torch.equal(velocity(trainee, "other"), velocity(trainee, "third"))
