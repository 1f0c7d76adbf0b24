"""What a scoring worker says of itself at ``/info``, and whether it is one that we can use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.base import RewardInfo
from flowopd_cli.rewards.remote import protocol as wire


class WorkerMismatch(RewardError):
    """A worker of another protocol, reward or weights: no attempt cures it, so ``skip`` does not skip it."""


def introduced(url: str, tree: Any, wanted: str | None) -> dict[str, Any]:
    """A worker's own words, when they are those of a worker we can use.

    Raises:
        WorkerMismatch: they are not.
    """
    if not isinstance(tree, dict) or "protocol" not in tree:
        raise WorkerMismatch(f"{url}: is no scoring worker of flowopd")
    if not wire.is_ours(tree["protocol"]):
        package = str(tree.get("package", "?"))[: wire.SHOWN]
        raise WorkerMismatch(
            f"{url}: speaks protocol {wire.shown(tree['protocol'])} ({package}), we speak {wire.PROTOCOL}: "
            "install the same flowopd on both sides"
        )
    if wanted is not None and tree.get("reward") != wanted:
        raise WorkerMismatch(f"{url}: serves the reward {wire.shown(tree.get('reward'))}, wanted is {wanted!r}")
    if not isinstance(tree.get("reward"), str) or not isinstance(tree.get("fingerprint"), str):
        raise WorkerMismatch(f"{url}: does not say which reward it serves")
    limits, numbers = tree.get("limits", {}), [tree.get(end) for end in ("low", "high")]
    sound = isinstance(limits, dict) and all(type(most) is int and most > 0 for most in limits.values())
    sound = sound and isinstance(tree.get("weights", {}), dict)
    if not sound or not all(number is None or wire.finite(number) is not None for number in numbers):
        raise WorkerMismatch(f"{url}: says of itself what no scoring worker says (limits, weights, low or high)")
    return tree


def shown(worker: Mapping[str, Any]) -> str:
    """Its reward and weights in a few words."""
    weights = ", ".join(f"{name} {value}" for name, value in worker.get("weights", {}).items())
    return f"{worker['reward']} ({weights or worker['fingerprint']})"


def info_of(worker: Mapping[str, Any]) -> RewardInfo:
    """What it declares, as a reward of this process would."""
    low, high = worker.get("low"), worker.get("high")
    return RewardInfo(
        name=worker["reward"],
        paper=str(worker.get("paper", "")),
        low=-float("inf") if low is None else float(low),
        high=float("inf") if high is None else float(high),
        higher_is_better=bool(worker.get("higher_is_better", True)),
        license=str(worker.get("license", "")),
        exact=bool(worker.get("exact", True)),
        note=str(worker.get("note", "")),
    )
