"""What a push says of the machine it comes from: nothing. Local paths become names, and addresses go."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError
from flowopd_cli.runs.manifest import Manifest
from flowopd_cli.system.files import json_lines
from flowopd_cli.system.json_files import read_json_lines, read_json_value
from flowopd_cli.system.redact import public_name, public_reference, public_text

REFERENCES = ("ref", "init", "adapters")
WORDS = ("text", "target", "read")  # in a row: the prompt, and what a reader saw in its picture
NOTE = "# As it ran, but for local paths, of which the last part stands here, and addresses that are not public.\n"


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
    """Copy an evaluation's results and rows; what they say of judges, base and errors names no place.

    Raises:
        ArtifactError: a file is damaged, or there is a link among them, which would publish a file from elsewhere.
    """
    for path in (source, *source.rglob("*")):
        if path.is_symlink():
            raise ArtifactError(f"{path}: is a link, and what is published are files of the run itself: remove it")
    shutil.copytree(source, target, dirs_exist_ok=True)
    for path in sorted(target.glob("*.json")):
        result = read_json_value(source / path.name, "result of an evaluation")
        if isinstance(result, dict):
            path.write_text(json.dumps(_public(path, result), indent=1), encoding="utf-8")
    for path in sorted(target.glob("*.jsonl")):
        rows = [_public(path, row, kept=WORDS) for row in read_json_lines(source / path.name)]
        path.write_text(json_lines(rows), encoding="utf-8")


def _public(path: Path, value: dict[str, Any], kept: Sequence[str] = ()) -> dict[str, Any]:
    try:
        return _shortened(value, kept=kept)
    except RecursionError as error:
        raise ArtifactError(f"{path}: damaged result of an evaluation (nested too deeply)") from error


def _shortened(value: Any, key: str = "", kept: Sequence[str] = ()) -> Any:
    if isinstance(value, Mapping):
        return {name: _shortened(inner, name, kept) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shortened(inner, key, kept) for inner in value]
    if not isinstance(value, str) or key in kept:
        return value
    return public_reference(value) if key in REFERENCES else public_text(value)
