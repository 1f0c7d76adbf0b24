"""The file names of pictures, and those that other programs give them."""

import json

import pytest

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import RecipeError
from flowopd_cli.suites.layouts import FLAT, GENEVAL, Place

PROMPT = Prompt("00012", "a photo of a bench", "geneval", {"tag": "single_object", "include": [{"class": "bench"}]})


def place(index):
    return Place(PROMPT, 12, index, 4)


def test_geneval_has_a_folder_a_prompt_with_its_metadata():
    assert GENEVAL.picture(place(3)) == "00012/samples/00003.png"
    notes = GENEVAL.notes(PROMPT, 12)
    assert list(notes) == ["00012/metadata.jsonl"]
    assert json.loads(notes["00012/metadata.jsonl"]) == {**PROMPT.metadata, "prompt": "a photo of a bench"}


@pytest.mark.parametrize("names", [("0000.png", "0001.png"), ("00000.png", "00001.png"), ("7.png", "12.png")])
def test_geneval_takes_any_name_of_digits_in_their_order(tmp_path, names):
    folder = tmp_path / "00012" / "samples"
    folder.mkdir(parents=True)
    for name in (*names, "grid.png"):
        (folder / name).touch()
    assert [GENEVAL.find(tmp_path, place(i)) for i in range(3)] == [*(folder / name for name in names), None]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp", ".JPG", ".PNG"])
def test_pictures_of_other_programs_may_have_other_suffixes(tmp_path, suffix):
    names = ("a/samples/00012_000", "b/00012/samples/00000", "c/00012/samples/7")
    files = [tmp_path / f"{name}{suffix}" for name in names]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
        file.with_suffix(".txt").touch()
    layouts = (FLAT, GENEVAL, GENEVAL)
    assert [layout.find(tmp_path / name, place(0)) for layout, name in zip(layouts, "abc", strict=True)] == files


@pytest.mark.parametrize("name", ["00012/samples/00000", "00012/samples/7"])
def test_two_files_of_one_picture_are_refused(tmp_path, name):
    png, jpg = (tmp_path / f"{name}{suffix}" for suffix in (".png", ".jpg"))
    png.parent.mkdir(parents=True)
    png.touch()
    jpg.symlink_to(png)
    assert GENEVAL.find(tmp_path, place(0)).samefile(png)
    jpg.unlink()
    jpg.touch()
    with pytest.raises(RecipeError, match=r"are the same picture of the suite: remove one of them") as error:
        GENEVAL.find(tmp_path, place(0))
    assert str(png.parent) in str(error.value)
    assert all(file.name in str(error.value) for file in (png, jpg))


def test_a_flat_layout_finds_only_its_own_names(tmp_path):
    assert FLAT.picture(place(3)) == "samples/00012_003.png"
    assert FLAT.notes(PROMPT, 12) == {}
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "00012_000.png").touch()
    assert FLAT.find(tmp_path, place(0)) is not None
    assert FLAT.find(tmp_path, place(1)) is None
