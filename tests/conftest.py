"""One thread, shapes and types checked at run time in ``core`` and ``train``, and one tiny pipeline for the session."""

import copy
import gc
import os
import sys
import tempfile

import hypothesis
import pytest
import support.checked  # noqa: F401  the hook below looks it up as an attribute of its package
import torch
from jaxtyping import install_import_hook

install_import_hook(["flowopd_cli.core", "flowopd_cli.train"], "support.checked.checked")
torch.set_num_threads(1)
_own_cache = tempfile.TemporaryDirectory(prefix="flowopd-cache-")
os.environ["FLOWOPD_CACHE"] = _own_cache.name  # no test writes into the user's
os.environ["FLOWOPD_REPORT"] = "0"  # a second for each of hundreds of runs; the tests of reports ask for theirs
os.fsync = lambda descriptor: None  # no test cuts the power, and a disk takes milliseconds for each of dozens a run
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish():
    """Leave the libraries' objects out of collections: a full one takes a quarter of a second, and each model asks."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def pipeline_folder(tmp_path_factory):
    """A random, tiny Stable Diffusion 3 pipeline in diffusers' folder layout."""
    from support.tiny import assemble

    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    assemble(seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Runs command lines in forked processes."""
    from support.forks import server

    with server(tmp_path_factory.mktemp("forks")) as running:
        yield running


@pytest.fixture(scope="session")
def loaded(pipeline_folder):
    """The tiny pipeline as a flow model, loaded once; tests take copies of it."""
    from support.tiny import load

    return load(pipeline_folder)


@pytest.fixture(scope="session")
def adapted(pipeline_folder):
    """The tiny model with three adapters and its texts encoded, made once; tests take copies of it."""
    from support.tiny import TEXTS, add_adapters, load

    made = add_adapters(load(pipeline_folder))
    made.encode(TEXTS)
    made.release_encoders()
    return made


@pytest.fixture
def model(loaded):
    """The tiny pipeline as a flow model, without adapters."""
    return copy.deepcopy(loaded)


@pytest.fixture
def make_trainee(adapted):
    """Makes tiny models with a trainable ``policy`` and two frozen adapters, ``other`` and ``third``, all different."""
    return lambda: copy.deepcopy(adapted)


@pytest.fixture
def trainee(make_trainee):
    """One such model."""
    return make_trainee()


@pytest.fixture
def flowopd(monkeypatch, capsys):
    """Run a command line in this process: ``(code, stdout, stderr)``."""

    from flowopd_cli.cli import app as cli

    def call(*argv):
        monkeypatch.setattr(sys, "argv", ["flowopd", *map(str, argv)])
        code = cli.run()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
