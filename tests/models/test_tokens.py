"""Texts that are longer than the encoders read: by their embeddings, and by counts known in closed form."""

import json
import time

import pytest
import torch
from support.families import FAMILIES
from support.tiny import assemble_flux
from transformers import CLIPTokenizer

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.tokens import Excess, truncated


def encoded(tiny, pipeline, text):
    """All that the pipeline's encoders make of a text."""
    embeds = tiny.embeddings(pipeline, [text], tiny.options["max_sequence_length"])
    return torch.cat([part[0].flatten() for part in embeds.values()])


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_text_is_truncated_if_no_encoder_sees_its_last_letter(family, tmp_path):
    tiny = FAMILIES[family]
    tiny.assemble(0).save_pretrained(tmp_path)
    model, plain, letters = tiny.load(tmp_path), tiny.plain(tmp_path), tiny.letters
    texts = ["a" * count for count in (1, 4, 5, letters - 1, letters, letters + 1, letters + 2, 3 * letters)]
    excess, unread = model.truncated(texts), []
    for text in texts:
        same = torch.equal(encoded(tiny, plain, text), encoded(tiny, plain, f"{text[:-1]}b"))
        unread += [text] if same else []
    assert list(excess) == unread == texts[5:]
    tokens, limit = excess[texts[6]]
    assert tokens == limit + 2


@pytest.fixture
def folder(tmp_path):
    """The tokenizers of an SD3 pipeline: CLIP's for 77 tokens, T5's with a token a letter, no weights."""
    letters = list("abcdefghijklmnopqrstuvwxyz")
    vocab = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={token: i for i, token in enumerate(vocab)}, merges=[], model_max_length=77)
    pipeline = assemble_flux(0)
    for name in ("tokenizer", "tokenizer_2"):
        clip.save_pretrained(tmp_path / name)
    pipeline.tokenizer_2.save_pretrained(tmp_path / "tokenizer_3")
    index = {f"tokenizer{suffix}": ["transformers", "CLIPTokenizer"] for suffix in ("", "_2")}
    index |= {f"text_encoder{suffix}": ["transformers", "CLIPTextModelWithProjection"] for suffix in ("", "_2")}
    index |= {"tokenizer_3": ["transformers", "T5TokenizerFast"], "text_encoder_3": ["transformers", "T5EncoderModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return tmp_path


def test_a_text_that_one_encoder_reads_whole_is_not_truncated(folder):
    # n letters are n + 2 tokens for both: two marks around CLIP's, a blank before and a mark after T5's.
    texts = {n: "a" * n for n in (75, 76, 126, 127)}
    assert truncated(folder, lambda _: 128, texts.values()) == {texts[127]: Excess(129, 128)}
    assert truncated(folder, lambda _: 20, texts.values()) == {texts[n]: Excess(n + 2, 77) for n in (76, 126, 127)}


def rewrite_index(folder, change):
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    (folder / "model_index.json").write_text(json.dumps(change(index)), encoding="utf-8")


@pytest.mark.parametrize("missing", ["tokenizer_3", "text_encoder_3"])
def test_only_encoders_that_the_base_has_are_counted(folder, missing):
    rewrite_index(folder, lambda index: index | {missing: [None, None]})
    assert truncated(folder, lambda _: 512, ["a" * 100]) == {"a" * 100: Excess(102, 77)}


def test_a_tokenizer_that_the_index_leaves_out_is_not_asked(folder):
    rewrite_index(folder, lambda index: {name: kind for name, kind in index.items() if name != "tokenizer_3"})
    assert truncated(folder, lambda _: 512, ["a" * 100]) == {"a" * 100: Excess(102, 77)}


def test_a_tokenizer_of_an_unknown_class_is_read_by_its_files(folder):
    rewrite_index(folder, lambda index: index | {"tokenizer_3": ["transformers", "T5TokenizerOfTheFuture"]})
    assert truncated(folder, lambda _: 128, ["a" * 127]) == {"a" * 127: Excess(129, 128)}


def test_a_tokenizer_without_its_vocabulary_is_refused(folder):
    (folder / "tokenizer_3" / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="tokenizer_3: no vocabulary in it"):
        truncated(folder, lambda _: 128, ["a"])


def test_a_damaged_tokenizer_is_named(folder):
    (folder / "tokenizer_3" / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(ArtifactError, match="tokenizer_3: cannot be loaded as T5Tokenizer"):
        truncated(folder, lambda _: 128, ["a"])


def test_fifty_thousand_prompts_take_seconds(folder):
    texts = [f"a photo of {number} heads of broccoli to the left of a potted plant" for number in range(50_000)]
    start = time.process_time()
    assert truncated(folder, lambda _: 128, texts) == {}
    assert time.process_time() - start < 3
