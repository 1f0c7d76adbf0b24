"""Prompts that are longer than the encoders read: remarks and refusals."""

import pytest

from flowopd_cli import recipe as recipes
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError
from flowopd_cli.models.tokens import Excess
from flowopd_cli.stages.training.lengths import check_lengths
from flowopd_cli.system.progress import Silent

LONG = 'one two three four five six seven "OPEN"'


class Words:
    """A base that reads the first words of a text."""

    def __init__(self, limit=6):
        self.limit = limit

    def truncated(self, texts):
        counts = {text: len(text.split()) for text in texts}
        return {text: Excess(count, self.limit) for text, count in counts.items() if count > self.limit}


class Notes(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def check(prompts, *, rewards=({"name": "toy-quality"},), watch=(), watched=(), **model):
    tree = {"stage": "teacher", "model": {"pretrained": "toy", **model}, "rewards": list(rewards)}
    progress = Notes()
    recipe = recipes.build(tree | {"prompts": [{"source": "toy:ocr"}], "watch": {"rewards": list(watch)}})
    check_lengths(recipe, Words(), prompts, progress, watched=watched)
    return progress.notes


def prompt(text, name="p", task="a", **metadata):
    return Prompt(name, text, task, metadata)


def test_short_prompts_need_no_remark():
    assert check([prompt("one two"), prompt('a sign "OPEN"', target="OPEN")]) == []


def test_the_number_of_long_prompts_and_the_longest_are_named():
    prompts = [prompt("one"), prompt("a " * 7, "f:2"), prompt("a " * 9, "f:3"), prompt("a " * 9, "f:4")]
    (note,) = check(prompts)
    assert "2 of 3 prompts are longer than the 6 tokens that the text encoders read, the longest, 'f:4', by 3" in note
    assert "max_sequence_length" not in note
    assert "shorten them, or raise model.max_sequence_length" in check(prompts, max_sequence_length=6)[0]


def test_long_prompts_are_refused_if_the_recipe_says_so():
    with pytest.raises(PromptError, match=r"1 of 1 prompts are longer .* or set model\.too_long to warn"):
        check([prompt("a " * 7)], too_long="refuse")


OCR = {"name": "toy-ocr", "task": "ocr"}


@pytest.mark.parametrize(
    ("long", "rewards"),
    [
        (prompt(LONG, target="OPEN"), []),
        (prompt(LONG, task="ocr"), [OCR]),
        (prompt(LONG), [{"name": "ocr"}]),
        (prompt('one two three four five "six seven"', task="ocr"), [OCR]),
    ],
)
def test_a_text_to_render_that_is_cut_off_is_refused(long, rewards):
    with pytest.raises(PromptError, match=r"prompt 'p': its text to render, .* is beyond the 6 tokens that the"):
        check([prompt("short", "q"), long], rewards=[{"name": "toy-quality"}, *rewards])


@pytest.mark.parametrize(
    ("long", "rewards"),
    [
        (prompt('"OPEN" one two three four five six', target="OPEN"), []),
        (prompt('"OPEN" one two three four five six', task="ocr"), [OCR]),
        (prompt(LONG, task="a"), [OCR]),
        (prompt(LONG, target="elsewhere"), []),
        (prompt("one two three four five six seven", task="ocr"), [OCR]),
    ],
)
def test_other_long_prompts_are_only_remarked_on(long, rewards):
    assert len(check([long], rewards=[{"name": "toy-quality"}, *rewards])) == 1


def test_watched_prompts_are_judged_by_the_rewards_of_the_watch():
    long, quality = prompt(LONG, task="ocr"), {"name": "toy-quality"}
    assert len(check([], watched=[long], rewards=[OCR], watch=[quality])) == 1
    assert len(check([long], watched=[prompt("short")], rewards=[quality], watch=[OCR])) == 1
    for rewards, watch in (([quality], [OCR]), ([OCR], ())):
        with pytest.raises(PromptError, match="its text to render"):
            check([], watched=[long], rewards=rewards, watch=watch)


def test_the_stages_check_the_prompts_of_their_recipe(tmp_path, flowopd):
    (tmp_path / "p.txt").write_text(f"{LONG} and much more, more than the encoder reads\n", encoding="utf-8")
    command = ("teacher", "--reward", "ocr", "--set", "train.iterations=1", "--out", tmp_path / "run")
    code, _, err = flowopd(*command, "--prompts", f"{tmp_path / 'p.txt'},task=ocr")
    assert code == 2
    assert "p.txt:1': its text to render, 'OPEN', is beyond the 14 tokens" in " ".join(err.split())


def test_an_evaluation_checks_the_prompts_of_its_suites(tmp_path, flowopd, monkeypatch):
    from flowopd_cli.toy import prompts as toy

    long = [prompt(f"{LONG} and much more than the encoder reads", "p7", "ocr", target="OPEN")]
    monkeypatch.setattr(toy, "ocr", lambda split="test": long)
    settings = ("--set", "eval.images=1", "--set", "eval.steps=1")
    code, _, err = flowopd("eval", "--suite", "toy-ocr", *settings, "--out", tmp_path / "run")
    assert code == 2
    assert "prompt 'p7': its text to render, 'OPEN', is beyond the 14 tokens" in " ".join(err.split())
