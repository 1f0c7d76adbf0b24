"""The folder of these tests and that of the site's own modules can be imported from; one server of quick processes."""

import sys
from pathlib import Path

import pytest
from support import forks as quick

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "docs" / "_ext")]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where commands run, one after the other."""
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="session")
def forks(folder):
    """Runs command lines in forked processes, in that folder."""
    with quick.server(folder) as found:
        yield found
