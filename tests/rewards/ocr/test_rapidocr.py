"""What the page readers share, the choice of a reader by name, and the rapidocr reader on rendered pages."""

import importlib.util
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import MissingDependency, RewardError
from flowopd_cli.rewards.ocr import reward as readers
from flowopd_cli.rewards.ocr.reading import Line, PageReader, reading_order
from flowopd_cli.rewards.ocr.reward import OCRReward, make_reader


def page(*lines, size=(256, 512), ink=(150, 20, 20), paper=(250, 240, 200)):
    """A picture ``(3, H, W)`` in [0, 1] with lines of text at ``(x, y)``."""
    picture = Image.new("RGB", (size[1], size[0]), paper)
    draw = ImageDraw.Draw(picture)
    for text, x, y in lines:
        draw.text((x, y), text, font=ImageFont.load_default(size=48), fill=ink)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize(
    ("corners", "order"),
    [
        ([], []),
        ([(0, 50), (0, 0)], [1, 0]),
        ([(90, 0), (10, 4), (50, 9)], [1, 2, 0]),
        ([(90, 0), (10, 10)], [0, 1]),
        ([(90, 0), (10, 9.5), (0, 100)], [1, 0, 2]),
        ([(5, 40), (300, 38), (5, 0)], [2, 0, 1]),
    ],
)
def test_lines_are_read_from_top_to_bottom_then_left_to_right(corners, order):
    assert reading_order(corners) == order


class Scripted(PageReader):
    """A page reader with a function as its engine."""

    name = "scripted"

    def __init__(self, engine):
        super().__init__()
        self.engine = engine

    def page(self, bgr):
        return self.engine(bgr)


def test_the_engine_gets_blue_green_red_bytes():
    arrays = []
    images = torch.zeros(1, 3, 4, 5)
    images[0, 0] = 1.0
    images[0, 1, 2, 3] = 0.5
    Scripted(lambda bgr: arrays.append(bgr) or [])(images)
    assert (arrays[0].shape, arrays[0].dtype) == ((4, 5, 3), np.uint8)
    assert arrays[0][0, 0].tolist() == [0, 0, 255]
    assert arrays[0][2, 3].tolist() == [0, 128, 255]
    assert arrays[0].flags["C_CONTIGUOUS"]


def test_lines_below_the_threshold_are_dropped_and_the_rest_are_in_order():
    rows = [("low", 0.49, [(0, 0)]), ("second", 0.5, [(0, 60)]), ("first", 0.9, [(0, 30)])]
    (reading,) = Scripted(lambda bgr: rows)(torch.zeros(1, 3, 8, 8))
    assert reading.lines == (Line("first", 0.9), Line("second", 0.5))


def test_a_picture_on_which_the_engine_fails_is_invalid_and_the_others_are_not():
    def page(bgr):
        if bgr.max() == 0:
            raise ValueError("a black\npicture")
        return [("hello", 0.9, [(0, 0)])]

    prompts = [Prompt(str(i), 'says "hello"', "ocr") for i in range(2)]
    result = OCRReward(Scripted(page))(torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)]), prompts)
    assert result.valid.tolist() == [False, True]
    assert result.details[0]["error"] == "ValueError: a black picture"
    assert float(result.total[1]) == 1.0


def test_an_unknown_reader_and_options_for_a_made_one_are_refused():
    with pytest.raises(RewardError, match="no reader 'tesseract'; known: auto, paddleocr"):
        OCRReward("tesseract")
    with pytest.raises(RewardError, match="threads"):
        OCRReward(lambda images: [], threads=2)


@pytest.mark.parametrize(("installed", "chosen"), [(True, "paddle"), (False, "rapid")])
def test_auto_is_paddleocr_where_that_is_installed(monkeypatch, installed, chosen):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setitem(readers.READERS, "paddleocr", lambda: "paddle")
    monkeypatch.setitem(readers.READERS, "rapidocr", lambda: "rapid")
    assert make_reader() == chosen


def no_models(**options):
    raise RewardError("paddleocr does not start (no network)")


def test_auto_is_rapidocr_where_paddleocr_is_installed_without_models(monkeypatch, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(readers.READERS, "paddleocr", no_models)
    monkeypatch.setitem(readers.READERS, "rapidocr", lambda **options: ("rapid", options))
    assert make_reader("auto", drop_score="0.25") == ("rapid", {"drop_score": 0.25})
    assert "uses rapidocr instead of paddleocr" in caplog.text
    with pytest.raises(RewardError, match="no network"):  # an option that only paddleocr has
        make_reader("auto", models="PP-OCRv4")
    with pytest.raises(RewardError, match="no network"):
        make_reader("paddleocr")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name == "paddleocr" else None)
    with pytest.raises(RewardError, match="no network"):
        make_reader("auto")


def test_an_option_of_another_reader_is_refused_by_name():
    with pytest.raises(RewardError, match="the reader rapidocr: no option 'models'; options: drop_score, threads"):
        make_reader("rapidocr", models="PP-OCRv4")


@pytest.mark.parametrize("name", ["rapidocr", "rapidocr-band"])
def test_a_missing_package_is_one_line_with_its_extra(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(MissingDependency, match=r"rapidocr is not installed: pip install 'flowopd\[ocr\]'"):
        make_reader(name)


class TestRapidPageReader:
    @pytest.fixture(scope="class")
    def reader(self):
        pytest.importorskip("rapidocr", reason="the rapidocr page reader itself is not tested")
        return make_reader("rapidocr")

    def test_lines_are_read_in_order_and_each_picture_by_itself(self, reader):
        pages = [page(("Second", 30, 150), ("First", 60, 20), ("Right", 300, 24)), page(), page(("Closed", 40, 90))]
        readings = reader(torch.stack(pages))
        lines = [[line.text for line in reading.lines] for reading in readings]
        assert lines == [["First", "Right", "Second"], [], ["Closed"]]
        assert all(line.confidence > 0.9 for reading in readings for line in reading.lines)

    def test_the_reward_concatenates_lines_and_names_version_and_models(self, reader):
        prompts = [Prompt("p", 'a sign that says "First Second"', "ocr")]
        result = OCRReward(reader)(page(("First", 30, 20), ("Second", 30, 150))[None], prompts)
        assert float(result.total[0]) == float(result.scores["exact"][0]) == 1.0
        name = result.details[0]["reader"]
        assert name.startswith("rapidocr-")
        assert name.count("_det_") == name.count("_rec_") == 1
