# /// script
# requires-python = ">=3.10,<3.13"
# dependencies = [
#   "torch>=2.3,<2.7",
#   "transformers==4.36.1",
#   "tokenizers==0.15.2",
#   "huggingface-hub>=0.20,<0.27",
#   "accelerate==0.28.0",
#   "numpy==1.26.4",
#   "sentencepiece==0.2.0",
#   "protobuf>=4,<6",
#   "einops==0.8.0",
#   "icecream==2.1.3",
#   "pillow>=10,<12",
#   "pydantic>=2.8,<3",
#   "starlette>=1.0,<2",
#   "uvicorn>=0.34,<1",
# ]
# ///
"""DeQA-Score (You et al. 2025, arXiv 2501.11561) as a worker; start it with ``flowopd rewards serve deqa``.

The model's code comes with its weights and needs transformers 4.36.1. The score is the softmax over the words
excellent, good, fair, poor and bad at the position of the model's rating, dotted with 5, 4, 3, 2 and 1: a number in
[1, 5] that depends on the picture alone. ``total`` is the score divided by ``divide``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.protocol import Answer
from flowopd_cli.rewards.remote.server import run
from flowopd_cli.rewards.weights import path_digest, pick_device
from flowopd_cli.system.arguments import Options

MODEL = "zhiyuanyou/DeQA-Score-Mix3"
REVISION = "246e219b7e3bc9b5dff5269c1a8564087aefca3f"
PLACE = "<|image|>"
PROMPT = f"USER: How would you rate the quality of this image?\n{PLACE}\nASSISTANT: The quality of the image is"
PICTURE_TOKEN = -200
LEVELS = {"excellent": 5.0, "good": 4.0, "fair": 3.0, "poor": 2.0, "bad": 1.0}


class DeQA:
    """The scorer. ``model`` may be a local folder; ``batch`` pictures go through it at once.

    The model's code comes with its weights and is run. Choosing ``deqa`` is consent to the code of the pinned commit;
    that of any other model or revision runs only with ``trust_remote_code``.
    """

    def __init__(
        self,
        model: str = MODEL,
        revision: str | None = REVISION,
        device: str = "auto",
        dtype: str = "auto",
        batch: int = 8,
        divide: float = 5.0,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the model; ``RewardError`` if code other than the pinned commit's would run without consent."""
        from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPImageProcessor

        if (model, revision) != (MODEL, REVISION) and trust_remote_code is not True:
            name = f"{model} at {revision or 'no revision'}"
            raise RewardError(f"deqa: model {name} runs code of its own: if you trust it, say trust_remote_code=true")
        self.device = pick_device(device)
        kind = ("float16" if self.device.startswith("cuda") else "float32") if dtype == "auto" else dtype
        if model != MODEL and revision == REVISION:  # the default, which is a commit of another model
            revision = None
        pinned: dict[str, Any] = {"revision": revision} if revision else {}
        self.batch, self.divide, self.dtype = batch, divide, getattr(torch, kind)
        kinds: dict[str, Any] = {"attn_implementation": "eager", "torch_dtype": self.dtype, "low_cpu_mem_usage": True}
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, trust_remote_code=True, **kinds, **pinned)
        self.model.to(self.device).eval()
        self.processor = CLIPImageProcessor.from_pretrained(model, **pinned)
        self.color = tuple(int(value * 255) for value in self.processor.image_mean)
        tokenizer = AutoTokenizer.from_pretrained(model, use_fast=False, **pinned)
        self.levels = [tokenizer(word).input_ids[1] for word in LEVELS]  # behind the token that begins a text
        self.tokens = torch.tensor([prompt_tokens(tokenizer)], device=self.device)
        self.info: Mapping[str, Any] = describe(model, revision, kind, divide)

    def check(self, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Accept any prompt: the score does not depend on it."""

    def __call__(self, pictures: Sequence[Image.Image], prompts: Sequence[Mapping[str, Any]]) -> Answer:
        """Score pictures: ``score`` in [1, 5], and the five levels' probabilities as details."""
        rows: list[list[float]] = []
        for start in range(0, len(pictures), self.batch):
            part = [squared(picture, self.color) for picture in pictures[start : start + self.batch]]
            pixels = self.processor.preprocess(part, return_tensors="pt")["pixel_values"]
            rows += torch.softmax(self.logits(pixels).double().cpu(), dim=-1).tolist()
        scores = [sum(p * level for p, level in zip(row, LEVELS.values(), strict=True)) for row in rows]
        details = [dict(zip(LEVELS, (round(p, 6) for p in row), strict=True)) for row in rows]
        return Answer([s / self.divide for s in scores], {"score": scores}, [True] * len(scores), details)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits ``(B, 5)`` of the levels after the prompt."""
        with torch.inference_mode():
            tokens, images = self.tokens.repeat(len(pixels), 1), pixels.to(self.device, self.dtype)
            output = self.model(input_ids=tokens, images=images, use_cache=False, return_dict=True)
        return output.logits[:, -1, self.levels]


def squared(picture: Image.Image, color: tuple[int, ...]) -> Image.Image:
    """The picture in the middle of a square of that color."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), color)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def prompt_tokens(tokenizer: Any) -> list[int]:
    """The prompt's tokens: the texts before and after the picture, joined by its placeholder; one start token only."""
    before, after = (list(tokenizer(text).input_ids) for text in PROMPT.split(PLACE))
    if after[0] == tokenizer.bos_token_id:
        after = after[1:]
    return [*before, PICTURE_TOKEN, *after]


def describe(model: str, revision: str | None, dtype: str, divide: float) -> dict[str, Any]:
    """The worker's description; a local folder is given by the digest of its weights."""
    import transformers

    source = f"{model}@{revision}" if revision else model
    weights = path_digest(Path(model)) if Path(model).exists() else source
    return {
        "reward": "deqa",
        "package": f"transformers {transformers.__version__}, torch {torch.__version__}",
        "weights": {"model": weights},
        "options": {"dtype": dtype, "divide": divide},
        "paper": "arXiv 2501.11561",
        "low": 1 / divide,
        "high": 5 / divide,
        "license": "MIT code; LLaMA 2 terms for the weights' base",
        "note": "no reference: the score does not depend on the prompt",
    }


if __name__ == "__main__":
    run(lambda options: DeQA(**Options.of(DeQA).convert(options)))
