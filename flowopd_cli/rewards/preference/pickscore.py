"""PickScore: how people on Pick-a-Pic would rate a picture for its prompt (Kirstain et al. 2023, arXiv 2305.01569)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.preference.clip import ClipEncoder
from flowopd_cli.rewards.preference.scoring import declared, scalar_result
from flowopd_cli.rewards.weights import weights_id

MODEL = "yuvalkirstain/PickScore_v1@a4e4367c6dfa7288a00c550414478f865b875800"
PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K@1c2b8495b28150b8a4922ee1c8edee224c284c0c"
DIVISORS = {"raw": 1.0, "train": 26.0}


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
        source: str = MODEL,
        processor: str | None = None,
        scale: str = "train",
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` and ``processor`` are a local folder or ``repository@revision``.

        ``processor`` has the tokenizer and the picture processor: by default those of the original model, or, for
        another ``source``, its own.

        Raises:
            RewardError: an unknown scale.
            ArtifactError: the model cannot be read.
        """
        if scale not in DIVISORS:
            raise RewardError(f"pickscore: scale {scale!r} is not one of {', '.join(DIVISORS)}")
        processor = processor or (PROCESSOR if source == MODEL else source)
        self.encoder = ClipEncoder.load(source, processor=processor, dtype=dtype, device=device, batch=batch)
        self.source, self.scale = source, scale
        self.weights = {"model": weights_id(source), "processor": weights_id(processor), "dtype": dtype}
        low, high = (edge * 26 / DIVISORS[scale] for edge in (self.info.low, self.info.high))
        info = replace(self.info, low=low, high=high)
        self.info = declared(info, source == MODEL and processor == PROCESSOR, dtype)

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Score B pictures against their prompts."""
        raw = self.encoder.cosines(images, [prompt.text for prompt in prompts]) * self.encoder.scale
        scores = {name: raw / divisor for name, divisor in DIVISORS.items()}
        return scalar_result(scores[self.scale], scores, self.source)
