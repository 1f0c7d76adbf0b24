"""What a reward says of itself without being made, and whether what it needs is installed."""

from __future__ import annotations

import typing
from importlib import metadata
from typing import Any

from flowopd_cli.rewards.base import RewardInfo


def info_of(found: Any) -> RewardInfo | None:
    """What a class or function declares, or the class that a factory says it returns; ``None`` if nothing does."""
    own = getattr(found, "info", None)
    if own is None:
        try:
            own = getattr(typing.get_type_hints(found).get("return"), "info", None)
        except (NameError, TypeError):
            own = None
    return own if isinstance(own, RewardInfo) else None


def installed(extra: str | None) -> str:
    """``yes`` or ``no`` for the packages of an extra; ``?`` where flowopd itself is not an installed package."""
    if not extra:
        return "yes"
    from packaging.requirements import Requirement

    try:
        lines = [Requirement(line) for line in metadata.requires("flowopd") or ()]
    except metadata.PackageNotFoundError:
        return "?"
    needed = [r for r in lines if r.marker and r.marker.evaluate({"extra": extra}) and r.name != "flowopd"]
    if not needed:
        return "?"
    return "yes" if all(_there(requirement.name) for requirement in needed) else "no"


def _there(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
