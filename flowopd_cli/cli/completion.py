"""Shell completion: names of recipes, rewards and suites, and run directories."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path

SUFFIXES = (".yaml", ".yml")


def shipped_recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes."""
    from flowopd_cli.recipe.reading import shipped

    return sorted(name for name in shipped() if name.startswith(incomplete))


def shipped(incomplete: str) -> list[str]:
    """Names of shipped recipes and studies."""
    from flowopd_cli.recipe.reading import shipped_studies

    return [*shipped_recipes(incomplete), *(name for name in sorted(shipped_studies()) if name.startswith(incomplete))]


def recipes(incomplete: str) -> list[str]:
    """Names of shipped recipes, recipe files and folders."""
    return [*shipped_recipes(incomplete), *_paths(incomplete, lambda path: path.suffix in SUFFIXES)]


def studies(incomplete: str) -> list[str]:
    """Names of shipped studies, study files and folders."""
    from flowopd_cli.recipe.reading import STUDIES, shipped_studies

    names = sorted(name.removeprefix(STUDIES) for name in shipped_studies())
    files = _paths(incomplete, lambda path: path.suffix in SUFFIXES)
    return [*(name for name in names if name.startswith(incomplete)), *files]


def rewards(incomplete: str) -> list[str]:
    """Names of rewards; rewards of the toy base also by their short names."""
    from flowopd_cli.registry import REWARDS

    return _names(REWARDS.names(), incomplete)


def suites(incomplete: str) -> list[str]:
    """Names of suites, after the last comma of ``incomplete``."""
    from flowopd_cli.registry import SUITES

    head, comma, last = incomplete.rpartition(",")
    return [f"{head}{comma}{name}" for name in _names(SUITES.names(), last)]


def runs(incomplete: str) -> list[str]:
    """Run directories and folders; for an empty word also those in ``runs/``."""
    from flowopd_cli.runs.manifest import is_run

    return [*([] if incomplete else _paths("runs/", is_run)), *_paths(incomplete, is_run)]


def teachers(incomplete: str) -> list[str]:
    """``TASK=RUN``: run directories after the equals sign."""
    task, equals, ref = incomplete.partition("=")
    return [f"{task}={path}" for path in runs(ref)] if equals else []


def _names(names: list[str], incomplete: str) -> list[str]:
    short = {name.removeprefix("toy-") for name in names}
    return sorted(name for name in {*names, *short} if name.startswith(incomplete))


def _paths(incomplete: str, accept: Callable[[Path], bool]) -> list[str]:
    """Paths that ``accept`` returns true for, and other folders with a trailing slash."""
    paths = sorted(glob.glob(f"{glob.escape(incomplete)}*"))
    return [p if accept(Path(p)) else f"{p}/" for p in paths if accept(Path(p)) or Path(p).is_dir()]
