"""Adapters as other programs publish them: each form gives the right update or a one-line error."""

import json

import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import save_file

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import read_adapter, write_adapter

RANK, ALPHA = 2, 8.0
MODULES = ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.add_k_proj")
# As PEFT's save_pretrained leaves it for a transformer that was wrapped by get_peft_model.
CONFIG = {
    "alpha_pattern": {},
    "auto_mapping": {"base_model_class": "SD3Transformer2DModel", "parent_library": "diffusers.models.transformers"},
    "base_model_name_or_path": None,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": "gaussian",
    "layers_pattern": None,
    "layers_to_transform": None,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "megatron_config": None,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 2,
    "rank_pattern": {},
    "revision": None,
    "target_modules": ["attn.to_q", "attn.add_k_proj"],
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}


def factor(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


A, B = factor(RANK, 6), factor(5, RANK)


def publish(folder, changes=(), name="base_model.model.{module}.lora_{side}.weight", dtype=torch.float32):
    """An adapter in PEFT form with ``changes`` in its configuration (``...``: without the key); the names of its
    tensors as ``name`` says.
    """
    config = {key: value for key, value in {**CONFIG, **dict(changes)}.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {name.format(module=m, side=s): t.to(dtype).clone() for m in MODULES for s, t in (("A", A), ("B", B))}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def check(folder, *scales):
    """Checks the update of each module, and again after writing the adapter in our form."""
    for path in (folder, folder / "again"):
        config, factors = read_adapter(path)
        assert factors.keys() == set(MODULES)
        for module, scale in zip(MODULES, scales, strict=True):
            torch.testing.assert_close(factors[module].delta(), scale * B.double() @ A.double())
        if path == folder:
            write_adapter(folder / "again", factors, config)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_modules": "attn.to_q"},
        {"target_modules": "['attn.to_q', 'attn.add_k_proj']"},
        {"target_modules": '["attn.to_q", "attn.add_k_proj"]'},
        {"target_modules": r".*\.(to_q|add_k_proj)"},
        {"target_modules": "('attn.to_q',)"},
        {"target_modules": "(attn.to_q|attn.add_k_proj)"},
        {"target_modules": "[1, 2]"},
        {"target_modules": "all-linear"},
        {"target_modules": ...},
        {"layers_to_transform": [0, 1], "layers_pattern": "transformer_blocks"},
        {"rank_pattern": "{}", "alpha_pattern": "null"},
        {"rank_pattern": "None", "alpha_pattern": "[ ]", "use_rslora": "null", "use_dora": "None"},
        {"layer_replication": "None", "use_qalora": "False", "target_parameters": "[]"},
        {"trainable_token_indices": "null", "arrow_config": "{}", "kasa_config": "", "use_bdlora": "false"},
        {"modules_to_save": "False", "bias": False},
        {"modules_to_save": {}, "base_model_name_or_path": "null", "init_lora_weights": "false", "peft_type": "null"},
        {"task_type": ["x"], "auto_mapping": None},
        {"r": "2.0", "lora_alpha": "8"},
        {"r": None},
        {"use_rslora": "false", "use_dora": "False", "bias": None},
        {"rank_pattern": {"to_q": "2", "add_k_proj": 2.0}, "r": 64, "alpha_pattern": {"to_q": 8.0}},
        {"base_model_name_or_path": "/home/of/somebody/stable-diffusion-3.5-medium"},
        {"peft_version": "0.99.0", "exclude_modules": None, "loftq_config": {}, "eva_config": None, "lora_bias": False},
        {"a_field_of_tomorrow": {"x": [1]}, "runtime_config": {"ephemeral_gpu_offload": False}},
    ],
    ids=str,
)
def test_a_configuration_written_in_another_way_gives_the_same_update(tmp_path, changes):
    check(publish(tmp_path, changes), ALPHA / RANK, ALPHA / RANK)


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({"lora_alpha": None}, (1.0, 1.0)),
        ({"lora_alpha": ...}, (4.0, 4.0)),  # PEFT's default is 8
        ({"lora_alpha": "16"}, (8.0, 8.0)),
        ({"use_rslora": "true"}, (8 / 2**0.5, 8 / 2**0.5)),
        ({"alpha_pattern": {"attn.to_q": "2"}}, (1.0, 4.0)),
        ({"alpha_pattern": {r".*\.1\..*": 4}}, (4.0, 2.0)),
        ({"rank_pattern": {"to_q": 2}, "r": 2, "alpha_pattern": {"add_k_proj": 1.0}}, (4.0, 0.5)),
    ],
)
def test_scales_are_those_of_the_configuration(tmp_path, changes, scales):
    check(publish(tmp_path, changes), *scales)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.{module}.lora_{side}.default.weight",
        "base_model.model.{module}.lora_{side}.learner.weight",
        "base_model.model.transformer.{module}.lora_{side}.weight",
        "base_model.model._orig_mod.{module}.lora_{side}.weight",
        "base_model.model.module.{module}.lora_{side}.weight",
        "transformer.{module}.lora_{side}.weight",
        "{module}.lora_{side}.weight",
    ],
)
def test_names_with_and_without_what_wraps_a_transformer(tmp_path, name):
    check(publish(tmp_path, name=name), ALPHA / RANK, ALPHA / RANK)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_factors_of_other_precisions(tmp_path, dtype):
    folder = publish(tmp_path, dtype=dtype)
    expected = (ALPHA / RANK) * B.to(dtype).double() @ A.to(dtype).double()
    for pair in read_adapter(folder)[1].values():
        torch.testing.assert_close(pair.delta(), expected)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"peft_type": "LOHA"}, r"the adapter type is LOHA \(peft_type\); only plain LoRA"),
        ({"use_dora": "true"}, "a DoRA adapter"),
        ({"modules_to_save": "norm_out"}, r"trains whole modules \(modules_to_save: norm_out\)"),
        ({"bias": "lora_only"}, r"trains biases \(bias: lora_only\)"),
        ({"use_qalora": "True"}, "a QALoRA adapter"),
        ({"layer_replication": [[0, 4], [2, 5]]}, "repeats layers of its base"),
        ({"target_parameters": ["a.weight"]}, "trains parameters that are not a module's weight"),
        ({"init_lora_weights": "pissa_niter_16"}, "moving the base's own weights .*: convert it to plain LoRA"),
        (
            {"target_modules": ["to_q", ""]},
            r"key target_modules: want a pattern, or a list of names, not \['to_q', ''\]",
        ),
        ({"lora_bias": True}, "trains biases of its factors"),
    ],
)
def test_other_kinds_of_adapters_are_refused(tmp_path, changes, reason):
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_adapter(publish(tmp_path, changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("base_model.model.{module}.lora_{side}.bias", "is not a LoRA factor"),
        ("transformer.{module}.lora.{side}.weight", "is not a LoRA factor"),
        ("text_encoder.{module}.lora_{side}.weight", "trains text encoders too"),
    ],
)
def test_tensor_names_of_other_programs_are_refused(tmp_path, name, reason):
    with pytest.raises(ArtifactError, match=reason):
        read_adapter(publish(tmp_path, name=name))


def test_factors_named_down_and_up_by_older_programs_are_refused(tmp_path):
    name = "transformer.{module}.lora.{way}.weight"
    tensors = {name.format(module=MODULES[0], way=way): t.clone() for way, t in (("down", A), ("up", B))}
    save_file(tensors, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(ArtifactError, match="is not a LoRA factor"):
        read_adapter(tmp_path)


def test_pickled_weights_are_refused_with_a_suggestion(tmp_path):
    publish(tmp_path)
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ArtifactError, match=r"are not read; .* load with PEFT or diffusers"):
        read_adapter(tmp_path)


def save_by_diffusers(folder, **metadata):
    layers = {f"{module}.lora_{side}.weight": t.clone() for module in MODULES for side, t in (("A", A), ("B", B))}
    StableDiffusion3Pipeline.save_lora_weights(
        folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=metadata or None
    )
    return folder


def test_the_scale_in_the_header_of_diffusers_is_read(tmp_path):
    check(save_by_diffusers(tmp_path), 1.0, 1.0)
    check(save_by_diffusers(tmp_path / "scaled", r=2, lora_alpha=8, target_modules=["to_q", "add_k_proj"]), 4.0, 4.0)


def test_two_scales_and_other_ranks_are_refused(tmp_path):
    with pytest.raises(ArtifactError, match="says rank 3 for"):
        read_adapter(save_by_diffusers(tmp_path, r=3, lora_alpha=8))
    layers = {f"transformer.{MODULES[0]}.lora_{side}.weight": t.clone() for side, t in (("A", A), ("B", B))}
    layers[f"transformer.{MODULES[0]}.alpha"] = torch.tensor(4.0)
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8})}
    save_file(layers, tmp_path / "pytorch_lora_weights.safetensors", metadata)
    with pytest.raises(ArtifactError, match="gives its scales twice"):
        read_adapter(tmp_path)
    save_file(layers, tmp_path / "pytorch_lora_weights.safetensors", {"lora_adapter_metadata": "{"})
    with pytest.raises(ArtifactError, match="lora_adapter_metadata is not readable as JSON"):
        read_adapter(tmp_path)
