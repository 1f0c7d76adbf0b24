"""One study in its folder: what there is to do, the runs, the results. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.cli.study.grid import Cell, Grid, check_nodes, expand
from flowopd_cli.cli.study.pool import DONE, Pool, cpu_seconds
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.reports.page import Page
from flowopd_cli.reports.study import Row, write
from flowopd_cli.runs.evaluations import AVERAGE, average_of, by_guidance, protocol
from flowopd_cli.runs.inspect import standing
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.files import atomic_write, is_dir, is_file
from flowopd_cli.system.progress import Progress

FILE, STORE = "study.yaml", "nodes"


@dataclass(frozen=True)
class Study:
    """A study from ``file``, with its results in ``out`` and its runs in ``store``."""

    file: Path
    spec: recipes.StudySpec
    grid: Grid
    out: Path
    store: Path

    @classmethod
    def load(cls, name: str, out: Path, store: Path | None) -> Study:
        """Read a study by the name of a shipped one, or a file, and resolve all its recipes.

        Raises :class:`RecipeError`: something in it is unknown or out of range.
        Raises :class:`ArtifactError`: ``out`` holds something else.
        """
        file = recipes.shipped_studies().get(f"studies/{name}") or recipes.find(name)
        if is_file(out):
            raise ArtifactError(f"{out}: is a file; --out names a directory")
        if is_dir(out) and any(out.iterdir()) and not is_file(out / FILE):
            raise ArtifactError(f"{out}: is not empty and holds no study; give --out a fresh name")
        spec = recipes.load_study(file)
        return cls(file, spec, expand(spec, str(file)), out, store or out / STORE)

    def check(self, *, allow_code: bool) -> list[str]:
        """Check all recipes; returns remarks, raises :class:`RecipeError`."""
        return check_nodes(self.grid, str(self.file), allow_code=allow_code)

    def shard(self, text: str | None) -> tuple[Cell, ...]:
        """The cells of ``I/N``: every N-th from the I-th on; all of ``None``."""
        if text is None:
            return self.grid.cells
        index, _, count = text.partition("/")
        if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
            raise RecipeError(f"--shard {text}: write it as I/N, the I-th of N parts, as in 1/4")
        return self.grid.cells[int(index) - 1 :: int(count)]

    def standing(self, cells: tuple[Cell, ...]) -> list[dict[str, str]]:
        """A row for each run of some cells: its name, what it is, its status."""
        nodes = self.grid.needed(cells)
        return [{"run": node.name, "what": node.label, "status": standing(self.store / node.name)} for node in nodes]

    def run(
        self, cells: tuple[Cell, ...], jobs: int, progress: Progress, *, again: str, allow_code: bool
    ) -> dict[str, Any]:
        """Make the runs of some cells that are not done, and write the results of all cells that are.

        Returns the ``report``, the number of ``cells`` with a result, and the ``faults`` by node.

        Raises :class:`Interrupted`: the user stopped it; the message has ``again``, the command that goes on.
        """
        atomic_write(self.out / FILE, self.file.read_bytes())
        outcomes = Pool(self.store, jobs, progress.note, allow_code).run(self.grid.needed(cells), again)
        return self.write({name: outcome for name, outcome in outcomes.items() if outcome != DONE})

    def write(self, faults: Mapping[str, str]) -> dict[str, Any]:
        """Write the page and the numbers of all cells that have a result."""
        rows = [row for cell in self.grid.cells for row in self._rows(cell)]
        finished, total = len({(row.evaluation, row.run, row.seed) for row in rows}), len(self.grid.cells)
        warnings = [(self.grid.nodes[name].label, f"{name} {fault}") for name, fault in faults.items()]
        if finished < total:
            warnings.append(("", f"{total - finished} of {total} cells have no result yet"))
        seconds = math.fsum(second for name in self.grid.nodes for second in cpu_seconds(self.store / name))
        facts = [("seeds", ", ".join(map(str, self.spec.seeds))), ("cells", f"{finished} of {total}")]
        facts += [("runs", str(len(self.grid.nodes))), ("CPU-seconds", f"{seconds:.0f}")]
        lead = "; ".join(f"{axis}: {', '.join(map(str, self.spec.values(axis)))}" for axis in self.spec.axes)
        text = self.file.read_text(encoding="utf-8")
        page = Page(f"Study {self.file.stem}", lead, facts, warnings, recipe=text)
        report = write(self.out, page, rows, self.spec.reference)
        return {"report": str(report), "cells": finished, "of": total, "faults": dict(faults)}

    def _rows(self, cell: Cell) -> list[Row]:
        if standing(self.store / cell.node) != DONE:
            return []
        run = RunDir.open(self.store / cell.node, writes=False)
        seconds = {name: cpu_seconds(self.store / name) for name in cell.nodes.values()}
        spent = {name: round(math.fsum(values), 2) if values else None for name, values in seconds.items()}
        cost = round(math.fsum(map(math.fsum, seconds.values())), 2) if all(seconds.values()) else None
        rows = []
        for one in by_guidance(run):
            metrics = {suite: float(result["mean"]) for suite, result in one.results.items()}
            average = average_of(one.results) if len(metrics) > 1 else None
            rows.append(
                Row(
                    evaluation=cell.evaluation,
                    values=cell.values,
                    seed=cell.seed,
                    guidance=one.guidance,
                    metrics={**metrics, **({} if average is None else {AVERAGE: average})},
                    cpu_seconds={stage: spent[name] for stage, name in cell.nodes.items()},
                    cost=cost,
                    run=str(run.path),
                    protocol=protocol(one),
                )
            )
        return rows
