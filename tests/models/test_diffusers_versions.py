"""Pushed weights of mixed ranks, as every supported minor version of diffusers reads them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers.utils import peft_utils
from safetensors.torch import load_file, safe_open
from support import dense
from support.families import FAMILIES

from flowopd_cli.core.merging import LoraFactors
from flowopd_cli.models.adapter_files import read_adapter, write_diffusers

VERSIONS = ("0.36", "0.37", "0.38", "0.39", "0.40", "0.41", "0.42")
WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request):
    return FAMILIES[request.param].assemble(0)


@pytest.fixture(scope="module")
def factors(pipeline):
    """Factors of four ranks and two scales on every linear module; the outermost projection has its own rank."""
    generator, factors = torch.Generator().manual_seed(1), {}
    for index, (name, module) in enumerate(dense.linear_modules(pipeline.transformer).items()):
        rank, (outputs, inputs) = 2 if name == "proj_out" else (4, 8, 4, 3)[index % 4], module.weight.shape
        a, b = (0.2 * torch.randn(s, generator=generator) for s in ((rank, inputs), (outputs, rank)))
        factors[name] = LoraFactors(a, b, 2.0 if index % 3 else 0.5)
    return factors


@pytest.fixture(scope="module")
def expected(pipeline, factors):
    return dense.dense_output(pipeline.transformer, {name: pair.delta() for name, pair in factors.items()})


def without_alphas(real):
    """The rule of diffusers before 0.40 for files without metadata: the first module's alpha for all."""

    def rule(*arguments, **options):
        return {**real(*arguments, **options), "lora_alpha": next(iter(arguments[0].values())), "alpha_pattern": {}}

    return rule


@pytest.mark.parametrize("older", [False, True], ids=["installed", "before 0.40"])
def test_mixed_ranks_have_their_own_scale(pipeline, factors, expected, older, tmp_path, monkeypatch):
    write_diffusers(tmp_path, factors)
    if older:
        monkeypatch.setattr(peft_utils, "get_peft_kwargs", without_alphas(peft_utils.get_peft_kwargs))
    pipeline.load_lora_weights(tmp_path)
    try:
        torch.testing.assert_close(dense.output(pipeline.transformer), expected, atol=2e-6, rtol=0)
    finally:
        pipeline.unload_lora_weights()


def test_the_header_is_diffusers_metadata_and_is_read_back(factors, tmp_path):
    write_diffusers(tmp_path, factors)
    with safe_open(tmp_path / WEIGHTS, framework="pt") as file:
        metadata = json.loads(file.metadata()["lora_adapter_metadata"])
    assert all(key.startswith("transformer.") for key in metadata)
    for name, pair in factors.items():
        for key, pattern in (("transformer.r", "rank_pattern"), ("transformer.lora_alpha", "alpha_pattern")):
            assert metadata[f"transformer.{pattern}"].get(f"^{name}", metadata[key]) == pair.a.shape[0]
    first = (tmp_path / WEIGHTS).read_bytes()
    for name, pair in read_adapter(tmp_path)[1].items():
        assert pair.scale == 1.0
        torch.testing.assert_close(pair.delta(), factors[name].delta(), atol=1e-6, rtol=1e-6)
    write_diffusers(tmp_path, factors)
    assert (tmp_path / WEIGHTS).read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_each_minor_version_reads_the_same(pipeline, factors, expected, version, tmp_path):
    """Needs ``pip install --no-deps --target $DIFFUSERS_VERSIONS/0.36 diffusers==0.36.*``, and so on."""
    place = Path(os.environ.get("DIFFUSERS_VERSIONS", tmp_path / "none")) / version
    if not place.is_dir():
        pytest.skip(f"no diffusers {version} in $DIFFUSERS_VERSIONS")
    if version == "0.36" and "Klein" in type(pipeline).__name__:
        pytest.skip("diffusers 0.36 has no FLUX.2-klein")
    write_diffusers(tmp_path / "adapter", factors)
    folder = tmp_path / ("flux" if "Flux" in type(pipeline).__name__ else "sd3")
    pipeline.save_pretrained(folder)
    target = tmp_path / "output.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(place)}
    command = [sys.executable, dense.__file__, str(folder), str(tmp_path / "adapter"), str(target)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    torch.testing.assert_close(load_file(target)["output"], expected, atol=2e-6, rtol=0)
