"""Shell completion: names of recipes, rewards and suites, and run directories. No torch, no YAML here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

SUFFIXES = (".yaml", ".yml")
RUNS = "runs"


def shipped_recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes."""
    from flowopd_cli.recipe.reading import shipped

    return sorted(name for name in shipped() if name.startswith(incomplete))


def recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes, and recipe files and folders as far as they are typed."""
    return [*shipped_recipes(incomplete), *_paths(incomplete, lambda path: path.suffix in SUFFIXES)]


def rewards(incomplete: str) -> list[str]:
    """Names of rewards; those of the toy base by their short names too."""
    from flowopd_cli.registry import REWARDS

    return _names(REWARDS.names(), incomplete)


def suites(incomplete: str) -> list[str]:
    """Names of suites, after what is typed up to the last comma."""
    from flowopd_cli.registry import SUITES

    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in _names(SUITES.names(), last)]


def runs(incomplete: str) -> list[str]:
    """Run directories and folders on the way to them; with nothing typed those under ``runs/`` too."""
    from flowopd_cli.runs.manifest import is_run

    paths = _paths(incomplete, is_run)
    return paths if incomplete else list(dict.fromkeys([*_paths(f"{RUNS}/", is_run), *paths]))


def teachers(incomplete: str) -> list[str]:
    """``TASK=RUN``: run directories after the equals sign."""
    task, equals, ref = incomplete.partition("=")
    return [f"{task}={path}" for path in runs(ref)] if equals else []


def _names(names: list[str], incomplete: str) -> list[str]:
    short = {name.removeprefix("toy-") for name in names}
    return sorted(name for name in {*names, *short} if name.startswith(incomplete))


def _paths(incomplete: str, accept: Callable[[Path], bool]) -> list[str]:
    """Paths that begin with ``incomplete``: those that ``accept`` takes, and other folders with a slash at the end."""
    head, slash, start = incomplete.rpartition("/")
    return [f"{head}{slash}{name}" for name in sorted(_entries(Path(head + slash or "."), start, accept))]


def _entries(folder: Path, start: str, accept: Callable[[Path], bool]) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(start) or (entry.name.startswith(".") and not start):
                continue
            if accept(Path(entry.path)):
                yield entry.name
            elif entry.is_dir():
                yield f"{entry.name}/"
