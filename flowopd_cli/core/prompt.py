"""The prompt record. No torch here: prompt files are read without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prompt:
    """One text to draw, the task it belongs to, and what its reward needs to know."""

    id: str
    text: str
    task: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
