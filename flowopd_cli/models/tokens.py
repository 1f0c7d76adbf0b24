"""The texts that are longer than the text encoders of a base read, counted by the base's own tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import transformers

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.pipelines import check_tokenizers
from flowopd_cli.models.loading import load_part
from flowopd_cli.system.json_files import read_json

SPECIAL = 2  # tokens that a tokenizer adds to a text, at most


class Excess(NamedTuple):
    """The tokens of a text, and the lower number that is read."""

    tokens: int
    limit: int


def truncated(folder: Path, limit_of: Callable[[Any], int], texts: Iterable[str]) -> dict[str, Excess]:
    """The texts whose end no text encoder of a pipeline reads, by the count of the encoder that reads the most.

    CLIP reads its tokenizer's ``model_max_length``, any other encoder ``limit_of(tokenizer)`` tokens of a text.

    Raises :class:`ArtifactError`: a tokenizer is missing or damaged, or no encoder reads a token of any text.
    """
    check_tokenizers(folder)
    excess: dict[str, Excess] = {}
    rest = list(dict.fromkeys(texts))
    readers = sorted(_readers(folder, limit_of), key=lambda reader: -reader[1])
    if readers and all(limit <= tokenizer.num_special_tokens_to_add() for tokenizer, limit in readers):
        raise ArtifactError(f"{folder}: with this model.max_sequence_length no token of a prompt is read: raise it")
    for tokenizer, limit in readers:
        # An ASCII letter is one token at most, so most prompts need no tokenizer.
        rest = [text for text in rest if not (text.isascii() and len(text) + SPECIAL <= limit)]
        counts = map(len, tokenizer(rest, verbose=False).input_ids if rest else ())
        longer = {text: Excess(count, limit) for text, count in zip(rest, counts, strict=True) if count > limit}
        rest, excess = list(longer), {text: excess.get(text, value) for text, value in longer.items()}
    return excess


def _readers(folder: Path, limit_of: Callable[[Any], int]) -> Iterable[tuple[Any, int]]:
    """The tokenizer of each text encoder, and the tokens that the encoder reads."""
    index = read_json(folder / "model_index.json", "pipeline index")
    for name in filter(index.get, (f"text_encoder{suffix}" for suffix in ("", "_2", "_3"))):
        part = name.replace("text_encoder", "tokenizer")
        _, kind = index.get(part, (None, None))
        if index[name] != [None, None] and kind:
            tokenizer = load_part(getattr(transformers, kind, transformers.AutoTokenizer), folder, part)
            yield tokenizer, tokenizer.model_max_length if "CLIP" in kind else limit_of(tokenizer)
