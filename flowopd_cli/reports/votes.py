"""Votes of people on pairs of pictures: the pairs that evaluations share, the file of votes, its figures."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flowopd_cli.errors import ArtifactError
from flowopd_cli.recipe import faults
from flowopd_cli.reports.entries import Entry, collect
from flowopd_cli.reports.page import Listing
from flowopd_cli.reports.ratings import bradley_terry, wilson
from flowopd_cli.runs.evaluations import Evaluation
from flowopd_cli.runs.manifest import Time
from flowopd_cli.system.files import append, atomic_write, is_file, storing, sync_file
from flowopd_cli.system.json_files import json_lines, read_json_lines
from flowopd_cli.system.paths import below

VOTES = "votes.jsonl"
SETTINGS = ("seed", "guidance", "resolution")
NOTE = "A tie is half a win. Intervals of 95 %, as if votes were independent."
SCALE = "Bradley-Terry, in Elo points with a mean of 1500: 400 points are odds of ten to one."
Files = tuple[Path, Path]
R = TypeVar("R", bound="_Record")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls: type[R], row: Mapping[str, Any], place: str) -> R:
        try:
            return cls.model_validate(row)
        except ValidationError as error:
            raise ArtifactError(f"{place}: is no {cls.__name__.lower()} ({faults(error, cls)[0]})") from error


class Side(_Record):
    """A model: its evaluation's run, the digests of its adapter (``None``: no adapter) and of its base, its steps."""

    run: str
    adapter: str | None
    base: str
    steps: int

    @property
    def model(self) -> tuple[str, str, int]:
        """The weights and the number of steps, whichever run evaluated them."""
        return self.adapter or "", self.base, self.steps


class Picture(_Record):
    """A prompt's task, id and text, the picture's number among those of the prompt, and how it was drawn."""

    suite: str
    task: str
    prompt: str
    text: str
    index: int
    seed: int
    guidance: float
    resolution: int | None  #: the base's own where it is ``None``


class Pair(Picture):
    """The same picture of two models."""

    left: Side
    right: Side

    @property
    def key(self) -> tuple[Any, ...]:
        """What is equal for the same two pictures, on whichever sides, by whichever suite."""
        facts = (getattr(self, name) for name in Picture.model_fields if name != "suite")
        return *facts, *sorted([self.left.model, self.right.model])


class Vote(Pair):
    """The choice of a voter; ``None`` takes an earlier vote back."""

    choice: Literal["left", "right", "tie"] | None
    time: Time
    voter: str


def pairs(paths: Sequence[Path], seed: int, voter: str) -> dict[Pair, Files]:
    """The pairs of pictures of the models behind the runs at ``paths``, with their files.

    The order and the sides depend on the seed, the voter and the pair alone. Raises :class:`ArtifactError`: a path is
    no run or has no evaluation, or no two models have the same picture.
    """
    runs, sides, lots = {path.resolve() for path in paths}, [], {}
    for entry in collect(paths):
        one = entry.evaluation
        if one is None:
            path = entry.run.path if entry.run else entry.name
            raise ArtifactError(f"{path}: has no evaluation; make one with: flowopd eval --adapter {path}")
        if not runs.isdisjoint(run.path for run in (entry.run, one.run) if run):  # unlike a base found beside them
            sides.append((_side(one), _pictures(one)))
    for (one, ones), (two, twos) in combinations(sorted(sides, key=lambda item: item[0].model), 2):
        for picture in ones.keys() & twos.keys() if one.model != two.model else ():
            pair = Pair(**dict(picture), left=one, right=two)
            lot, files = json.dumps([seed, voter, *pair.key]), (ones[picture], twos[picture])
            lot = hashlib.sha256(lot.encode()).digest()
            if lot[-1] % 2:
                pair, files = pair.model_copy(update={"left": two, "right": one}), files[::-1]
            lots[lot] = pair, files
    if not lots:
        raise ArtifactError(
            f"{', '.join(map(str, paths))}: no two models have pictures of the same prompt, {', '.join(SETTINGS)}; "
            "evaluate them alike with: flowopd eval"
        )
    return dict(lots[lot] for lot in sorted(lots))


def _side(one: Evaluation) -> Side:
    manifest = one.run.manifest()
    base = manifest.base and manifest.base.model_copy(update={"ref": manifest.base.sha256 or manifest.base.ref})
    base = base.label if base else ""
    return Side(run=manifest.run_id, adapter=one.scored, base=base, steps=one.protocol["steps"])


def _pictures(one: Evaluation) -> dict[Picture, Path]:
    pictures = {}
    for suite in one.results:
        rows = one.run.eval_file(suite, one.part).with_suffix(".jsonl")
        for number, row in enumerate(read_json_lines(rows), start=1):
            file = below(one.run.images_dir / one.part, str(row.get("picture", "-")))
            if is_file(file):
                facts = {name: row.get(name) for name in ("task", "prompt", "text", "index")} | {"suite": suite}
                facts |= {name: one.protocol[name] for name in SETTINGS}
                pictures[Picture.read(facts, f"{rows}:{number}")] = file
    return pictures


def read_votes(file: Path) -> list[Vote]:
    """The last vote of each voter on each pair, without those taken back; none without a file.

    Raises :class:`ArtifactError`: a row is no vote.
    """
    rows = enumerate(read_json_lines(file), start=1)
    votes = [Vote.read(row, f"{file}:{number}") for number, row in rows]
    return [vote for vote in {(vote.voter, vote.key): vote for vote in votes}.values() if vote.choice]


def votes_beside(paths: Sequence[Path]) -> list[Vote]:
    """The votes in the folders of the runs at ``paths``."""
    folders = dict.fromkeys(path.resolve().parent for path in paths)
    return [vote for folder in folders for vote in read_votes(folder / VOTES)]


def begin(file: Path) -> None:
    """Make a file of votes if there is none, and remove a last line that a crash tore."""
    with storing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    append(file, "")
    if file.read_bytes()[-1:] not in (b"", b"\n"):
        atomic_write(file, json_lines(read_json_lines(file)))


def record(file: Path, vote: Vote) -> None:
    """Append a vote, and wait for the disk."""
    append(file, json_lines([vote.model_dump()]))
    sync_file(file)


def figures(entries: Sequence[Entry], votes: Sequence[Vote]) -> dict[str, list[dict[str, Any]]]:
    """``ratings``, a row for each model, the best first, and ``pairs``, a row for each two models that met."""
    labels: dict[Any, str] = {}
    for entry in entries:
        if one := entry.evaluation:
            labels.setdefault((_side(one).model, *(one.protocol[name] for name in SETTINGS[1:])), entry.label)
    wins: Counter[tuple[str, str]] = Counter()
    ties: Counter[tuple[str, str]] = Counter()
    for vote in votes:
        left, right = (labels.get((side.model, vote.guidance, vote.resolution)) for side in (vote.left, vote.right))
        if left is not None and right is not None:
            wins[(right, left) if vote.choice == "right" else (left, right)] += vote.choice != "tie"
            ties.update(dict.fromkeys([(left, right), (right, left)], vote.choice == "tie"))
    ratings = bradley_terry({pair: wins[pair] + tied / 2 for pair, tied in ties.items()})
    order = sorted(ratings, key=lambda name: -ratings[name][0])
    rated = [{"model": name, "rating": ratings[name][0], "margin": ratings[name][1]} for name in order]
    rows = []
    for one, two in combinations(order or labels.values(), 2):
        won, tied, lost = wins[one, two], ties[one, two], wins[two, one]
        if total := won + tied + lost:
            counts = {"wins": won, "ties": tied, "losses": lost, "win_rate": (won + tied / 2) / total}
            rows.append({"model": one, "other": two, **counts, "interval": wilson(won + tied / 2, total)})
    return {"ratings": rated, "pairs": rows}


def listings(figures: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Listing]:
    """The tables of :func:`figures`; those without rows are left out."""
    ratings = [(row["model"], f"{row['rating']:.0f} ± {row['margin']:.0f}") for row in figures["ratings"]]
    rates = [
        (
            *(str(row[name]) for name in ("model", "other", "wins", "ties", "losses")),
            "{:.3f} ({:.3f} to {:.3f})".format(row["win_rate"], *row["interval"]),
        )
        for row in figures["pairs"]
    ]
    note = NOTE if ratings else f"{NOTE} No ratings: no chain of votes connects all models."
    columns = ("model", "against", "wins", "ties", "losses", "win rate")
    tables = [
        Listing("Votes of people", columns, tuple(rates), frozenset({2, 3, 4, 5}), note=note),
        Listing("Ratings", ("model", "rating"), tuple(ratings), frozenset({1}), note=SCALE),
    ]
    return [table for table in tables if table.rows]
