"""Texts without the places that they name: local paths become names, and addresses go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from flowopd_cli.registry import REMOTE

CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+/?")
# Where weights of rewards come from; what an address there names is no secret.
PUBLIC = (
    *("huggingface.co", "github.com", "raw.githubusercontent.com", "storage.googleapis.com"),
    *("www.modelscope.cn", "download.openmmlab.com"),
)
ADDRESS = "address"
_PART = r"[^\s/'\"<>|,;:()\[\]{}]+"
_PLACE = re.compile(
    r"(?P<address>[A-Za-z][A-Za-z0-9+.-]{0,15}://[^\s'\"<>|,;(){}]*)"
    rf"|(?<![\w.~-])(?:/{_PART}/|(?:~[\w.-]*|\.\.?)/)(?:{_PART}/)*(?:{_PART})?"
)


def public_name(text: str) -> str:
    """A Hub id or a registered name as it is; of a local path the last part; of one in the Hub's cache its Hub id."""
    path = Path(os.path.expanduser(text))
    if not (path.is_absolute() or text.startswith(("./", "../")) or ("/" in text and _exists(path))):
        return text
    cached = CACHED.search(path.as_posix())
    if cached:
        return f"{cached['owner']}/{cached['name']}"
    name = Path(text).name
    return (Path(os.path.abspath(path)).name if name in ("", "..") else name) or text


def public_reference(text: str) -> str:
    """An adapter's reference: of a run or a folder the last part."""
    return text if text.startswith("hub:") else Path(text).name


def public_text(text: str) -> str:
    """A name as of :func:`public_name`, and so every local path inside a text; an address of a host that is not
    ``PUBLIC`` becomes the last part of its path, or ``address``; a reward's workers are ``remote:address``.
    """
    if text.startswith(REMOTE) and "://" in text:
        return REMOTE + ADDRESS
    sentence = "://" in text or ": " in text
    whole = text if sentence else public_name(text)
    return whole if whole != text else _PLACE.sub(lambda found: _place(found[0], found["address"] is not None), text)


def _place(found: str, is_address: bool) -> str:
    if not is_address:
        return public_name(found)
    try:
        parts = urlsplit(found)
    except ValueError:
        return ADDRESS
    return found if parts.netloc in PUBLIC else Path(parts.path).name or ADDRESS


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text too long to be a path
        return False
