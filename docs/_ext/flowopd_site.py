"""What the site adds to Sphinx: pages made from the code, and links to files of the repository outside ``docs/``."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import flowopd_reference as reference
from sphinx.application import Sphinx
from sphinx.util import logging

REPOSITORY = "https://github.com/flowopd/flowopd/blob/main/"
ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?:\.\./)+[^)\s]+(?=\))")
log = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("source-read", read)
    return {"parallel_read_safe": True}


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Put what the code says in its place, and send links that leave ``docs/`` to the repository."""
    page = Path(app.srcdir) / f"{name}.md"

    def outside(match: re.Match[str]) -> str:
        path, hash_, anchor = match[0].partition("#")
        target = Path(os.path.normpath(page.parent / path))
        if target.is_relative_to(app.srcdir):
            return match[0]
        if not target.exists():
            log.warning("no such file: %s", match[0], location=name)
        return f"{REPOSITORY}{target.relative_to(ROOT).as_posix()}{hash_}{anchor}"

    text = MARK.sub(lambda match: reference.PAGES[match[1]](), source[0])
    source[0] = LINK.sub(outside, text)
