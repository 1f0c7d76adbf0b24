"""Adapter folders with hostile headers, hostile configurations and damaged bytes; what is sound is merged."""

import json
import math
import struct

import torch
from hypothesis import given
from hypothesis import strategies as st
from support.fuzzing import TEXTS, as_json, both, edited, folder, guarded, mutated
from support.tiny_adapters import MODULE, TOY_SHA, WIDTH, pair, safetensors

from flowopd_cli.cli.plan.adapters import check_adapters
from flowopd_cli.core.merging import LoraFactors, MergeOptions, merge
from flowopd_cli.models.adapter_files import read_adapter, write_adapter, write_diffusers
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters, recorded_base

CONFIG = {
    **{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_dora": False, "use_rslora": False},
    **{"target_modules": ["attn.to_q"], "rank_pattern": {}, "alpha_pattern": {"to_q": 2.0}, "modules_to_save": None},
    **{"base_model_name_or_path": "toy", "base_sha256": TOY_SHA},
}
NUMBERS = struct.pack(f"<{4 * WIDTH}f", *(math.sin(i) for i in range(4 * WIDTH)))
TENSORS = {name: ("F32", shape, NUMBERS) for name, shape in pair().items()}
WEIGHTS = safetensors(TENSORS, {"base_sha256": TOY_SHA, "format": "pt"})
LENGTH = int.from_bytes(WEIGHTS[:8], "little")
HEADER = json.loads(WEIGHTS[8 : 8 + LENGTH])
NAMES = st.one_of(
    TEXTS,
    st.builds(
        lambda prefix, module, side: f"{prefix}{module}.lora_{side}.weight",
        st.sampled_from(["", "base_model.model.", "transformer."]),
        st.one_of(TEXTS, st.just(MODULE)),
        st.sampled_from(["A", "B", "A.default", "C", ""]),
    ),
)


def whole(header, data=NUMBERS * 2):
    text = as_json(header)
    return len(text).to_bytes(8, "little") + text + data


def adapter(config, weights, name="adapter_model.safetensors"):
    with folder() as box:
        path = box / "a"
        path.mkdir()
        if config is not None:
            (path / "adapter_config.json").write_bytes(config)
        (path / name).write_bytes(weights)
        with guarded(box):
            read, factors = read_adapter(path)
            assert all(
                p.a.isfinite().all() and p.b.isfinite().all() and math.isfinite(p.scale) for p in factors.values()
            )
            write_adapter(box / "again", factors, read)
            assert read_adapter(box / "again")[1].keys() == factors.keys()
            write_diffusers(box / "plain", factors)
            read_adapter(box / "plain")
        toy = ModelSpec(pretrained="toy", resolution=None)
        with guarded(box):
            check_adapters(toy, {"adapter": str(path)}, Adapters())
        with guarded(box):
            reference = AdapterRef.parse(str(path))
            reference.shape()
            reference.resolve().parent("init")
            recorded_base(path)


BYTES = edited(WEIGHTS)
CONFIGS = st.one_of(edited(json.dumps(CONFIG).encode()), mutated(CONFIG).map(as_json))
HEADERS = st.one_of(
    mutated(HEADER),
    st.dictionaries(NAMES, st.sampled_from(list(HEADER.values())[1:]), min_size=1, max_size=4),
).map(whole)
PLAIN = "pytorch_lora_weights.safetensors"


def weights_of_an_adapter(weights):
    adapter(as_json(CONFIG), weights)


def config_of_an_adapter(config):
    adapter(config, WEIGHTS)


def weights_in_plain_form(weights):
    adapter(None, weights, PLAIN)


WEIGHT_FILES = st.one_of(BYTES, HEADERS)
test_weights, test_weights_at_length = both(given(weights=WEIGHT_FILES), weights_of_an_adapter, 15, 1800)
test_config, test_config_at_length = both(given(config=CONFIGS), config_of_an_adapter, 15, 1200)
test_plain_form, test_plain_form_at_length = both(given(weights=HEADERS), weights_in_plain_form, 10, 400)


def reference(text):
    with folder() as box, guarded(box):
        found = AdapterRef.parse(text)
        found.shape()
        if found.kind != "hub":
            _ = found.resolve().base


REFERENCES = st.one_of(TEXTS, st.text(max_size=30), st.text(max_size=30).map("hub:{}".format))
test_reference, test_reference_at_length = both(given(text=REFERENCES), reference, 10, 400)


SCALES = st.sampled_from([1.0, -2.0, 0.0, 1e-30, 1e30, 3e38])
WEIGHT = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, 1.0, -1.0, 1e-300, 1e300]))


@st.composite
def factors(draw):
    rank, rows, columns = (draw(st.integers(1, 4)) for _ in range(3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
    return LoraFactors(a * draw(SCALES), b * draw(SCALES), draw(st.sampled_from([1.0, 0.5, -1.0, 1e9])))


EQUAL = st.lists(st.dictionaries(st.just("m"), factors(), min_size=1), min_size=2, max_size=2)
INPUTS = st.one_of(EQUAL, st.lists(st.dictionaries(st.sampled_from(["m", "n"]), factors(), max_size=2), max_size=3))
OPTIONS = st.builds(
    MergeOptions,
    method=st.sampled_from(["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"]),
    rank=st.one_of(st.none(), st.integers(1, 9)),
    density=st.sampled_from([1e-9, 0.3, 0.5, 1.0]),
    normalize=st.sampled_from([None, True, False]),
)


def merging(adapters, weights, options):
    with folder() as box, guarded(box):
        result = merge(adapters, weights, options)
        for pair in result.factors.values():
            assert pair.a.isfinite().all()
            assert pair.b.isfinite().all()
        assert isinstance(result.report.relative_error, float)


MERGES = given(adapters=INPUTS, weights=st.lists(WEIGHT, min_size=1, max_size=3), options=OPTIONS)
test_merging, test_merging_at_length = both(MERGES, merging, 10, 1200)


def test_the_adapter_that_is_damaged_here_is_sound(tmp_path):
    (tmp_path / "adapter_config.json").write_bytes(as_json(CONFIG))
    (tmp_path / "adapter_model.safetensors").write_bytes(WEIGHTS)
    config, found = read_adapter(tmp_path)
    assert (config.rank, found[MODULE].scale) == (4, 0.5)
    check_adapters(ModelSpec(pretrained="toy", resolution=None), {"adapter": str(tmp_path)}, Adapters())
