"""The table of docs/reliability.md names tests that are there, and its rules are those of the code."""

import ast
import re
from pathlib import Path

from flowopd_cli.errors import StorageError
from flowopd_cli.runs import lock as locks
from flowopd_cli.runs import provenance

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def named():
    """File and function of every test that the table names."""
    return re.findall(r"^\|.*\| `([\w/]+\.py)::(\w+)` \|$", PAGE, flags=re.M)


def test_every_row_names_a_test_that_is_there():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")][2:]
    assert len(named()) == len(rows) > 30
    for file, function in named():
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (file, function)


def test_every_test_of_this_folder_is_in_the_table_or_about_a_detail():
    """A fault that is tested from the shell is promised."""
    files = {file for file, _ in named()}
    assert {f"reliability/{path.name}" for path in Path(__file__).parent.glob("test_*.py")} - files == {
        "reliability/test_documented.py"
    }


def test_the_page_lists_what_may_change():
    listed = PAGE.partition("**What may change on `--resume`**")[2].partition("Anything else")[0]
    fields = set(re.findall(r"`([\w.]+)`", listed))
    assert fields == {*provenance.MAY_CHANGE, *(name.replace("*", "TASK") for name in provenance.MAY_MOVE)}


def test_the_figures_are_those_of_the_code():
    assert f"every {locks.BEAT:.0f} seconds" in " ".join(PAGE.split())
    assert f"not touched for {locks.SILENCE:.0f} seconds" in PAGE
    assert f"cannot be written is {StorageError.exit_code}." in PAGE
