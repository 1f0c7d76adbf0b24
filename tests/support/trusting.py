"""Checkpoints that a test has pickled itself, read without their digests being stated."""

from contextlib import contextmanager

import pytest


@contextmanager
def trusting():
    """Inside the block a pickle needs no digest."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("weights", "geneval.mmdet_weights"):
            patch.setattr(f"flowopd_cli.rewards.{module}.refuse_unpinned", lambda *given: None)
        yield
