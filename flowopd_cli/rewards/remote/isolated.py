"""Workers in an environment of their own: a script that says what it needs (PEP 723) and the means to run it.

``uv`` makes the environment where it is installed. Elsewhere a venv filled by pip is made once and kept in the cache
under the digest of what the script asks for. In either the script finds the server under the name it has here,
``flowopd_cli.rewards.remote``: those few files need the standard library and PIL alone, so they are copied to a
folder that is the environment's only ``PYTHONPATH``. flowopd itself, its torch and its transformers stay outside.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd_cli.errors import RewardError
from flowopd_cli.system.paths import cache_dir

PACKAGE = Path(__file__).resolve().parents[2]
WORKERS = PACKAGE / "rewards" / "remote" / "workers"
SHARED = ("__init__.py", "errors.py", "rewards/__init__.py", "rewards/remote/*.py")
BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")
CANDIDATES = tuple(f"python3.{minor}" for minor in (11, 10, 12, 13, 14))
PURGED = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
VERSION_PROBE = "import platform; print(platform.python_version())"


@dataclass(frozen=True)
class Script:
    """A worker script and what its inline block asks for. ``block`` is that block as it stands."""

    path: Path
    requires_python: str
    dependencies: tuple[str, ...]
    block: str


def find_script(name: str) -> Path | None:
    """The worker script of a shipped reward, or the ``.py`` file of that name; ``None`` for any other name."""
    own = Path(name)
    if own.suffix == ".py":
        if not own.is_file():
            raise RewardError(f"worker {name}: no such file")
        return own.resolve()
    shipped = WORKERS / f"{name.replace('-', '_')}.py"
    return shipped if name.isidentifier() and not name.startswith("_") and shipped.is_file() else None


def read_script(path: Path) -> Script:
    """The script's inline metadata (PEP 723); a script without any needs nothing.

    Raises:
        RewardError: the block is there twice, or is not what it should be.
    """
    found = list(BLOCK.finditer(path.read_text(encoding="utf-8")))
    if len(found) > 1:
        raise RewardError(f"{path}: has {len(found)} script blocks, want one")
    lines = found[0]["content"].splitlines() if found else []
    block = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
    try:
        table = _parse_toml(block)
    except (ValueError, SyntaxError) as error:
        raise RewardError(f"{path}: its script block cannot be read ({error})") from error
    needs, wanted = table.get("dependencies", []), table.get("requires-python", "")
    if not isinstance(needs, list) or not all(isinstance(n, str) for n in needs) or not isinstance(wanted, str):
        raise RewardError(f"{path}: want dependencies as a list of texts, requires-python as a text")
    return Script(path, wanted, tuple(needs), block)


def environment_key(script: Script, python: str) -> str:
    """What an environment is kept under: the digest of the block, the interpreter's version and the machine."""
    told = [script.block.strip(), python, platform.system(), platform.machine()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def run(name: str, path: Path, arguments: Sequence[str]) -> int:
    """Run a worker script until it ends; on POSIX this process becomes it.

    Raises:
        RewardError: its environment cannot be made.
    """
    script = read_script(path)
    command = [*launcher(name, script), *arguments]
    environment = worker_environment(os.environ, shared_folder())
    if os.name == "posix":
        sys.stdout.flush()
        sys.stderr.flush()
        os.execvpe(command[0], command, environment)
    return subprocess.call(command, env=environment)


def launcher(name: str, script: Script) -> list[str]:
    """The command up to the script's own arguments, its environment made if need be.

    Under ``uv`` the script is a child that must not outlive it; otherwise it takes our own place.
    """
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "run", "--no-project", "--script", str(script.path), "--watch-parent"]
    return [str(make_venv(name, script)), str(script.path)]


def make_venv(name: str, script: Script) -> Path:
    """The interpreter of the script's venv, which is made by the first call and kept.

    Raises:
        RewardError: no fitting Python is installed, or what is needed cannot be installed.
    """
    python, version = fitting_python(name, script)
    home = cache_dir() / "workers" / environment_key(script, version)
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home.parent, prefix=f"{home.name}-"))
        try:
            for command in build_commands(python, partial, script):
                _perform(name, command)
            partial.rename(home)
        except OSError as error:
            if not home.is_dir():
                raise RewardError(f"worker {name}: its environment cannot be made ({error})") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return interpreter(home)


def build_commands(python: str, home: Path, script: Script) -> list[list[str]]:
    """What makes a venv at ``home`` and fills it."""
    venv = [python, "-m", "venv", "--clear", str(home)]
    if not script.dependencies:
        return [[*venv, "--without-pip"]]
    pip = [str(interpreter(home)), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    return [venv, [*pip, *script.dependencies]]


def interpreter(home: Path) -> Path:
    """Python inside a venv."""
    return home / "Scripts" / "python.exe" if os.name == "nt" else home / "bin" / "python"


def fitting_python(name: str, script: Script) -> tuple[str, str]:
    """A Python that the script accepts, our own first, with its version.

    Raises:
        RewardError: there is none; ``uv`` would fetch one.
    """
    from packaging.specifiers import SpecifierSet

    wanted = SpecifierSet(script.requires_python)
    own = platform.python_version()
    if wanted.contains(own, prereleases=True):
        return sys.executable, own
    for candidate in filter(None, map(shutil.which, CANDIDATES)):
        done = subprocess.run([candidate, "-c", VERSION_PROBE], check=False, capture_output=True, text=True)
        if done.returncode == 0 and wanted.contains(done.stdout.strip(), prereleases=True):
            return candidate, done.stdout.strip()
    raise RewardError(
        f"worker {name}: wants Python {script.requires_python}, and none is installed (this is {own}): "
        "install uv, which fetches one (pip install uv)"
    )


def worker_environment(environment: Mapping[str, str], shared: Path) -> dict[str, str]:
    """Our environment without what would let our packages in, and with the shared files."""
    kept = {name: value for name, value in environment.items() if name not in PURGED}
    return {**kept, "PYTHONPATH": str(shared), "PYTHONNOUSERSITE": "1"}


def shared_folder() -> Path:
    """A folder that holds a copy of :mod:`flowopd_cli.rewards.remote` and of what it imports, and nothing else."""
    files = sorted(path for pattern in SHARED for path in PACKAGE.glob(pattern))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
    home = cache_dir() / "workers" / f"serving-{digest}"
    if not home.is_dir():
        home.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=home.parent, prefix=f"{home.name}-"))
        for path in files:
            target = partial / PACKAGE.name / path.relative_to(PACKAGE)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        try:
            partial.rename(home)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
    return home


def _perform(name: str, command: Sequence[str]) -> None:
    """Run one step with its output on stderr."""
    print(f"worker {name}: {' '.join(command[:6])} ...", file=sys.stderr, flush=True)
    environment = {key: value for key, value in os.environ.items() if key not in PURGED}
    done = subprocess.run(command, check=False, stdout=sys.stderr, env=environment)
    if done.returncode:
        raise RewardError(
            f"worker {name}: its environment could not be made ({command[2]} ended with {done.returncode}, see above); "
            "uv may do better (pip install uv)"
        )


def _parse_toml(block: str) -> dict[str, Any]:
    """The block's table; before Python 3.11, which has no TOML reader, the two keys that we look at."""
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads(block)
    found: dict[str, Any] = {}
    for key, value in re.findall(r"(?ms)^([\w-]+)\s*=\s*(\[.*?^\]|\[[^\n]*\]|\"[^\"\n]*\")", block):
        found[key] = ast.literal_eval(value)
    return found
