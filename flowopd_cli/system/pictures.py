"""Picture files as plain RGB pixels, the same for every reader of the package. Only Pillow is needed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from flowopd_cli.errors import ArtifactError, one_line

# Decoders that Pillow has within itself; some of its others start programs.
READERS: dict[str, tuple[bytes, Callable[[BinaryIO], ImageFile]]] = {  # with the first bytes of their files
    "PNG": (b"\x89PNG", PngImageFile),
    "JPEG": (b"\xff\xd8\xff", JpegImageFile),
    "WebP": (b"RIFF", WebPImageFile),
}
MOST_PIXELS = 64 << 20
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"  # a PNG's last chunk (W3C PNG specification, 11.2.5)
_ORIENTATION = 0x0112  # the EXIF tag: how to turn the stored rows and columns
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LEVELS = {"L;2": 85, "L;4": 17}  # Pillow's raw modes of shallow grey PNGs: 8-bit levels a step


def read_picture(path: Path) -> Image.Image:
    """The RGB pixels of a PNG, JPEG or WebP file, as :func:`decode_picture` gives them.

    Raises :class:`ArtifactError`: the file is missing, of another format, damaged, or has more than 64 million pixels.
    """
    try:
        with path.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return decode_picture(stream, _check_size)
    except MemoryError:
        raise
    except Exception as error:  # any that Pillow's decoders raise over hostile bytes
        raise ArtifactError(f"{path}: cannot be read as a picture ({one_line(error)[:200]})") from error


def decode_picture(
    stream: BinaryIO, check_size: Callable[[int, int], None], formats: Sequence[str] = tuple(READERS)
) -> Image.Image:
    """A picture as a viewer shows it on white: EXIF orientation applied, the first frame of several.

    ``check_size`` gets width and height before decoding, because a few kilobytes can unpack to gigabytes; what it
    raises passes. Color profiles are ignored. The result is RGB and carries no other data of the file.

    Raises :class:`ValueError` for another format, and whatever Pillow raises for a damaged file.
    """
    picture = _open(stream, formats)
    check_size(*picture.size)
    _scale_transparent_value(picture)
    picture.load()
    rgb = to_rgb(picture)
    try:
        turn = _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF states no orientation
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture of any mode in RGB: 16 bits, and floats in [0, 1], scaled to 8 bits; transparency on white."""
    transparent, opacity = picture.info.get("transparency"), None
    if picture.mode.startswith("I"):
        values = picture.convert("I")
        picture = values.point([(value * 255 + 32767) // 65535 for value in range(65536)], "L")
        if transparent is not None:
            opacity = values.point([255 * (value != transparent) for value in range(65536)], "L")
    elif picture.mode == "F":
        picture = picture.point(lambda value: value * 255 + 0.5).convert("L")
    elif transparent is not None or "A" in picture.getbands():
        picture = picture.convert("RGBA")
        opacity = picture.getchannel("A")
    rgb = Image.new("RGB", picture.size, "white")
    rgb.paste(picture.convert("RGB"), mask=opacity)
    return rgb


def is_whole_png(path: Path) -> bool:
    """Whether the file exists and ends with a PNG's last chunk."""
    try:
        with path.open("rb") as handle:
            handle.seek(-len(_PNG_END), os.SEEK_END)
            return handle.read() == _PNG_END
    except OSError:
        return False


def _check_size(width: int, height: int) -> None:
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, at most {MOST_PIXELS} are read")


def _open(stream: BinaryIO, formats: Sequence[str]) -> ImageFile:
    """The header of a picture. ``Image.open`` would warn of, or refuse, sizes before ``check_size`` sees them."""
    start = stream.read(4)
    stream.seek(0)
    with suppress(SyntaxError):
        for magic, reader in (READERS[name] for name in formats):
            if start.startswith(magic):
                return reader(stream)
    raise ValueError(f"no {' or '.join(', '.join(formats).rsplit(', ', 1))}")


def _scale_transparent_value(picture: ImageFile) -> None:
    """Scale a PNG's transparent color to 8 bits, as Pillow does pixels of 2, 4 and three times 16 bits."""
    color = picture.info.get("transparency")
    raw_mode = picture.tile[0][3] if color is not None else None
    if raw_mode in _LEVELS and isinstance(color, int):
        picture.info["transparency"] = color * _LEVELS[raw_mode]
    elif raw_mode == "RGB;16B" and isinstance(color, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in color)
