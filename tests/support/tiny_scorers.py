"""Tiny, random models of the scorers' own classes, saved where the real loading code will find them."""

import string

import numpy as np
import torch
from PIL import Image

LETTERS = string.ascii_lowercase + string.digits + string.punctuation
TOKENS = 16
SIDE = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (*SPECIAL, "a", "red", "blue", "cat", "dog", "on", "the", "left", "of", "photo")


def shaken(model, seed):
    """The model with every weight drawn wide, so that different inputs come out different."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.1) + ("norm" in name.lower()) * 1.0)
        if hasattr(model, "logit_scale"):
            model.logit_scale.fill_(2.0)
    return model.eval()


def clip_words(folder):
    """A CLIP tokenizer of single letters."""
    from transformers import CLIPTokenizer

    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    CLIPTokenizer(vocab=vocab, merges=[], model_max_length=TOKENS).save_pretrained(folder)
    return vocab


def clip_config(vocab, width=24):
    """A CLIP of two layers a tower, with widths that all differ."""
    from transformers import CLIPConfig

    ends = {"bos_token_id": vocab["<|startoftext|>"], "eos_token_id": vocab["<|endoftext|>"]}
    towers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "gelu", "projection_dim": width}
    text = {"hidden_size": 20, "intermediate_size": 36, "vocab_size": len(vocab), "max_position_embeddings": TOKENS}
    vision = {"hidden_size": 28, "intermediate_size": 44, "image_size": SIDE, "patch_size": 8}
    return CLIPConfig(
        text_config={**text, **towers, **ends, "pad_token_id": ends["eos_token_id"]},
        vision_config={**vision, **towers},
        projection_dim=width,
    )


def save_clip(folder, seed=0, width=24, weights=True):
    """A whole CLIP folder: model (or its configuration alone), tokenizer, picture processor. Returns the model."""
    from transformers import CLIPImageProcessorPil, CLIPModel

    vocab = clip_words(folder)
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    model = shaken(CLIPModel(clip_config(vocab, width)), seed)
    (model if weights else model.config).save_pretrained(folder)
    return model


def bert_words(folder):
    """A BERT tokenizer of a dozen words."""
    from transformers import BertTokenizer

    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, model_max_length=512).save_pretrained(folder)


def linear_head(width, seed=0):
    """The tensors of a stack of five linear layers, under the names of its file."""
    torch.manual_seed(seed)
    widths = [width, 12, 10, 8, 6, 1]
    shapes = zip((0, 2, 4, 6, 7), widths[1:], widths[:-1], strict=True)
    return {
        f"layers.{n}.{part}": torch.randn(shape) * 0.5
        for n, out, into in shapes
        for part, shape in (("weight", (out, into)), ("bias", (out,)))
    }


def pictures(count, height=40, width=56, seed=3):
    """Random pictures with coarse structure, in [0, 1] and not square."""
    torch.manual_seed(seed)
    coarse = torch.rand(count, 3, 5, 7)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")


def pil(image):
    """A tensor ``(3, H, W)`` in [0, 1] as a PIL image."""
    return Image.fromarray((image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


def clip_normalized(pixels):
    """RGB bytes ``(H, W, 3)`` as ``(3, H, W)``, normalized by CLIP's mean and deviation."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    return torch.tensor((pixels / 255 - mean) / std).permute(2, 0, 1).float()
