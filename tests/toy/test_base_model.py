"""The embedded base: small, in safetensors, loaded by plain diffusers."""

import pytest
import torch

from flowopd_cli.toy import folder, prompts
from flowopd_cli.toy.pipeline import tokenizer


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusion3Pipeline

    pipe = StableDiffusion3Pipeline.from_pretrained(folder(), text_encoder_3=None, tokenizer_3=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(torch.float32)


def test_it_is_safetensors_and_at_most_ten_megabytes():
    files = [path for path in folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10e6
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_plain_diffusers_draws_with_it(pipeline):
    generator = torch.Generator().manual_seed(0)
    settings = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_sequence_length": 1, "output_type": "pt"}
    images = pipeline("a photo of a red circle", generator=generator, **settings).images
    assert images.shape == (1, 3, 32, 32)
    assert float(images.std()) > 0


def test_its_tokenizer_is_that_of_the_code(pipeline):
    words = tokenizer([p.text for split in prompts.SPLITS for p in prompts.geneval(split)] + [*prompts.SIGNS])
    texts = [p.text for p in prompts.everything("test")]
    assert words(texts).input_ids == pipeline.tokenizer(texts).input_ids
    assert max(map(len, words(texts).input_ids)) <= words.model_max_length == 14
