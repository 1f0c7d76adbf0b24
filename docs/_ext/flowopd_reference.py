"""The reference as Markdown, from the code: commands off the Typer app, fields off the models, names off registries.

A field's description is the ``#:`` comment beside it, which Sphinx's own reader finds; nothing remains at run time.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import typer
from pydantic import BaseModel
from sphinx.pycode import ModuleAnalyzer

from flowopd_cli import recipe, registry
from flowopd_cli.cli.app import app

BOUNDS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
KIND = {int: "integer", float: "number", str: "text", bool: "true or false", Any: "any"}
TITLES = {
    "reward": "Rewards",
    "suite": "Suites",
    "prompts": "Prompt sources",
    "model": "Model families",
    "base": "Bases",
}


def commands() -> str:
    """Every command: what it does, its arguments and flags, its examples."""
    root = typer.main.get_command(app)
    return "\n".join(_command(name, command) for name, command in walk(root, "flowopd"))


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with its full name."""
    children = getattr(command, "commands", {})
    if not children:
        yield name, command
    for child in sorted(children):
        yield from walk(children[child], f"{name} {child}")


def examples(command: Any) -> str:
    """The lines below ``Example:`` in a command's help."""
    return inspect.cleandoc(_help(command).partition("Example:\n")[2])


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "").replace("\b", "")


def _command(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [[f"`{_cell(flag)}`", _cell(_literal(text))] for flag, text in filter(None, records)]
    usage = f"{name} {' '.join(command.collect_usage_pieces(context))}"
    parts = [f"## {name}", _literal(_help(command).partition("Example:\n")[0]), f"```text\n{usage}\n```"]
    parts += [_table(["flag", "meaning"], rows)] if rows else []
    parts += [f"```console\n{examples(command)}\n```"] if examples(command) else []
    return "\n\n".join(parts) + "\n"


def fields() -> str:
    """Every field of every stage's recipe: the stage's own keys, then the sections, each once."""
    parts, sections = [], {}
    for stage, model in recipe.STAGES.items():
        rows = []
        for key, text, below in described(model):
            rows.append([f"`{key}`", *text])
            for path, spec in below:
                sections.setdefault(path, (spec, []))[1].append(stage)
        parts.append(f"## Stage `{stage}`\n\n" + _table(["key", "type", "default", "meaning"], rows))
    for path, (spec, stages) in sections.items():
        rows = [[f"`{path}.{key}`", *text] for key, text, _ in described(spec)]
        lead = f"{_plain(spec)}\n\nOf the stages {', '.join(dict.fromkeys(stages))}."
        parts.append(f"## Section `{path}`\n\n{lead}\n\n" + _table(["field", "type", "default", "meaning"], rows))
    return "\n\n".join(parts)


def study() -> str:
    """The fields of a study file, and the shipped studies."""
    rows = [[f"`{key}`", *text] for key, text, _ in described(recipe.StudySpec)]
    rows += [[f"`stages.NAME.{key}`", *text] for key, text, _ in described(recipe.StageSpec)]
    shipped = _table(["study", "what it asks"], [_summary(*pair) for pair in sorted(recipe.shipped_studies().items())])
    return "## Study files\n\n" + _table(["key", "type", "default", "meaning"], rows) + "\n" + shipped


def described(model: type[BaseModel]) -> Iterator[tuple[str, list[str], list[tuple[str, type[BaseModel]]]]]:
    """Each field of a model: key, (type, default, meaning), and the sections below it by their path."""
    notes = comments(model)
    for key, field in model.model_fields.items():
        annotation = typing.get_type_hints(model, include_extras=True)[key]
        below = [
            (f"{key}{step}{deeper}", spec)
            for step, inner in _inner(annotation)
            for deeper, spec in [("", inner), *((f".{p}", s) for _, _, b in described(inner) for p, s in b)]
        ]
        default = "required" if field.is_required() else f"`{_value(field.get_default(call_default_factory=True))}`"
        yield key, [_cell(_type(annotation)), default, _cell(notes[key])], below


def comments(model: type[BaseModel]) -> Mapping[str, str]:
    """The ``#:`` comment of each field, inherited ones included."""
    texts: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        for (scope, name), lines in _comments(owner.__module__).items():
            if scope == owner.__name__:
                texts[name] = " ".join(" ".join(lines).split())
    return texts


def _comments(module: str) -> Mapping[tuple[str, str], list[str]]:
    if not module.startswith(f"{recipe.__name__}."):
        return {}
    return ModuleAnalyzer.for_module(module).find_attr_docs()


def names() -> str:
    """Every name of every registry, with the first sentence of what is behind it."""
    parts = []
    for kind, title in TITLES.items():
        entries = registry.KINDS[kind]
        rows = [[f"`{name}`", _cell(_plain(entries.load(name)).split("\n\n")[0])] for name in entries.names()]
        parts.append(f"## {title}\n\n" + _table(["name", "what it is"], rows))
    return "\n\n".join(parts)


def recipes() -> str:
    """Every shipped recipe with the sentence that opens it."""
    rows = [_summary(*pair) for pair in sorted(recipe.shipped().items())]
    return "## Shipped recipes\n\n" + _table(["recipe", "what it does"], rows)


def _summary(name: str, path: Path) -> list[str]:
    lead = path.read_text(encoding="utf-8").partition("\n#\n")[0]
    return [f"`{name}`", _cell(" ".join(line.lstrip("# ") for line in lead.splitlines()))]


def _inner(annotation: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The models inside an annotation, with what stands between the key and their fields."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "", annotation
    step = {tuple: "[]", dict: ".TASK"}.get(typing.get_origin(annotation), "")
    for part in typing.get_args(annotation):
        if part is not Ellipsis:
            yield from ((f"{step}{deeper}", model) for deeper, model in _inner(part))


def _type(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        bounds = [f"{sign} {getattr(limit, name):g}" for limit in _limits(parts[1:]) for name, sign in BOUNDS.items()
                  if hasattr(limit, name)]  # fmt: skip
        return " ".join([_type(parts[0]), *bounds])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in parts)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in parts)
    if origin in (tuple, dict):
        return ("list of " if origin is tuple else "by name: ") + _type(parts[0 if origin is tuple else 1])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    return KIND.get(annotation, str(annotation))


def _limits(extras: tuple[Any, ...]) -> Iterator[Any]:
    """The bounds in what annotates a type, whether alone or inside a pydantic field."""
    for extra in extras:
        yield from getattr(extra, "metadata", [extra])


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, BaseModel):
        return "see its section"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(thing: Any) -> str:
    """A docstring with Markdown's backquotes instead of reStructuredText's."""
    return (inspect.getdoc(thing) or "").replace("``", "`")


def _literal(text: str) -> str:
    """Help as the terminal shows it: nothing in it is markup."""
    return text.strip().replace("`", "").replace("<", "\\<").replace("*", "\\*")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "commands": commands,
    "fields": fields,
    "names": names,
    "recipes": recipes,
    "study": study,
}
