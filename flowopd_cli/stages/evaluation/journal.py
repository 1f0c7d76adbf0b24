"""Scoring in the background, and the journal of rows: a resumed evaluation scores no picture again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from flowopd_cli.rewards.base import Reward
from flowopd_cli.stages.evaluation.folder import Picture, PictureFolder
from flowopd_cli.stages.evaluation.requests import Key, PictureRequest
from flowopd_cli.suites.base import NamedReward, Row, Suite, score
from flowopd_cli.system.files import append, atomic_write, storing
from flowopd_cli.system.json_files import json_lines, plain, read_json_lines
from flowopd_cli.system.threads import Worker

Scored = tuple[str, Row]  # suite and row


class Journal:
    """A file in ``home`` for each process, one line per row.

    A row is valid while its picture file and its reward are unchanged.
    """

    def __init__(
        self, home: Path, rank: int, folder: PictureFolder, suites: Sequence[Suite], rewards: Mapping[str, Reward]
    ) -> None:
        self._folder, self._home = folder, home
        self._file = self._home / str(rank)
        self._judges = {suite.name: judge(suite, rewards[suite.name]) for suite in suites}
        self._lines: dict[tuple[str, Key], dict[str, Any]] = {}
        for path in sorted(self._home.glob("[0-9]*")):
            lines = read_json_lines(path)
            if path == self._file:
                atomic_write(path, json_lines(lines))  # without a last line that a crash tore
            self._lines |= {(line["suite"], key_of(line["row"])): line for line in lines if _is_intact(line)}

    def rows(self, request: PictureRequest) -> list[Scored] | None:
        """The rows of a picture, one per suite; ``None`` unless all exist and are valid."""
        path = self._folder.find(request)
        lines = [self._lines.get((name, request.key)) for name in request.suites]
        file = None if path is None else signature(path)
        if any(not line or line["file"] != file or line["judge"] != self._judges[line["suite"]] for line in lines):
            return None
        return [(line["suite"], line["row"]) for line in lines if line]

    def add(self, requests: Sequence[PictureRequest], rows: Sequence[Scored]) -> None:
        """Append rows of these pictures."""
        files = {request.key: self._folder.file(request) for request in requests}
        lines = [
            {"suite": name, "judge": self._judges[name], "file": signature(path), "row": plain(row)}
            for name, row in rows
            if (path := files[key_of(row)]) is not None
        ]
        with storing(self._home):
            self._home.mkdir(parents=True, exist_ok=True)
        append(self._file, json_lines(lines))


def _is_intact(line: Mapping[str, Any]) -> bool:
    row = line.get("row")
    if not isinstance(row, dict) or not all(isinstance(line.get(key), str) for key in ("suite", "judge", "file")):
        return False
    types = {**dict.fromkeys(("prompt", "task", "text", "tag"), str), "scores": dict, "details": dict, "index": int}
    return all(type(row.get(key)) is kind for key, kind in types.items()) and {"value", "valid"} <= row.keys()


def judge(suite: Suite, reward: Reward) -> str:
    """A digest of everything but the picture that a score depends on: engine, weights, options, suite version."""
    options = dict(suite.reward.options) if isinstance(suite.reward, NamedReward) else {}
    parts = [reward.engine, dict(reward.weights), options, suite.version, suite.score]
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def signature(path: Path) -> str:
    """Size and modification time of a file."""
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}"


def key_of(row: Row) -> Key:
    """The key of the picture that a row is about."""
    return row["task"], row["prompt"], row["text"], row["index"]


Batch = tuple[Sequence[PictureRequest], Sequence[Picture]]


class Scorer:
    """Scores batches of pictures, one after the other, and adds their rows to the journal."""

    def __init__(self, suites: Sequence[Suite], rewards: Mapping[str, Reward], journal: Journal) -> None:
        self._suites = {suite.name: suite for suite in suites}
        self._rewards = rewards
        self._journal = journal
        self._worker: Worker[Batch, list[Scored]] = Worker(self._score)

    def submit(self, requests: Sequence[PictureRequest], pictures: Sequence[Picture]) -> None:
        """Queue a batch; blocks while four batches wait. Raises the error of an earlier batch."""
        self._worker.submit((requests, pictures))

    def finish(self) -> list[Scored]:
        """The rows of all batches."""
        return [row for rows in self._worker.results() for row in rows]

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        """Drop the batches that are still queued."""
        self._worker.cancel()

    @torch.no_grad()
    def _score(self, batch: Batch) -> list[Scored]:
        requests, pictures = batch
        rows: list[Scored] = []
        for name, suite in self._suites.items():
            for part in _by_size([i for i, request in enumerate(requests) if name in request.suites], pictures):
                prompts = [requests[i].prompt for i in part]
                indices = [requests[i].place.index for i in part]
                images = torch.stack([pictures[i] for i in part])
                rows += [(name, row) for row in score(suite, self._rewards[name], images, prompts, indices)]
        self._journal.add(requests, rows)
        return rows


def _by_size(indices: Sequence[int], pictures: Sequence[Picture]) -> Iterable[list[int]]:
    sizes: dict[tuple[int, ...], list[int]] = {}
    for index in indices:
        sizes.setdefault(tuple(pictures[index].shape), []).append(index)
    return sizes.values()
