"""Recipes read from files, with overrides by dotted keys and one-line errors; the shipped recipes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe.recipes import STAGES, Recipe
from flowopd_cli.recipe.sections import ONE, SEVERAL
from flowopd_cli.system import yaml_files
from flowopd_cli.system.files import is_file
from flowopd_cli.system.paths import expand_home
from flowopd_cli.system.redact import secret_in_tree
from flowopd_cli.system.text import suggest
from flowopd_cli.system.validation import describe

SHOWN, DEEPEST = 80, 16
STUDIES = "studies/"  # the folder of shipped studies


def read(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file, not yet validated.

    Raises :class:`RecipeError`: the file is missing, not UTF-8, not YAML, or not a mapping.
    """
    data = yaml_files.parse(_text(Path(path)), str(path))
    if not isinstance(data, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields, this is {type(data).__name__}")
    return data


def _text(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            content = handle.read(yaml_files.LARGEST + 1)
        if len(content) > yaml_files.LARGEST:
            raise RecipeError(f"{path}: larger than {yaml_files.LARGEST >> 10} KiB, the limit for a recipe")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path}:{line}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def parse_override(expression: str) -> tuple[str, Any]:
    """``a.b=c`` as a dotted key and a YAML value. Raises :class:`RecipeError`: it is not of that form."""
    key, equals, raw = expression.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise RecipeError(f"--set {expression[:SHOWN]}: write it as section.field=value")
    return key.strip(), yaml_files.parse(raw, f"--set {key.strip()[:SHOWN]}")


def find(name: str) -> Path:
    """The path of a shipped recipe or study such as ``toy/distill``, or of the file ``name`` itself.

    Raises :class:`RecipeError`: there is no such recipe; near names are suggested.
    """
    direct = Path(name)
    if direct.suffix in {".yaml", ".yml"} or is_file(direct):
        return direct
    recipes = {**shipped(), **shipped_studies()}
    if name not in recipes:
        listed = ", ".join(sorted(recipes))
        raise RecipeError(f"no recipe {name[:SHOWN]!r}{suggest(name, list(recipes))}; shipped: {listed}")
    return recipes[name]


def shipped() -> dict[str, Path]:
    """Every recipe that came with the program, by name."""
    return {name: path for name, path in _files().items() if not name.startswith(STUDIES)}


def shipped_studies() -> dict[str, Path]:
    """Every study that came with the program, by name: ``studies/extrapolation``."""
    return {name: path for name, path in _files().items() if name.startswith(STUDIES)}


def _files() -> dict[str, Path]:
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "_recipes", package.parent / "recipes"):
        if folder.is_dir():
            return {p.relative_to(folder).with_suffix("").as_posix(): p for p in sorted(folder.rglob("*.yaml"))}
    return {}


def assign(tree: dict[str, Any], dotted: str, value: Any) -> None:
    """Put ``value`` at ``a.b.c`` of a tree of mappings and lists, making missing mappings on the way.

    Raises :class:`RecipeError`: the key leads through a value, to no element of a list, or deeper than any recipe goes.
    """
    *parents, leaf = dotted.split(".")
    if len(parents) >= DEEPEST:
        raise RecipeError(f"--set {dotted[:SHOWN]}: is nested too deeply")
    node: Any = tree
    for part in parents:
        if isinstance(node, dict) and node.get(part) is None:
            node[part] = {}
        node = node[_key(node, part, dotted)]
        if not isinstance(node, dict | list):
            raise RecipeError(f"--set {dotted}: {part} is a value, not a section")
    node[_key(node, leaf, dotted)] = value


def _key(node: dict[str, Any] | list[Any], part: str, dotted: str) -> Any:
    if isinstance(node, dict):
        return part
    if part not in map(str, range(len(node))):
        raise RecipeError(f"--set {dotted}: {part!r} is not an index of a list of {len(node)}")
    return int(part)


def faults(error: ValidationError, model: type[BaseModel], where: str = "", overrides: Sequence[str] = ()) -> list[str]:
    """Every validation error in words: its place (the ``--set``, or the line of the file ``where``, if it is in one of
    them), the field, the problem with the value as written, and for an unknown key the nearest known one.
    """
    problems = [
        {**problem, "loc": tuple(p for p in problem["loc"] if p not in (ONE, SEVERAL))} for problem in error.errors()
    ]
    return [_in_words(problem, model, where, overrides) for problem in problems]


def _in_words(problem: Mapping[str, Any], model: type[BaseModel], where: str, overrides: Sequence[str]) -> str:
    path = [str(part)[:SHOWN] for part in problem["loc"]]
    place, written = _place(problem, where, overrides)
    if problem["type"] == "extra_forbidden":
        text = f"unknown key {'.'.join(path)!r}{suggest(path[-1], _fields(model, path[:-1]))}"
    else:
        field = "" if place == f"--set {'.'.join(path)}" else ".".join(path)
        text = ": ".join(filter(None, (field, describe(problem, written))))
    return f"{place}: {text}" if place else text


def _place(problem: Mapping[str, Any], where: str, overrides: Sequence[str]) -> tuple[str, str | None]:
    """Where the value of a problem was given, and its text as written there, if known."""
    path = problem["loc"][:-1] if problem["type"] == "missing" else problem["loc"]
    dotted = ".".join(map(str, path))
    for key, _, value in (expression.partition("=") for expression in reversed(overrides)):
        if dotted == key.strip():
            return f"--set {dotted[:SHOWN]}", value
        if dotted.startswith(f"{key.strip()}."):
            return f"--set {key.strip()[:SHOWN]}", None
    if not path or not is_file(where):
        return where, None
    place = yaml_files.locate(_text(Path(where)), path)
    if place is None or place.value != problem["input"]:  # the value of a flag
        return "", None
    return f"{where}:{place.line}", place.text or None


def _fields(model: Any, path: Sequence[str]) -> list[str]:
    """The fields of the section at ``path``, ignoring indices and tasks."""
    for part in path:
        field = getattr(model, "model_fields", {}).get(part)
        model = _section(field.annotation) if field else model
    return list(getattr(model, "model_fields", {}))


def _section(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section, get_args(annotation))), None)


def load(path: str | Path, *, overrides: Sequence[str] = (), stage: str | None = None) -> Recipe:
    """Read a YAML recipe, apply ``--set`` overrides, and validate it.

    Raises :class:`RecipeError`: the file is missing or not YAML, a key is unknown, a value is out of range.
    """
    return build(read(path), overrides=overrides, stage=stage, where=str(path))


def build(
    data: Mapping[str, Any], *, overrides: Sequence[str] = (), stage: str | None = None, where: str = "recipe"
) -> Recipe:
    """Validate a mapping as the recipe of its ``stage``; see :func:`load`."""
    tree = json.loads(json.dumps(data, default=str))
    for expression in overrides:
        assign(tree, *parse_override(expression))
    tree = _expand_home(tree)
    named = str(tree.get("stage", stage))[:40]
    if stage is not None and named != stage:
        raise RecipeError(f"{where}: is a {named} recipe, but the command is {stage}")
    if named not in STAGES:
        raise RecipeError(f"{where}: stage {named!r} is not one of {', '.join(STAGES)}")
    try:
        recipe = STAGES[named].model_validate(tree)
    except ValidationError as error:
        raise RecipeError(faults(error, STAGES[named], where, overrides)[0]) from error
    secret = secret_in_tree(tree)
    if secret:
        raise RecipeError(f"{where}: {secret}")
    return recipe


def _expand_home(value: Any) -> Any:
    """The tree with ``~/`` at the start of a text replaced: no text but a path begins so."""
    if isinstance(value, dict):
        return {key: _expand_home(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_expand_home(part) for part in value]
    return expand_home(value) if isinstance(value, str) else value


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every field written out."""
    return yaml_files.dump(recipe.model_dump(mode="json"))


def digest(recipe: Recipe | Mapping[str, Any]) -> str:
    """SHA-256 of a resolved recipe or its file's mapping, 16 hex digits: equal recipes have equal digests."""
    tree = recipe if isinstance(recipe, Mapping) else recipe.model_dump(mode="json")
    canonical = json.dumps(tree, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
