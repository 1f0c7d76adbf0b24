"""Encoding ahead, loading a base, and scoring in the background."""

import threading

import pytest
import torch
from support.tiny import TEXTS

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import ArtifactError, RewardError
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.stages.training import model as _model
from flowopd_cli.stages.training.data import in_background


def prompts(count):
    return {"a": [Prompt(str(i), f"{TEXTS[i % len(TEXTS)]} {i}", "a") for i in range(count)]}


@pytest.mark.parametrize(("rank", "world", "first"), [("0", "1", 0), ("0", "2", 0), ("1", "2", 5), ("2", "3", 6)])
def test_every_process_encodes_a_different_part_first(monkeypatch, rank, world, first):
    class Model:
        def encode_ahead(self, texts):
            self.texts = texts

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    _model.encode_ahead(model := Model(), [*prompts(10)["a"], *prompts(3)["a"]])
    texts = [prompt.text for prompt in prompts(10)["a"]]
    assert model.texts == texts[first:] + texts[:first]


@pytest.mark.parametrize("cached", [True, False])
def test_embeddings_are_cached_if_the_recipe_says_so(pipeline_folder, tmp_path, monkeypatch, cached):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path))
    spec = ModelSpec(
        pretrained=str(pipeline_folder), device="cpu", max_sequence_length=4, resolution=None, cache_prompts=cached
    )
    _model.encode_ahead(_model.load_model(spec, ()), prompts(3)["a"])
    assert len(list((tmp_path / "embeddings").glob("*/*.safetensors"))) == cached


def test_a_base_is_refused_at_a_resolution_that_it_has_no_latents_for(pipeline_folder):
    spec = ModelSpec(pretrained=str(pipeline_folder), device="cpu", max_sequence_length=4, resolution=64)
    with pytest.raises(ArtifactError, match="positions for at most 16 pixels"):
        _model.load_model(spec, ())


def test_pictures_are_scored_by_one_thread_in_order_and_an_error_ends_it():
    threads, calls = set(), []

    def score(images, prompts):
        threads.add(threading.get_ident())
        calls.append([prompt.id for prompt in prompts])
        assert not torch.is_grad_enabled()
        if calls[-1] == ["9"]:
            raise RewardError("reward slow: is broken")
        total = images[:, 0, 0, 0]
        return RewardResult(total, {"value": total}, torch.ones(len(total), dtype=torch.bool))

    batches = [(torch.full((1, 3, 2, 2), float(i)), prompts(10)["a"][i : i + 1]) for i in range(10)]
    scoring = in_background(score)
    for batch in batches[:6]:
        scoring.submit(batch)
    assert RewardResult.cat(scoring.results()).total.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    broken = in_background(score)
    broken.submit(batches[9])
    with pytest.raises(RewardError, match=r"^reward slow: is broken$"):
        broken.results()
