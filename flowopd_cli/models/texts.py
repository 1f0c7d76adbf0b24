"""The text half of a family over a diffusers pipeline: encodes prompts, stores their embeddings, counts tokens."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import torch
import transformers
from jinja2 import TemplateError
from torch import Tensor

from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.embeddings import EmbeddingStore, Row, store_folder
from flowopd_cli.models.files.pipelines import absent_parts, check_tokenizers, encoder_identity
from flowopd_cli.models.loading import LoadOptions, load_part
from flowopd_cli.models.tokens import Excess, truncated

ENCODE_BATCH = 16
MARK = "PROMPT"
Embed = Callable[[list[str]], Conditioning]


class PipelineTexts(ABC):
    """The text half; ``text_key`` names the width of a token's embedding in the transformer's configuration."""

    pipeline_name: ClassVar[str]
    text_key: ClassVar[str] = "joint_attention_dim"
    classifier_free: bool = True

    def __init__(
        self,
        folder: Path,
        transformer: Any,
        options: LoadOptions,
        device: torch.device,
        dtype: torch.dtype,
        embed: Embed | None,
    ) -> None:
        self.folder, self.transformer, self.device, self.dtype = folder, transformer, device, dtype
        self.max_sequence_length = options.max_sequence_length
        self._embed_instead = embed
        self._encoders: Any = None  # the pipeline's text half
        self.prompts = EmbeddingStore(options.prompt_cache and self._embeddings_folder(options.prompt_cache))

    @abstractmethod
    def _embed(self, texts: list[str]) -> Conditioning:
        """Encode texts by the family's encoders, each with the same number of tokens; no rows of the empty prompt."""

    @property
    def text_tokens(self) -> int:
        """Tokens of an encoded prompt."""
        return self.max_sequence_length

    def text_limit(self, tokenizer: Any) -> int:
        """Tokens of a prompt that an encoder other than CLIP reads, those that its tokenizer adds included."""
        return self.max_sequence_length

    def blank(self, tokens: int) -> Conditioning:
        """One prompt of so many tokens, all zero."""
        config = self.transformer.config
        pooled = config.get("pooled_projection_dim")
        options: Any = {"device": self.device, "dtype": self.dtype}
        return Conditioning(
            torch.zeros(1, tokens, config[self.text_key], **options),
            torch.zeros(1, pooled, **options) if pooled else None,
        )

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Rows of embeddings as the pipeline's own ``encode_prompt`` makes them, on the model's device."""
        distinct = self._distinct(texts)
        rows = self.prompts.find(distinct)
        unknown = [text for text in distinct if text not in rows]
        for start in range(0, len(unknown), ENCODE_BATCH):
            rows |= self._encoded(unknown[start : start + ENCODE_BATCH])
        self.prompts.flush()
        names = rows[texts[0]].parts
        columns = {name: torch.stack([rows[text].parts[name] for text in texts]) for name in names}
        if self.classifier_free:
            empty = rows[""].parts
            columns |= {f"neg_{name}": empty[name].expand_as(columns[name]) for name in names}
        return Conditioning(**{name: column.to(self.device) for name, column in columns.items()})

    def encode_ahead(self, texts: Iterable[str]) -> None:
        """Encode texts that are not in the cache, then release the encoders; without new texts they are not loaded.

        Texts that another process has encoded meanwhile are skipped.
        """
        new = self.prompts.unknown(self._distinct(texts))
        for start in range(0, len(new), ENCODE_BATCH):
            if part := self.prompts.unknown(new[start : start + ENCODE_BATCH]):
                self._encoded(part)
        self.prompts.flush()
        self.release_encoders()

    def truncated(self, texts: Sequence[str]) -> dict[str, Excess]:
        """The texts that are longer than every text encoder reads."""
        return {} if self._embed_instead else truncated(self.folder, self.text_limit, texts)

    def _distinct(self, texts: Iterable[str]) -> list[str]:
        """The distinct texts, and the empty one if guidance needs it."""
        return list(dict.fromkeys([*([""] if self.classifier_free else []), *texts]))

    @torch.no_grad()
    def _encoded(self, texts: Sequence[str]) -> dict[str, Row]:
        """Encode at most ``ENCODE_BATCH`` texts, padded to that many: a row must not depend on the batch."""
        encoded = (self._embed_instead or self._embed)([*texts, *[""] * (ENCODE_BATCH - len(texts))])
        columns = {name: part.to("cpu") for name, part in vars(self._converted(encoded)).items() if part is not None}
        rows = {text: Row(**{name: part[i].clone() for name, part in columns.items()}) for i, text in enumerate(texts)}
        self.prompts.add(rows)
        return rows

    def _converted(self, cond: Conditioning) -> Conditioning:
        """The embeddings in this model's precision; another model may have encoded them."""
        parts = {name: part for name, part in vars(cond).items() if part is not None and part.is_floating_point()}
        return replace(cond, **{name: part.to(self.dtype) for name, part in parts.items()})

    def share_prompts(self, other: object) -> bool:
        """Take prompts from another model's store if its encoders and lengths are equal; whether they are.

        They have that model's precision; a forward converts them.
        """
        if not isinstance(other, PipelineTexts):
            return False
        mine, others = (
            (model.pipeline_name, model.max_sequence_length, encoder_identity(model.folder)) for model in (self, other)
        )
        if mine == others:
            self.prompts = other.prompts
        return mine == others

    def release_encoders(self) -> None:
        """Release the text encoders; a new text loads them again."""
        self._encoders = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _pipeline(self) -> Any:
        """The pipeline's text half: encoders and tokenizers, with the transformer that is already loaded."""
        if self._encoders is None:
            check_tokenizers(self.folder)
            kind = getattr(diffusers, self.pipeline_name)  # its import takes seconds, and few runs need encoders
            parts = {"transformer": self.transformer, "vae": None, **absent_parts(self.folder)}
            self._encoders = load_part(kind, self.folder, dtype=self.dtype, **parts)
            for name, encoder in self._encoders.components.items():
                if name.startswith("text_encoder") and encoder is not None:
                    encoder.to(self.device).eval().requires_grad_(False)
        return self._encoders

    def _embeddings_folder(self, root: Path) -> Path:
        """A folder named by all that the embeddings depend on: pipeline, encoders, length, precision, versions."""
        versions = [diffusers.__version__, transformers.__version__]
        options = {"length": self.max_sequence_length, "dtype": str(self.dtype), "device": self.device.type}
        identity = {"pipeline": self.pipeline_name, **encoder_identity(self.folder), **options}
        return store_folder(root, identity | {"versions": versions})


def chat_prefix(tokenizer: Any) -> int:
    """Tokens that a tokenizer's chat template puts before the text of a user.

    Raises :class:`ArtifactError`: the tokenizer has no template, or a broken one.
    """
    try:
        message = [{"role": "user", "content": MARK}]
        text = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    except (ValueError, TemplateError) as error:
        raise ArtifactError(
            f"the tokenizer of this base has no working chat template ({one_line(error)[:200]})"
        ) from error
    return len(tokenizer(text.partition(MARK)[0]).input_ids)


def instructed(texts: Sequence[str], embeds: Tensor, mask: Tensor, empty: Tensor, empty_mask: Tensor) -> Conditioning:
    """Rows of a pipeline whose instruction precedes every prompt but the empty one.

    ``embeds (n, L, D)`` and ``mask (n, L)`` are those of texts behind the instruction, ``empty`` and ``empty_mask``
    those of the empty prompt without it.
    """
    blank = torch.tensor([not text for text in texts], device=embeds.device)[:, None]
    return Conditioning(torch.where(blank[..., None], empty, embeds), mask=torch.where(blank, empty_mask, mask).bool())


def padded(rows: Sequence[Tensor], tokens: int) -> Conditioning:
    """Embeddings ``(n, D)`` of different lengths as one tensor of ``tokens`` tokens a row, with their mask."""
    embeds = rows[0].new_zeros(len(rows), tokens, rows[0].shape[1])
    mask = torch.zeros(len(rows), tokens, dtype=torch.bool, device=embeds.device)
    for row, length in enumerate(map(len, rows)):
        embeds[row, :length] = rows[row]
        mask[row, :length] = True
    return Conditioning(embeds, mask=mask)
