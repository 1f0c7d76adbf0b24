"""``report.html``: one run's, written at its end or again, and the comparison of several. No torch, no network."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, one_line, printable
from flowopd_cli.reports import comparison as compare
from flowopd_cli.reports import run_page as single
from flowopd_cli.reports import table as results
from flowopd_cli.reports.entries import Entry, lineup
from flowopd_cli.reports.page import MARK, render
from flowopd_cli.runs.layout import REPORT, RunPaths, fresh_path
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import atomic_write
from flowopd_cli.system.paths import is_dir, is_file
from flowopd_cli.system.progress import Progress

SWITCH = "FLOWOPD_REPORT"


def at_end(run: RunDir, progress: Progress, status: str, metrics: Mapping[str, Any] | None = None) -> None:
    """Write a run's report as it ends; whatever goes wrong is one warning, for the run is done without it.

    With ``FLOWOPD_REPORT=0`` in the environment none is written.
    """
    if not run.writes or os.environ.get(SWITCH, "1").lower() in {"0", "no", "off", "false"}:
        return
    try:
        atomic_write(run.report_file, render(single.page(run, run.report_file, single.Ending(status, metrics or {}))))
    except Exception as error:
        again = f"flowopd report {run.path}"
        with suppress(Exception):
            progress.note(f"warning: no report was written ({one_line(error)[:300]}); try again with: {again}")


def of_run(path: Path, out: Path | None) -> Path:
    """Write the report of one run, into it or as the file or folder ``out``; returns where it is.

    Raises:
        ArtifactError: there is no run at ``path``, it is damaged, or ``out`` has something else.
        StorageError: it cannot be written.
    """
    run = RunDir.open(path, writes=False)
    target = run.report_file if out is None else page_at(out)
    atomic_write(target, render(single.page(run, target)))
    return target


def of_runs(paths: Sequence[Path], out: Path | None) -> tuple[Path, list[Entry], list[Path]]:
    """Write the comparison of several runs: the page, the models in it, and the files of numbers beside it.

    Raises:
        ArtifactError: a path is no run, an evaluation is damaged, or ``out`` has something else.
        StorageError: it cannot be written.
    """
    entries = lineup(paths)
    target = page_at(fresh_path("report") if out is None else out)
    if is_run(target.parent):
        raise ArtifactError(f"{target.parent}: is a run; give --out a folder of its own for the comparison")
    _keep_others(target, _beside(entries, target))
    return target, entries, write_comparison(compare.Comparison(entries), target)


def write_comparison(asked: compare.Comparison, target: Path) -> list[Path]:
    """Write a comparison's page to ``target`` and its numbers beside it; returns where those are."""
    beside, page = _beside(asked.entries, target), render(compare.page(asked, target))
    for path, text in beside.items():
        atomic_write(path, text)
    atomic_write(target, page)
    return list(beside)


def _beside(entries: Sequence[Entry], target: Path) -> dict[Path, str]:
    """The files of numbers; those of a page with a name of its own begin with that: ``paper.table.tex``."""
    own = "" if target.name == REPORT else f"{target.stem}."
    return {target.with_name(own + name): text for name, text in results.files(entries).items()}


def _keep_others(target: Path, beside: Mapping[Path, str]) -> None:
    """Refuse to replace a file of numbers that is not as the earlier page at ``target`` has it.

    Raises:
        ArtifactError: one of them is there, and is no earlier report's or was changed since.
    """
    earlier = target.read_bytes() if is_file(target) else b""
    for path, text in beside.items():
        if is_file(path):
            found = path.read_bytes()
            if found != text.encode() and b64encode(found) not in earlier:
                raise ArtifactError(
                    f"{path}: is no file of an earlier report, or was changed; move it, or give --out a fresh name"
                )


def page_at(out: Path) -> Path:
    """The page that ``--out`` names: a file whose name ends in ``.html``, else one in that folder.

    Raises:
        ArtifactError: something else is there.
    """
    is_page = out.suffix.lower() in {".html", ".htm"} and not is_dir(out)
    target = out if is_page else RunPaths(out).report_file
    if is_file(out) and not is_page:
        raise ArtifactError(f"{out}: is a file; --out names a folder, or a file that ends in .html")
    if is_file(target) and MARK.encode() not in target.read_bytes()[:2000]:
        raise ArtifactError(f"{target}: is no report of flowopd; give --out a fresh name")
    if not is_page and not is_file(target) and is_dir(out) and any(out.iterdir()):
        raise ArtifactError(f"{out}: is not empty and has no {REPORT} of ours in it; give --out a fresh name")
    return target


def shown(page: Path) -> str:
    """Where a page is, as a terminal can show it: bytes of a name that are no UTF-8 are written out."""
    return printable(str(page))
