"""What a push says of the machine it comes from: nothing. Local paths become names."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.json_files import read_json_value
from flowopd_cli.manifest import Manifest

CACHED = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+/?")
REFERENCES = ("ref", "init", "adapters")
NOTE = "# As it ran, but for local paths: only their last part stands here.\n"


def public_name(text: str) -> str:
    """A Hub id or a registered name as it is; of a local path the last part; of one in the Hub's cache its Hub id."""
    path = Path(os.path.expanduser(text))
    if not (path.is_absolute() or text.startswith(("./", "../")) or ("/" in text and path.exists())):
        return text
    cached = CACHED.search(path.as_posix())
    return f"{cached['owner']}/{cached['name']}" if cached else path.resolve().name


def public_reference(text: str) -> str:
    """An adapter's reference: of a run or a folder the last part."""
    return text if text.startswith("hub:") else Path(text).name


def public_manifest(manifest: Manifest) -> Manifest:
    """The manifest with names for the base and the parents; their digests say which they were."""
    parents = tuple(p.model_copy(update={"ref": public_reference(p.ref)}) for p in manifest.parents)
    base = manifest.base
    if base is not None:
        base = base.model_copy(update={"ref": public_name(base.ref)})
    return manifest.model_copy(update={"parents": parents, "base": base})


def public_recipe(recipe: recipes.Recipe) -> str:
    """The recipe as YAML, still one that loads."""
    tree = _shortened(recipe.model_dump(mode="json"))
    return NOTE + recipes.dump(type(recipe).model_validate(tree))


def copy_evaluation(source: Path, target: Path) -> None:
    """Copy an evaluation's results; the protocol in each names the base.

    Raises:
        ArtifactError: there is a link among them, which would publish a file from elsewhere.
    """
    for path in (source, *source.rglob("*")):
        if path.is_symlink():
            raise ArtifactError(f"{path}: is a link, and what is published are files of the run itself: remove it")
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in sorted(target.glob("*.json")):
        result = read_json_value(path, "result of an evaluation")
        if isinstance(result, dict) and "protocol" in result:
            result["protocol"] = _shortened(result["protocol"])
            path.write_text(json.dumps(result, indent=1), encoding="utf-8")


def _shortened(value: Any, key: str = "") -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(inner, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    return public_reference(value) if key in REFERENCES else public_name(value)
