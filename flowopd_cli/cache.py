"""Where fetched files are kept. No torch here."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$FLOWOPD_CACHE``, or ``flowopd`` in the user's cache directory."""
    root = os.environ.get("FLOWOPD_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowopd"
