"""PaddleOCR as a reader: its wiring on a fake module, and the engine itself, offline, where it is installed."""

import hashlib
import types

import pytest
import torch
import yaml
from PIL import Image, ImageDraw, ImageFont

from flowopd_cli.errors import ArtifactError, MissingDependency, RewardError
from flowopd_cli.rewards.ocr import paddle
from flowopd_cli.rewards.ocr.paddle import PaddleOptions, PaddleTextReader, choose_model, onnx_folder
from flowopd_cli.rewards.ocr.rapidocr import bundled_model
from flowopd_cli.rewards.ocr.reading import Line
from flowopd_cli.rewards.ocr.reward import make_reader, normalize

TEXT = """acorn Bridge CANDLE desert Engine FLOWER garden Harbor ISLAND jacket Kitchen LANTERN market Needle OCEAN
planet Quarter RIVER silver Tunnel UMBRELLA valley Window YELLOW zebra Anchor BASKET copper Dolphin ECHO fabric Guitar
HAMMER indigo Jungle KERNEL ladder Mirror NUMBER orange"""
WORDS = TEXT.split()
INKS = [(20, 20, 20), (160, 20, 20), (20, 90, 30), (20, 30, 150)]


class FakeOCR:
    """``paddleocr.PaddleOCR`` that records its options and pictures and returns three lines out of order."""

    latest = None

    def __init__(self, **options):
        self.options, self.arrays = options, []
        FakeOCR.latest = self

    def export_paddlex_config_to_yaml(self, path):
        names = {"TextDetection": "detection", "TextRecognition": "recognition"}
        modules = {k: {"model_name": self.options[f"text_{w}_model_name"] or f"own_{w}"} for k, w in names.items()}
        with open(path, "w", encoding="utf-8") as sink:
            yaml.safe_dump({"SubModules": modules}, sink)

    def predict(self, array):
        self.arrays.append(array)
        boxes = [[[9, 80]], [[60, 3]], [[5, 0]]]
        return [{"rec_texts": ["last", "second", "first"], "rec_scores": [0.6, 0.4, 0.9], "rec_polys": boxes}]


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """paddleocr replaced by the fake, with an empty cache."""
    monkeypatch.setenv("FLOWOPD_CACHE", str(tmp_path / "cache"))
    module = types.SimpleNamespace(__version__="3.7.0", PaddleOCR=FakeOCR)
    monkeypatch.setattr(paddle, "_import", lambda engine: module)
    return module


def model_folder(path, name="PP-OCRv5_mobile_det"):
    path.mkdir()
    (path / "inference.onnx").write_bytes(b"weights")
    (path / "inference.yml").write_text(f"Global:\n  model_name: {name}\n", encoding="utf-8")
    return str(path)


class TestWiring:
    def test_pictures_arrive_as_blue_green_red_and_confident_lines_leave_in_order(self, fake):
        image = torch.zeros(1, 3, 6, 7)
        image[0, 0] = 1.0
        (reading,) = PaddleTextReader(device="cpu")(image)
        assert FakeOCR.latest.arrays[0][0, 0].tolist() == [0, 0, 255]
        assert reading.lines == (Line("first", 0.9), Line("last", 0.6))
        reader = PaddleTextReader(device="cpu", drop_score=0.3)
        assert [line.text for line in reader(image)[0].lines] == ["first", "second", "last"]
        assert reader.name.endswith("/drop=0.3")

    def test_by_default_paddleocr_chooses_its_models_and_they_are_recorded(self, fake):
        reader = PaddleTextReader(device="cpu")
        options = FakeOCR.latest.options
        assert options["engine"] == "onnxruntime"
        assert options["text_detection_model_name"] is options["text_recognition_model_dir"] is None
        turning = ("use_doc_orientation_classify", "use_doc_unwarping", "use_textline_orientation")
        assert [options[name] for name in turning] == [False] * 3
        assert reader.name == "paddleocr-3.7.0/onnxruntime/own_detection+own_recognition"

    @pytest.mark.parametrize(
        ("models", "detector", "recognizer", "limit"),
        [
            ("PP-OCRv5_server_det+en_PP-OCRv5_mobile_rec", "PP-OCRv5_server_det", "en_PP-OCRv5_mobile_rec", None),
            ("PP-OCRv4", "PP-OCRv3_mobile_det", "en_PP-OCRv4_mobile_rec", 960),
        ],
    )
    def test_models_of_the_paddle_engine(self, fake, models, detector, recognizer, limit):
        reader = PaddleTextReader(models=models, engine="paddle", device="cpu")
        options = FakeOCR.latest.options
        assert options["text_detection_model_name"] == detector
        assert options["text_recognition_model_name"] == recognizer
        assert options.get("text_det_limit_side_len") == limit
        assert "engine_config" not in options
        assert reader.name == f"paddleocr-3.7.0/paddle/{detector}+{recognizer}"

    def test_folders_go_before_models_and_are_recorded_with_their_digest(self, fake, tmp_path):
        folder = model_folder(tmp_path / "det")
        reader = PaddleTextReader(text_detection_model_dir=folder, device="cpu")
        assert FakeOCR.latest.options["text_detection_model_dir"] == folder
        digest = hashlib.sha256(b"weights").hexdigest()[:8]
        assert reader.name == f"paddleocr-3.7.0/onnxruntime/PP-OCRv5_mobile_det@{digest}+own_recognition"

    def test_a_folder_without_its_files_is_refused(self, fake, tmp_path):
        folder = model_folder(tmp_path / "det")
        (tmp_path / "det" / "inference.onnx").unlink()
        with pytest.raises(ArtifactError, match=r"holds inference\.yml and inference\.onnx; no inference\.onnx here"):
            PaddleTextReader(text_detection_model_dir=folder)

    @pytest.mark.parametrize("models", ["PP-OCRv9", "+x", "a+b+c"])
    def test_unknown_models_are_refused(self, fake, models):
        with pytest.raises(RewardError, match="known are default, PP-OCRv4, rapidocr"):
            PaddleTextReader(models=models)

    def test_an_error_of_paddleocr_is_one_line_with_alternatives(self, fake):
        def refuse(**options):
            raise RuntimeError("No available model\nhosting platforms detected")

        fake.PaddleOCR = refuse
        words = r"No available model hosting platforms detected.*models=rapidocr"
        with pytest.raises(RewardError, match=words) as error:
            PaddleTextReader(device="cpu")
        assert "\n" not in str(error.value)

    def test_without_paddleocr_the_extra_is_named(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "paddleocr", None)
        with pytest.raises(MissingDependency, match=r"paddleocr is not installed: pip install 'flowopd\[paddle\]'"):
            make_reader("paddleocr", engine="paddle")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("PP-OCRv6_det_small", "PP-OCRv6_small_det"),
        ("ch_PP-OCRv4_rec_mobile", "PP-OCRv4_mobile_rec"),
        ("ch_PP-OCRv4_det_infer", "PP-OCRv4_mobile_det"),
        ("en_PP-OCRv3_det_mobile", "PP-OCRv3_mobile_det"),
        ("en_PP-OCRv4_rec_mobile", "en_PP-OCRv4_mobile_rec"),
    ],
)
def test_rapidocrs_file_names_say_what_paddleocr_calls_the_model(tmp_path, stem, name):
    assert paddle._paddle_name(tmp_path / f"{stem}.onnx") == name


def test_a_file_that_does_not_say_its_model_is_refused(tmp_path):
    (tmp_path / "mine.onnx").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="does not say which PP-OCR model"):
        choose_model("det", PaddleOptions(text_detection_model_dir=str(tmp_path / "mine.onnx")))
    with pytest.raises(ArtifactError, match="no such file"):
        choose_model("det", PaddleOptions(text_detection_model_dir=str(tmp_path / "none.onnx")))


def words(size=48):
    """A picture of each word, in changing inks, on paper of about its size."""
    font = ImageFont.load_default(size=size)
    pictures = []
    for i, word in enumerate(WORDS):
        picture = Image.new("RGB", (352, 96), (250, 245, 230))
        ImageDraw.Draw(picture).text((24, 18), word, font=font, fill=INKS[i % len(INKS)])
        pictures.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(96, 352, 3))
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 255


class TestEngine:
    """The real engine, onnxruntime, over the ONNX files of rapidocr: nothing is downloaded."""

    @pytest.fixture(scope="class")
    def cache(self, tmp_path_factory):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLOWOPD_CACHE", str(tmp_path_factory.mktemp("cache")))
            yield patch

    @pytest.fixture(scope="class")
    def reader(self, cache):
        pytest.importorskip("paddleocr", reason="paddleocr over rapidocr's ONNX files, and its agreement with rapidocr")
        pytest.importorskip("rapidocr", reason="paddleocr has no ONNX files to read with")
        return make_reader("paddleocr", models="rapidocr", device="cpu")

    def test_it_agrees_with_rapidocr(self, reader):
        pictures = words()
        paddles, rapids = ([_text(r) for r in one(pictures)] for one in (reader, make_reader("rapidocr")))
        assert sum(a == b for a, b in zip(paddles, rapids, strict=True)) >= 38
        assert sum(a == normalize(word) for a, word in zip(paddles, WORDS, strict=True)) >= 38

    def test_the_published_models_run_through_the_same_loading_code(self, reader, cache):
        """rapidocr's own weights in place of the published ones, which would have to be downloaded."""
        files = {digest: bundled_model(kind) for kind, (_, digest) in paddle.PUBLISHED_FILES.items()}
        cache.setattr(paddle, "download", lambda url, sha256: files[sha256])
        published = make_reader("paddleocr", models="PP-OCRv4", device="cpu")
        assert [_text(r) for r in published(words()[:2])] == ["acorn", "bridge"]

    def test_a_prepared_folder_is_made_once_and_can_be_named(self, reader, cache):
        first, second = (onnx_folder(bundled_model("det"), "det") for _ in range(2))
        assert first == second
        again = choose_model("det", PaddleOptions(text_detection_model_dir=str(first.folder)))
        assert again.name == first.name
        assert (first.folder / "inference.yml").is_file()

    def test_a_detector_is_no_recognizer(self, reader, cache):
        with pytest.raises(ArtifactError, match="no list of characters"):
            onnx_folder(bundled_model("det"), "rec", name="PP-OCRv6_small_rec")


def _text(reading):
    return normalize("".join(line.text for line in reading.lines))
