"""docs/dependencies.md names every dependency and its licence: compared with what is declared and what is installed."""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from flowopd_cli.rewards.remote.isolated import WORKERS, read_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
LICENCES = {
    "Apache-2.0": ("apache",),
    "BSD-2-Clause": ("bsd",),
    "BSD-3-Clause": ("bsd",),
    "MIT": ("mit",),
    "MPL-2.0": ("mpl", "mozilla"),
}
LICENCES["PSF-2.0"] = ("python software foundation", "psf")
LICENCES["MIT-CMU"] = ("mit-cmu", "hpnd", "historical permission notice")
COPYLEFT = re.compile(r"\b(A|L)?GPL\b|Affero|GNU", re.IGNORECASE)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def sections():
    """Every table of the page: its heading, and the licence of each package."""
    found = {}
    for part in PAGE.split("\n## ")[1:]:
        heading, _, body = part.partition("\n")
        rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| ")]
        found[heading.strip()] = {normal(row[0].strip()): row[1].strip() for row in rows if row[0].strip() != "package"}
    return found


SECTIONS = sections()
ROWS = [(heading, name, licence) for heading, rows in SECTIONS.items() for name, licence in rows.items()]


def declared():
    """Every section that ought to be there, with the packages it ought to name."""
    tomllib = pytest.importorskip("tomllib") if sys.version_info >= (3, 11) else pytest.importorskip("tomli")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {"Base": project["project"]["dependencies"], "Build": project["build-system"]["requires"]}
    extras = project["project"]["optional-dependencies"]
    named |= {f"Extra `{extra}`": lines for extra, lines in extras.items()}
    for path in sorted(WORKERS.glob("[!_]*.py")):
        named[f"Worker `{path.stem}`"] = read_script(path).dependencies
    return {
        heading: {normal(Requirement(line).name) for line in lines} - {"flowopd"} for heading, lines in named.items()
    }


def test_the_page_names_every_dependency_and_no_other():
    assert {heading: set(rows) for heading, rows in SECTIONS.items()} == declared()


def test_one_package_has_one_licence_on_the_page():
    assert len({(name, licence) for _, name, licence in ROWS}) == len({name for _, name, _ in ROWS})


@pytest.mark.parametrize(("heading", "name", "licence"), ROWS)
def test_a_licence_is_the_one_that_the_installed_package_states(heading, name, licence):
    assert licence in LICENCES
    try:
        told = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    stated = [told.get("License-Expression") or "", (told.get("License") or "")[:400]]
    stated += [line for line in told.get_all("Classifier", []) if line.startswith("License ::")]
    text = " / ".join(stated)
    assert any(word in text.lower() for word in LICENCES[licence]), text
    assert not COPYLEFT.search(" / ".join(stated[:1] + stated[2:])), text
