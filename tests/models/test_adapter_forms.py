"""Adapter files in the forms that PEFT and diffusers write: the velocity of the model that wrote them, or a refusal."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import tiny

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import read_adapter, write_adapter
from flowopd_cli.models.adapters import AdapterBank

PEFT_WEIGHTS, WEIGHTS = "adapter_model.safetensors", "pytorch_lora_weights.safetensors"
# At least 1e-6 of the velocity in the last digits; an update of this size moves it by about 1.
EXACT = {"atol": 1e-6, "rtol": 1e-6}

TARGETS = ["attn.to_q", "attn.to_out.0", "attn.add_k_proj"]
PLAIN = {"r": 4, "lora_alpha": 4, "target_modules": TARGETS}
SINGLE = "single_transformer_blocks"
CONFIGS = {
    "scale 1": {},
    "scale 2": {"lora_alpha": 8},
    "scale 1/2": {"lora_alpha": 2},
    "ranks": {"rank_pattern": {"attn.to_q": 2, "transformer_blocks.1.attn.add_k_proj": 6}},
    "alphas": {"alpha_pattern": {"to_out.0": 1, r"transformer_blocks\.0\.attn\.to_q": 16}},
    "ranks and alphas": {"lora_alpha": 6, "rank_pattern": {"to_q": 3}, "alpha_pattern": {"to_q": 12}},
    "rslora": {"use_rslora": True, "lora_alpha": 3},
    "rslora and ranks": {"use_rslora": True, "rank_pattern": {"to_q": 2}},
    "a pattern": {"lora_alpha": 8, "target_modules": r"transformer_blocks\.\d+\.attn\.(to_q|to_k)"},
    "one block": {"lora_alpha": 8, "layers_to_transform": [1], "layers_pattern": "transformer_blocks"},
    "all but one": {"lora_alpha": 8, "exclude_modules": ["transformer_blocks.0.attn.to_q"]},
    "outermost alone": {"lora_alpha": 8, "target_modules": "proj_out|norm_out.linear"},
    "outermost and inner": {
        "target_modules": ["proj_out", "x_embedder", "proj_mlp"],
        "rank_pattern": {"^proj_out": 2},
        "alpha_pattern": {"^proj_out": 1, f"{SINGLE}.1.proj_out": 8},
    },
}


class World:
    """A tiny pipeline of one family, and its transformer at one point."""

    def __init__(self, pipeline, **inputs):
        self.pipeline, self.inputs, self.transformer = pipeline, inputs, pipeline.transformer.eval()
        self.bare = self.velocity(self.transformer)

    def fresh(self):
        return copy.deepcopy(self.transformer)

    @torch.no_grad()
    def velocity(self, transformer):
        return transformer(**self.inputs, timestep=torch.tensor([0.5]), return_dict=False)[0]

    def trained(self, **config):
        """A transformer with a random adapter, its configuration, the adapted modules and the velocity."""
        transformer, config = self.fresh(), LoraConfig(**{**PLAIN, **config})
        inject_adapter_in_model(config, transformer)
        transformer.peft_config, transformer._hf_peft_config_loaded = {"default": config}, True
        generator = torch.Generator().manual_seed(0)
        for name, parameter in transformer.named_parameters():
            if "lora_" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        velocity = self.velocity(transformer)
        assert (velocity - self.bare).abs().max() > 0.05
        return transformer, config, velocity


def draw(*shape):
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture(scope="module")
def sd3():
    inputs = {"hidden_states": draw(4, 4, 4), "encoder_hidden_states": draw(3, 32), "pooled_projections": draw(32)}
    return World(tiny.assemble(0), **inputs)


@pytest.fixture(scope="module")
def flux():
    inputs = {"hidden_states": draw(4, 16), "encoder_hidden_states": draw(6, 24), "pooled_projections": draw(16)}
    places = {"img_ids": draw(4, 3)[0], "txt_ids": torch.zeros(6, 3), "guidance": torch.ones(1)}
    return World(tiny.assemble_flux(0), **inputs, **places)


def adapted(transformer):
    return {
        name.removeprefix("base_model.model.") for name, m in transformer.named_modules() if isinstance(m, LoraLayer)
    }


def by_peft(world, transformer, config, folder):
    """``save_pretrained`` of a wrapped transformer."""
    wrapped = get_peft_model(world.fresh(), copy.deepcopy(config))
    wrapped.base_model.model.load_state_dict(transformer.state_dict())
    wrapped.save_pretrained(folder)
    return read_by_peft


def by_transformer(world, transformer, config, folder):
    """``save_lora_adapter`` since diffusers 0.34."""
    transformer.save_lora_adapter(folder)
    return read_by_transformer


def by_pipeline(world, transformer, config, folder):
    """``save_lora_weights`` with metadata, since diffusers 0.34."""
    state = get_peft_model_state_dict(transformer)
    metadata = json.loads(json.dumps(config.to_dict(), default=list))
    world.pipeline.save_lora_weights(folder, state, transformer_lora_adapter_metadata=metadata)
    return read_by_pipeline


def read_by_peft(world, folder):
    wrapped = PeftModel.from_pretrained(world.fresh(), folder)
    return world.velocity(wrapped.base_model.model), adapted(wrapped)


def read_by_transformer(world, folder):
    transformer = world.fresh()
    transformer.load_lora_adapter(folder, prefix=None, use_safetensors=True)
    return world.velocity(transformer), adapted(transformer)


def read_by_pipeline(world, folder):
    world.pipeline.load_lora_weights(folder)
    try:
        return world.velocity(world.pipeline.transformer), adapted(world.pipeline.transformer)
    finally:
        world.pipeline.unload_lora_weights()


def read_by_us(world, folder):
    bank = AdapterBank(world.fresh(), ("attn.to_q",))
    bank.load("other", folder)
    with bank.use("other"):
        return world.velocity(bank.transformer), set(bank.factors("other"))


def check(world, folder, expected, *readers):
    """The velocity and the modules of each reader, ours among them; and of PEFT for what we write."""
    config, factors = read_adapter(folder)
    write_adapter(folder / "again", factors, config)
    places = [(reader, folder) for reader in (read_by_us, *readers)]
    for read, place in (*places, (read_by_peft, folder / "again"), (read_by_us, folder / "again")):
        velocity, modules = read(world, place)
        assert modules == set(factors)
        torch.testing.assert_close(velocity, expected, **EXACT)


@pytest.mark.parametrize("write", [by_peft, by_transformer, by_pipeline])
@pytest.mark.parametrize("name", CONFIGS)
def test_files_of_flux(flux, tmp_path, name, write):
    transformer, config, velocity = flux.trained(**CONFIGS[name])
    reader = write(flux, transformer, config, tmp_path)
    assert set(read_adapter(tmp_path)[1]) == adapted(transformer)
    check(flux, tmp_path, velocity, reader)


@pytest.mark.parametrize("write", [by_peft, by_transformer, by_pipeline])
@pytest.mark.parametrize("name", ["scale 2", "ranks and alphas", "rslora and ranks", "outermost alone"])
def test_files_of_sd3(sd3, tmp_path, name, write):
    transformer, config, velocity = sd3.trained(**CONFIGS[name])
    check(sd3, tmp_path, velocity, write(sd3, transformer, config, tmp_path))


def rename(path, change, metadata=None):
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path, metadata or {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name.replace("base_model.model.", ""),
        lambda name: name.replace("base_model.model.", "transformer."),
        lambda name: name.replace("base_model.model.", "base_model.model.transformer."),
        lambda name: name.replace(".weight", ".default.weight"),
    ],
)
def test_names_of_a_peft_folder_may_have_another_prefix(flux, tmp_path, change):
    transformer, config, velocity = flux.trained(**CONFIGS["ranks and alphas"])
    by_peft(flux, transformer, config, tmp_path)
    rename(tmp_path / PEFT_WEIGHTS, change)
    check(flux, tmp_path, velocity)


@pytest.mark.parametrize(("write", "read"), [(by_transformer, read_by_transformer), (by_pipeline, read_by_pipeline)])
@pytest.mark.parametrize("name", ["scale 2", "ranks"])
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_headers_without_metadata_have_scale_one_as_in_diffusers(request, tmp_path, family, name, write, read):
    world = request.getfixturevalue(family)
    write(world, *world.trained(**CONFIGS[name])[:2], tmp_path)
    rename(tmp_path / WEIGHTS, str)
    check(world, tmp_path, read(world, tmp_path)[0], read)


@pytest.mark.parametrize("name", ["ranks", "outermost and inner"])
def test_a_file_that_diffusers_loaded_and_saved_again(flux, tmp_path, name):
    by_pipeline(flux, *flux.trained(**CONFIGS[name])[:2], tmp_path)
    rename(tmp_path / WEIGHTS, str)
    transformer = flux.fresh()
    transformer.load_lora_adapter(tmp_path, use_safetensors=True, adapter_name="default")
    transformer.save_lora_adapter(tmp_path / "saved")
    assert any(key.startswith("^") for key in transformer.peft_config["default"].rank_pattern)
    check(flux, tmp_path / "saved", flux.velocity(transformer), read_by_transformer)


def with_alphas(world, folder, config, alpha):
    """A file of diffusers with ``alpha`` tensors and no metadata; ``alpha`` of a module's name, None for no tensor."""
    transformer, config, velocity = world.trained(**config)
    by_pipeline(world, transformer, config, folder)
    tensors = load_file(folder / WEIGHTS)
    values = {f"transformer.{module}.alpha": alpha(module) for module in adapted(transformer)}
    tensors |= {name: torch.tensor(float(value)) for name, value in values.items() if value}
    save_file(tensors, folder / WEIGHTS)
    return velocity


@pytest.mark.parametrize("inner", [8, 2])
def test_alpha_tensors(flux, tmp_path, inner):
    config = {"lora_alpha": 8, "alpha_pattern": {"to_q": inner}}
    velocity = with_alphas(flux, tmp_path, config, lambda module: inner if module.endswith("to_q") else 8)
    check(flux, tmp_path, velocity, read_by_pipeline)


def test_alpha_tensors_of_the_outermost_layer_are_its_own(flux, tmp_path):
    config = {"target_modules": ["proj_out"], "alpha_pattern": {"^proj_out": 1}}
    velocity = with_alphas(flux, tmp_path, config, lambda module: 1 if module == "proj_out" else 4)
    check(flux, tmp_path, velocity)  # diffusers gives all of them the outermost one's


def test_an_update_of_nothing_on_the_outermost_layer_changes_nothing(flux, tmp_path):
    transformer, config, _ = flux.trained(target_modules="proj_out")
    transformer.proj_out.lora_B.default.weight.data.zero_()
    by_pipeline(flux, transformer, config, tmp_path)
    check(flux, tmp_path, flux.bare, read_by_pipeline)


REFUSED = [
    (by_peft, {"use_dora": True}, "a DoRA adapter"),
    (by_transformer, {"use_dora": True}, "a DoRA adapter"),
    (by_pipeline, {"use_dora": True}, "a DoRA adapter"),
    (by_peft, {"lora_bias": True}, "trains biases of its factors"),
    (by_transformer, {"lora_bias": True}, r"lora_B\.bias is not a LoRA factor"),
    (by_pipeline, {"lora_bias": True}, r"lora_B\.bias is not a LoRA factor"),
    (by_peft, {"bias": "lora_only"}, r"trains biases \(bias: lora_only\)"),
    (by_peft, {"modules_to_save": ["norm_out.linear"]}, r"trains whole modules \(modules_to_save"),
    (by_peft, {"init_lora_weights": "pissa"}, "moving the base's own weights"),
    (by_transformer, {"init_lora_weights": "olora"}, "moving the base's own weights"),
    (by_peft, {"target_modules": ["pos_embed.proj"]}, r"pos_embed\.proj is a convolution"),
    (by_transformer, {"target_modules": ["pos_embed.proj"]}, r"pos_embed\.proj is a convolution"),
]


@pytest.mark.parametrize(("write", "config", "reason"), REFUSED)
def test_more_than_plain_lora_is_refused_by_name(sd3, tmp_path, write, config, reason):
    write(sd3, *sd3.trained(**config)[:2], tmp_path)
    with pytest.raises(ArtifactError, match=reason):
        read_adapter(tmp_path)


def test_alphas_of_some_modules_are_refused(flux, tmp_path):
    with_alphas(flux, tmp_path, {}, lambda module: 8 * module.endswith("to_q"))
    with pytest.raises(ArtifactError, match="has no alpha, other modules have"):
        read_adapter(tmp_path)


def bare(name):
    return name.removeprefix("transformer.")


def wrapped(name):
    return f"transformer.{name}"


@pytest.mark.parametrize(
    ("write", "change", "keep", "reason"),
    [
        (by_pipeline, bare, True, "lora_adapter_metadata does not describe its tensors"),
        (by_transformer, wrapped, True, "lora_adapter_metadata does not describe its tensors"),
        (by_pipeline, lambda name: name if "to_q" in name else bare(name), False, "names with and without transformer"),
    ],
)
def test_a_header_of_other_names_than_the_tensors_is_refused(flux, tmp_path, write, change, keep, reason):
    write(flux, *flux.trained(lora_alpha=8)[:2], tmp_path)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        metadata = file.metadata() if keep else None
    rename(tmp_path / WEIGHTS, change, metadata)
    with pytest.raises(ArtifactError, match=reason):
        read_adapter(tmp_path)
