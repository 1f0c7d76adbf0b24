"""Workers in an environment of their own: a script with inline metadata (PEP 723), run by uv, or else by venv and pip.

The few files of flowopd that the server needs are copied to a folder that is the environment's only ``PYTHONPATH``.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, Field

from flowopd_cli.errors import RewardError
from flowopd_cli.rewards.remote.protocol import one_line
from flowopd_cli.system.paths import cache_dir

PACKAGE = Path(__file__).resolve().parents[2]
WORKERS = PACKAGE / "rewards" / "remote" / "workers"
SHARED = (
    *("__init__.py", "errors.py", "rewards/__init__.py", "rewards/weights.py", "rewards/remote/*.py"),
    *("rewards/dpg_bench/__init__.py", "rewards/dpg_bench/rules.py"),
    *(f"system/{name}.py" for name in ("__init__", "arguments", "files", "json_files", "paths", "pictures")),
    *(f"system/{name}.py" for name in ("streams", "text", "validation")),
)
BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
PYTHONS = ("3.12", "3.11", "3.10", "3.13", "3.14")
REMOVED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class Script(BaseModel):
    """The inline metadata of a worker script; ``block`` is its text."""

    requires_python: str = Field("", alias="requires-python")
    dependencies: tuple[str, ...] = ()
    block: str


def find_script(name: str) -> Path | None:
    """The worker script of a shipped reward, or the ``.py`` file of that name; ``None`` for any other name."""
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise RewardError(f"worker {name}: no such file")
        return path.resolve()
    module = name.replace("-", "_")
    shipped = WORKERS / f"{module}.py"
    return shipped if module.isidentifier() and not module.startswith("_") and shipped.is_file() else None


def read_script(path: Path) -> Script:
    """The script's inline metadata, if any; ``RewardError`` when it cannot be read."""
    block, *others = [match["content"] for match in BLOCK.finditer(path.read_text(encoding="utf-8"))] or [""]
    try:
        toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        script = Script.model_validate({**toml.loads(re.sub(r"(?m)^# ?", "", block)), "block": block})
        SpecifierSet(script.requires_python)
    except ImportError as error:
        raise RewardError(f"{path}: reading its script block needs Python 3.11, or uv (pip install uv)") from error
    except ValueError as error:
        raise RewardError(f"{path}: its script block cannot be read ({one_line(error)})") from error
    if others:
        raise RewardError(f"{path}: has {1 + len(others)} script blocks, want one")
    return script


def run(name: str, path: Path, flags: Mapping[str, Any]) -> NoReturn:
    """Replace this process with a worker script; its argument is ``flags`` as JSON."""
    uv = shutil.which("uv")  # the script is then its child, which must not outlive it
    python = [uv, "run", "--no-project", "--script"] if uv else [str(make_venv(name, read_script(path)))]
    command = [*python, str(path), json.dumps({**flags, "watch_parent": uv is not None}, default=str)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, {**_environment(), "PYTHONPATH": str(shared_folder()), "PYTHONNOUSERSITE": "1"})


def make_venv(name: str, script: Script) -> Path:
    """The Python of a venv with the script's dependencies, made once for each block, Python and machine.

    Raises :class:`RewardError`: no installed Python fits, or a step failed.
    """
    python, version = _find_python(name, script)
    key = "\n".join([script.block, version, platform.system(), platform.machine()])
    home = cache_dir() / "workers" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def fill(folder: Path) -> None:
        _step(name, [python, "-m", "venv", str(folder)])
        if script.dependencies:
            pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            _step(name, [*pip, *script.dependencies])

    return _make_folder(home, fill) / "bin" / "python"


def shared_folder() -> Path:
    """A folder with a copy of :mod:`flowopd_cli.rewards.remote` and of the modules that it imports."""
    files = sorted(path for pattern in SHARED for path in PACKAGE.glob(pattern))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]

    def fill(folder: Path) -> None:
        for path in files:
            target = folder / PACKAGE.name / path.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

    return _make_folder(cache_dir() / "workers" / f"serving-{digest}", fill)


def _make_folder(home: Path, fill: Callable[[Path], None]) -> Path:
    """``home``, made by ``fill`` in a temporary folder unless it exists; two processes may do so at once."""
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home.parent, prefix=f"{home.name}-"))
        try:
            fill(partial)
            partial.rename(home)
        except OSError as error:
            if not home.is_dir():
                raise RewardError(f"{home}: cannot be made ({error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return home


def _find_python(name: str, script: Script) -> tuple[str, str]:
    """A Python that satisfies the script's requirement, preferably the running one, and its version."""
    accepted, own = SpecifierSet(script.requires_python), (sys.executable, platform.python_version())
    for path, version in (own, *((shutil.which(f"python{version}"), version) for version in PYTHONS)):
        if path and accepted.contains(version, prereleases=True):
            return path, version
    raise RewardError(
        f"worker {name}: needs Python {script.requires_python}, and none is installed (this is "
        f"{platform.python_version()}): install uv, which fetches one (pip install uv)"
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in REMOVED}


def _step(name: str, command: Sequence[str]) -> None:
    print(f"worker {name}: {' '.join(command[:6])} ...", file=sys.stderr, flush=True)
    code = subprocess.run(command, check=False, stdout=sys.stderr, env=_environment()).returncode
    if code:
        raise RewardError(
            f"worker {name}: its environment could not be made ({command[2]} ended with {code}, see above); "
            "uv may do better (pip install uv)"
        )
