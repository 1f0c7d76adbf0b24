"""Counts from shapes alone against diffusers' own modules, and the activations against what autograd keeps."""

import itertools
import json

import pytest
import torch
from diffusers import SD3Transformer2DModel

from flowopd_cli import recipe as recipes
from flowopd_cli.models.adapters import AdapterBank
from flowopd_cli.models.files.shapes import (
    Rows,
    adapter_weights,
    base_weights,
    family,
    family_of,
    model_fields,
    shape_of,
)
from flowopd_cli.models.footprint import footprint, forward_operations, kept
from flowopd_cli.models.shapes.sd3 import SHAPES, SD3Shape
from flowopd_cli.recipe import ATTENTION_TARGETS, AdapterSpec
from flowopd_cli.toy import folder

TINY = SD3Shape(3, 2, 64, 64, 48, 128, 16, 16, dual_attention_layers=(0, 1))
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
GIB = 2**30


def transformer(shape, dtype=torch.float32):
    with torch.random.fork_rng():
        return SD3Transformer2DModel(**shape.config()).to(dtype)


@pytest.mark.parametrize("shape", [*SHAPES.values(), TINY], ids=[*SHAPES, "tiny"])
def test_the_weights_are_those_of_diffusers(shape):
    with torch.device("meta"):
        model = SD3Transformer2DModel(**shape.config())
        bank = AdapterBank(model, ATTENTION_TARGETS)
        tensors = [*model.parameters(), *model.buffers()]
        assert base_weights(shape) == sum(tensor.numel() for tensor in tensors)
    if shape.num_layers < 5:
        for targets in (ATTENTION_TARGETS, ATTENTION_TARGETS[:2] + FEED_FORWARD):
            bank = AdapterBank(transformer(shape), targets)
            bank.add("policy", 8, 8, seed=0, trainable=True)
            found = sum(weight.numel() for weight in bank.trainable().values())
            assert adapter_weights(shape, targets, 8) == found


def test_the_published_shapes():
    assert base_weights(SHAPES["sd3.5-medium"]) - 384**2 * 1536 == 2_243_171_520  # without the table of positions
    assert base_weights(SHAPES["sd3.5-large"]) - 192**2 * 2432 == 8_056_627_520
    assert shape_of("stabilityai/stable-diffusion-3.5-medium") is SHAPES["sd3.5-medium"]
    assert shape_of("someone/else") is None
    assert shape_of("toy").image_tokens(None) == 16
    # 2.22 TFLOP at 512 pixels and 205 tokens of text, by PyTorch's own counter
    assert forward_operations(SHAPES["sd3.5-medium"], 1024, 205) == pytest.approx(2.22e12, rel=0.01)


def autograd_keeps(shape, adapter, batch, checkpointing):
    """Bytes of the distinct storages that one forward saves for its backward, weights left out."""
    model = transformer(shape, torch.float32 if batch.bytes == 4 else torch.bfloat16)
    bank = AdapterBank(model, adapter.targets)
    bank.add("policy", adapter.rank, adapter.alpha, seed=0, trainable=True)
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    weights = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    side = shape.sample_size
    given = {
        "hidden_states": torch.randn(batch.rows, shape.in_channels, side, side),
        "encoder_hidden_states": torch.randn(batch.rows, batch.text, shape.joint_attention_dim),
        "pooled_projections": torch.randn(batch.rows, shape.pooled_projection_dim),
    }
    given = {name: value.to(model.dtype) for name, value in given.items()}
    with bank.use("policy"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(**given, timestep=torch.full((batch.rows,), 500.0))
    return sum(size for size, _ in held.values())


@pytest.mark.parametrize("width", [4, 2])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("targets", [ATTENTION_TARGETS, ATTENTION_TARGETS + FEED_FORWARD])
def test_the_activations_are_those_that_autograd_keeps(width, checkpointing, targets):
    shape = SD3Shape(8, 2, 64, 64, 48, 128, 32, 16, dual_attention_layers=(0, 1, 2, 3))
    adapter, batch = AdapterSpec(rank=16, alpha=16, targets=targets), Rows(2, 256, 40, width)
    found = autograd_keeps(shape, adapter, batch, checkpointing)
    expected = kept(shape, adapter, batch, checkpointing=checkpointing)
    if checkpointing:  # the block that is recomputed is not among what is saved
        expected -= kept(shape, adapter, batch) // shape.num_layers
    assert found == pytest.approx(expected, rel=0.15 if checkpointing else 0.1)


def distill(**sections):
    data = {"stage": "distill", "prompts": [{"source": "toy:geneval"}], "routing": {"geneval": {"ref": "runs/t"}}}
    return recipes.build({**data, **sections})


def test_the_figures_of_a_dry_run():
    figures = footprint(distill())
    assert figures["memory: base"] == f"{(2_243_171_520 + 384**2 * 1536) * 2 / GIB:.2f} GiB"
    assert figures["memory: text encoders, before training"] == "10.39 GiB"
    one = adapter_weights(SHAPES["sd3.5-medium"], ATTENTION_TARGETS, 32) * 4 / GIB
    assert figures["memory: adapters"] == f"{3 * one:.2f} GiB"  # policy, average, one teacher; the anchor is the base
    more = footprint(distill(routing={task: {"ref": f"runs/{task}"} for task in "abcd"}, anchor={"ref": "runs/q"}))
    assert more["memory: adapters"] == f"{7 * one:.2f} GiB"


def test_one_pass_learns_the_rows_of_one_step():
    many = {"micro": 384, "groups": 64, "group_size": 1}
    told = "memory counted for"
    assert footprint(distill(train={**many, "updates": 1}))[told].endswith("64 rows learning at once")
    assert footprint(distill(train={**many, "updates": 2}))[told].endswith("384 rows learning at once")  # a replay


def test_a_shape_that_is_not_at_hand_is_said_so():
    figures = footprint(distill(model={"pretrained": "someone/else"}))
    assert list(figures) == ["memory"]
    assert "someone/else" in figures["memory"]


def test_a_base_tells_its_family():
    assert family_of("toy") == family_of("stabilityai/stable-diffusion-3.5-large") == family_of("small") == "sd3"
    assert family_of("someone/else") is None
    assert model_fields("someone/else") == {"pretrained": "someone/else"}
    assert model_fields("toy") == {"pretrained": "toy", "family": "sd3"}


def test_a_family_that_says_nothing_of_itself_is_taken_to_be_classifier_free():
    assert [family("my-own").halves(guidance) for guidance in (0.0, 1.0, 4.5)] == [2, 1, 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("transformer/config.json", "{"),
        ("transformer/config.json", "[" * 100_000),
        ("transformer/config.json", '{"num_layers": "24"}'),
        ("vae/config.json", '{"block_out_channels": 3}'),
        ("vae/config.json", "[]"),
        ("tokenizer/tokenizer_config.json", '{"model_max_length": -1}'),
    ],
)
def test_a_base_whose_configuration_is_damaged_has_no_shape(tmp_path, name, content):
    own = folder()
    for part in ("transformer/config.json", "vae/config.json", "tokenizer/tokenizer_config.json"):
        (tmp_path / part).parent.mkdir(parents=True)
        (tmp_path / part).write_text((own / part).read_text(encoding="utf-8"), encoding="utf-8")
    assert shape_of(str(tmp_path)) == shape_of("toy")
    sound = json.loads((own / name).read_text(encoding="utf-8"))
    partial = content.startswith('{"') and name.startswith(("transformer", "tokenizer"))
    (tmp_path / name).write_text(json.dumps({**sound, **json.loads(content)}) if partial else content, encoding="utf-8")
    assert shape_of(str(tmp_path)) is None
