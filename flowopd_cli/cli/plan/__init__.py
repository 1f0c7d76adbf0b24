"""From flags and files to a checked plan: names completed, adapters read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """The result of one check. ``fail`` is a required item that is missing, ``warn`` an optional one."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    way_out: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.way_out}" if self.way_out else self.text
