"""A teacher's run directory that version 0.1.0 wrote, before the package had its present layout."""

import shutil
from pathlib import Path

DATA = Path(__file__).parents[1] / "data" / "run_0_1"


def copy_old_run(path):
    """A copy at ``path``."""
    return shutil.copytree(DATA, path)
