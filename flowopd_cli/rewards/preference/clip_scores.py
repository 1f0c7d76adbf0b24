"""CLIPScore, PickScore and the aesthetic score: a CLIP vector of the picture, with that of the prompt or a linear head.

Sources: Hessel et al. 2021 (arXiv 2104.08718), T2I-CompBench (arXiv 2307.06350), Flow-GRPO (arXiv 2505.05470); Kirstain
et al. 2023 (arXiv 2305.01569); Schuhmann's improved-aesthetic-predictor, as used by DDPO and Flow-GRPO.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.preference.clip import ClipEncoder, OpenAIClip
from flowopd_cli.rewards.preference.scoring import clip_normalized, declared, linear_head, scalar_result
from flowopd_cli.rewards.weights import download, read_checkpoint, weights_id

BASE = "openai/clip-vit-base-patch32@3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
LARGE = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
PICKSCORE = "yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"
PREDICTOR = "github.com/christophschuhmann/improved-aesthetic-predictor"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = f"https://{PREDICTOR}/raw/main/{HEAD_FILE.replace('+', '%2B')}"
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"
DIVISORS = {"raw": 1.0, "train": 26.0}


@dataclass(frozen=True)
class Variant:
    """A model, its preparation of pictures, a prefix of the prompt, and the score as a function of the cosine."""

    source: str
    encoder: type[ClipEncoder]
    prefix: str
    score: Callable[[Tensor], Tensor]
    paper: str
    low: float
    high: float


class BilinearClip(ClipEncoder):
    """A CLIP that resizes pictures as tensors, bilinearly with antialiasing, as in Flow-GRPO's scorer."""

    def pixels(self, images: list[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """Shortest side to S, then the centre square."""
        return clip_normalized(torch.cat([self._square(to_tensor([image])) for image in images]))

    def _square(self, pixels: Float[Tensor, "1 3 H W"]) -> Float[Tensor, "1 3 S S"]:
        side, short = self.image_size, min(pixels.shape[2:])
        height, width = (side if edge == short else side * edge // short for edge in pixels.shape[2:])
        resized = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
        top, left = round((height - side) / 2), round((width - side) / 2)
        return resized[:, :, top : top + side, left : left + side]


VARIANTS = {
    "t2i-compbench": Variant(BASE, OpenAIClip, "", lambda cosine: cosine, "arXiv 2307.06350", -1.0, 1.0),
    "flow_grpo": Variant(
        LARGE, BilinearClip, "", lambda cosine: 100 * cosine / 30, "arXiv 2505.05470", -10 / 3, 10 / 3
    ),
    "original": Variant(
        BASE, OpenAIClip, "A photo depicts ", lambda cosine: 2.5 * cosine.clamp(min=0), "arXiv 2104.08718", 0.0, 2.5
    ),
    "cvtg-2k": Variant(
        LARGE, OpenAIClip, "A photo depicts ", lambda cosine: 2.5 * cosine.clamp(min=0), "arXiv 2503.23461", 0.0, 2.5
    ),
}


class ClipScoreReward(Reward):
    """The cosine ``c`` of picture and prompt: ``c``, ``100 c / 30`` or ``2.5 max(c, 0)``, after ``variant``.

    ``scores`` has ``cosine``, which is equal for variants with the same model and prefix.
    """

    info = RewardInfo(
        "clipscore",
        "arXiv 2307.06350",
        -1.0,
        1.0,
        license="MIT",
        note="cosines are about 0.2 to 0.35; four variants, whose figures are not comparable",
    )

    def __init__(
        self,
        variant: Literal["t2i-compbench", "flow_grpo", "original", "cvtg-2k"] = "t2i-compbench",
        source: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` replaces the variant's model: a local folder or ``repository@revision``."""
        if variant not in VARIANTS:
            raise RewardError(f"clipscore: variant {variant!r} is not one of {', '.join(VARIANTS)}")
        self.variant, self.source = VARIANTS[variant], source or VARIANTS[variant].source
        self.encoder = self.variant.encoder.load(self.source, dtype=dtype, device=device, batch=batch)
        self.weights = {"model": weights_id(self.source), "variant": variant, "dtype": dtype}
        info = replace(self.info, paper=self.variant.paper, low=self.variant.low, high=self.variant.high)
        self.info = declared(info, self.source == self.variant.source, dtype)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that are too long."""
        self.encoder.check(self.info.name, [self.variant.prefix + prompt.text for prompt in prompts])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        cosine = self.encoder.cosines(images, [self.variant.prefix + prompt.text for prompt in prompts])
        return scalar_result(self.variant.score(cosine), {"cosine": cosine}, self.source)


class PickScoreReward(Reward):
    """``exp(logit_scale) * cos(picture, prompt)``: ``raw``, as papers report it, and ``train``, a 26th of it.

    ``scale`` selects which of the two is the total; Flow-GRPO trains on ``train``. ``scores`` has both.
    """

    info = RewardInfo(
        "pickscore",
        "arXiv 2305.01569",
        15 / 26,
        1.0,
        license="MIT for the CLIP it was tuned from; the PickScore weights state none",
        note="papers report scores['raw'] (about 15 to 26); range as usually seen",
    )

    def __init__(
        self,
        source: str = PICKSCORE,
        processor: str | None = None,
        scale: Literal["raw", "train"] = "train",
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` and ``processor`` are a local folder or ``repository@revision``.

        ``processor`` holds the tokenizer and picture processor, by default the original model's or, for another
        ``source``, its own.

        Raises :class:`RewardError`: an unknown scale.
        Raises :class:`ArtifactError`: the model cannot be read.
        """
        if scale not in DIVISORS:
            raise RewardError(f"pickscore: scale {scale!r} is not one of {', '.join(DIVISORS)}")
        processor = processor or (PROCESSOR if source == PICKSCORE else source)
        self.encoder = ClipEncoder.load(source, processor=processor, dtype=dtype, device=device, batch=batch)
        self.source, self.scale = source, scale
        self.weights = {"model": weights_id(source), "processor": weights_id(processor), "dtype": dtype}
        low, high = (edge * 26 / DIVISORS[scale] for edge in (self.info.low, self.info.high))
        info = replace(self.info, low=low, high=high)
        self.info = declared(info, source == PICKSCORE and processor == PROCESSOR, dtype)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that are too long."""
        self.encoder.check(self.info.name, [prompt.text for prompt in prompts])

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        raw = self.encoder.cosines(images, [prompt.text for prompt in prompts]) * self.encoder.scale
        scores = {name: raw / divisor for name, divisor in DIVISORS.items()}
        return scalar_result(scores[self.scale], scores, self.source)


class AestheticReward(Reward):
    """The LAION aesthetic score, about 1 to 10: five linear layers, without activations, on the picture's unit vector.

    The prompt is ignored.
    """

    info = RewardInfo(
        "aesthetic",
        PREDICTOR,
        1.0,
        10.0,
        license="Apache-2.0 (head), MIT (CLIP)",
        note="range as usually seen, not a bound",
    )

    def __init__(
        self,
        source: str = LARGE,
        head: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` is CLIP's local folder or ``repository@revision``; ``head`` the head's file, or a folder with it.

        Raises :class:`ArtifactError`: one of them cannot be read, or they do not fit together.
        """
        file = head or f"{download(HEAD_URL, sha256=HEAD_SHA256, name=HEAD_FILE)}#sha256={HEAD_SHA256}"
        tensors, path = read_checkpoint(file, HEAD_FILE)
        self.encoder = ClipEncoder.load(source, dtype=dtype, device=device, batch=batch)
        self.head = linear_head(tensors, self.encoder.images([]).shape[1], path)
        self.source = source
        self.info = declared(self.info, source == LARGE and head is None, dtype)
        self.weights = {"clip": weights_id(source), "head": weights_id(path), "dtype": dtype}

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Rate B pictures."""
        return scalar_result(self.head(self.encoder.images(images))[:, 0], {}, self.source)
