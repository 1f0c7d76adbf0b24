"""docs/dependencies.md names every dependency and its licence: compared with what is declared and what is installed."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from flowopd_cli.rewards.remote.isolated import WORKERS, read_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
LICENCES = {
    "Apache-2.0": "apache",
    "BSD-2-Clause": "bsd",
    "BSD-3-Clause": "bsd",
    "MIT": "mit",
    "MPL-2.0": "mpl|mozilla",
}
LICENCES |= {"PSF-2.0": "python software foundation|psf", "MIT-CMU": "mit-cmu|hpnd|historical permission notice"}
COPYLEFT = re.compile(r"\b(A|L)?GPL\b|Affero|GNU", re.IGNORECASE)


def sections():
    """Every table of the page: its heading, and the licence of each package."""
    tables = {}
    for part in PAGE.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        lines = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| ")]
        rows = {line[0].strip(): line[1].strip() for line in lines}
        tables[heading.strip()] = {canonicalize_name(name): text for name, text in rows.items() if name != "package"}
    return tables


SECTIONS = sections()
LICENCE_OF = {name: licence for rows in SECTIONS.values() for name, licence in rows.items()}


def declared():
    """Every section that the page needs, with its packages."""
    tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lists = {"Base": project["project"]["dependencies"], "Build": project["build-system"]["requires"]}
    lists |= {f"Extra `{extra}`": lines for extra, lines in project["project"]["optional-dependencies"].items()}
    lists |= {f"Worker `{path.stem}`": read_script(path).dependencies for path in sorted(WORKERS.glob("[!_]*.py"))}
    names = {heading: {canonicalize_name(Requirement(line).name) for line in lines} for heading, lines in lists.items()}
    return {heading: packages - {"flowopd"} for heading, packages in names.items()}


def test_the_page_names_every_dependency_and_no_other():
    assert {heading: set(rows) for heading, rows in SECTIONS.items()} == declared()
    assert all(LICENCE_OF[name] == licence for rows in SECTIONS.values() for name, licence in rows.items())


@pytest.mark.parametrize("name", LICENCE_OF)
def test_a_licence_is_that_of_the_installed_package(name):
    try:
        package = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    stated = [package.get("License-Expression") or ""]
    stated += [line for line in package.get_all("Classifier", []) if line.startswith("License ::")]
    text = " / ".join([*stated, (package.get("License") or "")[:400]])
    assert re.search(LICENCES[LICENCE_OF[name]], text.lower()), text
    assert not COPYLEFT.search(" / ".join(stated)), text
