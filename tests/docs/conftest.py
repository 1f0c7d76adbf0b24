"""The folder of these tests and that of the site's own modules can be imported from; a folder for commands."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "docs" / "_ext")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where commands run, one after the other."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def forks(forks, folder):
    """Runs command lines in forked processes, in that folder."""
    return forks.inside(folder)
