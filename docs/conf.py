"""The documentation's site: Sphinx over the Markdown of this folder. ``sphinx-build -W -b html docs docs/_build``."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]

from flowopd_cli import __version__  # noqa: E402

project = "flowopd"
author = "the flowopd authors"
project_copyright = "the flowopd authors"
release = version = __version__

extensions = ["myst_parser", "flowopd_site"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
nitpicky = True

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"flowopd {release}"
html_show_sourcelink = False

# Links to other sites are looked at on request only: sphinx-build -b linkcheck docs docs/_build/links
linkcheck_timeout = 20
linkcheck_anchors = False
linkcheck_ignore = [r"https://github\.com/flowopd/flowopd/.*", r"http://127\.0\.0\.1.*"]
