"""The LAION aesthetic score: a linear head on the picture's CLIP vector, about 1 to 10. The prompt is ignored.

Source: Schuhmann, improved-aesthetic-predictor (``sac+logos+ava1-l14-linearMSE``), as used by DDPO and Flow-GRPO.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import RewardResult
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.preference.clip import ClipEncoder
from flowopd_cli.rewards.preference.scoring import declared, linear_head, scalar_result
from flowopd_cli.rewards.weights import download, read_checkpoint, weights_id

MODEL = "openai/clip-vit-large-patch14@32bd64288804d66eefd0ccbe215aa642df71cc41"
HEAD_FILE = "sac+logos+ava1-l14-linearMSE.pth"
HEAD_URL = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
HEAD_SHA256 = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"


class AestheticReward(Reward):
    """Five linear layers without activations on the CLIP vector of length 1."""

    info = RewardInfo(
        "aesthetic",
        "github.com/christophschuhmann/improved-aesthetic-predictor",
        1.0,
        10.0,
        license="Apache-2.0 (head), MIT (CLIP)",
        note="range as usually seen, not a bound",
    )

    def __init__(
        self,
        source: str = MODEL,
        head: str | None = None,
        dtype: str = "float32",
        device: str = "auto",
        batch: int = 32,
    ) -> None:
        """``source`` is CLIP's local folder or ``repository@revision``; ``head`` the head's file, or a folder with it.

        Raises:
            ArtifactError: one of them cannot be read, or they do not fit together.
        """
        file = head or f"{download(HEAD_URL, sha256=HEAD_SHA256, name=HEAD_FILE)}#sha256={HEAD_SHA256}"
        tensors, path = read_checkpoint(file, HEAD_FILE)
        self.encoder = ClipEncoder.load(source, dtype=dtype, device=device, batch=batch)
        self.head = linear_head(tensors, self.encoder.images([]).shape[1], path)
        self.source = source
        self.info = declared(self.info, source == MODEL and head is None, dtype)
        self.weights = {"clip": weights_id(source), "head": weights_id(path), "dtype": dtype}

    def __call__(self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[Prompt]) -> RewardResult:
        """Rate B pictures."""
        return scalar_result(self.head(self.encoder.images(images))[:, 0], {}, self.source)
