"""What must start fast imports no torch."""

import subprocess
import sys

LIGHT = ("cli", "reports", "runs", "recipe", "prompts", "system", "registry", "models.files")
CODE = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(f"flowopd_cli.{name}")
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
        importlib.import_module(module.name)
sys.exit("torch" in sys.modules and "torch was imported")
"""


def test_light_packages_import_no_torch():
    done = subprocess.run([sys.executable, "-c", CODE, *LIGHT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
