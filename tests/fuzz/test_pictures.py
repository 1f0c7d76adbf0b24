"""Picture files of every mode, format and orientation, of random samples, against the slow reference."""

import io

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.fuzzing import both, folder, guarded
from support.picture_files import CHANNELS, DEPTHS, GRAY, PALETTE, RGB, SIDES, Png, exif_block, turned

from flowopd_cli.system.pictures import decode_picture, read_picture

SIZES = st.integers(1, 5)
ORIENTATIONS = st.sampled_from([None, *SIDES])


@st.composite
def pngs(draw):
    color = draw(st.sampled_from(sorted(CHANNELS)))
    depth = draw(st.sampled_from(DEPTHS[color]))
    shape = (draw(SIZES), draw(SIZES), CHANNELS[color])
    entropy = np.random.default_rng(draw(st.integers(0, 2**32)))
    samples = entropy.integers(0, 2**depth, shape)
    palette, transparent = (), ()
    if color == PALETTE:
        palette = tuple(tuple(map(int, entropy.integers(0, 256, 3))) for _ in range(2**depth))
        transparent = tuple(map(int, entropy.integers(0, 256, draw(st.integers(0, 2**depth)))))
    elif color in (GRAY, RGB) and draw(st.booleans()):
        transparent = tuple(map(int, samples[0, 0] if draw(st.booleans()) else entropy.integers(0, 2**depth, shape[2])))
    return Png(
        samples, color, depth, palette, transparent, draw(ORIENTATIONS), exif_last=draw(st.booleans()),
        animated=draw(st.booleans()),
    )  # fmt: skip


def png_pixels(png):
    """Equal after rounding; Pillow reads color and opacity of 16 bits from their high bytes alone."""
    with folder() as box:
        (box / "a.png").write_bytes(png.encode())
        with guarded(box):
            picture = read_picture(box / "a.png")
    assert picture.mode == "RGB"
    tolerance = 2 if png.depth == 16 and png.color != GRAY else 0.5
    assert np.abs(np.asarray(picture) - png.shown()).max() <= tolerance


test_png_pixels, test_png_pixels_at_length = both(given(png=pngs()), png_pixels, 60, 4000)

COLORS = {"L": 1, "RGB": 3, "CMYK": 4, "RGBA": 4}


def block_pixels(kind, mode, orientation, size, seed, animated):
    """JPEG keeps blocks of one color within a few levels, lossless WebP every pixel."""
    blocks = np.random.default_rng(seed).integers(0, 256, (*size, COLORS[mode]))
    stored = np.kron(blocks, np.ones((16, 16, 1), int)) if kind == "JPEG" else blocks
    shares = blocks / 255
    if mode == "CMYK":
        expected = (1 - shares[..., :3]) * (1 - shares[..., 3:])
    elif mode == "RGBA":
        expected = shares[..., :3] * shares[..., 3:] + 1 - shares[..., 3:]
    else:
        expected = shares * np.ones(3)
    options = {"exif": b"Exif\0\0" + exif_block(orientation)} if orientation else {}
    options |= {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True, "exact": True}
    rows, columns, _ = stored.shape
    image = Image.frombytes(mode, (columns, rows), stored.astype(np.uint8).tobytes())
    if animated and kind == "WEBP":
        options |= {"save_all": True, "append_images": [Image.new(mode, image.size)]}
    sink = io.BytesIO()
    image.save(sink, kind, **options)
    pixels = np.asarray(decode_picture(io.BytesIO(sink.getvalue()), lambda width, height: None)).astype(float)
    if kind == "JPEG":
        pixels = pixels[8::16, 8::16]
    difference = np.abs(pixels - 255 * turned(expected, orientation or 1)).max()
    assert difference <= (4 if kind == "JPEG" else 0.5)


KINDS = st.sampled_from([("JPEG", "L"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB"), ("WEBP", "RGBA")])
BLOCKS = KINDS.flatmap(
    lambda kind: st.fixed_dictionaries(
        {
            "kind": st.just(kind[0]),
            "mode": st.just(kind[1]),
            "orientation": ORIENTATIONS,
            "size": st.tuples(SIZES, SIZES),
            "seed": st.integers(0, 2**32),
            "animated": st.booleans(),
        }
    )
)


def blocks(case):
    block_pixels(**case)


test_block_pixels, test_block_pixels_at_length = both(given(case=BLOCKS), blocks, 40, 2000)
