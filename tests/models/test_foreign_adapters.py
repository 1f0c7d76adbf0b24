"""Adapter files as kohya, ComfyUI and ai-toolkit write them: diffusers' own update, or refused by name."""

import copy
import math

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import save_file
from support import dense, tiny

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import read_adapter
from flowopd_cli.models.adapters import AdapterBank

WIDTH = 32  # of the tiny transformers
ATTENTION = {f"{side}_attn_{name}": rows for side in ("img", "txt") for name, rows in (("qkv", 3), ("proj", 1))}
DOUBLE = {**ATTENTION, "img_mlp_0": 4, "txt_mlp_0": 4, "img_mod_lin": 6, "txt_mod_lin": 6}  # outputs / WIDTH
WIDE = {"img_mlp_2": 4, "txt_mlp_2": 4}  # inputs / WIDTH
DOTTED = {name: name.replace("_attn_", "_attn.").replace("_mlp_", "_mlp.").replace("_mod_", "_mod.") for name in DOUBLE}
KOHYA, COMFY = "lora_unet_{kind}_blocks_{block}_{name}", "diffusion_model.{kind}_blocks.{block}.{name}"


def random(*shape, seed=0):
    return 0.2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + math.prod(shape)))


def pairs(*, form=KOHYA, ways=("lora_down", "lora_up"), alpha=None, ranks=(4,), modules=DOUBLE, kind="double"):
    """Tensors of both blocks; ``alpha`` is one number, or one for each rank in turn."""
    tensors, index = {}, 0
    for block in (0, 1):
        for name, width in modules.items():
            rank, place = ranks[index % len(ranks)], DOTTED.get(name, name) if form == COMFY else name
            module = form.format(kind=kind, block=block, name=place)
            inputs, outputs = (width * WIDTH, WIDTH) if modules is WIDE else (WIDTH, width * WIDTH)
            tensors[f"{module}.{ways[0]}.weight"] = random(rank, inputs, seed=index)
            tensors[f"{module}.{ways[1]}.weight"] = random(outputs, rank, seed=index)
            if alpha is not None:
                value = alpha[index % len(alpha)] if isinstance(alpha, tuple) else alpha
                tensors[f"{module}.alpha"] = torch.tensor(float(value))
            index += 1
    return tensors


def sparse():
    """Query, key and value with factors of their own, in one module of three times the rank."""
    tensors = pairs(modules={"img_attn_qkv": 3}, ranks=(6,), alpha=3)
    for name, tensor in tensors.items():
        if ".lora_up." in name:
            for row in range(3):
                for column in range(3):
                    if row != column:
                        tensor[row * WIDTH : (row + 1) * WIDTH, 2 * column : 2 * column + 2] = 0
    return tensors


def named_by_diffusers(transformer, ranks=(4,), alpha=None):
    tensors = {}
    for index, (name, module) in enumerate(dense.linear_modules(transformer).items()):
        if "blocks." in name:
            rank, (outputs, inputs) = ranks[index % len(ranks)], module.weight.shape
            tensors[f"transformer.{name}.lora_A.weight"] = random(rank, inputs, seed=index)
            tensors[f"transformer.{name}.lora_B.weight"] = random(outputs, rank, seed=index)
            if alpha is not None:
                tensors[f"transformer.{name}.alpha"] = torch.tensor(alpha)
    return tensors


def halved(tensors, dtype):
    return {name: tensor.to(dtype) for name, tensor in tensors.items()}


SINGLE = {"linear2": 1, "modulation_lin": 3}
# Files of FLUX that diffusers reads.
FILES = {
    "kohya, attention": lambda _: pairs(modules=ATTENTION, alpha=2),
    "kohya without alpha": lambda _: pairs(),
    "kohya, alpha of 1": lambda _: pairs(alpha=1, ranks=(8,)),
    "kohya, alpha above the rank": lambda _: pairs(alpha=16),
    "kohya, mixed ranks": lambda _: pairs(ranks=(4, 2, 8), alpha=(4, 2, 8)),
    "kohya, mixed ranks and alphas": lambda _: pairs(ranks=(4, 2, 8), alpha=(1, 8)),
    "kohya, mixed ranks without alpha": lambda _: pairs(ranks=(4, 2, 3)),
    "kohya, second layers": lambda _: pairs(modules=WIDE, alpha=2),
    "kohya, single blocks": lambda _: pairs(modules={"modulation_lin": 3}, kind="single", alpha=2),
    "kohya, sparse": lambda _: sparse(),
    "kohya, float16": lambda _: halved(pairs(alpha=2), torch.float16),
    "kohya, bfloat16": lambda _: halved(pairs(alpha=4), torch.bfloat16),
    "ComfyUI": lambda _: pairs(form=COMFY, alpha=2),
    "ComfyUI without alpha": lambda _: pairs(form=COMFY, ranks=(4, 2)),
    "ai-toolkit": named_by_diffusers,
    "ai-toolkit, mixed ranks": lambda t: named_by_diffusers(t, ranks=(4, 2, 3)),
    "ai-toolkit, bfloat16": lambda t: halved(named_by_diffusers(t), torch.bfloat16),
    "diffusers with alpha": lambda t: named_by_diffusers(t, alpha=2.0),
}


@pytest.fixture(scope="module")
def flux():
    return tiny.assemble_flux(0)


@pytest.fixture(scope="module")
def sd3():
    return tiny.assemble(0)


def ours(transformer, place):
    bank = AdapterBank(copy.deepcopy(transformer), ())
    bank.load("other", place)
    with bank.use("other"):
        return dense.output(bank.transformer)


def theirs(pipeline, tensors):
    pipeline.load_lora_weights(dict(tensors))
    try:
        assert pipeline.get_active_adapters()
        return dense.output(pipeline.transformer)
    finally:
        pipeline.unload_lora_weights()


def check(pipeline, tensors, expected, place):
    save_file(tensors, place)
    bare = dense.output(pipeline.transformer)
    assert (expected - bare).abs().max() > 0.01
    torch.testing.assert_close(ours(pipeline.transformer, place), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("form", FILES)
def test_a_file_of_another_program_gives_the_output_of_diffusers(flux, form, tmp_path):
    tensors = FILES[form](flux.transformer)
    check(flux, tensors, theirs(flux, tensors), tmp_path / "lora.safetensors")


@pytest.mark.parametrize("ranks", [(4,), (4, 2, 3)])
def test_stable_diffusion_3_files_of_ai_toolkit_give_the_output_of_diffusers(sd3, ranks, tmp_path):
    tensors = named_by_diffusers(sd3.transformer, ranks)
    check(sd3, tensors, theirs(sd3, tensors), tmp_path / "lora.safetensors")


@pytest.mark.parametrize("ranks", [(4,), (4, 2, 3)])
def test_first_names_with_factors_a_and_b_mean_the_same_as_down_and_up(flux, ranks, tmp_path):
    """diffusers reads these names with lora_down and lora_up only."""
    tensors = pairs(form=COMFY, ways=("lora_A", "lora_B"), ranks=ranks)
    expected = theirs(flux, pairs(form=COMFY, ranks=ranks))
    check(flux, tensors, expected, tmp_path / "lora.safetensors")


@pytest.mark.parametrize("name", ["my_lora.safetensors", "pytorch_lora_weights.safetensors"])
def test_a_folder_with_one_file_is_read_as_the_file(flux, name, tmp_path):
    tensors = pairs(alpha=2)
    save_file(tensors, tmp_path / name, {"ss_network_module": "networks.lora_flux", "ss_network_dim": "4"})
    torch.testing.assert_close(ours(flux.transformer, tmp_path), theirs(flux, tensors), atol=2e-6, rtol=0)


def test_fused_projections_of_single_blocks_are_split_as_by_diffusers(tmp_path):
    """At the real width, the only one for which diffusers splits them."""
    width = 3072
    down, up = random(2, width), random(7 * width, 2)
    module = "lora_unet_single_blocks_37_linear1"
    wide = {"lora_down.weight": random(2, 5 * width), "lora_up.weight": random(width, 2), "alpha": torch.tensor(4.0)}
    tensors = {f"lora_unet_single_blocks_0_linear2.{name}": tensor for name, tensor in wide.items()}
    tensors |= {
        f"{module}.lora_down.weight": down,
        f"{module}.lora_up.weight": up,
        f"{module}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    expected = FluxPipeline.lora_state_dict(dict(tensors))
    factors = read_adapter(tmp_path / "lora.safetensors")[1]
    assert {f"transformer.{name}.lora_{side}.weight" for name in factors for side in "AB"} == expected.keys()
    for name, pair in factors.items():
        a, b = (expected[f"transformer.{name}.lora_{side}.weight"] for side in "AB")
        probe = random(a.shape[1])
        torch.testing.assert_close(pair.b @ (pair.a @ probe) * pair.scale, b @ (a @ probe), atol=1e-6, rtol=1e-6)


def test_fused_projections_of_single_blocks_are_rows_of_one_matrix(flux, tmp_path):
    tensors = pairs(modules={"linear1": 7}, kind="single", alpha=2)
    deltas = {}
    for block in (0, 1):
        down, up = (tensors[f"lora_unet_single_blocks_{block}_linear1.lora_{way}.weight"] for way in ("down", "up"))
        rows = (2 / 4 * up @ down).split([WIDTH, WIDTH, WIDTH, 4 * WIDTH])
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        deltas |= {f"single_transformer_blocks.{block}.{n}": r for n, r in zip(names, rows, strict=True)}
    check(flux, tensors, dense.dense_output(flux.transformer, deltas), tmp_path / "lora.safetensors")


JOINT = {"attn.qkv": 3, "attn.proj": 1, "mlp.fc1": 4, "adaLN_modulation.1": 6}
AROUND = ("x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "context_embedder", "y_embedder.mlp.0")


@pytest.mark.parametrize("form", ["kohya", "ComfyUI"])
def test_stable_diffusion_3_files_agree_with_the_conversion_of_its_checkpoints(sd3, form, tmp_path):
    tensors, checkpoint = {}, {"pos_embed": torch.zeros(1)}
    rest = (*AROUND, "y_embedder.mlp.2", "final_layer.linear", "final_layer.adaLN_modulation.1")
    checkpoint |= {f"{name}.{part}": torch.zeros(2 * WIDTH, WIDTH) for name in rest for part in ("weight", "bias")}
    for block in (0, 1):
        for side in ("x", "context"):
            last = side == "context" and block == 1  # its context has no output
            shapes = {"attn.qkv": 3, "adaLN_modulation.1": 2} if last else JOINT
            for name, width in shapes.items():
                module = f"joint_blocks.{block}.{side}_block.{name}"
                down, up = random(4, WIDTH, seed=len(tensors)), random(width * WIDTH, 4, seed=len(tensors))
                checkpoint |= {f"{module}.weight": 0.25 * up @ down, f"{module}.bias": torch.zeros(width * WIDTH)}
                place = f"lora_unet_{module.replace('.', '_')}" if form == "kohya" else f"diffusion_model.{module}"
                ways = ("lora_down", "lora_up") if form == "kohya" else ("lora_A", "lora_B")
                tensors |= {f"{place}.{way}.weight": t for way, t in zip(ways, (down, up), strict=True)}
                tensors[f"{place}.alpha"] = torch.tensor(1.0)
            absent = ("mlp.fc2",) if not last else ()
            checkpoint |= {
                f"joint_blocks.{block}.{side}_block.{n}.{part}": torch.zeros(1)
                for n in absent
                for part in ("weight", "bias")
            }
    converted = convert_sd3_transformer_checkpoint_to_diffusers(checkpoint)
    changed = {name: t for name, t in converted.items() if name.endswith(".weight") and t.ndim == 2 and t.any()}
    deltas = {name.removesuffix(".weight"): tensor for name, tensor in changed.items()}
    check(sd3, tensors, dense.dense_output(sd3.transformer, deltas), tmp_path / "lora.safetensors")


BLOCK = "lora_unet_double_blocks_0_img_attn_proj"
# A tensor that makes a file one of another kind, and what the refusal calls it.
REFUSED = {
    f"{BLOCK}.hada_w1_a": "a LoHa adapter",
    f"{BLOCK}.lokr_w1": "a LoKr adapter",
    f"{BLOCK}.dora_scale": "a DoRA adapter",
    "transformer.transformer_blocks.0.attn.to_q.lora_magnitude_vector": "a DoRA adapter",
    f"{BLOCK}.lora_mid.weight": "a LoCon adapter",
    f"{BLOCK}.oft_blocks": "an OFT adapter",
    f"{BLOCK}.boft_R": "an OFT adapter",
    f"{BLOCK}.on_input": r"an \(IA\)³ adapter",
    f"{BLOCK}.a1.weight": "a GLoRA adapter",
    f"{BLOCK}.diff": "trains norms, biases or whole weights",
    f"{BLOCK}.diff_b": "trains norms, biases or whole weights",
    "diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale": "trains norms, biases or whole weights",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": "trains text encoders too",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight": "trains text encoders too",
    "text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_A.weight": "trains text encoders too",
    "double_blocks.0.processor.qkv_lora1.down.weight": "an adapter in XLabs' form",
    "lora_transformer_single_transformer_blocks_0_attn_to_q.lora_down.weight": "an adapter in OneTrainer's form",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight": r"of a UNet \(Stable Diffusion 1, 2 or XL\)",
    "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": "of a UNet",
    "lycoris_blocks_0_to_q.lora_down.weight": "an adapter in LyCORIS' form",
    "lora_unet_final_layer_linear.lora_down.weight": "trains modules outside FLUX's or SD3's blocks",
    "diffusion_model.img_in.lora_down.weight": "trains modules outside FLUX's or SD3's blocks",
    "lora_unet_double_blocks_0_img_attn_proj.lora_up.bias": "is not a LoRA factor",
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_kinds_are_refused_by_name(name, tmp_path):
    save_file({**pairs(alpha=2), name: random(4, WIDTH)}, tmp_path / "lora.safetensors")
    with pytest.raises(ArtifactError, match=REFUSED[name]) as caught:
        read_adapter(tmp_path / "lora.safetensors")
    assert name[:40] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_modules_and_rows_that_cannot_be_split_are_refused(tmp_path):
    place = tmp_path / "lora.safetensors"
    for modules, reason in (({"img_mod_linear": 6}, "img_mod_linear"), ({"img_attn_qkv": 1}, "img_attn_qkv")):
        save_file(pairs(modules=modules), place)
        with pytest.raises(ArtifactError, match=f"double_blocks_0_{reason} is no linear module of FLUX or SD3"):
            read_adapter(place)
    twice = {**pairs(modules=ATTENTION), **pairs(form=COMFY, modules=ATTENTION)}
    save_file(twice, place)
    with pytest.raises(ArtifactError, match=r"is a second A factor of transformer_blocks\.0\.attn\.to_"):
        read_adapter(place)


def test_names_of_peft_without_its_configuration_are_refused(flux, tmp_path):
    tensors = {
        name.replace("transformer.", "base_model.model.", 1): tensor
        for name, tensor in named_by_diffusers(flux.transformer).items()
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ArtifactError, match=r"has PEFT's names, but no adapter_config\.json beside it"):
        read_adapter(tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 2}')
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert {pair.scale for pair in read_adapter(place)[1].values()} == {0.5}


def test_a_folder_with_several_files_is_refused(tmp_path):
    for name in "ab":
        save_file(pairs(alpha=2), tmp_path / f"{name}.safetensors")
    with pytest.raises(
        ArtifactError, match=r"has 2 safetensors files \(a\.safetensors, b\.safetensors\): name the file"
    ):
        read_adapter(tmp_path)
