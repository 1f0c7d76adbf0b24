"""PNG files written from known samples, and a slow reference for their pixels, by the PNG and EXIF specifications."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

# EXIF 2.3, 4.6.4 A: the side of the picture that holds the first stored row, and the first stored column.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6  # color types of PNG
CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGBA: (8, 16)}


@dataclass(frozen=True)
class Png:
    """A PNG's content: samples ``(H, W, channels)``; ``transparent``: a color's samples, or a palette's alphas."""

    samples: np.ndarray
    color: int = RGB
    depth: int = 8
    palette: tuple[tuple[int, int, int], ...] = ()
    transparent: tuple[int, ...] = ()
    orientation: int | None = None
    exif_last: bool = False  # behind the pixels of the first frame
    animated: bool = False  # with a second frame, of zeros

    def encode(self):
        height, width, _ = self.samples.shape
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, self.depth, self.color, 0, 0, 0))]
        control = struct.pack(">IIIIHHBB", width, height, 0, 0, 1, 10, 0, 0)
        exif = [(b"eXIf", exif_block(self.orientation))] if self.orientation is not None else []
        if self.animated:
            chunks.append((b"acTL", struct.pack(">II", 2, 0)))
        if not self.exif_last:
            chunks += exif
        if self.palette:
            chunks.append((b"PLTE", bytes(sum(self.palette, ()))))
        if self.transparent:
            form = f"{len(self.transparent)}B" if self.color == PALETTE else f">{len(self.transparent)}H"
            chunks.append((b"tRNS", struct.pack(form, *self.transparent)))
        if self.animated:
            chunks.append((b"fcTL", struct.pack(">I", 0) + control))
        chunks.append((b"IDAT", self._packed(self.samples)))
        if self.exif_last:
            chunks += exif
        if self.animated:
            chunks.append((b"fcTL", struct.pack(">I", 1) + control))
            chunks.append((b"fdAT", struct.pack(">I", 2) + self._packed(np.zeros_like(self.samples))))
        chunks.append((b"IEND", b""))
        body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(body)

    def _packed(self, samples):
        rows = []
        for row in samples:
            bits = "".join(f"{value:0{self.depth}b}" for value in row.ravel().tolist())
            bits += "0" * (-len(bits) % 8)
            rows.append(b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big"))
        return zlib.compress(b"".join(rows))

    def shown(self):
        """The picture on white as ``(H, W, 3)`` in float64, 0 to 255, orientation applied, not rounded."""
        height, width, _ = self.samples.shape
        pixels = np.empty((height, width, 3))
        for y in range(height):
            for x in range(width):
                color, alpha = self._pixel([int(value) for value in self.samples[y, x]])
                pixels[y, x] = [255 * (alpha * value + 1 - alpha) for value in color]
        return turned(pixels, self.orientation or 1)

    def _pixel(self, values):
        """Color and opacity, each 0 to 1."""
        highest = 2**self.depth - 1
        if self.color == PALETTE:
            alphas = [*self.transparent, *[255] * 256]
            return [level / 255 for level in self.palette[values[0]]], alphas[values[0]] / 255
        shares = [value / highest for value in values]
        if self.color in (GRAY_ALPHA, RGBA):
            *shares, alpha = shares
        else:
            alpha = float(tuple(values) != self.transparent)
        return (shares * 3 if len(shares) == 1 else shares), alpha


def turned(pixels, orientation):
    """Stored pixels as a viewer shows them, one at a time."""
    rows, columns, _ = pixels.shape
    first_row, first_column = SIDES[orientation]
    sideways = first_row in ("left", "right")
    shown = np.empty((columns, rows, 3) if sideways else (rows, columns, 3))
    for r in range(rows):
        for c in range(columns):
            places = {"top": 0, "left": 0, "bottom": -1, "right": -1}
            down = r if places[first_row] == 0 else -1 - r
            across = c if places[first_column] == 0 else -1 - c
            y, x = (across, down) if sideways else (down, across)
            shown[y, x] = pixels[r, c]
    return shown


def exif_block(orientation):
    """A TIFF header with the orientation alone."""
    return b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
