"""mmdet's checkpoint in transformers: every tensor in its place, equal outputs, everything else refused."""

import os
import re
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.mmdet_reference import TINY, Mask2Former, mmcv1, random_reference

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.geneval import mmdet_weights as weights
from flowopd_cli.rewards.geneval.mmdet_keys import Architecture, convert, modern
from flowopd_cli.rewards.geneval.mmdet_weights import build, fill, load_network, read_checkpoint

QKV = "backbone.stages.1.blocks.1.attn.w_msa.qkv.weight"


@pytest.fixture(scope="module")
def reference():
    return random_reference(TINY)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(reference, tmp_path):
    """A checkpoint as mmdet 2 publishes it: the legacy file format, with a log beside the tensors."""
    path = tmp_path / "tiny.pth"
    log = {"CLASSES": ("person",), "epoch": 3, "best": np.float64(0.461), "when": np.arange(2)}
    state = mmcv1(reference.state_dict())
    torch.save({"meta": log, "state_dict": state}, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("names", [dict, mmcv1], ids=["mmdet3", "mmdet2"])
def test_both_networks_compute_the_same(reference, names):
    torch.set_default_dtype(torch.float64)
    try:
        module = build(TINY).eval()
        fill(module, convert(names(reference.double().state_dict())), "tiny")
        pixels = torch.randn(2, 3, 64, 96)
        with torch.no_grad():
            expected, actual = reference(pixels), module(pixels)
    finally:
        torch.set_default_dtype(torch.float32)
        reference.float()
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
        assert one.std() > 0.1


def test_every_tensor_of_the_real_network_has_one_source():
    """The full size, by names and shapes alone: mmdet's tensors fill every place, and no place twice."""
    with torch.device("meta"):
        state, module = mmcv1(Mask2Former(Architecture()).state_dict()), build(Architecture())
    converted = convert(state)
    expected = {modern(name): t.shape for name, t in module.state_dict().items()}
    unused = ("swin.layernorm", "position_index")
    expected = {name: shape for name, shape in expected.items() if not any(word in name for word in unused)}
    assert {name: t.shape for name, t in converted.items()} == expected
    assert sum(t.numel() for t in converted.values()) == pytest.approx(68.7e6, rel=0.01)


def test_earlier_releases_of_transformers_are_understood():
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.1"
    now = "model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.1"
    renamed = {
        "attention.self.query.weight": "attention.q_proj.weight",
        "attention.self.relative_position_bias_table": "attention.relative_position_bias.relative_position_bias_table",
        "attention.output.dense.bias": "attention.o_proj.bias",
        "intermediate.dense.weight": "mlp.fc1.weight",
        "output.dense.weight": "mlp.fc2.weight",
    }
    assert {modern(f"{block}.{old}") for old in renamed} == {f"{now}.{new}" for new in renamed.values()}
    assert modern(f"{now}.mlp.fc1.weight") == f"{now}.mlp.fc1.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("panoptic_head.query_feat.weight", None, "missing (first model.transformer_module.queries_features"),
        (QKV, None, "3 missing (first model.pixel_level_module.encoder.swin.encoder.layers.1.blocks.1"),
        ("roi_head.bias", torch.zeros(2), "1 unexpected (first roi_head.bias)"),
        ("panoptic_head.cls_embed.bias", torch.zeros(134), "another shape (first class_predictor"),
        ("backbone.stages.0.downsample.norm.bias", torch.zeros(30), "downsample.norm.bias"),
    ],
)
def test_a_missing_unexpected_or_misshaped_tensor_is_named(reference, tmp_path, cache, name, tensor, words):
    state = {**reference.state_dict(), name: tensor}
    torch.save({"state_dict": {name: t for name, t in state.items() if t is not None}}, tmp_path / "odd.pth")
    with pytest.raises(ArtifactError) as error:
        load_network(str(tmp_path / "odd.pth"), architecture=TINY)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(cache.rglob("*.safetensors")), "nothing is cached"


def same_parameters(one, other):
    pairs = zip(one.module.parameters(), other.module.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_a_checkpoint_is_converted_once(checkpoint, cache, monkeypatch):
    first = load_network(str(checkpoint), architecture=TINY)
    assert [path.suffix for path in (cache / "converted").iterdir()] == [".safetensors"]
    monkeypatch.setattr(weights, "read_checkpoint", lambda path: pytest.fail("read again"))
    second = load_network(str(checkpoint), architecture=TINY)
    assert first.name == second.name
    assert re.fullmatch(r"mmdet-mask2former-[0-9a-f]{8}", first.name)
    assert not first.official
    assert same_parameters(first, second)


def test_an_unwritable_cache_and_tensors_as_safetensors_are_no_obstacle(reference, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "file"))
    save_file(dict(reference.state_dict()), tmp_path / "tiny.safetensors")
    one, other = (load_network(str(p), architecture=TINY) for p in (tmp_path / "tiny.safetensors", checkpoint))
    assert same_parameters(one, other)


def test_objects_in_the_log_of_a_checkpoint_are_not_created(tmp_path, monkeypatch):
    """Objects of mmengine in a checkpoint do not need mmengine, and their code does not run."""
    module, calls = types.ModuleType("mmengine"), []

    class History:
        def __reduce__(self):
            return History, (1,)

        def __init__(self, *arguments):
            calls.extend(arguments)

    History.__module__, History.__qualname__ = "mmengine", "History"
    module.History = History
    monkeypatch.setitem(sys.modules, "mmengine", module)
    torch.save({"message_hub": History(), "state_dict": {"a": torch.ones(2)}}, tmp_path / "log.pth")
    calls.clear()
    monkeypatch.delitem(sys.modules, "mmengine")
    assert list(read_checkpoint(tmp_path / "log.pth")) == ["a"]
    assert calls == []


def test_any_other_code_is_refused(tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "meta": os.getenv}, tmp_path / "code.pth")
    with pytest.raises(ArtifactError, match="getenv"):
        read_checkpoint(tmp_path / "code.pth")


def test_a_file_that_is_not_a_checkpoint_is_one_line(tmp_path):
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    for path in (tmp_path / "text.pth", tmp_path / "none.pth"):
        with pytest.raises(ArtifactError, match=path.name) as error:
            load_network(str(path), architecture=TINY)
        assert "\n" not in str(error.value)


def test_the_second_release_is_tried_when_the_first_is_refused(monkeypatch, tmp_path):
    def download(url, *, sha256):
        assert url.endswith(f"-{sha256}.pth")
        if sha256 in missing:
            raise ArtifactError(f"no {sha256}")
        return tmp_path / sha256

    monkeypatch.setattr(weights, "download", download)
    missing = {"c9d0c4f2"}
    assert weights.fetch() == tmp_path / "743b7d99"
    missing.add("743b7d99")
    with pytest.raises(ArtifactError, match="no c9d0c4f2; no 743b7d99"):
        weights.fetch()


@pytest.fixture
def folder(checkpoint, tmp_path):
    load_network(str(checkpoint), architecture=TINY).module.save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("remove", "add", "words"),
    [("swin.layernorm", "criterion.empty_weight", None), ("class_predictor.bias", None, "1 missing (first class_pred")],
)
def test_a_folder_may_differ_only_in_unused_tensors(folder, remove, add, words):
    file = folder / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(file).items() if remove not in name}
    save_file({**tensors, **({add: torch.ones(81)} if add else {})}, file, metadata={"format": "pt"})
    if words is None:
        network = load_network(str(folder))
        assert (network.name, network.official) == ("transformers-mask2former:hf", False)
        return
    with pytest.raises(ArtifactError) as error:
        load_network(str(folder))
    assert words in str(error.value)


def test_a_folder_with_other_classes_is_refused(checkpoint, tmp_path):
    module = load_network(str(checkpoint), architecture=TINY).module
    module.config.num_labels = 133
    module.class_predictor = torch.nn.Linear(32, 134)
    module.save_pretrained(tmp_path / "panoptic")
    with pytest.raises(ArtifactError, match="133 classes"):
        load_network(str(tmp_path / "panoptic"))
