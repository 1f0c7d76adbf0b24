"""CLIPScore in the three forms that papers report: the cosine of picture and prompt under a CLIP of OpenAI.

Sources: Hessel et al. 2021 (arXiv 2104.08718), T2I-CompBench (arXiv 2307.06350), Flow-GRPO (arXiv 2505.05470).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.preference.clip import ClipEncoder
from flowopd_cli.rewards.preference.scoring import clip_pixels, declared, scalar_result
from flowopd_cli.rewards.weights import weights_id

BASE = "openai/clip-vit-base-patch32@3d74acf9a28c67741b2f4f2ea7635f0aaf6f0268"
LARGE = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"


@dataclass(frozen=True)
class Variant:
    """A model, a prefix of the prompt, the score as a function of the cosine, and how pictures are resized."""

    source: str
    prefix: str
    score: Callable[[Tensor], Tensor]
    paper: str
    low: float
    high: float
    bilinear: bool = False


VARIANTS = {
    "t2i-compbench": Variant(BASE, "", lambda cosine: cosine, "arXiv 2307.06350", -1.0, 1.0),
    "flow_grpo": Variant(LARGE, "", lambda cosine: 100 * cosine / 30, "arXiv 2505.05470", -10 / 3, 10 / 3, True),
    "original": Variant(BASE, "A photo depicts ", lambda cosine: 2.5 * cosine.clamp(min=0), "arXiv 2104.08718", 0, 2.5),
}


class ClipScoreReward(Reward):
    """The cosine ``c`` of picture and prompt: ``c``, ``100 c / 30`` or ``2.5 max(c, 0)``, after ``variant``.

    ``scores`` has ``cosine``, which variants of one model and prefix share.
    """

    info = RewardInfo(
        "clipscore",
        "arXiv 2307.06350",
        -1.0,
        1.0,
        license="MIT",
        note="cosines are about 0.2 to 0.35; three variants, whose figures are not comparable",
    )

    def __init__(
        self,
        variant: str = "t2i-compbench",
        source: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` replaces the variant's model: a local folder or ``repository@revision``.

        Raises:
            RewardError: an unknown variant.
            ArtifactError: the model cannot be read.
        """
        if variant not in VARIANTS:
            raise RewardError(f"clipscore: variant {variant!r} is not one of {', '.join(VARIANTS)}")
        self.variant, self.source = VARIANTS[variant], source or VARIANTS[variant].source
        kind = BilinearClip if self.variant.bilinear else ClipEncoder
        self.encoder = kind.load(self.source, dtype=dtype, device=device, batch=batch)
        self.weights = {"model": weights_id(self.source), "variant": variant, "dtype": dtype}
        info = replace(self.info, paper=self.variant.paper, low=self.variant.low, high=self.variant.high)
        self.info = declared(info, self.source == self.variant.source, dtype)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        cosine = self.encoder.cosines(images, [self.variant.prefix + prompt.text for prompt in prompts])
        return scalar_result(self.variant.score(cosine), {"cosine": cosine}, self.source)


class BilinearClip(ClipEncoder):
    """A CLIP whose pictures are resized as tensors, bilinearly with antialiasing, as in Flow-GRPO's scorer."""

    def pixels(self, images: list[Image.Image]) -> Float[Tensor, "B 3 S S"]:
        """Shortest side to S, then the centre square."""
        return torch.cat([self._square(clip_pixels([image])) for image in images])

    def _square(self, pixels: Float[Tensor, "1 3 H W"]) -> Float[Tensor, "1 3 S S"]:
        side, short = self.image_size, min(pixels.shape[2:])
        height, width = (side if edge == short else side * edge // short for edge in pixels.shape[2:])
        resized = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True, align_corners=False)
        top, left = round((height - side) / 2), round((width - side) / 2)
        return resized[:, :, top : top + side, left : left + side]
