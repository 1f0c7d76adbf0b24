"""The journal of an evaluation: rows scored so far, so that a resumed run scores no picture again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowopd_cli.rewards.base import Reward
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.evaluation.folder import PictureFolder
from flowopd_cli.stages.evaluation.requests import Key, PictureRequest
from flowopd_cli.suites.base import NamedReward, Row, Suite
from flowopd_cli.system.files import append, atomic_write, remove, storing
from flowopd_cli.system.json_files import json_lines, plain, read_json_lines

Scored = tuple[str, Row]  # suite and row


class Journal:
    """One file a process, one line a row. A row counts as long as its picture's file and its reward are unchanged."""

    def __init__(
        self, run: RunDir, rank: int, folder: PictureFolder, suites: Sequence[Suite], rewards: Mapping[str, Reward]
    ) -> None:
        self._folder, self._home = folder, run.scored_dir
        self._file = self._home / str(rank)
        self._judges = {suite.name: judge(suite, rewards[suite.name]) for suite in suites}
        self._lines: dict[tuple[str, Key], dict[str, Any]] = {}
        for path in sorted(self._home.glob("[0-9]*")):
            lines = read_json_lines(path)
            if path == self._file:
                atomic_write(path, json_lines(lines))  # without a last line that a crash tore
            self._lines |= {(line["suite"], key_of(line["row"])): line for line in lines if _is_sound(line)}

    def rows(self, request: PictureRequest) -> list[Scored] | None:
        """The rows of a picture, one a suite; ``None`` unless all are there and valid."""
        path = self._folder.find(request)
        lines = [self._lines.get((name, request.key)) for name in request.suites]
        if path is None or not all(line and self._is_current(line, path) for line in lines):
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

    def remove(self) -> None:
        """Remove the journals of all processes, once the results are written."""
        remove(self._home)

    def _is_current(self, line: Mapping[str, Any], path: Path) -> bool:
        return line["judge"] == self._judges[line["suite"]] and line["file"] == signature(path)


def _is_sound(line: Mapping[str, Any]) -> bool:
    row = line.get("row")
    if not isinstance(row, dict) or not all(isinstance(line.get(key), str) for key in ("suite", "judge", "file")):
        return False
    texts = all(isinstance(row.get(key), str) for key in ("prompt", "task", "text", "tag"))
    nested = isinstance(row.get("scores"), dict) and isinstance(row.get("details"), dict)
    return texts and nested and type(row.get("index")) is int and "value" in row and "valid" in row


def judge(suite: Suite, reward: Reward) -> str:
    """A digest of everything that a score depends on besides its picture: engine, weights, options, suite version."""
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
