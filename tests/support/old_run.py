"""A teacher's run directory that version 0.1.0 wrote, before the package had its present layout."""

import hashlib
import shutil
from pathlib import Path

from flowopd_cli import toy
from flowopd_cli.models.files.pipelines import base_fingerprint

DATA = Path(__file__).parents[1] / "data" / "run_0_1"
FIRST_EDITION = "d40648f2c6afda12e8065cc81a6bd6ae5f72bae40117c40ecd3875e8ca30b2c0"  # of the toy base, which it had


def copy_old_run(path):
    """A copy at ``path``, bound to the present toy base as if it had been trained on it."""
    shutil.copytree(DATA, path)
    replacements = {FIRST_EDITION: base_fingerprint(toy.folder())}
    while replacements:  # of digests, which change those of the files that they are in
        replacements = rewrite(path, replacements)
    return path


def rewrite(path, replacements):
    """Replace digests in every file: the old and the new digests of the files that changed."""
    changes = {}
    for file in (file for file in path.rglob("*") if file.is_file()):
        before = after = file.read_bytes()
        for old, new in replacements.items():
            after = after.replace(old.encode(), new.encode())
        if after != before:
            file.write_bytes(after)
            changes[hashlib.sha256(before).hexdigest()] = hashlib.sha256(after).hexdigest()
    return changes
