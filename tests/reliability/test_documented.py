"""The tests that the table of docs/reliability.md names exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
PAGE = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_every_row_names_an_existing_test():
    rows = [line for line in PAGE.splitlines() if line.startswith("|")][2:]
    names = re.findall(r"^\|.*\| `([\w/]+\.py)::(\w+)` \|$", PAGE, flags=re.M)
    assert len(names) == len(rows) > 30
    for file, function in names:
        tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
        assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (file, function)
