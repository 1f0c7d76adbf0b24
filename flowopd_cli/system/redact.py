"""What may not be written into a recipe, which is kept beside its run and published with it: logins and keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flowopd_cli.errors import holds_secret

REMOTE = "remote:"
SECRETS = re.compile(
    r"(.*_)?(api_?key|password|passwd|secret|authorization|credentials?|(access|private|secret)_key)"
    r"|((api|auth|access|bearer|hf|hub|refresh|secret|session|user)_?)?token"
)
LOGIN = re.compile(r"://[^/?#\s]*@")
WAY_OUT = "put the secret into an environment variable (token_env or key_env names another one)"


def secret_in_tree(tree: Any, path: tuple[str, ...] = ()) -> str | None:
    """Where a recipe's tree holds a login or a key of a known form, in words that do not repeat it; else ``None``."""
    if isinstance(tree, str):
        return _written(".".join(path) + ":") if holds_secret(tree) else None
    if isinstance(tree, Mapping) and any(holds_secret(str(name)) for name in tree):
        return _written(f"a key of {'.'.join(path) or 'the recipe'}")
    parts = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    found = (secret_in_tree(inner, (*path, str(name))) for name, inner in parts)
    return next(filter(None, found), None)


def _written(place: str) -> str:
    return f"{place} holds a login or a key, which would be written into recipe.yaml; {WAY_OUT}"


def secret_in_name(name: str) -> str | None:
    """Why a reward's name may not be written down, in words that do not repeat it; ``None`` where it may."""
    return _secret_in_address("the address of a worker", name) if name.startswith(REMOTE) else None


def secret_in_options(options: Mapping[str, Any]) -> str | None:
    """Why a reward's options may not be written down, in words that do not repeat them; ``None`` where they may."""
    for name, value in leaves(options):
        if SECRETS.fullmatch(name.lower().replace("-", "_")):
            return f"option {name!r} would be written into recipe.yaml; {WAY_OUT}"
        address = name.lower() in {"url", "urls"} or LOGIN.search(str(value))
        found = _secret_in_address(f"option {name!r}", str(value)) if address else None
        if found:
            return found
    return None


def _secret_in_address(what: str, text: str) -> str | None:
    held = [word for letter, word in (("@", "a login"), ("?", "a query"), ("#", "a fragment")) if letter in text]
    return f"{what} holds {held[0]}, which would be written into recipe.yaml; {WAY_OUT}" if held else None


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested options with the name that it stands under."""
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
