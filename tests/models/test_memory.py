"""Memory measured on the meta device against real modules and their saved tensors."""

import itertools
import json
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import ATTENTION_TARGETS, Shape, known_shape, named_shapes
from flowopd_cli.models.files.workload import Workload
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure, needs
from flowopd_cli.models.random_weights import make_random, skeleton
from flowopd_cli.registry import MODELS
from flowopd_cli.toy import folder

FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
SIZES = {"attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 64, "pooled_projection_dim": 48}
SD3 = {**SIZES, "num_layers": 8, "caption_projection_dim": 128, "sample_size": 32, "pos_embed_max_size": 16}
FLUX = {**SIZES, "num_layers": 3, "num_single_layers": 6, "guidance_embeds": True, "axes_dims_rope": (8, 28, 28)}
KLEIN = {"attention_head_dim": 64, "num_attention_heads": 2, "joint_attention_dim": 64, "axes_dims_rope": (16,) * 4}
SANA = {
    "num_layers": 8,
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "num_cross_attention_heads": 4,
    "cross_attention_head_dim": 32,
    "cross_attention_dim": 128,
    "caption_channels": 64,
}
Z_IMAGE = {"dim": 128, "n_layers": 6, "n_refiner_layers": 2, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 64}
LUMINA2 = {"hidden_size": 128, "num_layers": 6, "num_refiner_layers": 2, "num_attention_heads": 4, "num_kv_heads": 2}
QWEN_IMAGE = {"num_layers": 8, "num_attention_heads": 2, "attention_head_dim": 64, "joint_attention_dim": 64}
SHAPES = {
    "sd3": Shape({**SD3, "dual_attention_layers": (0, 1, 2, 3), "qk_norm": "rms_norm"}, {}, (32,) * 4, clip_tokens=16),
    "flux": Shape(FLUX, {"use_dynamic_shifting": True}, (32,) * 4),
    "flux2-klein": replace(
        named_shapes()["flux2-klein-small"],
        transformer={**KLEIN, "num_layers": 3, "num_single_layers": 6, "guidance_embeds": False},
    ),
    "qwen-image": replace(
        named_shapes()["qwen-image-small"], transformer={**QWEN_IMAGE, "axes_dims_rope": (8, 28, 28)}
    ),
    "sana": replace(named_shapes()["sana-small"], transformer=SANA),
    "lumina2": Shape({**LUMINA2, "cap_feat_dim": 64, "axes_dim_rope": (8, 12, 12)}, {"shift": 6.0}, (32,) * 4),
    "z-image": Shape({**Z_IMAGE, "axes_dims": (8, 28, 28)}, {"shift": 6.0}, (32,) * 4),
}
TARGETS = dict.fromkeys(("sd3", "flux"), (ATTENTION_TARGETS, FEED_FORWARD))
TARGETS["z-image"] = (("attention",), ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"))
TARGETS["flux2-klein"] = (("attention",), ("ff.linear_in", "ff.linear_out", "ff_context.linear_in"))
TARGETS["sana"] = (("attn2.to_q", "attn2.to_k"), ("attention",))  # nothing else in its blocks is a linear layer
TARGETS["lumina2"] = (("attention",), ("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"))
TARGETS["qwen-image"] = (("attention",), ("img_mlp.net.2", "txt_mlp.net.2", "img_mod.1"))
BLOCKS = {"lumina2": 10, "qwen-image": 8, "sd3": 8, "flux": 9, "z-image": 10, "sana": 8, "flux2-klein": 9}
ROWS, RANK = 2, 16


def published(family, name, targets=ATTENTION_TARGETS, rank=32):
    options = LoadOptions(dtype="bfloat16", resolution=512, targets=targets)
    return measure(family, name, options, rank)


@cache
def measured(family, options, *, full=False):
    with skeleton(MODELS.load(family), SHAPES[family]) as path:
        return measure(family, str(path), options, RANK, full=full)


def real(family, options, *, full=False):
    """A call that passes two rows through a real model on the CPU, and the model."""
    model = make_random(MODELS.load(family), SHAPES[family], options)
    if full:
        model.adapters.add_full("policy", trainable=True)
    else:
        model.adapters.add("policy", RANK, RANK, seed=0, trainable=True)
    latents, cond = torch.randn(ROWS, *model.latent_shape), model.encode(["a", "b"])
    return partial(model.velocity, latents, torch.full((ROWS,), 0.5), cond, guidance=1.0), model


def saved_by_autograd(forward, model, checkpointing=False):
    """Bytes of the distinct storages that one forward saves for its backward, weights left out."""
    if checkpointing:
        model.checkpoint_gradients()
        model.transformer.train()
    weights = {t.untyped_storage().data_ptr() for t in (*model.transformer.parameters(), *model.transformer.buffers())}
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        weights.update(weight.untyped_storage().data_ptr() for weight in (model.adapters.installed or {}).values())
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with model.adapters.use("policy"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(size for size, _ in saved.values())


# Between them, both precisions, with and without checkpoints, few and many targets; all combinations for one family.
TYPICAL = {("float32", True, False), ("bfloat16", False, True)}
CASES = [
    pytest.param(family, *case, marks=() if family == "sd3" or case in TYPICAL else pytest.mark.slow)
    for family in SHAPES
    for case in itertools.product(("float32", "bfloat16"), (False, True), (False, True))
]


@pytest.mark.parametrize(("family", "dtype", "checkpointing", "wide"), CASES)
def test_activations_match_the_saved_tensors_of_autograd(family, dtype, checkpointing, wide):
    targets = TARGETS[family][: 1 + wide]
    options = LoadOptions(dtype=dtype, device="cpu", resolution=256, max_sequence_length=24, targets=sum(targets, ()))
    footprint, found = measured(family, options), saved_by_autograd(*real(family, options), checkpointing)
    expected = footprint.activations
    if checkpointing:  # the block that is recomputed is not among what is saved
        expected = footprint.activations_checkpointed - footprint.activations // BLOCKS[family]
    assert found == pytest.approx(ROWS * expected, rel=0.15 if checkpointing else 0.1)


@pytest.mark.parametrize(("family", "dtype"), [("sd3", "float32"), *((family, "bfloat16") for family in SHAPES)])
def test_full_training_keeps_activations_and_no_weights_among_them(family, dtype):
    options = LoadOptions(dtype=dtype, device="cpu", resolution=256, max_sequence_length=24, targets=("attention",))
    footprint, (forward, model) = measured(family, options, full=True), real(family, options, full=True)
    assert saved_by_autograd(forward, model) == pytest.approx(ROWS * footprint.activations, rel=0.1)
    assert footprint.trainable == sum(weight.numel() for weight in model.adapters.trainable().values())


@pytest.mark.parametrize("family", SHAPES)
def test_operations_and_adapters_are_those_of_a_real_model(family):
    options = LoadOptions(dtype="float32", device="cpu", resolution=128, targets=("all-linear",))
    footprint, (forward, model) = measured(family, options), real(family, options)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        forward()  # the adapter of a new model is not in use
    assert ROWS * footprint.operations == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert footprint.adapter == sum(weight.numel() for weight in model.adapters.trainable().values())


def test_the_published_shapes():
    medium, large = published("sd3", "sd3.5-medium"), published("sd3", "stabilityai/stable-diffusion-3.5-large")
    assert medium.parameters - 384**2 * 1536 == 2_243_171_520  # without the table of positions
    assert large.parameters - 192**2 * 2432 == 8_056_627_520
    assert published("flux", "black-forest-labs/FLUX.1-dev").parameters == 11_901_408_320
    assert medium.encoders == 123_650_304 + 694_659_840 + 4_762_310_656
    # 2.22 TFLOP at 512 pixels and 205 tokens of text, by PyTorch's own counter
    assert medium.operations == pytest.approx(2.22e12, rel=0.01)
    assert known_shape("stabilityai/stable-diffusion-3.5-medium") is known_shape("sd3.5-medium")
    assert published("sd3", "someone/else") is None


def test_the_memory_of_a_training_grows_with_its_counts():
    base = published("sd3", "sd3.5-medium")
    few, many = (needs(base, Workload(3, rows, 8, 100, 10)) for rows in (4, 8))
    assert few.holding == many.holding
    assert few.holding["base"] == 2 * base.parameters
    assert few.holding["adapters"] == few.holding["optimizer"] == 3 * 4 * base.adapter
    assert (many.activations, many.transient, many.sampling) == (2 * few.activations, 2 * few.transient, few.sampling)
    assert many.peak(checkpointing=False) > many.peak(checkpointing=True) > sum(many.holding.values())
    assert needs(base, Workload(3, 4, 8, 100, 10, shards=4)).holding["base"] == base.parameters // 2


def test_full_training_holds_float32_weights_copies_gradients_and_moments():
    base = published("sd3", "sd3.5-medium")
    work = Workload(0, 4, 8, 100, 10, known=70, models=1, trained=3, moments=2)
    full = needs(base, work).holding
    assert base.trainable == 2_243_171_520
    assert full["trained weights and copies"] == 3 * 4 * base.trainable
    assert full["weights in the base's precision"] == 2 * base.trainable
    assert full["optimizer"] == (4 + 2) * base.trainable
    assert full["adapters"] == 4 * 70 + 2 * base.trainable  # a frozen set has no buffers
    assert needs(base, work).host == 0
    away = needs(base, replace(work, trained=1, hosted=2))
    assert (away.holding["trained weights and copies"], away.host) == (4 * base.trainable, 8 * base.trainable)
    single = replace(base, itemsize=4)  # a set is not rounded, but copies visit the device
    assert "weights in the base's precision" not in needs(single, work).holding
    visit = needs(single, replace(work, trained=1, hosted=2)).holding
    assert visit["weights in the base's precision"] == 4 * base.trainable


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("transformer/config.json", "{"),
        ("transformer/config.json", '{"num_layers": "24"}'),
        ("transformer/config.json", '{"num_layers": -1}'),
        ("transformer/config.json", '{"num_layers": 1000000}'),
        ("vae/config.json", '{"block_out_channels": 3}'),
        ("tokenizer/tokenizer_config.json", '{"model_max_length": -1}'),
    ],
)
def test_a_damaged_configuration_is_reported(tmp_path, name, content):
    base, options = folder(), LoadOptions(dtype="float32", resolution=32, targets=ATTENTION_TARGETS)
    parts = ("transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json")
    for part in (*parts, "tokenizer/tokenizer_config.json"):
        (tmp_path / part).parent.mkdir(parents=True)
        (tmp_path / part).write_text((base / part).read_text(encoding="utf-8"), encoding="utf-8")
    assert measure("sd3", str(tmp_path), options, 8) == measure("sd3", "toy", options, 8) is not None
    sound = json.loads((base / name).read_text(encoding="utf-8"))
    partial_change = content.startswith('{"') and name.startswith(("transformer", "tokenizer"))
    text = json.dumps({**sound, **json.loads(content)}) if partial_change else content
    (tmp_path / name).write_text(text, encoding="utf-8")
    measure.cache_clear()
    with pytest.raises(ArtifactError, match=tmp_path.name):
        measure("sd3", str(tmp_path), options, 8)
