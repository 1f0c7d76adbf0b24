"""Environments of their own: inline metadata, keys, commands, and a worker that really runs in one."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from support.workers import started

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote import isolated
from flowopd_cli.rewards.remote.client import RemoteReward

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

from flowopd_cli.rewards.remote.main import run
from flowopd_cli.rewards.remote.protocol import Answer


class Scorer:
    def __init__(self, level=0.5):
        self.level = level
        outside = [name for name in ("torch", "transformers", "flowopd_cli.cli.app") if importlib.util.find_spec(name)]
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
    found = isolated.read_script(script(BLOCK))
    assert found.requires_python == ">=3.9"
    assert found.dependencies == ("left==1.0", "right[extra]>=2,<3; sys_platform != 'win32'")


def test_no_block_needs_nothing(script):
    found = isolated.read_script(script("print(1)\n"))
    assert (found.requires_python, found.dependencies, found.block) == ("", (), "")


def test_the_block_without_a_toml_reader(script, monkeypatch):
    whole = isolated.read_script(script(BLOCK))
    shipped = isolated.read_script(isolated.find_script("deqa"))
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    assert isolated.read_script(script(BLOCK)) == whole
    assert isolated.read_script(isolated.find_script("deqa")) == shipped


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BLOCK + BLOCK, "2 script blocks"),
        ("# /// script\n# dependencies = [\n# ///\n", "cannot be read"),
        ('# /// script\n# dependencies = "one"\n# ///\n', "want dependencies as a list"),
        ("# /// script\n# requires-python = 3\n# ///\n", "requires-python as a text"),
    ],
)
def test_blocks_that_cannot_be_used(script, text, words):
    with pytest.raises(RewardError, match=words):
        isolated.read_script(script(text))


def test_which_names_have_a_worker(script, tmp_path):
    assert isolated.find_script("deqa").name == "deqa.py"
    assert isolated.find_script("ocr") is None
    assert isolated.find_script("__init__") is None
    assert isolated.find_script("module:function") is None
    own = script(BLOCK)
    assert isolated.find_script(str(own)) == own
    with pytest.raises(RewardError, match="no such file"):
        isolated.find_script(str(tmp_path / "none.py"))


def test_the_key_follows_the_block_and_the_interpreter(script):
    one = isolated.read_script(script(BLOCK))
    changed = isolated.read_script(script(BLOCK.replace("left==1.0", "left==1.1")))
    code_only = isolated.read_script(script(BLOCK.replace('print("x")', 'print("y")')))
    key = isolated.environment_key(one, "3.11.7")
    assert isolated.environment_key(code_only, "3.11.7") == key
    assert isolated.environment_key(changed, "3.11.7") != key
    assert isolated.environment_key(one, "3.12.1") != key


def test_uv_is_preferred(script, monkeypatch):
    monkeypatch.setattr(isolated.shutil, "which", lambda name: "/bin/uv" if name == "uv" else None)
    found = isolated.read_script(script(BLOCK))
    assert isolated.launcher("x", found) == [
        *("/bin/uv", "run", "--no-project", "--script"),
        *(str(found.path), "--watch-parent"),
    ]


def test_without_uv_a_venv_is_built_once(script, monkeypatch, cache):
    built = []

    def perform(name, command):
        built.append(command)
        isolated.interpreter(Path(command[4] if command[2] == "venv" else command[0])).parent.mkdir(
            parents=True, exist_ok=True
        )

    monkeypatch.setattr(isolated.shutil, "which", lambda name: None)
    monkeypatch.setattr(isolated, "_perform", perform)
    found = isolated.read_script(script(BLOCK))
    python, path = isolated.launcher("x", found)
    assert path == str(found.path)
    venv, pip = built
    assert venv[:3] == [sys.executable, "-m", "venv"]
    assert pip[1:4] == ["-m", "pip", "install"]
    assert pip[-2:] == list(found.dependencies)
    home = cache / "workers" / isolated.environment_key(found, platform.python_version())
    assert Path(python) == isolated.interpreter(home)
    assert home.is_dir()
    assert isolated.launcher("x", found)[0] == python
    assert len(built) == 2
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_what_fails_leaves_nothing_behind(script, monkeypatch, cache):
    monkeypatch.setattr(isolated.shutil, "which", lambda name: None)
    monkeypatch.setattr(isolated, "build_commands", lambda *given: [[sys.executable, "-c", "import sys; sys.exit(3)"]])
    with pytest.raises(RewardError, match=r"worker x: its environment could not be made .*ended with 3.*uv"):
        isolated.launcher("x", isolated.read_script(script(BLOCK)))
    assert list((cache / "workers").iterdir()) == []


def test_a_python_that_is_not_there(script, monkeypatch):
    monkeypatch.setattr(isolated.shutil, "which", lambda name: None)
    found = isolated.read_script(script(BLOCK.replace(">=3.9", "<3.5")))
    with pytest.raises(RewardError, match=r"wants Python <3\.5, and none is installed .*install uv"):
        isolated.launcher("x", found)


def test_another_python_is_looked_for(script, monkeypatch):
    monkeypatch.setattr(platform, "python_version", lambda: "3.4.0")
    monkeypatch.setattr(isolated.shutil, "which", lambda name: sys.executable if name == "python3.11" else None)
    found = isolated.read_script(script(BLOCK))
    python, version = isolated.fitting_python("x", found)
    assert python == sys.executable
    assert version == ".".join(map(str, sys.version_info[:3]))


def test_our_packages_stay_outside(tmp_path):
    given = {"PYTHONPATH": "/ours", "VIRTUAL_ENV": "/venv", "HF_HOME": "/hf", "FLOWOPD_REWARD_TOKEN": "t"}
    found = isolated.worker_environment(given, tmp_path)
    assert found == {
        **{"HF_HOME": "/hf", "FLOWOPD_REWARD_TOKEN": "t"},
        **{"PYTHONPATH": str(tmp_path), "PYTHONNOUSERSITE": "1"},
    }


def test_the_shared_folder_stands_alone(cache):
    home = isolated.shared_folder()
    assert isolated.shared_folder() == home
    names = {path.relative_to(home).as_posix() for path in home.rglob("*.py")}
    assert "flowopd_cli/rewards/remote/main.py" in names
    assert "flowopd_cli/cli/app.py" not in names
    code = "import flowopd_cli.rewards.remote.main as m; print(m.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=cache,
        env={"PYTHONPATH": str(home)},
    )
    assert done.stdout.startswith(str(home))


def serve(path, folder, **environment):
    """The worker as the command line starts it, but with PIL from our environment where there is no network."""
    code = (
        "import sys; from pathlib import Path; from flowopd_cli.rewards import isolated\n"
        "sys.exit(isolated.run('fake', Path(sys.argv[1]), ['--options', sys.argv[2]]))"
    )
    argv = [sys.executable, "-c", code, str(path), json.dumps({"level": 0.25})]
    return started(folder=folder, argv=argv, **environment)


def test_a_worker_in_a_venv_of_its_own(script, tmp_path, monkeypatch, cache):
    """No dependency, so no network: PIL, which the protocol needs, is lent to the venv by a path file."""
    monkeypatch.setenv("PATH", os.defpath)
    path = script(WORKER.format(dependencies=""))
    home = isolated.make_venv("fake", isolated.read_script(path))
    import PIL

    lent = tmp_path / "lent"
    lent.mkdir()
    (lent / "PIL").symlink_to(Path(PIL.__file__).parent)
    for name in Path(PIL.__file__).parent.parent.glob("pillow.libs"):
        (lent / name.name).symlink_to(name)
    site = next(home.parent.parent.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(f"{lent}\n")
    with serve(path, tmp_path) as worker:
        reward = RemoteReward(worker.url)
        assert reward.info.name == "fake"
        assert Path(reward.info.note) == home.parent.parent
        result = reward(pictures(), prompts())
        assert result.total.tolist() == [0.25, 0.25]
        pid = worker.process.pid
        assert f"{home}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.hub
@pytest.mark.slow
def test_a_worker_whose_packages_are_fetched(script, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    path = script(WORKER.format(dependencies='"pillow"'))
    try:
        isolated.make_venv("fake", isolated.read_script(path))
    except RewardError as error:
        pytest.skip(str(error))
    with serve(path, tmp_path) as worker:
        assert RemoteReward(worker.url)(pictures(), prompts()).valid.all()


def pictures():
    import torch

    return torch.rand(2, 3, 8, 8)


def prompts():
    from flowopd_cli.core.prompt import Prompt

    return [Prompt("1", "x", "t"), Prompt("2", "y", "t")]
