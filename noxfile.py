"""The checks of this repository, each a session: ``tests``, ``lint``, ``types``, ``docs``, all by ``ci``; and ``gpu``.

Sessions run in the environment that nox itself was started from: the one that ``pip install -e '.[dev]'`` filled.
"""

import sys

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["ci"]


def _python(session: nox.Session, *command: str) -> None:
    session.run(sys.executable, "-m", *command, external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the ordinary tests on two processes; arguments after ``--`` replace the options."""
    _python(session, "pytest", *(session.posargs or ("-n", "2", "--dist", "loadfile")))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style, formatting and the order of the layers."""
    _python(session, "ruff", "check", ".")
    _python(session, "ruff", "format", "--check", ".")
    session.run(sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", external=True)


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the whole package."""
    _python(session, "pyright", "--pythonpath", sys.executable)


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site; a warning, such as a link to a page that does not exist, is an error."""
    _python(session, "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")


@nox.session
def gpu(session: nox.Session) -> None:
    """Measure a CUDA device: parity, speed and memory on random weights, within six minutes; downloads nothing."""
    _python(session, "flowopd_cli", "doctor", "--gpu-check", *session.posargs)


@nox.session
def ci(session: nox.Session) -> None:
    """Run everything that a change has to pass."""
    for name in ("tests", "lint", "types", "docs"):
        session.notify(name)
