"""A working directory with a few recipes, and stages that are replaced by small functions."""

import sys
from types import SimpleNamespace

import pytest
import yaml
from support.tiny_adapters import TOY_SHA, write_adapter

from flowopd_cli import recipe as recipes
from flowopd_cli.cli import launch
from flowopd_cli.runs.manifest import Base, Inputs
from flowopd_cli.runs.run import RunDir

TEACHER = {
    "stage": "teacher",
    "model": {"pretrained": "toy", "resolution": 32},
    "prompts": [{"source": "toy:geneval"}],
    "rewards": [{"name": "geneval", "options": {"threshold": 0.25}}],
    "train": {"iterations": 3, "groups": 8, "group_size": 12, "updates": 2},
}
MIXTURE = {
    **TEACHER,
    "rewards": [{"name": "geneval", "task": "geneval", "weight": 0.5}, {"name": "ocr", "task": "ocr"}],
    "prompts": [{"source": "toy:all"}],
}
DISTILL = {
    "stage": "distill",
    "model": {"pretrained": "toy", "resolution": 32},
    "prompts": [{"source": "toy:all"}],
    "routing": {"geneval": {"ref": "base"}, "ocr": {"ref": "base"}},
}


@pytest.fixture
def workplace(monkeypatch, tmp_path):
    """A working directory that has only ``recipes/``, the shipped recipes of these tests."""
    monkeypatch.chdir(tmp_path)
    for name in launch.NUMBERS:
        monkeypatch.delenv(name, raising=False)
    files = {}
    for name, data in {"teacher-geneval": TEACHER, "grpo-mix": MIXTURE, "distill": DISTILL}.items():
        path = files[f"toy/{name}"] = tmp_path / f"recipes/toy/{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(data), encoding="utf-8")
    for module in ("flowopd_cli.recipe", "flowopd_cli.recipe.reading"):
        monkeypatch.setattr(f"{module}.shipped", lambda: files)
    return tmp_path


@pytest.fixture
def stage(monkeypatch):
    """Replaces a stage by a function that returns ``result`` or raises it; returns the list of its calls."""

    def install(name, result={"metrics": {"reward": 0.5}}):  # noqa: B006
        calls = []

        def run(recipe, run, progress, *, adapters, **rest):
            calls.append(SimpleNamespace(recipe=recipe, run=run, options=rest))
            print("a library that prints")
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setitem(sys.modules, f"flowopd_cli.stages.{name}", SimpleNamespace(run=run))
        return calls

    return install


@pytest.fixture
def trained(workplace):
    """Makes finished teachers, each with an adapter."""

    def make(*names, base=TOY_SHA):
        for name in names:
            run = RunDir.create(workplace / name, "teacher")
            run.start(recipes.build(TEACHER))
            write_adapter(run.adapter_dir)
            run.declare(Inputs(base=Base(ref="toy", sha256=base)))
            run.finish("done")
        return workplace / names[-1]

    return make
