"""The toy's preference scorer, its stand-in for PickScore: one number from a picture and the text of its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizer

from flowopd_cli import toy
from flowopd_cli.rewards.weights import check_tensors, load_tensors
from flowopd_cli.toy.pipeline import TOKENS

WIDTH, HEADS, CELLS = 64, 4, 16


class Scorer(nn.Module):
    """Each word of a prompt looks at the 16 cells of a picture; the logit is a sum over words, plus one over cells."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.cells = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(32, WIDTH, 3, stride=2, padding=1),
        )
        self.words = nn.Embedding(vocabulary, WIDTH)
        self.cell_places = nn.Parameter(0.1 * torch.randn(CELLS, WIDTH))
        self.word_places = nn.Parameter(0.1 * torch.randn(TOKENS, WIDTH))
        self.picture_block, self.text_block = _block(), _block()
        self.query, self.key_value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.match = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))
        self.print = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 1))

    def forward(self, images: Float[Tensor, "b 3 32 32"], tokens: Int[Tensor, "b L"]) -> Float[Tensor, " b"]:
        """The logit of each picture in [0, 1] and the tokens of its prompt."""
        return self.compare(self.look(images), self.read(tokens))

    def look(self, images: Float[Tensor, "b 3 32 32"]) -> Float[Tensor, "b 16 W"]:
        """The state of each cell of a picture."""
        cells = self.cells(2 * images - 1).flatten(2).transpose(1, 2)
        return self.picture_block(cells + self.cell_places)

    def read(self, tokens: Int[Tensor, "b L"]) -> Float[Tensor, "b L W"]:
        """The state of each word of a prompt."""
        return self.text_block(self.words(tokens) + self.word_places)

    def compare(self, cells: Float[Tensor, "*#b 16 W"], words: Float[Tensor, "*#b L W"]) -> Float[Tensor, "*b"]:
        """The logits of pictures with prompts; the leading dimensions of both are broadcast."""
        query, key, value = map(_heads, (self.query(words), *self.key_value(cells).chunk(2, dim=-1)))
        attention = (query @ key.transpose(-1, -2) * key.shape[-1] ** -0.5).softmax(dim=-1)
        seen = (attention @ value).transpose(-2, -3).flatten(-2)
        return self.match(words * seen).sum(dim=(-1, -2)) + self.print(cells).mean(dim=-2)[..., 0]


def _block() -> nn.TransformerEncoderLayer:
    options: Any = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, **options)


def _heads(states: Float[Tensor, "*b L W"]) -> Float[Tensor, "*b heads L w"]:
    return states.unflatten(-1, (HEADS, -1)).transpose(-2, -3)


def tokenizer() -> CLIPTokenizer:
    """The tokenizer of the toy base."""
    return CLIPTokenizer.from_pretrained(toy.folder() / "tokenizer")


def tokenize(words: CLIPTokenizer, texts: Sequence[str]) -> Int[Tensor, "b L"]:
    """The tokens of each text, filled up or cut to 14."""
    return words(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids


def save(scorer: Scorer, folder: Path) -> None:
    """Write the scorer in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.half() for name, tensor in scorer.state_dict().items()}, folder / "model.safetensors")


def load(folder: str | Path) -> Scorer:
    """A saved scorer, in float32. Raises :class:`ArtifactError`: the file is not one."""
    tensors = load_tensors(Path(folder) / "model.safetensors")
    scorer = Scorer(len(tensors.get("words.weight", ())))
    check_tensors(str(folder), scorer.state_dict(), tensors)
    scorer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return scorer.eval().requires_grad_(False)
