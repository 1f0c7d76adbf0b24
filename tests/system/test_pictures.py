"""Picture files against known pixels: modes, depths, transparency, orientation, animation."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from support.picture_files import GRAY, GRAY_ALPHA, PALETTE, RGB, RGBA, SIDES, Png, exif_block

from flowopd_cli.errors import ArtifactError
from flowopd_cli.reports.pictures import grid
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.remote import protocol
from flowopd_cli.system.pictures import decode_picture, read_picture, to_rgb

WHITE = [255, 255, 255]


def decoded(content):
    return np.asarray(decode_picture(io.BytesIO(content), lambda width, height: None)).tolist()


def saved(image, kind, **options):
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    return sink.getvalue()


def row(*values):
    """Samples of a picture one pixel high."""
    return np.array([[value if isinstance(value, tuple) else (value,) for value in values]])


@pytest.mark.parametrize(
    ("png", "pixels"),
    [
        pytest.param(Png(row(0, 1), GRAY, 1), [[0] * 3, WHITE], id="one bit"),
        pytest.param(Png(row(0, 1), GRAY, 1, transparent=(0,)), [WHITE, WHITE], id="one bit, transparent black"),
        pytest.param(Png(row(0, 1, 3), GRAY, 2, transparent=(1,)), [[0] * 3, WHITE, WHITE], id="two bits"),
        pytest.param(Png(row(0, 9, 15), GRAY, 4, transparent=(9,)), [[0] * 3, WHITE, WHITE], id="four bits"),
        pytest.param(Png(row(0, 9, 8), GRAY, 8, transparent=(9,)), [[0] * 3, WHITE, [8] * 3], id="grey"),
        pytest.param(Png(row(0, 128 * 257, 65535), GRAY, 16), [[0] * 3, [128] * 3, WHITE], id="16-bit grey"),
        pytest.param(Png(row(127, 129, 385, 386), GRAY, 16), [[0] * 3, [1] * 3, [1] * 3, [2] * 3], id="rounded"),
        pytest.param(Png(row(7, 8), GRAY, 16, transparent=(7,)), [WHITE, [0] * 3], id="16-bit transparent grey"),
        pytest.param(Png(row((10, 0), (20, 128)), GRAY_ALPHA), [WHITE, [137] * 3], id="grey and alpha"),
        pytest.param(Png(row((257 * 20, 257 * 128)), GRAY_ALPHA, 16), [[137] * 3], id="16-bit grey and alpha"),
        pytest.param(Png(row((1, 2, 3), (3, 2, 1)), transparent=(3, 2, 1)), [[1, 2, 3], WHITE], id="RGB, transparent"),
        pytest.param(Png(row((257, 514, 65535)), RGB, 16), [[1, 2, 255]], id="16-bit RGB"),
        pytest.param(
            Png(row((1000, 2000, 3000), (0, 0, 0)), RGB, 16, transparent=(1000, 2000, 3000)),
            [WHITE, [0, 0, 0]],
            id="16-bit RGB, transparent",
        ),
        pytest.param(Png(row((10, 20, 30, 0), (10, 20, 30, 128)), RGBA), [WHITE, [132, 137, 142]], id="RGBA"),
        pytest.param(Png(row((0, 257 * 20, 65535, 65535)), RGBA, 16), [[0, 20, 255]], id="16-bit RGBA"),
        pytest.param(Png(row(1, 0), PALETTE, 1, ((9, 8, 7), (1, 2, 3))), [[1, 2, 3], [9, 8, 7]], id="palette"),
        pytest.param(
            Png(row(1, 0), PALETTE, 8, ((9, 8, 7), (1, 2, 3)), (0,)), [[1, 2, 3], WHITE], id="palette, transparent"
        ),
        pytest.param(
            Png(row(2, 1, 0), PALETTE, 4, ((0, 0, 0),) * 3, (0, 128)),
            [[0] * 3, [127] * 3, WHITE],
            id="palette with alphas",
        ),
        pytest.param(Png(row(5, 6), GRAY, animated=True), [[5] * 3, [6] * 3], id="first frame"),
    ],
)
def test_every_kind_of_png_has_its_known_pixels_in_files_and_requests(tmp_path, png, pixels):
    content = png.encode()
    assert decoded(content) == [pixels]
    (tmp_path / "a.png").write_bytes(content)
    assert np.asarray(read_picture(tmp_path / "a.png")).tolist() == [pixels]
    item = {"png": base64.b64encode(content).decode(), "prompt": {"text": "x"}}
    body = json.dumps({"protocol": 1, "items": [item]}).encode()
    request = protocol.read_request(protocol.ScoreRequest, body, "red", protocol.Limits())
    assert np.asarray(request.items[0].png).tolist() == [pixels]


FLAT = {"L": (200, [200] * 3), "RGB": ((10, 200, 90), [10, 200, 90]), "CMYK": ((255, 0, 102, 51), [0, 204, 122])}


@pytest.mark.parametrize("mode", FLAT)
def test_jpegs_of_known_color(mode):
    stored, shown = FLAT[mode]
    pixels = np.array(decoded(saved(Image.new(mode, (8, 8), stored), "JPEG", quality=100)))
    assert np.abs(pixels - shown).max() <= 2


def test_webp_transparency_and_first_frame():
    picture, other = (Image.fromarray(np.array([[p, [*p[:3], 255]]], np.uint8)) for p in ([9, 8, 7, 0], [0, 0, 0, 9]))
    shown = [[WHITE, [9, 8, 7]]]
    assert decoded(saved(picture, "WEBP", lossless=True, exact=True)) == shown
    assert decoded(saved(picture, "WEBP", lossless=True, exact=True, save_all=True, append_images=[other])) == shown


# The letter F, stored so that its orientation shows it upright.
UPRIGHT = ["###", "#..", "##.", "#..", "#.."]
STORED = {
    1: ["###", "#..", "##.", "#..", "#.."],
    2: ["###", "..#", ".##", "..#", "..#"],
    3: ["..#", "..#", ".##", "..#", "###"],
    4: ["#..", "#..", "##.", "#..", "###"],
    5: ["#####", "#.#..", "#...."],
    6: ["#....", "#.#..", "#####"],
    7: ["....#", "..#.#", "#####"],
    8: ["#####", "..#.#", "....#"],
}


@pytest.mark.parametrize("kind", ["PNG", "PNG, at its end", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", SIDES)
def test_orientation_is_applied(kind, orientation):
    stored, upright = (
        np.array([[255 * (c == "#") for c in line] for line in f]) for f in (STORED[orientation], UPRIGHT)
    )
    if kind.startswith("PNG"):
        content = Png(stored[..., None], GRAY, orientation=orientation, exif_last="end" in kind).encode()
    else:
        large = Image.fromarray(np.kron(stored, np.ones((8, 8))).astype(np.uint8)).convert("RGB")
        exif = b"Exif\0\0" + exif_block(orientation)
        content = saved(large, kind, exif=exif, quality=100, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = np.array(decoded(content))[..., 0]
    scale = len(pixels) // len(upright)
    assert pixels.shape == (5 * scale, 3 * scale)
    assert np.abs(pixels[scale // 2 :: scale, scale // 2 :: scale] - upright).max() <= 2


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation):
    assert decoded(Png(row(1, 2), GRAY, orientation=orientation).encode()) == [[[1] * 3, [2] * 3]]


def test_damaged_exif_is_ignored(recwarn, tmp_path):
    (tmp_path / "a.jpg").write_bytes(
        saved(Image.new("RGB", (8, 4)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01")
    )
    assert read_picture(tmp_path / "a.jpg").size == (8, 4)
    assert not recwarn.list


def test_images_in_memory_are_scaled_to_bytes():
    floats = Image.fromarray(np.array([[-1, 0, 0.5, 1, 7]], np.float32))
    whole = Image.fromarray(np.array([[0, 257 * 3, 65535]], np.int32))
    assert np.asarray(to_rgb(floats))[0, :, 0].tolist() == [0, 0, 128, 255, 255]
    assert np.asarray(to_rgb(whole))[0, :, 0].tolist() == [0, 3, 255]
    clear = Image.fromarray(np.array([[[0, 0, 0, 0]]], np.uint8))
    assert to_tensor([clear]).flatten().tolist() == [1, 1, 1]


def test_only_pixels_are_kept():
    content = saved(Image.new("RGB", (2, 2)), "PNG", icc_profile=b"x" * 200, exif=exif_block(1))
    assert decode_picture(io.BytesIO(content), lambda width, height: None).info == {}


def test_the_pictures_of_a_report_are_read_likewise(tmp_path):
    content = Png(row((10, 20, 30, 0), (10, 20, 30, 128)), RGBA).encode()
    (tmp_path / "a.png").write_bytes(content)
    strips = grid("t", "c", [], [("a", tmp_path / "a.png")]).strips
    pixels = [
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).getpixel((0, 0)) for uri in strips[0].uris
    ]
    assert pixels == [tuple(WHITE), (132, 137, 142)]


def test_other_formats_are_refused_by_name(tmp_path):
    for kind in ("GIF", "TIFF", "BMP"):
        (tmp_path / "a.png").write_bytes(saved(Image.new("L", (2, 2)), kind))
        with pytest.raises(ArtifactError, match=r"a\.png: cannot be read as a picture \(no PNG, JPEG or WebP\)"):
            read_picture(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"^no PNG$"):
        decode_picture(io.BytesIO(saved(Image.new("L", (2, 2)), "JPEG")), lambda width, height: None, ("PNG",))


def test_the_reference_itself_turns_the_letter_upright():
    for orientation, lines in STORED.items():
        samples = np.array([[[255 * (c == "#")] for c in line] for line in lines])
        shown = Png(samples, GRAY, orientation=orientation).shown()[..., 0]
        assert ["".join("#" if v else "." for v in line) for line in shown] == UPRIGHT
