"""The protocol: pictures travel unchanged and bounded, every list is checked, no number is invented."""

import base64
import io
import json
import zlib

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from flowopd_cli.rewards.remote import protocol
from flowopd_cli.rewards.remote.protocol import Answer, Limits, Refusal


def png(size=(4, 4)):
    return protocol.encode_png(Image.new("RGB", size, (51, 0, 0)))


def chunk(kind, data):
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def black_png(width, height, rows):
    header = chunk(b"IHDR", width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0]))
    pixels = chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * width)), 9))
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")).decode()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([black_png(12000, 12000, 1)], "12000 x 12000"),
        ([black_png(2048, 2048, 2048)] * 256, "1073741824 pixels in a request, at most 33554432"),
    ],
)
def test_too_many_pixels_are_refused_before_any_is_unpacked(monkeypatch, pictures, message):
    """256 black pictures of 4.2 million pixels are 4 MB of PNG and 3 GB of memory."""
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("a picture was unpacked"))
    request = json.dumps(protocol.score_request("red", pictures, [{"text": "x"}] * len(pictures))).encode()
    assert len(request) < Limits.body_bytes
    with pytest.raises(Refusal, match=message) as refusal:
        protocol.read_score_request(request, "red", Limits())
    assert refusal.value.status == 413


def test_one_picture_of_the_largest_size_always_fits():
    limits = Limits(pixels=64, request_pixels=10)
    assert limits.published()["request_pixels"] == 64
    assert len(protocol.decode_pngs([png((8, 8))], limits)) == 1
    with pytest.raises(Refusal, match="128 pixels in a request, at most 64"):
        protocol.decode_pngs([png((8, 8))] * 2, limits)


def test_the_texts_of_a_png_are_dropped():
    buffer = io.BytesIO()
    texts = PngInfo()
    texts.add_text("note", "x" * 1000, zip=True)
    Image.new("RGB", (2, 2)).save(buffer, "PNG", pnginfo=texts)
    (image,) = protocol.decode_pngs([base64.b64encode(buffer.getvalue()).decode()], Limits())
    assert image.info == {}


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (64, 33)])
def test_pictures_travel_unchanged(size):
    image = Image.effect_noise(size, 90).convert("RGB")
    image.putpixel((0, 0), (255, 0, 7))
    assert protocol.decode_pngs([protocol.encode_png(image)], Limits())[0].tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
def test_other_kinds_of_png_become_rgb(mode):
    buffer = io.BytesIO()
    Image.new(mode, (3, 2)).save(buffer, "PNG")
    (image,) = protocol.decode_pngs([base64.b64encode(buffer.getvalue()).decode()], Limits())
    assert (image.mode, image.size) == ("RGB", (3, 2))


def test_other_formats_are_refused():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2)).save(buffer, "JPEG")
    with pytest.raises(Refusal, match="not a PNG"):
        protocol.decode_pngs([base64.b64encode(buffer.getvalue()).decode()], Limits())


def test_only_finite_numbers_are_valid():
    answer = protocol.normalize_answer(
        Answer([1.0, float("inf"), 2.0], {"x": [float("nan"), 1.0, None]}, [True, True, False]), 3
    )
    assert answer.total == [1.0, None, None]
    assert answer.scores == {"x": [None, 1.0, None]}
    assert answer.valid == [True, False, False]
    assert [("error" in detail) for detail in answer.details] == [False, True, False]


def test_fingerprints_depend_on_what_changes_scores():
    one = protocol.fingerprint("red", {"model": "a@1"}, {"device": "cpu", "soft": True})
    assert protocol.fingerprint("red", {"model": "a@1"}, {"device": "cuda", "batch": 9, "soft": True}) == one
    assert protocol.fingerprint("red", {"model": "a@2"}, {"soft": True}) != one
    assert protocol.fingerprint("red", {"model": "a@1"}, {"soft": False}) != one


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"total": [1.0]}, "1 values of total for 2 pictures"),
        ({"total": ["1", 2.0]}, r"total\.0: Input should be a valid number"),
        ({"total": [True, 2.0]}, r"total\.0: Input should be a valid number"),
        ({"valid": [1, 0]}, r"valid\.0: Input should be a valid boolean"),
        ({"scores": {"x": [1.0]}}, "1 values of x for 2 pictures"),
        ({"details": [{}]}, "1 details for 2 pictures"),
        ({"details": "x"}, "details: Input should be a valid list"),
    ],
)
def test_answers_that_break_the_protocol(changes, message):
    answer = {"total": [1.0, None], "valid": [True, True], "scores": {}, "details": []}
    assert protocol.read_answer(answer, 2).valid == [True, False]
    with pytest.raises(Refusal, match=message):
        protocol.read_answer({**answer, **changes}, 2)
