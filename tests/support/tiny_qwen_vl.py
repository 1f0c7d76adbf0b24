"""A tiny, random Qwen2-VL in the folders and under the names that HPSv3 is published with."""

import hashlib
import zipfile
from dataclasses import replace

import torch
from safetensors.torch import save_file
from support.qwen_words import tokenizer
from support.tiny_scorers import shaken

from flowopd_cli.rewards.preference import hpsv3
from flowopd_cli.rewards.qwen_vl import PLACE

MARKS = ("<|vision_start|>", "<|vision_end|>", PLACE)
ASKED, END = "\nHow good?\n{text_prompt}\n\n", "\nRating: <|Reward|>\n\nEND\n"
INSTRUCTION = ASKED + END
WIDTH = 32
TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}
VISION = {"depth": 2, "embed_dim": 32, "hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 2}


def save_base(folder):
    """Configuration, tokenizer and picture processor; returns the configuration."""
    from transformers import Qwen2VLConfig, Qwen2VLImageProcessorPil

    words = tokenizer(*MARKS)
    words.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id")
    ids = {name: words.convert_tokens_to_ids(mark) for name, mark in zip(names, MARKS, strict=True)}
    config = Qwen2VLConfig(text_config={**TEXT, "vocab_size": 300}, vision_config=VISION, **ids)
    config.save_pretrained(folder)
    return config


def hpsv3_checkpoint(config, words=263, seed=0):
    """A random model, and its checkpoint under the published names, with a head."""
    from transformers import Qwen2VLModel

    config.text_config.vocab_size = words
    model = shaken(Qwen2VLModel(config), seed)
    tensors = {name.replace("language_model.", "model."): value for name, value in model.state_dict().items()}
    tensors["lm_head.weight"] = torch.zeros(words, WIDTH)
    for index, rows, columns in ((0, 1024, WIDTH), (3, 16, 1024), (5, 2, 16)):
        tensors[f"rm_head.{index}.weight"] = torch.randn(rows, columns) * columns**-0.5
        tensors[f"rm_head.{index}.bias"] = torch.randn(rows) * 0.1
    return model, tensors


def save_hpsv3(folder, seed=0):
    """The folder of a base with the checkpoint in it; returns the model and the checkpoint's tensors."""
    model, tensors = hpsv3_checkpoint(save_base(folder), seed=seed)
    save_file(tensors, folder / hpsv3.FILE)
    return model, tensors


def publish_instruction(monkeypatch, cache):
    """A wheel with a tiny instruction in the cache, in the place of the authors'."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(cache))
    (cache / "weights").mkdir(parents=True)
    path = cache / "weights" / hpsv3.WHEEL.url.rsplit("/", 1)[-1]
    with zipfile.ZipFile(path, "w") as wheel:
        lines = [f"INSTRUCTION = {ASKED!r}", "DEBUG = '{text_prompt}'", f"END = {END!r}", "raise SystemExit"]
        wheel.writestr(hpsv3.WHEEL.member, "\n".join(lines))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(hpsv3, "WHEEL", replace(hpsv3.WHEEL, sha256=digest))
