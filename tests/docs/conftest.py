"""The folder of these tests and that of the site's own modules can be imported from."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "docs" / "_ext")]
