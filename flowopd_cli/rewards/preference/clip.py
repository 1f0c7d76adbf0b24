"""CLIP as a pair of encoders: pictures and texts to unit vectors, through plain ``transformers``.

Shared by every score that compares a picture with words (CLIPScore, PickScore, HPSv2, the colors of GenEval) or reads
the picture's vector (the aesthetic head). Source: Radford et al. 2021, arXiv 2103.00020.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.weights import COMMIT, hub_file, pick_device, refuse_mismatch, refuse_unpinned

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SPECIAL_TOKENS = 3
PICKLE = "pytorch_model.bin"
Pictures = Sequence[Image.Image] | Float[Tensor, "B 3 H W"]


class ClipEncoder:
    """A CLIP model with its tokenizer and its picture processor, in evaluation mode and without gradients.

    Vectors are float32 on the CPU and have length 1. Nothing of the size of pictures times texts is ever made.
    """

    def __init__(self, model: Any, tokenizer: Any, processor: Any, *, batch: int = 32) -> None:
        self._model = model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._processor = processor
        self._batch = batch
        self.max_tokens = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    @classmethod
    def load(
        cls,
        source: str,
        *,
        processor: str | None = None,
        revision: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> ClipEncoder:
        """Read a ``CLIPModel`` from a local folder or a Hub id.

        ``processor`` names where tokenizer and picture processor come from when ``source`` has none of its own.
        Either may be ``repository@revision``; ``revision`` says the same of ``source``.

        Raises:
            ArtifactError: it is not there, not a CLIP model, or incomplete.
        """
        from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

        if revision is None:
            source, revision = split_revision(source)
        words, pinned = split_revision(processor) if processor else (source, revision)
        kind = as_dtype(dtype)
        model, info = read(
            CLIPModel, source, revision, dtype=kind, output_loading_info=True, ignore_mismatched_sizes=True
        )
        refuse_incomplete(source, info)
        tokenizer = read(CLIPTokenizer, words, pinned)
        if not SPECIAL_TOKENS < len(tokenizer) <= model.config.text_config.vocab_size:
            raise ArtifactError(f"{words}: its tokenizer ({len(tokenizer)} words) does not fit the model of {source}")
        pictures = read(CLIPImageProcessorPil, words, pinned)
        return cls(model.to(pick_device(device)), tokenizer, pictures, batch=batch)

    @property
    def scale(self) -> float:
        """The learned temperature, ``exp(logit_scale)``: what CLIP multiplies a cosine by."""
        return float(self._model.logit_scale.float().exp())

    @property
    def image_size(self) -> int:
        """Side of the square, in pixels, that the picture encoder looks at."""
        return int(self._model.config.vision_config.image_size)

    @torch.no_grad()
    def images(self, images: Pictures) -> Float[Tensor, "B D"]:
        """Unit vectors of B pictures: PIL, or a tensor ``(B, 3, H, W)`` in [0, 1]."""
        parts = []
        for start in range(0, len(images), self._batch):
            part = images[start : start + self._batch]
            pixels = self._processor(to_pil(part) if isinstance(part, Tensor) else list(part), return_tensors="pt")
            output = self._model.get_image_features(pixel_values=pixels.pixel_values.to(self._place, self._model.dtype))
            parts.append(_unit(output.pooler_output))
        return self._joined(parts)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Float[Tensor, "B D"]:
        """Unit vectors of B texts. A text that is too long loses its tail, never its end-of-text token."""
        parts = []
        for start in range(0, len(texts), self._batch):
            tokens = self._tokenizer(
                list(texts[start : start + self._batch]),
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=self.max_tokens,
                return_tensors="pt",
            )
            ids, mask = tokens.input_ids.to(self._place), tokens.attention_mask.to(self._place)
            parts.append(_unit(self._model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output))
        return self._joined(parts)

    @property
    def _place(self) -> torch.device:
        return self._model.logit_scale.device

    def _joined(self, parts: list[Tensor]) -> Float[Tensor, "B D"]:
        return torch.cat(parts) if parts else torch.zeros(0, self._model.config.projection_dim)


def paired_cosine(a: Float[Tensor, "B D"], b: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
    """Cosine of each row of ``a`` with the same row of ``b``; both have rows of length 1.

    Raises:
        ValueError: the shapes differ, which broadcasting would hide.
    """
    if a.shape != b.shape:
        raise ValueError(f"cosines are of pairs: {tuple(a.shape)} against {tuple(b.shape)}")
    return (a * b).sum(dim=-1)


def as_dtype(name: str) -> torch.dtype:
    """A dtype by its name.

    Raises:
        ArtifactError: it is none that weights are held in.
    """
    if name not in DTYPES:
        raise ArtifactError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
    return DTYPES[name]


def read(kind: Any, source: str, revision: str | None = None, **options: Any) -> Any:
    """``kind.from_pretrained`` of a local folder or a Hub id, its many errors turned into one line.

    Weights are safetensors. Only a repository at a pinned commit may have a pickle in their place, which is read with
    ``weights_only=True`` when its digest is the one that the Hub has for that commit.

    Raises:
        ArtifactError: nothing of that kind can be read there.
    """
    from safetensors import SafetensorError

    folder = Path(source).is_dir()
    if not folder and source.startswith(("/", ".", "~")):
        raise ArtifactError(f"{source}: no such folder")
    pinned = {} if revision is None or folder else {"revision": revision}
    ways = [{"use_safetensors": True}] if hasattr(kind, "base_model_prefix") else [{}]
    if pinned and ways[0] and COMMIT.fullmatch(str(revision)):
        ways.append({"use_safetensors": False, "weights_only": True})
    reason = ""
    for way in ways:
        if way.get("weights_only") and not _is_pickle(source, str(revision)):
            break
        try:
            return kind.from_pretrained(source, **pinned, **way, **options)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError, SafetensorError) as error:
            reason = one_line((str(error).strip() or type(error).__name__).splitlines()[0])
    raise ArtifactError(f"{source}: no {kind.__name__} can be read there ({reason})")


def _is_pickle(source: str, revision: str) -> bool:
    """Whether a repository has its weights as a pickle at this commit, and as the file that the Hub says.

    Raises:
        ArtifactError: it is another file.
    """
    try:
        found = hub_file(source, PICKLE, revision=revision)
    except ArtifactError:
        return False
    refuse_unpinned(found.path, found.sha256, f"{source}@{revision}/{PICKLE}")
    return True


def refuse_incomplete(source: str, info: Mapping[str, Any]) -> None:
    """Refuse a model that ``from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`` patched up.

    Raises:
        ArtifactError: weights are missing, surplus or of another shape; ``transformers`` alone would only warn.
    """
    shapes = sorted(str(item[0]) if isinstance(item, tuple) else str(item) for item in info["mismatched_keys"])
    refuse_mismatch(source, sorted(info["missing_keys"]), sorted(info["unexpected_keys"]), shapes)


def split_revision(name: str) -> tuple[str, str | None]:
    """``repository@revision`` in two; a folder, or a name without a revision, as it is."""
    if Path(name).exists() or "@" not in name:
        return name, None
    repo, _, revision = name.rpartition("@")
    return repo, revision


def _unit(vectors: Tensor) -> Float[Tensor, "B D"]:
    return torch.nn.functional.normalize(vectors.float(), dim=-1).cpu()
