"""Lists of pictures: what is refused, and the suites' prompts that they stand for."""

import json
import re

import pytest
from PIL import Image

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RecipeError
from flowopd_cli.recipe import EvalSpec
from flowopd_cli.rewards.jpeg import JpegReward
from flowopd_cli.stages.evaluation.listed import plan_listed, read_list
from flowopd_cli.suites.base import Suite

OWN = [Prompt(f"own/{i}", text, "own", {"tag": text[-1]}) for i, text in enumerate(("a b", "a c"))]
SUITE = Suite("own", "own-1", lambda split: OWN, JpegReward, images=2)


@pytest.fixture
def folder(tmp_path):
    """A list of three pictures in two folders, beside a text and a hidden file."""
    pictures = tmp_path / "pictures"
    for name in ("one.png", "deep/er/two.jpg", "deep/three.PNG"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(pictures / name)
    (pictures / "notes.txt").write_text("x")
    (pictures / "deep" / "._two.jpg").write_text("x")
    write(tmp_path, "file,prompt,seed", "one.png,a b,1", '"deep/er/two.jpg","a, ""c""",2', "./deep/three.PNG,a b,3")
    return tmp_path


def write(folder, *lines):
    (folder / "list.csv").write_bytes("\r\n".join(lines).encode("utf-8-sig"))


def read(folder):
    return read_list(folder / "list.csv", folder / "pictures")


def test_rows_name_files_in_any_layout(folder):
    rows = read(folder)
    assert [row.file for row in rows] == ["one.png", "deep/er/two.jpg", "deep/three.PNG"]
    assert [row.text for row in rows] == ["a b", 'a, "c"', "a b"]
    assert all(row.metadata is None for row in rows)
    assert rows[0].prompt == rows[2].prompt != rows[1].prompt


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["file,text", "one.png,a"], "no column 'prompt' (its first line has file, text)"),
        ([], "no column 'file' (its first line has nothing)"),
        (["file,prompt"], "lists no picture"),
        (["file,prompt", "four.png,a"], "line 2: 1 of 1 files are not in "),
        (["file,prompt", "one.png,a"], "2 pictures have no row in "),
        (["file,prompt", "one.png,a", "./one.png,b"], "line 3: line 2 lists one.png too"),
        (["file,prompt", "../one.png,a"], "line 2: '../one.png' is not the name of a file below the folder"),
        (["file,prompt", "one.png,"], "line 2: has no prompt"),
        (["file,prompt", ",a"], "line 2: has no file"),
        (["file,prompt", "one.png,a, b"], "line 2: has more cells than the first line"),
        (["file,prompt", 'one.png,"a'], "cannot be read as CSV in UTF-8"),
        (["file,prompt,metadata", "one.png,a,[1]"], "line 2: its metadata is not a JSON object"),
        (["file,prompt,metadata", "one.png,a,{"], "line 2: its metadata is not JSON"),
    ],
)
def test_a_faulty_list_is_refused_in_one_line(folder, lines, words):
    write(folder, *lines)
    with pytest.raises(RecipeError, match=re.escape(words)) as error:
        read(folder)
    assert "\n" not in str(error.value)


def test_a_list_that_is_missing_or_not_text_is_refused(folder):
    (folder / "list.csv").write_bytes(b"file,prompt\none.png,\xff")
    with pytest.raises(RecipeError, match="cannot be read as CSV"):
        read(folder)
    (folder / "list.csv").unlink()
    with pytest.raises(RecipeError, match=r"list\.csv: no such file"):
        read(folder)
    with pytest.raises(ValueError, match="name it by --images DIR"):
        EvalSpec(pictures_csv="list.csv")


def planned(folder, *rows, **spec):
    """The requests of SUITE for pictures ``0.png``, ``1.png`` … with these prompts and metadata."""
    (folder / "p").mkdir(exist_ok=True)
    for number in range(len(rows)):
        (folder / "p" / f"{number}.png").write_bytes(b"")
    lines = [f'{number}.png,{text},"{json.dumps(more).replace(chr(34), chr(34) * 2)}"' for number, (text, more) in
             enumerate(rows)]  # fmt: skip
    write(folder, "file,prompt,metadata", *(line.replace('"null"', "") for line in lines))
    return plan_listed([SUITE], [], EvalSpec(**spec), read_list(folder / "list.csv", folder / "p"))


def test_rows_without_metadata_are_of_the_suites_own_prompts(tmp_path):
    whole = planned(tmp_path, ("a c", None), ("a b", None), ("a c", None), ("a b", None))
    assert whole.others == {}
    assert [(request.prompt, request.place.index, request.path) for request in whole.pictures] == [
        (OWN[1], 0, "0.png"),
        (OWN[1], 1, "2.png"),
        (OWN[0], 0, "1.png"),
        (OWN[0], 1, "3.png"),
    ]
    single = planned(tmp_path, ("a c", None), ("a b", None), ("a c", None), ("a b", None), images=1)
    assert [request.path for request in single.pictures] == ["0.png", "1.png"]
    assert single.others == {}


@pytest.mark.parametrize(
    "rows",
    [
        [("a b", None), ("a b", None)],
        [("a b", None), ("a c", None)],
        [("a b", None), ("a b", None), ("a c", None), ("a c", None), ("a d", None)],
        [("a b", {}), ("a b", {}), ("a c", {}), ("a c", {})],
    ],
)
def test_other_prompts_than_the_suites_own_are_marked(tmp_path, rows):
    one, again = planned(tmp_path, *rows), planned(tmp_path, *rows)
    assert one.others == again.others
    assert list(one.others) == ["own"]
    assert len(one.pictures) == len(rows)


def test_metadata_of_a_row_reach_the_reward(tmp_path):
    (request,) = planned(tmp_path, ("a b", {"tag": "x"})).pictures
    assert (request.prompt.text, request.prompt.metadata, request.prompt.task) == ("a b", {"tag": "x"}, "listed")
