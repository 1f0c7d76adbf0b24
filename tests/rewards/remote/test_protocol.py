"""The protocol: pictures travel unchanged and bounded, every list is checked, no number is invented."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo
from pydantic import TypeAdapter, ValidationError

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.protocol import Answer, CheckRequest, Limits, Refusal, ScoreRequest


def encoded(image, kind="PNG", **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return base64.b64encode(sink.getvalue()).decode()


def decoded(*pngs, limits=Limits()):
    items = [{"png": png, "prompt": {"text": "x"}} for png in pngs]
    body = json.dumps({"protocol": 1, "reward": "red", "items": items}).encode()
    assert len(body) < limits.body_bytes
    return [item.png for item in protocol.read_request(ScoreRequest, body, "red", limits).items]


@pytest.mark.parametrize(
    ("pictures", "message", "most"),
    [
        ([encoded(Image.new("1", (12000, 12000)))], "12000 x 12000", 0),
        ([encoded(Image.new("1", (2048, 2048)))] * 256, "more than 33554432 pixels in a request", 8),
    ],
)
def test_pixels_beyond_the_limits_are_never_unpacked(monkeypatch, recwarn, pictures, message, most):
    """256 black pictures of 4.2 million pixels are few bytes of PNG and 3 GB of memory."""
    unpacked = []
    monkeypatch.setattr(PngImageFile, "load", unpacked.append)
    monkeypatch.setattr("flowopd_cli.system.pictures.to_rgb", lambda image: image)
    with pytest.raises(Refusal, match=message) as refusal:
        decoded(*pictures)
    assert refusal.value.status == 413
    assert len(unpacked) <= most
    assert not recwarn.list


def test_one_picture_of_the_largest_size_always_fits():
    limits, png = Limits(pixels=64, request_pixels=10), encoded(Image.new("RGB", (8, 8)))
    assert len(decoded(png, limits=limits)) == 1
    with pytest.raises(Refusal, match="more than 10 pixels in a request"):
        decoded(png, png, limits=limits)


def test_the_texts_of_a_png_are_dropped():
    texts = PngInfo()
    texts.add_text("note", "x" * 1000, zip=True)
    assert decoded(encoded(Image.new("RGB", (2, 2)), pnginfo=texts))[0].info == {}


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 33)])
def test_pictures_travel_unchanged(size):
    image = Image.effect_noise(size, 90).convert("RGB")
    image.putpixel((0, 0), (255, 0, 7))
    png = protocol.score_item(image, Prompt("", "x", ""))["png"]
    assert decoded(png)[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_png_become_rgb(mode):
    (image,) = decoded(encoded(Image.new(mode, (3, 2))))
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_other_formats_are_refused():
    with pytest.raises(Refusal, match="not a PNG"):
        decoded(encoded(Image.new("RGB", (3, 2)), "JPEG"))


def test_prompts_are_read_leniently():
    body = {"protocol": 1, "prompts": [{"id": 7, "text": "x", "task": 1.5, "metadata": None}]}
    (prompt,) = protocol.read_request(CheckRequest, json.dumps(body).encode(), "red", Limits()).prompts
    assert prompt.model_dump() == {"id": "7", "text": "x", "task": "1.5", "metadata": {}}


def test_only_finite_numbers_are_valid():
    total = [1.0, float("inf"), 2.0, np.float32("nan")]
    answer = Answer(total, {"x": [float("nan"), np.float32(1), None, 2]}, [True, True, False, True])
    assert answer.total == [1.0, None, None, None]
    assert answer.scores == {"x": [None, 1.0, None, 2.0]}
    assert answer.valid == [True, False, False, False]
    assert [("error" in detail) for detail in answer.details] == [False, True, False, True]


def test_details_become_json():
    answer = Answer([1.0], {}, [True], [{"box": (1, float("nan")), 3: Limits}])
    assert answer.details == [{"box": [1, None], "3": str(Limits)}]


def test_fingerprints_depend_on_what_changes_scores():
    one = protocol.fingerprint("red", {"model": "a@1"}, {"device": "cpu", "soft": True})
    assert protocol.fingerprint("red", {"model": "a@1"}, {"device": "cuda", "batch": 9, "soft": True}) == one
    assert protocol.fingerprint("red", {"model": "a@2"}, {"soft": True}) != one
    assert protocol.fingerprint("red", {"model": "a@1"}, {"soft": False}) != one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total": [1.0]}, "2 values of valid for 1 totals"),
        ({"total": ["1", 2.0]}, r"total\.0: Input should be a number"),
        ({"total": [False, 2.0]}, r"total\.0: Input should be a number"),
        ({"total": [[1], 2.0]}, r"total\.0: Input should be a valid number"),
        ({"scores": {"x": [1.0]}}, "1 values of x for 2 totals"),
        ({"details": [{}]}, "1 values of details for 2 totals"),
        ({"details": "x"}, "details: Input should be a valid list"),
    ],
)
def test_answers_that_break_the_protocol(changes, message):
    answer = {"total": [1.0, None], "valid": [True, True], "scores": {}, "details": []}
    read = TypeAdapter(Answer).validate_python
    assert read(answer).require(2).valid == [True, False]
    with pytest.raises(ValueError, match="2 totals for 3 pictures"):
        read(answer).require(3)
    with pytest.raises(ValidationError) as error:
        read({**answer, **changes})
    assert protocol.describe_validation(error.value).startswith(message.replace("\\", ""))
