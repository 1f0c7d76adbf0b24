"""What the stages share, each piece by itself."""

import pytest
from tiny import TEXTS

from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.stages import _wiring as wiring


def prompts(count):
    return {"a": [Prompt(str(i), f"{TEXTS[i % len(TEXTS)]} {i}", "a") for i in range(count)]}


def test_every_text_is_encoded_ahead_in_batches_and_the_encoders_go(model, monkeypatch):
    asked, encode = [], model.encode
    monkeypatch.setattr(model, "encode", lambda texts: asked.append(list(texts)) or encode(texts))
    monkeypatch.setattr(wiring, "ENCODE_BATCH", 4)
    wiring.encode_ahead(model, {**prompts(10), "again": prompts(3)["a"]})
    assert [len(part) for part in asked] == [1, 4, 4, 1]
    assert set(model._cache) == {"", *(prompt.text for prompt in prompts(10)["a"])}
    assert model._encoders is None


def test_a_base_is_refused_at_a_resolution_that_it_has_no_latents_for(pipeline_folder):
    spec = ModelSpec(pretrained=str(pipeline_folder), device="cpu", max_sequence_length=4, resolution=64)
    with pytest.raises(ArtifactError, match="positions for at most 16 pixels"):
        wiring.load_model(spec, ())
