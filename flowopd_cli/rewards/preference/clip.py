"""CLIP as a pair of encoders: pictures and texts to unit vectors, through plain ``transformers``.

Used by CLIPScore, PickScore, HPSv2, the aesthetic head and GenEval's colors. Source: Radford et al. 2021,
arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.rewards.pictures import to_pil, to_tensor
from flowopd_cli.rewards.preference.scoring import centre_square, clip_normalized, warn_of_truncation
from flowopd_cli.rewards.weights import (
    COMMIT,
    pick_device,
    refuse_mismatch,
    refuse_unpinned,
    split_revision,
    weights_file,
)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PICKLE = "pytorch_model.bin"
Pictures = Sequence[Image.Image] | Float[Tensor, "B 3 H W"]


class ClipEncoder:
    """A CLIP model with its tokenizer and its picture processor, in evaluation mode and without gradients.

    Vectors are float32 on the CPU and have length 1. No matrix of pictures times texts is built.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, batch: int = 32) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer, self._processor, self._batch = tokenizer, processor, batch
        self.max_tokens = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    @classmethod
    def load(
        cls, source: str, *, processor: str | None = None, dtype: str = "float32", device: str = "auto", batch: int = 32
    ) -> ClipEncoder:
        """Read a ``CLIPModel`` from a local folder or a Hub id; ``processor`` is the source of tokenizer and picture
        processor when ``source`` has none. Either may be ``repository@revision``.

        Raises :class:`ArtifactError`: it is missing, not a CLIP model, or incomplete.
        """
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        options = {"dtype": as_dtype(dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = read(CLIPModel, source, **options)
        refuse_incomplete(source, info)
        tokenizer = read_tokenizer(CLIPTokenizer, processor or source, model.config.text_config.vocab_size)
        images = read(CLIPImageProcessorPil, processor or source)
        return cls(model.to(pick_device(device)), tokenizer, images, batch=batch)

    @property
    def scale(self) -> float:
        """The learned temperature, ``exp(logit_scale)``: what CLIP multiplies a cosine by."""
        return float(self._model.logit_scale.float().exp())

    @property
    def image_size(self) -> int:
        """Side of the picture encoder's input, in pixels."""
        return int(self._model.config.vision_config.image_size)

    def pixels(self, images: list[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """Pictures as the input of the picture encoder."""
        return self._processor(images, return_tensors="pt").pixel_values

    @torch.no_grad()
    def images(self, images: Pictures) -> Float[Tensor, "B D"]:
        """Unit vectors of B pictures: PIL, or a tensor ``(B, 3, H, W)`` in [0, 1]."""
        vectors = [torch.zeros(0, self._model.config.projection_dim)]
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            pixels = self.pixels(to_pil(part) if isinstance(part, Tensor) else list(part))
            output = self._model.get_image_features(pixel_values=pixels.to(self._model.device, self._model.dtype))
            vectors.append(F.normalize(output.pooler_output.float(), dim=-1).cpu())
        return torch.cat(vectors)

    def check(self, name: str, texts: Sequence[str]) -> None:
        """Warn of texts that are too long for the scorer ``name``."""
        warn_of_truncation(name, self._tokenizer, self.max_tokens, texts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Unit vectors of B texts. A text that is too long loses its tail, never its end-of-text token."""
        vectors = [torch.zeros(0, self._model.config.projection_dim)]
        for start in range(0, len(texts), self._batch):
            part = list(texts[start : start + self._batch])
            options = {"truncation": True, "max_length": self.max_tokens, "return_tensors": "pt"}
            tokens = self._tokenizer(part, padding=True, padding_side="right", **options).to(self._model.device)
            output = self._model.get_text_features(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
            vectors.append(F.normalize(output.pooler_output.float(), dim=-1).cpu())
        return torch.cat(vectors)

    def cosines(self, images: Pictures, texts: Sequence[str]) -> Float[Tensor, " B"]:
        """Cosine of each picture with its text. Equal texts, such as those of a group, are encoded once."""
        rows = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        return paired_cosine(self.images(images), self.texts(list(rows))[[rows[text] for text in texts]])


class OpenAIClip(ClipEncoder):
    """A CLIP with the preprocessing of OpenAI's ``clip``; its crop can be a pixel from that of ``transformers``."""

    def pixels(self, images: list[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """The centre squares, side S."""
        return clip_normalized(to_tensor([centre_square(image, self.image_size) for image in images]))


def paired_cosine(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Cosine of each row of ``a`` with the same row of ``b``; rows have length 1. Nothing is broadcast."""
    if a.shape != b.shape:
        raise ValueError(f"cosines are of pairs: {tuple(a.shape)} against {tuple(b.shape)}")
    return (a * b).sum(dim=-1)


def as_dtype(name: str) -> torch.dtype:
    """A dtype by its name; ``ArtifactError`` for one that is not a weight dtype."""
    if name not in DTYPES:
        raise ArtifactError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def read(kind: Any, source: str, **options: Any) -> Any:
    """``kind.from_pretrained`` of a local folder or a Hub id (``repository@revision``), with one-line errors.

    Weights are safetensors. Only a repository at a pinned commit may have a pickle in their place, which is read with
    ``weights_only=True`` when its digest is the one that the Hub has for that commit.

    Raises :class:`ArtifactError`: no model of that kind can be read there.
    """
    from safetensors import SafetensorError

    source, revision = split_revision(source)
    if source.startswith(("/", ".", "~")) and not Path(source).is_dir():
        raise ArtifactError(f"{source}: no such folder")
    if revision is not None:
        options["revision"] = revision
    is_model = hasattr(kind, "base_model_prefix")
    attempts: list[dict[str, Any]] = [{"use_safetensors": True} if is_model else {}]
    if is_model and COMMIT.fullmatch(revision or ""):
        attempts.append({"use_safetensors": False, "weights_only": True})
    reason = ""
    for attempt in attempts:
        if "weights_only" in attempt and not _is_pickle(f"{source}@{revision}"):
            break
        try:
            return kind.from_pretrained(source, **attempt, **options)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            reason = one_line((str(error).strip() or type(error).__name__).splitlines()[0])
    raise ArtifactError(f"{source}: cannot read a {kind.__name__} there ({reason})")


def read_tokenizer(kind: Any, source: str, vocabulary: int) -> Any:
    """The tokenizer for a model with a vocabulary of this size.

    Raises :class:`ArtifactError`: it cannot be read, has more words than the model, or only special tokens (as
    ``transformers`` makes it of an empty folder).
    """
    tokenizer = read(kind, source)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ArtifactError(f"{source}: no tokenizer with a vocabulary there")
    if len(tokenizer) > vocabulary:
        raise ArtifactError(f"{source}: a tokenizer of {len(tokenizer)} words, more than the model's {vocabulary}")
    return tokenizer


def _is_pickle(source: str) -> bool:
    """Whether a repository has its weights as a pickle at this commit; one with another digest is refused."""
    try:
        path, digest = weights_file(source, PICKLE)
    except ArtifactError:
        return False
    refuse_unpinned(path, digest, f"{source}/{PICKLE}")
    return True


def refuse_incomplete(source: str, info: Mapping[str, Any]) -> None:
    """Raise ``ArtifactError`` where ``from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)``
    had to complete a model; ``transformers`` alone only warns.
    """
    shapes = sorted(str(item[0]) if isinstance(item, tuple) else str(item) for item in info["mismatched_keys"])
    refuse_mismatch(source, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), shapes)
