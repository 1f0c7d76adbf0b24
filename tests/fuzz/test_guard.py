"""The guard of the fuzz tests sees what it is there for."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import fuzzing

from flowopd_cli.errors import RecipeError


def test_a_file_outside_is_seen(tmp_path):
    (tmp_path / "box").mkdir()
    with pytest.raises(AssertionError, match="outside"), fuzzing.guarded(tmp_path / "box"):
        (tmp_path / "outside").write_text("x")
    with pytest.raises(AssertionError, match=r"os\.mkdir"), fuzzing.guarded(tmp_path / "box"):
        (tmp_path / "folder").mkdir()
    with pytest.raises(AssertionError, match=r"os\.remove"), fuzzing.guarded(tmp_path / "box"):
        (tmp_path / "outside").unlink()


def test_files_inside_and_reading_are_not(tmp_path):
    with fuzzing.guarded(tmp_path):
        (tmp_path / "x").write_text("x")
        (tmp_path / "x").rename(tmp_path / "y")
        Path(__file__).read_text(encoding="utf-8")


def test_a_program_is_seen(tmp_path):
    with pytest.raises(AssertionError, match=r"subprocess\.Popen"), fuzzing.guarded(tmp_path):
        subprocess.run([sys.executable, "-c", ""], check=True)


def test_other_errors_come_out(tmp_path):
    with pytest.raises(ZeroDivisionError), fuzzing.guarded(tmp_path):
        assert 1 / 0
    with fuzzing.guarded(tmp_path):
        raise RecipeError("a\nb")
    assert os.path.exists(tmp_path)


def test_what_does_not_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzzing, "SECONDS", 0.05)
    with pytest.raises(TimeoutError), fuzzing.guarded(tmp_path):
        time.sleep(5)
