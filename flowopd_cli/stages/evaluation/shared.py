"""What evaluations of several adapters share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from flowopd_cli.models.base import LoadedModel
from flowopd_cli.rewards.base import Reward
from flowopd_cli.stages.evaluation.requests import Requests
from flowopd_cli.stages.evaluation.suites import make_rewards


@dataclass
class Shared:
    """The requests of an evaluation, or of ``several`` that differ in their adapters alone, and what they load.

    ``model`` is the base, once a picture was missing.
    """

    requests: Requests
    several: bool = False
    model: LoadedModel | None = None

    @cached_property
    def rewards(self) -> dict[str, Reward]:
        """The reward of each suite."""
        return make_rewards(self.requests)
