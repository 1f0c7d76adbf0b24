"""``report.html``: the report of one run, at its end or later, and of several in comparison."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.reports import comparison, entries, paired, run_page, table, votes
from flowopd_cli.reports.page import MARK, Page, render
from flowopd_cli.runs.layout import REPORT, RunPaths
from flowopd_cli.runs.manifest import is_run
from flowopd_cli.runs.run import RunDir, fresh_path
from flowopd_cli.system.files import atomic_write, is_dir, is_file
from flowopd_cli.system.progress import Progress

SWITCH = "FLOWOPD_REPORT"


def at_end(run: RunDir, progress: Progress, status: str, metrics: Mapping[str, Any] | None = None) -> None:
    """Write a run's report as it ends, unless ``FLOWOPD_REPORT=0``. A failure is one warning, not an error."""
    if run.writes:
        with _optional(progress, run.path) as is_on:
            if is_on:
                atomic_write(run.report_file, render(run_page.page(run, run.report_file, status, metrics)))


def beside(target: Path, paths: Sequence[Path], progress: Progress) -> str | None:
    """Write the comparison of runs as their command ends, as :func:`at_end`; returns the path of the page, if any."""
    with _optional(progress, *paths) as is_on:
        return str(of_runs(paths, target)[0]) if is_on else None


@contextmanager
def _optional(progress: Progress, *paths: Path) -> Iterator[bool]:
    """Whether reports are on; an error inside the block is one warning."""
    try:
        yield os.environ.get(SWITCH, "1").lower() not in {"0", "no", "off", "false"}
    except Exception as error:
        again = f"flowopd report {' '.join(map(str, paths))}"
        progress.note(f"warning: no report was written ({one_line(error)[:300]}); try again with: {again}")


def of_run(path: Path, out: Path | None) -> Path:
    """Write the report of one run, into it or to ``out``, a page or a folder; returns its path.

    Raises :class:`ArtifactError`: there is no run at ``path``, it is damaged, or ``out`` holds something else.
    """
    run = RunDir.open(path, writes=False)
    target = run.report_file if out is None else _page_at(out)
    atomic_write(target, render(run_page.page(run, target)))
    return target


def of_runs(
    paths: Sequence[Path], out: Path | None, against: str | None = None, ballots: Sequence[votes.Vote] = ()
) -> tuple[Path, list[entries.Entry], list[Path]]:
    """Write the comparison of several runs; returns the path of its page, the models in it, and the files of numbers.

    ``against`` names the model of the paired differences, the base by default; ``ballots`` are people's votes.

    Raises :class:`ArtifactError`: a path is no run, an evaluation is damaged, ``out`` holds something else, or no model
    is called ``against``.
    """
    models = entries.collect(paths)
    reference = paired.reference(models, against)
    target = _page_at(fresh_path("report") if out is None else out)
    if is_run(target.parent):
        raise ArtifactError(f"{target.parent}: is a run; give --out a folder of its own for the comparison")
    page = target.read_bytes() if is_file(target) else b""
    for path, text in _numbers(models, target).items():
        content = path.read_bytes() if is_file(path) else text.encode()
        if content != text.encode() and b64encode(content) not in page:  # not a download of the earlier page
            raise ArtifactError(
                f"{path}: is not a file of an earlier report, or was changed; move it, or give --out a fresh name"
            )
    tables = votes.listings(votes.figures(models, ballots))
    compared = comparison.page(models, target, listings=tables, against=reference)
    return target, models, write_comparison(models, target, compared)


def write_comparison(models: Sequence[entries.Entry], target: Path, page: Page) -> list[Path]:
    """Write a comparison's page to ``target`` and its numbers to the same folder; returns the files of numbers."""
    numbers, html = _numbers(models, target), render(page)
    for path, text in (*numbers.items(), (target, html)):
        atomic_write(path, text)
    return list(numbers)


def _numbers(models: Sequence[entries.Entry], target: Path) -> dict[Path, str]:
    """The files of numbers; the name of a page other than ``report.html`` is their prefix: ``paper.table.tex``."""
    prefix = "" if target.name == REPORT else f"{target.stem}."
    return {target.with_name(prefix + name): text for name, text in table.files(models).items()}


def _page_at(out: Path) -> Path:
    """The page that ``--out`` names: a file that ends in ``.html``, else the report in that folder."""
    is_page = out.suffix.lower() in {".html", ".htm"} and not is_dir(out)
    target = out if is_page else RunPaths(out).report_file
    if is_file(out) and not is_page:
        raise ArtifactError(f"{out}: is a file; --out names a folder, or a file that ends in .html")
    if is_file(target) and MARK.encode() not in target.read_bytes()[:2000]:
        raise ArtifactError(f"{target}: is not a flowopd report; give --out a fresh name")
    if not is_page and not is_file(target) and is_dir(out) and any(out.iterdir()):
        raise ArtifactError(f"{out}: is not empty and has no {REPORT} of ours in it; give --out a fresh name")
    return target
