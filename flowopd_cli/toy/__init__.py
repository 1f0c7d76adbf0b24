"""The embedded world: a tiny SD3 pipeline, its prompts, its rewards. Only registry strings name it."""

from __future__ import annotations

from pathlib import Path


def folder() -> Path:
    """The diffusers pipeline folder of the toy base, inside the installed package."""
    return Path(__file__).resolve().parent / "weights"
