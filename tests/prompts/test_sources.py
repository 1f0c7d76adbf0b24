"""The public prompt files, on small ones of their form, and the registered sources."""

import json
import logging

import pytest

from flowopd_cli.errors import PromptError
from flowopd_cli.prompts import sources
from flowopd_cli.prompts.public import Fetched
from flowopd_cli.prompts.sources import evaluation_prompts, read_public

CUP = {"class": "cup", "count": 1}
ROWS = [
    {"tag": "single_object", "include": [{"class": "kite", "count": 1}], "prompt": "a photo of a kite"},
    {
        "tag": "position",
        "include": [CUP, {"class": "bed", "count": 1, "position": ["above", 0]}],
        "prompt": "a photo of a bed above a cup",
    },
]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_geneval_s_rows_are_numbered_as_its_folders_with_their_metadata(tmp_path):
    prompts = read_public("geneval", write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, ROWS))))
    assert [(p.id, p.task, p.text) for p in prompts] == [
        ("00000", "geneval", "a photo of a kite"),
        ("00001", "geneval", "a photo of a bed above a cup"),
    ]
    assert dict(prompts[1].metadata) == ROWS[1]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"tag": "shapes", "include": [CUP]},
        {"tag": "colors", "include": []},
        {"tag": "colors", "include": [{"class": "cup"}]},
        {"tag": "colors", "include": [CUP], "exclude": "cup"},
    ],
)
def test_a_row_that_is_not_geneval_s_is_named_by_its_line(tmp_path, row):
    path = write(tmp_path / "m.jsonl", "\n".join(map(json.dumps, [ROWS[0], {"prompt": "x", **row}])))
    with pytest.raises(PromptError, match=r"m\.jsonl:2: not GenEval"):
        read_public("geneval", path)


def test_ocr_prompts_have_the_text_of_their_first_quotes(tmp_path):
    path = write(tmp_path / "p.txt", 'a sign "Open 24" here\nan "E=mc²" and a "second" text\n')
    prompts = read_public("ocr", path)
    assert [p.metadata["target"] for p in prompts] == ["Open 24", "E=mc²"]
    assert [(p.id, p.task) for p in prompts] == [("00000", "ocr"), ("00001", "ocr")]
    with pytest.raises(PromptError, match=r"p\.txt:3: no text in double quotes"):
        read_public("ocr", write(tmp_path / "p.txt", 'a "word"\n\nan empty "" here\n'))


def test_drawbench_has_each_of_its_prompts_once(tmp_path):
    prompts = read_public("drawbench", write(tmp_path / "p.txt", "b\nb\na\na\nb\n"))
    assert [(p.id, p.text) for p in prompts] == [("00000", "b"), ("00001", "a")]


def test_a_local_file_replaces_the_fetched_one_with_a_warning(tmp_path, caplog):
    path = write(tmp_path / "mine.txt", 'says "hello"\n')
    with caplog.at_level(logging.WARNING):
        prompts = evaluation_prompts("ocr", source=str(path))
    assert [p.text for p in prompts] == ['says "hello"']
    assert "used all the same" in caplog.text


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Small files in place of the fetched ones, by the name of their set."""
    texts = {"ocr": 'test "a"', "ocr-train": 'train "b"', "pickscore": "test", "pickscore-train": "train"}
    texts |= {"drawbench": "x\nx", "geneval": json.dumps(ROWS[0])}

    def fetch(name, *, local=None):
        return Fetched(write(tmp_path / f"{name}.{'jsonl' if name == 'geneval' else 'txt'}", texts[name]), {}, True)

    monkeypatch.setattr(sources, "fetch", fetch)


@pytest.mark.parametrize("source", [sources.ocr, sources.pickscore])
def test_train_and_test_are_two_files(files, source):
    assert [p.text.split()[0] for split in ("train", "test") for p in source(split)] == ["train", "test"]


def test_geneval_s_training_prompts_are_generated(files, monkeypatch):
    monkeypatch.setattr(sources, "TRAIN_PROMPTS", 40)
    train = sources.geneval("train")
    assert len(train) == 40
    assert all(p.task == "geneval" and p.metadata["prompt"] == p.text and "task" not in p.metadata for p in train)
    assert [p.text for p in sources.geneval("test")] == ["a photo of a kite"]


def test_an_unknown_split_is_refused(files):
    assert len(sources.drawbench()) == 1
    with pytest.raises(PromptError, match="drawbench: no split 'train'; known: test"):
        sources.drawbench("train")
    with pytest.raises(PromptError, match="geneval: no split 'validation'; known: train, test"):
        sources.geneval("validation")
