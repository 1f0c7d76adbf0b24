"""A chain of three stages over a program that trains nothing."""

import json
from pathlib import Path

import pytest
import support
import yaml

from flowopd_cli.cli.study import pool

FAKE = Path(support.__path__[0]) / "fake_stage.py"
CHAIN = {
    "seeds": [0],
    "axes": {"lambda": [1, 2]},
    "stages": {
        "teacher": {"recipe": "toy/teacher-geneval"},
        "student": {
            "recipe": "toy/distill",
            "set": {
                "adapter.init": "$teacher",
                "routing": {task: {"ref": "$teacher"} for task in ("geneval", "ocr", "preference")},
                "anchor.ref": "base",
                "opd.extrapolate": "$lambda",
            },
        },
        "scores": {"recipe": "toy/eval", "set": {"adapter": "$student"}},
    },
}


class Place:
    """A folder with a study and its results."""

    def __init__(self, folder):
        self.file, self.out, self.store = folder / "study.yaml", folder / "out", folder / "store"
        self.write()

    def write(self, **changes):
        self.file.write_text(yaml.safe_dump({**CHAIN, **changes}))

    def order(self, **orders):
        """What stages do whose recipe has a text."""
        self.store.mkdir(parents=True, exist_ok=True)
        (self.store / "orders").write_text(json.dumps({key.replace("_", ": ", 1): v for key, v in orders.items()}))

    def calls(self):
        """The calls so far: ``start`` or ``resume``, the run, the time."""
        path = self.store / "calls"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def forget_calls(self):
        (self.store / "calls").unlink()


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A study of two values: a teacher, two students, two evaluations; five runs for two cells."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "PROGRAM", ("-SE", str(FAKE)))
    monkeypatch.setattr(pool, "POLL", 0.02)
    return Place(tmp_path)
