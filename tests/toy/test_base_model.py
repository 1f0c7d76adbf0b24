"""The embedded base: a folder that diffusers itself loads, small enough for the wheel, mediocre on purpose."""

import json

import pytest
import torch

from flowopd_cli.toy import folder


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusion3Pipeline

    loaded = StableDiffusion3Pipeline.from_pretrained(folder(), text_encoder_3=None, tokenizer_3=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded.to(torch.float32)


def test_it_is_safetensors_and_at_most_ten_megabytes():
    files = [path for path in folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_plain_diffusers_draws_with_it(pipeline):
    generator = torch.Generator().manual_seed(0)
    drawn = pipeline(
        "a photo of a red circle",
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=1,
        generator=generator,
        output_type="pt",
    ).images
    assert drawn.shape == (1, 3, 32, 32)
    assert float(drawn.std()) > 0


def test_text_is_short(pipeline):
    assert pipeline.tokenizer.model_max_length <= 16
    tokens = pipeline.tokenizer('a stamp that says "XKB"').input_ids
    assert len(tokens) <= pipeline.tokenizer.model_max_length


def test_the_losses_of_its_training_are_kept(pytestconfig):
    log = pytestconfig.rootpath / "docs" / "toy_losses.jsonl"
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows if row["phase"] == "flow"]
    assert sum(losses[-10:]) < sum(losses[:10]) / 2
