"""Finds secrets in recipes, and shortens local paths and private addresses in published texts.

The patterns of secrets are in :mod:`flowopd_cli.errors`, which redacts every message.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flowopd_cli.errors import holds_secret

REMOTE = "remote:"
ADDRESS = "address"
# Hosts of published reward weights.
PUBLIC = (
    *("huggingface.co", "github.com", "raw.githubusercontent.com", "storage.googleapis.com"),
    *("www.modelscope.cn", "download.openmmlab.com"),
)
_SECRET_NAME = re.compile(
    r"(.*_)?(api_?key|password|passwd|secret|authorization|credentials?|(access|private|secret)_key)"
    r"|((api|auth|access|bearer|hf|hub|refresh|secret|session|user)_?)?token"
)
_LOGIN = re.compile(r"://[^/?#\s]*@")
_HUB_CACHE = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+/?")
_PART = r"[^\s/'\"<>|,;:()\[\]{}]+"
_PLACE = re.compile(
    r"(?P<address>[A-Za-z][A-Za-z0-9+.-]{0,15}://[^\s'\"<>|,;(){}]*)"
    rf"|(?<![\w.~-])(?:/{_PART}/|(?:~[\w.-]*|\.\.?)/)(?:{_PART}/)*(?:{_PART})?"
)
_WRITTEN = "which recipe.yaml would store; use an environment variable instead (token_env and key_env name one)"


def is_secret_name(name: str) -> bool:
    """Whether an option of this name holds a secret."""
    return _SECRET_NAME.fullmatch(name.lower().replace("-", "_")) is not None


def secret_in_tree(tree: Any, path: tuple[str, ...] = ()) -> str | None:
    """Why a recipe's tree may not be stored: it holds a login or a key, which the reason does not repeat."""
    if isinstance(tree, str):
        return f"{'.'.join(path)}: holds a login or a key, {_WRITTEN}" if holds_secret(tree) else None
    if isinstance(tree, Mapping) and any(holds_secret(str(name)) for name in tree):
        return f"a key of {'.'.join(path) or 'the recipe'} holds a login or a key, {_WRITTEN}"
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    reasons = (secret_in_tree(inner, (*path, str(name))) for name, inner in parts)
    return next(filter(None, reasons), None)


def secret_in_name(name: str) -> str | None:
    """Why a reward's name may not be stored, ``None`` where it may."""
    return _secret_in_address("the address of a worker", name) if name.startswith(REMOTE) else None


def secret_in_options(options: Mapping[str, Any]) -> str | None:
    """Why options of rewards or suites may not be stored, ``None`` where they may."""
    for name, value in leaves(options):
        text = str(value)
        if is_secret_name(name):
            return f"option {name!r} holds a secret, {_WRITTEN}"
        is_address = name.lower() in {"url", "urls"} or text.startswith(REMOTE) or _LOGIN.search(text)
        if is_address and (reason := _secret_in_address(f"option {name!r}", text)):
            return reason
    return None


def _secret_in_address(what: str, text: str) -> str | None:
    parts = [part for letter, part in (("@", "a login"), ("?", "a query"), ("#", "a fragment")) if letter in text]
    return f"{what} holds {parts[0]}, {_WRITTEN}" if parts else None


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested options, each with the nearest name above it."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, str(key))
        if name:
            yield name, ""
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner, name)
    else:
        yield name, value


def public_name(text: str) -> str:
    """The last part of a local path, or the Hub id of a path in the Hub's cache; any other name unchanged."""
    path = Path(os.path.expanduser(text))
    is_path = path.is_absolute() or text.startswith(("./", "../")) or ("/" in text and os.path.lexists(text))
    if not is_path:
        return text
    if cached := _HUB_CACHE.search(path.as_posix()):
        return f"{cached['owner']}/{cached['name']}"
    name = Path(text).name
    return (Path(os.path.abspath(path)).name if name in ("", "..") else name) or text


def public_reference(text: str) -> str:
    """The last part of the path of a run or adapter folder; a Hub reference unchanged."""
    return text if text.startswith("hub:") else Path(text).name


def public_text(text: str) -> str:
    """A text with local paths and private addresses shortened.

    A path becomes its name (:func:`public_name`); an address outside ``PUBLIC`` becomes the last part of its
    path, or ``address``; a reward's workers become ``remote:address``.
    """
    if text.startswith(REMOTE) and "://" in text:
        return REMOTE + ADDRESS
    is_sentence = "://" in text or ": " in text
    name = text if is_sentence else public_name(text)
    return name if name != text else _PLACE.sub(_shortened, text)


def _shortened(place: re.Match[str]) -> str:
    if place["address"] is None:
        return public_name(place[0])
    try:
        parts = urlsplit(place[0])
    except ValueError:
        return ADDRESS
    return place[0] if parts.netloc in PUBLIC else Path(parts.path).name or ADDRESS
