"""``deqa``: picture quality by DeQA-Score, in a worker because its model's code needs an older transformers."""

from __future__ import annotations

from typing import Any

from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.remote.client import RemoteReward

PORT = 18086
URL = f"http://127.0.0.1:{PORT}"
START = "flowopd rewards serve deqa"


class DeQAReward(RemoteReward):
    """The reward ``deqa``: ``total`` is the score divided by 5 as in training, ``scores["score"]`` is in [1, 5].

    ``url`` names one worker or several; further options are those of ``RemoteReward``.
    """

    info = RewardInfo(
        name="deqa",
        paper="arXiv 2501.11561",
        low=0.2,
        high=1.0,
        license="MIT (code), LLaMA 2 (base of the weights)",
        exact=True,
        note=f"in a worker: {START}",
    )

    def __init__(self, url: str = URL, **options: Any) -> None:
        """Meet the worker.

        Raises:
            RewardError: none answers; the message says how to start one.
        """
        super().__init__(url, reward="deqa", start=START, **options)
