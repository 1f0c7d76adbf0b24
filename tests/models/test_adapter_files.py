"""Adapter folders: PEFT's form, diffusers' form, and what is refused with a reason."""

import json
import re

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from support.tiny import SEQUENCE, TARGETS, make_draw, make_sampler

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import AdapterConfig, read_adapter, write_adapter, write_diffusers
from flowopd_cli.models.reference import Request, peft_picture, plain_picture, plain_pipeline
from flowopd_cli.train.collect import rollout, with_images

CONFIG = AdapterConfig(4, 8.0, ("to_q", "to_k"), "owner/base", "abc")
WEIGHTS = "adapter_model.safetensors"


def lora(rank, scale=2.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return LoraFactors(torch.randn(rank, 6, generator=generator), torch.randn(5, rank, generator=generator), scale)


FACTORS = {"block.0.to_q": lora(4), "block.0.to_k": lora(2, 0.5, 1)}


def same(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[k].a, b[k].a) and torch.equal(a[k].b, b[k].b) and a[k].scale == b[k].scale for k in a
    )


@pytest.fixture
def written(tmp_path):
    """A sound adapter folder."""
    write_adapter(tmp_path, FACTORS, CONFIG)
    return tmp_path


def edit(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_round_trip_keeps_every_bit_and_every_scale(written):
    config, factors = read_adapter(written)
    assert same(factors, FACTORS)
    assert (config.rank, config.alpha, config.targets) == (4, 8.0, ("to_q", "to_k"))
    assert (config.base, config.base_sha256) == ("owner/base", "abc")
    written_config = json.loads((written / "adapter_config.json").read_text())
    assert written_config["rank_pattern"] == {"block.0.to_k": 2}
    assert written_config["alpha_pattern"] == {"block.0.to_k": 1.0}


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_the_configuration_is_one_that_peft_reads(written):
    config = LoraConfig.from_pretrained(written)
    assert (config.r, config.lora_alpha, config.target_modules) == (4, 8.0, {"to_q", "to_k"})
    assert config.base_model_name_or_path == "owner/base"
    assert "task_type" not in json.loads((written / "adapter_config.json").read_text())  # the Hub takes no null


def test_writing_again_replaces_every_file(written):
    write_adapter(written, {"block.0.to_q": lora(4, seed=9)}, CONFIG)
    assert list(read_adapter(written)[1]) == ["block.0.to_q"]
    assert {path.name for path in written.iterdir()} == {WEIGHTS, "adapter_config.json"}


def test_rank_stabilized_scales_divide_by_the_root_of_the_rank(written):
    edit(written, use_rslora=True, alpha_pattern={})
    _, factors = read_adapter(written)
    assert factors["block.0.to_q"].scale == pytest.approx(8 / 2)
    assert factors["block.0.to_k"].scale == pytest.approx(8 / 2**0.5)


@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": "to_q"},
        {"target_modules": ".*"},
        {"target_modules": None},
        {"target_modules": ["to_q", "to_k", "to_v"], "layers_to_transform": [0]},
        {"exclude_modules": ["block.1.to_q"]},
        {"target_modules": ["block.0.to_q", "to_k"]},
    ],
    ids=str,
)
def test_targets_that_may_match_further_modules_are_written_as_the_modules_alone(written, changes):
    edit(written, **changes)
    config, factors = read_adapter(written)
    assert config.targets == ()
    write_adapter(written, factors, config)
    pattern = json.loads((written / "adapter_config.json").read_text())["target_modules"]
    names = ("block.0.to_q", "block.0.to_k", "block.1.to_q", "a.block.0.to_q", "to_q", "block_0.to_q")
    assert [name for name in names if re.fullmatch(pattern, name)] == ["block.0.to_q", "block.0.to_k"]


def test_a_configuration_may_lack_rank_alpha_and_base(written):
    edit(written, r=None, lora_alpha=None, base_model_name_or_path=None, base_sha256=None)
    config, _ = read_adapter(written)
    assert (config.rank, config.alpha) == (4, 4.0)
    assert (config.base, config.base_sha256) == (None, "abc"), "the weights name the base too"


def test_diffusers_form_holds_the_same_products(tmp_path):
    write_diffusers(tmp_path, FACTORS)
    config, factors = read_adapter(tmp_path)
    assert config.rank == 4
    for name, pair in FACTORS.items():
        assert factors[name].scale == 1.0
        torch.testing.assert_close(factors[name].delta(), pair.delta(), atol=1e-5, rtol=1e-5)


def test_alphas_in_diffusers_form_are_read(tmp_path):
    write_diffusers(tmp_path, {"to_q": lora(4, 1.0)})
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({**load_file(path), "transformer.to_q.alpha": torch.tensor(2.0)}, path)
    assert read_adapter(tmp_path)[1]["to_q"].scale == 0.5


@pytest.fixture
def drawn(trainee):
    """One of our pictures under ``other``, the request for it, and the adapter's factors."""
    rolled = rollout(trainee, make_sampler(trainee, kernel="ode", guidance=3.0), make_draw("a", "0"), adapter="other")
    images = with_images(trainee, rolled).images
    request = Request(rolled.prompts[0].text, rolled.trajectory.latents[:, 0], 8, 4, SEQUENCE, {"guidance_scale": 3.0})
    return images, request, trainee.adapters.factors("other")


def test_peft_draws_the_same_picture_and_leaves_the_pipeline_as_it_was(drawn, pipeline_folder, tmp_path):
    images, request, factors = drawn
    write_adapter(tmp_path, factors, AdapterConfig(4, 8.0, TARGETS))
    pipeline = plain_pipeline(pipeline_folder, torch.float32)
    bare = plain_picture(pipeline, None, request)
    torch.testing.assert_close(peft_picture(pipeline, tmp_path, request), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain_picture(pipeline, None, request), bare, atol=0, rtol=0)
    write_diffusers(tmp_path / "d", factors)
    torch.testing.assert_close(plain_picture(pipeline, tmp_path / "d", request), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain_picture(pipeline, None, request), bare, atol=0, rtol=0)
    edit(tmp_path, lora_alpha=80, alpha_pattern={})
    assert not torch.allclose(peft_picture(pipeline, tmp_path, request), images, atol=1e-3)
    edit(tmp_path, r=3, rank_pattern={})
    with pytest.raises(ArtifactError, match="PEFT does not load this adapter"):
        peft_picture(pipeline, tmp_path, request)


def test_a_form_that_diffusers_does_not_read_is_refused(drawn, pipeline_folder, tmp_path):
    _, request, factors = drawn
    write_adapter(tmp_path, factors, AdapterConfig(4, 8.0, TARGETS))
    with pytest.raises(ArtifactError, match="diffusers loads nothing of this adapter"):
        plain_picture(plain_pipeline(pipeline_folder, torch.float32), tmp_path, request)


@pytest.mark.parametrize(("text", "reason"), [("{", "damaged adapter configuration"), ("[]", "not a JSON object")])
def test_a_damaged_configuration_is_refused(written, text, reason):
    (written / "adapter_config.json").write_text(text)
    with pytest.raises(ArtifactError, match=reason):
        read_adapter(written)


A, B = "m.lora_A.weight", "m.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({}, "the adapter is empty"),
        ({A: torch.zeros(2, 3)}, "A and B factors of m do not pair up"),
        ({A: torch.zeros(2, 3), B: torch.zeros(3, 4)}, "do not pair up"),
        ({A: torch.full((4, 3), torch.nan), B: torch.zeros(3, 4)}, "values that are not finite"),
        ({A: torch.full((4, 3), 1e300, dtype=torch.float64), B: torch.zeros(3, 4)}, "values that are not finite"),
        ({A: torch.zeros(2, 3), B: torch.zeros(3, 2)}, "key r .* says rank 4 for m, but its factors .* have rank 2"),
        ({A: torch.zeros(4, 3).int(), B: torch.zeros(3, 4)}, r"m\.lora_A\.weight holds I32; factors are F64, F32"),
        ({A: torch.zeros(4, 3).to(torch.float8_e4m3fn), B: torch.zeros(3, 4)}, "holds F8_E4M3"),
        ({A: torch.zeros(4, 0), B: torch.zeros(3, 4)}, "do not pair up"),
        ({A: torch.zeros(4, 3), f"transformer.{A}": torch.zeros(4, 3)}, "is a second A factor of m"),
        ({A: torch.zeros(4, 3), B: torch.zeros(3, 4), "m.alpha": torch.ones(())}, r"m\.alpha is not a LoRA factor"),
        ({"m.lora_magnitude_vector.weight": torch.zeros(3)}, "a DoRA adapter"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(written, tensors, reason):
    edit(written, target_modules=["m"])
    save_file(tensors, written / WEIGHTS)
    with pytest.raises(ArtifactError, match=reason):
        read_adapter(written)


def header(tree, data=b""):
    """A safetensors file with this header, sound or not."""
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(b"[]"),
        header(b"{"),
        header(b"[" * 100_000),
        header({"a": {"dtype": "F32", "shape": [1]}}),
        header({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"123"),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"),
        header({"__metadata__": 3, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        b"\xff" * 100,
    ],
)
def test_damaged_weights_are_refused(written, content):
    (written / WEIGHTS).write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged or not safetensors") as caught:
        read_adapter(written)
    assert len(str(caught.value)) < 600


def test_truncated_weights_are_refused(written):
    content = (written / WEIGHTS).read_bytes()
    (written / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="damaged or not safetensors"):
        read_adapter(written)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": "eight"}, "key r: want a whole number from 1 to 65536, not eight"),
        ({"r": True}, "key r: want a whole number"),
        ({"r": 8}, "key r .* says rank 8 for block.0.to_q, but its factors .* have rank 4"),
        ({"lora_alpha": "8 or so"}, "key lora_alpha: want a finite number"),
        ({"lora_alpha": "1e400"}, "key lora_alpha: want a finite number"),
        ({"use_rslora": "perhaps"}, "key use_rslora: want true or false, not perhaps"),
        ({"lora_alpha": 10**400}, "key lora_alpha: want a finite number"),
        ({"target_modules": 3}, "key target_modules: want a pattern, or a list of names, not 3"),
        ({"target_modules": ["to_q"]}, "key target_modules does not match block.0.to_k, which has factors"),
        ({"rank_pattern": [1]}, "key rank_pattern: want numbers by names"),
        ({"rank_pattern": {"to_k": None, "x": "y"}}, r"key rank_pattern\.x: want a whole number"),
        ({"alpha_pattern": {"to_k": []}}, r"key alpha_pattern\.to_k: want a finite number"),
        ({"alpha_pattern": {"(": 1}}, "is not a regular expression"),
        ({"alpha_pattern": {"(a+)+": 1}}, "too complex"),
        ({"alpha_pattern": {"(a|a)" * 30: 1}}, "too complex"),
        ({"alpha_pattern": {".*" * 9: 1}}, "too complex"),
        ({"alpha_pattern": {f"x{i}+": 1 for i in range(99)}}, "has 99 patterns, at most 64"),
        ({"base_model_name_or_path": "a\nb"}, "key base_model_name_or_path: want a text"),
    ],
)
def test_a_configuration_of_another_kind_is_refused_with_its_key(written, changes, reason):
    edit(written, **changes)
    with pytest.raises(ArtifactError, match=reason) as caught:
        read_adapter(written)
    assert "adapter_config.json" in str(caught.value)


def test_patterns_of_one_module_are_anchored_where_another_ends_like_it(tmp_path):
    factors = {"to_q": lora(2, 0.5), "block.0.to_q": lora(4), "block.0.to_k": lora(1, 3.0)}
    write_adapter(tmp_path, factors, CONFIG)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["rank_pattern"] == {"^to_q": 2, "block.0.to_k": 1}
    assert same(read_adapter(tmp_path)[1], factors)


def test_many_anchored_patterns_are_read(written):
    edit(written, alpha_pattern={**{f"^block.{i}.to_v": 1 for i in range(99)}, "^to_k": 6, "^block.0.to_q": 4})
    scales = {name: pair.scale for name, pair in read_adapter(written)[1].items()}
    assert scales == {"block.0.to_q": 1.0, "block.0.to_k": 4.0}


@pytest.mark.parametrize("key", ["to_k", r"block\.\d+\.to_k", "^block.0.to_k", r".*\.(to_k|to_v)", "to_[kv]"])
def test_patterns_are_regular_expressions(written, key):
    edit(written, alpha_pattern={key: 6})
    _, factors = read_adapter(written)
    assert (factors["block.0.to_q"].scale, factors["block.0.to_k"].scale) == (2.0, 3.0)


def test_alphas_without_factors_are_refused(tmp_path):
    weights = {f"transformer.{A}": torch.zeros(2, 3), f"transformer.{B}": torch.zeros(3, 2)}
    cases = [("n", 1.0, "n.alpha belongs to no factors"), ("m", 0.0, "is 0; an alpha is"), ("m", 1e999, "is inf; an")]
    for module, value, reason in cases:
        alpha = {f"transformer.{module}.alpha": torch.tensor(value)}
        save_file(weights | alpha, tmp_path / "pytorch_lora_weights.safetensors")
        with pytest.raises(ArtifactError, match=reason):
            read_adapter(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_alphas_of_any_precision_are_read(tmp_path, dtype):
    weights = {f"transformer.{A}": torch.zeros(2, 3), f"transformer.{B}": torch.zeros(3, 2)}
    weights["transformer.m.alpha"] = torch.tensor([0.375], dtype=dtype)
    save_file(weights, tmp_path / "pytorch_lora_weights.safetensors")
    config, factors = read_adapter(tmp_path)
    assert (factors["m"].scale, config.rank, config.alpha) == (0.375 / 2, 2, 0.375)


def test_alphas_of_some_modules_only_are_refused(tmp_path):
    write_diffusers(tmp_path, FACTORS)
    path = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({**load_file(path), "transformer.block.0.to_q.alpha": torch.tensor(2.0)}, path)
    with pytest.raises(ArtifactError, match=r"block.0.to_k has no alpha, other modules have: scale unknown"):
        read_adapter(tmp_path)
