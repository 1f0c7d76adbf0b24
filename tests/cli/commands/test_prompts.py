"""``flowopd prompts`` by itself: what stands on stdout and stderr, and one line for a mistake."""

import hashlib
import json

import pytest
from typer.testing import CliRunner

from flowopd_cli.cli.commands.prompts import app
from flowopd_cli.errors import ArtifactError, PromptError
from flowopd_cli.prompts import public as prompt_files
from flowopd_cli.prompts.files import load_prompts
from flowopd_cli.prompts.public import PromptFile, PromptSource

MINE = b"one\ntwo\n"


@pytest.fixture(autouse=True)
def sets(monkeypatch, tmp_path):
    """A set and an empty cache."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(MINE).hexdigest()
    source = PromptSource("pinned", "some/where", "a" * 40, (PromptFile("d/p.txt", "p.txt", digest),), "a set")
    monkeypatch.setattr(prompt_files, "SOURCES", {"pinned": source})


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)


def refused(*words):
    result = call(*words)
    assert result.exit_code == 1
    assert "\n" not in str(result.exception)
    return result.exception


def test_fetch_prints_the_path_alone_or_json(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(MINE)
    result = call("fetch", "pinned", "--from", path)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'cache' / 'prompts' / ('pinned-' + 'a' * 12) / 'p.txt'}\n"
    assert result.stderr == ""
    fields = json.loads(call("fetch", "pinned", "--from", path, "--json").stdout)
    assert (fields["verified"], fields["sha256"]) == (True, {"p.txt": hashlib.sha256(MINE).hexdigest()})
    assert call("fetch", "pinned", "--out", tmp_path / "out").stdout == f"{tmp_path / 'out' / 'p.txt'}\n"


def test_what_is_not_verified_is_said_on_stderr(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes(b"other\n")
    result = call("fetch", "pinned", "--from", path)
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    assert "used all the same" in result.stderr
    assert call("fetch", "pinned", "--from", path, "--quiet").stderr == ""


def test_mistakes_are_one_line(tmp_path):
    assert isinstance(refused("fetch", "pined"), PromptError)
    assert isinstance(refused("fetch", "pinned", "--from", tmp_path / "none"), ArtifactError)
    assert "known are geneval, and ocr" in str(refused("make", "deqa"))
    assert "known are geneval, and ocr" in str(refused("make", "ocr", "--wording", "english"))
    assert "known are geneval, english" in str(refused("make", "geneval", "--wording", "german"))
    assert "suffix .jsonl" in str(refused("make", "geneval", "--out", tmp_path / "p.txt"))
    assert call("make", "geneval", "--n", 0).exit_code == 2


def test_ls_names_repository_and_commit():
    assert call("ls").stdout.split() == ["pinned", "some/where@aaaaaaaaaaaa", "a", "set"]


@pytest.mark.parametrize("name", ["geneval", "ocr"])
def test_made_prompts_are_read_back_with_their_task_and_metadata(tmp_path, name):
    path = tmp_path / "made" / "p.jsonl"
    result = call("make", name, "--n", 30, "--seed", 5, "--out", path)
    assert result.stdout == f"{path}\n"
    prompts = load_prompts(str(path))
    assert len(prompts) == 30
    assert {prompt.task for prompt in prompts} == {name}
    assert len({prompt.id for prompt in prompts}) == 30
    assert all(("include" if name == "geneval" else "target") in prompt.metadata for prompt in prompts)
    assert call("make", name, "--n", 30, "--seed", 5).stdout == path.read_text(encoding="utf-8")
    assert call("make", name, "--n", 30, "--seed", 6).stdout != path.read_text(encoding="utf-8")


def test_correct_english_is_an_option():
    text = call("make", "geneval", "--n", 200, "--wording", "english").stdout
    assert not any(word in text for word in ("benchs", "knifes", "sheeps", "a skis"))
