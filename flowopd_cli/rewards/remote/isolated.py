"""Workers in an environment of their own: a script with inline metadata (PEP 723), run by uv, or else by venv and pip.

The script finds the server under its usual name, ``flowopd_cli.rewards.remote``: those few files are copied to a folder
that is the environment's only ``PYTHONPATH``. flowopd itself, its torch and its transformers stay outside.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.system.paths import cache_dir

PACKAGE = Path(__file__).resolve().parents[2]
WORKERS = PACKAGE / "rewards" / "remote" / "workers"
SHARED = ("__init__.py", "errors.py", "rewards/__init__.py", "rewards/remote/*.py")
BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
PYTHONS = tuple(f"python3.{minor}" for minor in (12, 11, 10, 13, 14))
PURGED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class Script:
    """A worker script and its inline metadata; ``block`` is the text of that metadata."""

    path: Path
    requires_python: str
    dependencies: tuple[str, ...]
    block: str


def find_script(name: str) -> Path | None:
    """The worker script of a shipped reward, or the ``.py`` file of that name; ``None`` for any other name.

    Raises:
        RewardError: there is no such file.
    """
    path = Path(name)
    if path.suffix == ".py":
        if not path.is_file():
            raise RewardError(f"worker {name}: no such file")
        return path.resolve()
    shipped = WORKERS / f"{name.replace('-', '_')}.py"
    return shipped if name.isidentifier() and not name.startswith("_") and shipped.is_file() else None


def read_script(path: Path) -> Script:
    """The script's inline metadata (PEP 723), which may be absent.

    Raises:
        RewardError: the block is there twice, or is not valid.
    """
    blocks = [match["content"] for match in BLOCK.finditer(path.read_text(encoding="utf-8"))]
    if len(blocks) > 1:
        raise RewardError(f"{path}: has {len(blocks)} script blocks, want one")
    block = "\n".join(line.removeprefix("#").removeprefix(" ") for line in "".join(blocks).splitlines())
    try:
        table = _parse_toml(block)
    except (ValueError, SyntaxError) as error:
        raise RewardError(f"{path}: its script block cannot be read ({error})") from error
    dependencies, python = table.get("dependencies", []), table.get("requires-python", "")
    texts = isinstance(dependencies, list) and all(isinstance(item, str) for item in dependencies)
    if not texts or not isinstance(python, str):
        raise RewardError(f"{path}: want dependencies as a list of texts, requires-python as a text")
    return Script(path, python, tuple(dependencies), block)


def run(name: str, path: Path, arguments: Sequence[str]) -> int:
    """Run a worker script until it ends; on POSIX this process becomes it.

    Raises:
        RewardError: its environment cannot be made.
    """
    command = [*launcher(name, read_script(path)), *arguments]
    environment = {**_clean(os.environ), "PYTHONPATH": str(shared_folder()), "PYTHONNOUSERSITE": "1"}
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvpe(command[0], command, environment)
    return subprocess.call(command, env=environment)


def launcher(name: str, script: Script) -> list[str]:
    """The command up to the script's own arguments. Under ``uv`` the script is a child that must not outlive it;
    otherwise it takes our own place.
    """
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "run", "--no-project", "--script", str(script.path), "--watch-parent"]
    return [str(make_venv(name, script)), str(script.path)]


def make_venv(name: str, script: Script) -> Path:
    """The Python of a venv with the script's dependencies, made once for each block, Python and machine.

    Raises:
        RewardError: no installed Python fits, or a step failed.
    """
    python, version = _find_python(name, script)
    key = "\n".join([script.block.strip(), version, platform.system(), platform.machine()])
    home = cache_dir() / "workers" / hashlib.sha256(key.encode()).hexdigest()[:16]

    def fill(folder: Path) -> None:
        _step(name, [python, "-m", "venv", str(folder)])
        pip = [str(_interpreter(folder)), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        if script.dependencies:
            _step(name, [*pip, *script.dependencies])

    _make_folder(home, fill)
    return _interpreter(home)


def shared_folder() -> Path:
    """A folder with a copy of :mod:`flowopd_cli.rewards.remote` and of what it imports, and nothing else."""
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


def _interpreter(home: Path) -> Path:
    return home / "Scripts" / "python.exe" if os.name == "nt" else home / "bin" / "python"


def _find_python(name: str, script: Script) -> tuple[str, str]:
    """A Python that the script accepts, our own first, and its version."""
    from packaging.specifiers import SpecifierSet

    accepted = SpecifierSet(script.requires_python)
    if accepted.contains(platform.python_version(), prereleases=True):
        return sys.executable, platform.python_version()
    for candidate in PYTHONS:
        path, version = shutil.which(candidate), candidate.removeprefix("python")
        if path is not None and accepted.contains(version):
            return path, version
    raise RewardError(
        f"worker {name}: needs Python {script.requires_python}, and none is installed (this is "
        f"{platform.python_version()}): install uv, which fetches one (pip install uv)"
    )


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in PURGED}


def _step(name: str, command: Sequence[str]) -> None:
    print(f"worker {name}: {' '.join(command[:6])} ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, check=False, stdout=sys.stderr, env=_clean(os.environ))
    if done.returncode:
        raise RewardError(
            f"worker {name}: its environment could not be made ({command[2]} ended with {done.returncode}, see above); "
            "uv may do better (pip install uv)"
        )


def _parse_toml(block: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(block)
    pairs = re.findall(r"(?ms)^([\w-]+)\s*=\s*(\[.*?^\]|\[[^\n]*\]|\"[^\"\n]*\")", block)  # the two keys in use
    return {key: ast.literal_eval(value) for key, value in pairs}
