"""Every ``--help`` has an example that parses; completion in the shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flowopd_cli import recipe as recipes
from flowopd_cli.cli import app as cli
from flowopd_cli.cli import completion
from flowopd_cli.runs.run import RunDir

ROOT = Path(__file__).resolve().parents[2]
END = {"|", ">", "&&", ";"}


def commands(command, words=()):
    """Every command below one, by its words."""
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


COMMANDS = dict(commands(typer.main.get_command(cli.app)))


def examples(text):
    """The ``flowopd`` command lines below the word Example, as words; what a shell does around them is left out."""
    text = text.partition("Example")[2].replace("\\\n", " ")
    for line in map(str.strip, text.splitlines()):
        words = shlex.split(line, comments=True) if "flowopd " in line and not line.endswith(":") else []
        while words and "=" in words[0]:
            words.pop(0)
        if words and words[0] == "flowopd":
            yield words[1 : next((i for i, word in enumerate(words) if word in END), len(words))]


def parse(words):
    """What the command line makes of an example: its command and parameters; nothing is run."""
    command, path = COMMANDS[()], []
    while hasattr(command, "commands"):
        path.append(words[len(path)])
        assert path[-1] in command.commands, words
        command = command.commands[path[-1]]
    return tuple(path), command.make_context(" ".join(path), list(words[len(path) :])).params


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words) or "flowopd")
def test_every_help_has_an_example_that_parses(words):
    found = list(examples(COMMANDS[words].help or ""))
    assert found, f"no example in flowopd {' '.join(words)} --help"
    parsed = [parse(example)[0] for example in found]
    assert any(path[: len(words)] == words for path in parsed), found


def test_the_shell_completes_recipes_rewards_suites_and_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    RunDir.create(Path("runs/t-ocr"), "teacher").start(recipes.load(recipes.find("toy/teacher-ocr")))
    Path("mine.yaml").touch()
    assert completion.shipped_recipes("toy/m") == ["toy/merge"]
    assert completion.shipped("studies/ex") == ["studies/extrapolation"]
    assert completion.recipes("mi") == ["mine.yaml"]
    assert completion.rewards("toy-o") == ["toy-ocr"]
    assert completion.suites("geneval,oc") == ["geneval,ocr"]
    assert completion.runs("") == ["runs/t-ocr", "runs/"]
    assert completion.runs("runs/t") == ["runs/t-ocr"]
    assert completion.runs("./ru") == ["./runs/"]
    assert completion.teachers("ocr=runs/") == ["ocr=runs/t-ocr"]
    assert completion.teachers("oc") == []
    assert completion.runs("no/such/place") == []


def test_completion_imports_nothing_heavy():
    code = (
        "import sys\nfrom flowopd_cli.cli.app import run\nrun()\n"
        "print(sorted({'torch', 'numpy', 'diffusers', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    words = {"_FLOWOPD_COMPLETE": "complete_bash", "COMP_WORDS": "flowopd eval --suite toy-q", "COMP_CWORD": "3"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **words}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["toy-quality"]
    assert ended.stderr.splitlines()[-1] == "[]"
