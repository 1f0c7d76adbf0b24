"""Environments of their own: inline metadata, keys, commands, and a worker that really runs in one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.workers import started

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote import isolated
from flowopd_cli.rewards.remote.client import RemoteReward

PROMPTS = [Prompt("1", "x", "t"), Prompt("2", "y", "t")]
BLOCK = """#!/usr/bin/env python
# /// script
# requires-python = ">=3.9"
# dependencies = [
#   "left==1.0",  # why
#   "right[extra]>=2,<3; sys_platform != 'win32'",
# ]
# ///
print("x")
"""
WORKER = '''# /// script
# requires-python = ">=3.10"
# dependencies = [{dependencies}]
# ///
"""A worker that says what it can import."""
import importlib.util
import os
import sys

from flowopd_cli.rewards.remote.server import run
from flowopd_cli.rewards.remote.protocol import Answer


class Scorer:
    def __init__(self, level=0.5):
        self.level = level
        outside = [name for name in ("torch", "transformers", "flowopd_cli.cli") if importlib.util.find_spec(name)]
        self.info = {{"reward": "fake", "package": "fake 1", "note": " ".join([sys.prefix, *outside])}}

    def check(self, prompts):
        pass

    def __call__(self, pictures, prompts):
        return Answer([self.level] * len(pictures), {{}}, [True] * len(pictures))


if __name__ == "__main__":
    run(lambda options: Scorer(**options))
'''


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "worker.py"
        path.write_text(text)
        return path

    return write


def test_the_inline_block(script):
    metadata = isolated.read_script(script(BLOCK))
    assert metadata.requires_python == ">=3.9"
    assert metadata.dependencies == ("left==1.0", "right[extra]>=2,<3; sys_platform != 'win32'")
    assert isolated.read_script(script(BLOCK.replace("#   ", "#  "))).dependencies == metadata.dependencies
    shipped = isolated.read_script(isolated.find_script("deqa"))
    assert shipped.requires_python == ">=3.10,<3.13"
    assert "transformers==4.36.1" in shipped.dependencies


def test_no_block_needs_nothing(script):
    metadata = isolated.read_script(script("print(1)\n"))
    assert (metadata.requires_python, metadata.dependencies, metadata.block) == ("", (), "")


def test_a_block_is_toml(script):
    lines = (
        "/// script",
        "requires-python = '>=3.12'",
        "dependencies = ['left']",
        "[tool.x]",
        "y = [",
        " 1,",
        "]",
        "///",
    )
    metadata = isolated.read_script(script("".join(f"# {line}\n" for line in lines)))
    assert (metadata.requires_python, metadata.dependencies) == (">=3.12", ("left",))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("# dependencies = [\n#   left\n# ]\n", "cannot be read"),
        ("# dependencies = [1]\n", r"dependencies\.0: Input should be a valid string"),
        ("# dependencies = 'left'\n", "dependencies: Input should be a valid tuple"),
        ("# requires-python = 3.12\n", "requires-python: Input should be a valid string"),
        ("# requires-python = 'new'\n", "Invalid specifier: 'new'"),
        ("# dependencies = []\n# ///\n\n# /// script\n# dependencies = []\n", "has 2 script blocks, want one"),
    ],
)
def test_a_block_that_cannot_be_read(script, text, words):
    with pytest.raises(RewardError, match=words) as error:
        isolated.read_script(script(f"# /// script\n{text}# ///\n"))
    assert "\n" not in str(error.value)


def test_a_python_without_a_reader_of_toml(script, monkeypatch):
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(RewardError, match=r"needs Python 3\.11, or uv"):
        isolated.read_script(script(BLOCK))


def test_which_names_have_a_worker(script, tmp_path):
    assert isolated.find_script("deqa").name == "deqa.py"
    assert isolated.find_script("ocr") is None
    assert isolated.find_script("__init__") is None
    assert isolated.find_script("module:function") is None
    path = script(BLOCK)
    assert isolated.find_script(str(path)) == path
    with pytest.raises(RewardError, match="no such file"):
        isolated.find_script(str(tmp_path / "none.py"))


def test_uv_is_preferred(script, monkeypatch, tmp_path):
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(uv.parent))
    path, calls = script(BLOCK), []
    monkeypatch.setattr(os, "execve", lambda *arguments: calls.append(arguments))
    isolated.run("x", path, {"options": {}})
    assert calls[0][1][:5] == [str(uv), "run", "--no-project", "--script", str(path)]
    assert json.loads(calls[0][1][5]) == {"options": {}, "watch_parent": True}


def test_a_venv_is_made_once_for_each_block(script, monkeypatch, cache):
    monkeypatch.setenv("PATH", os.defpath)
    first = script(WORKER.format(dependencies=""))
    python = isolated.make_venv("x", isolated.read_script(first))
    created = python.stat().st_ctime_ns
    assert isolated.make_venv("x", isolated.read_script(script(first.read_text() + "x = 1\n"))) == python
    assert python.stat().st_ctime_ns == created
    other = script(first.read_text().replace(">=3.10", ">=3.9"))
    assert isolated.make_venv("x", isolated.read_script(other)) != python
    assert len(list((cache / "workers").iterdir())) == 2


def test_a_failure_leaves_nothing_behind(script, monkeypatch, cache):
    monkeypatch.setenv("PATH", os.defpath)
    text = WORKER.format(dependencies='"no such requirement"')
    with pytest.raises(RewardError, match=r"worker x: its environment could not be made .*ended with .*uv"):
        isolated.make_venv("x", isolated.read_script(script(text)))
    assert list((cache / "workers").iterdir()) == []


def test_a_python_that_is_not_installed(script, monkeypatch):
    monkeypatch.setenv("PATH", "")
    metadata = isolated.read_script(script(BLOCK.replace(">=3.9", "<3.5")))
    with pytest.raises(RewardError, match=r"needs Python <3\.5, and none is installed .*install uv"):
        isolated.make_venv("x", metadata)


def test_the_shared_folder_stands_alone(cache):
    home = isolated.shared_folder()
    assert isolated.shared_folder() == home
    assert not list(home.rglob("cli"))
    code = "import flowopd_cli.rewards.weights, flowopd_cli.rewards.remote.server as m; print(m.__file__)"
    command, environment = [sys.executable, "-c", code], {"PYTHONPATH": str(home)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cache, env=environment).stdout
    assert output.startswith(str(home))


def serve(path, folder, **environment):
    """The worker as the command line starts it."""
    code = (
        "import sys; from pathlib import Path; from flowopd_cli.rewards.remote import isolated\n"
        "isolated.run('fake', Path(sys.argv[1]), {'options': {'level': 0.25}})"
    )
    argv = [sys.executable, "-c", code, str(path)]
    return started(folder=folder, argv=argv, **environment)


LENT = (
    *("PIL", "starlette", "uvicorn", "anyio", "h11", "click", "idna", "pydantic", "pydantic_core"),
    *("annotated_types", "typing_extensions", "typing_inspection"),
)


def test_a_worker_in_a_venv_of_its_own(script, tmp_path, monkeypatch):
    """No dependency, so no network: what the server needs is lent to the venv by a path file."""
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("PYTHONPATH", "/ours")
    path = script(WORKER.format(dependencies=""))
    python = isolated.make_venv("fake", isolated.read_script(path))
    home = python.parent.parent
    lent = tmp_path / "lent"
    lent.mkdir()
    for name in LENT:
        source = Path(importlib.util.find_spec(name).origin)
        source = source.parent if source.name == "__init__.py" else source
        (lent / source.name).symlink_to(source)
    for libraries in (lent / "PIL").resolve().parent.glob("pillow.libs"):
        (lent / libraries.name).symlink_to(libraries)
    site = next(home.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(f"{lent}\n")
    with serve(path, tmp_path) as worker:
        reward = RemoteReward(worker.url)
        assert reward.info.name == "fake"
        assert reward.info.note == str(home)  # neither torch, transformers nor our command line can be imported
        assert reward(torch.rand(2, 3, 8, 8), PROMPTS).total.tolist() == [0.25, 0.25]
        assert f"{python}".encode() in Path(f"/proc/{worker.process.pid}/cmdline").read_bytes()


@pytest.mark.hub
@pytest.mark.slow
def test_a_worker_whose_packages_are_fetched(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    path = script(WORKER.format(dependencies='"pillow", "pydantic", "starlette", "uvicorn"'))
    try:
        isolated.make_venv("fake", isolated.read_script(path))
    except RewardError as error:
        pytest.skip(str(error))
    with serve(path, tmp_path) as worker:
        assert RemoteReward(worker.url)(torch.rand(2, 3, 8, 8), PROMPTS).valid.all()
