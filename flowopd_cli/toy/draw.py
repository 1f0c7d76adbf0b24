"""Procedural pictures ``(32, 32, 3)`` in [0, 1]: coloured shapes and short codes on light paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

SIDE = 32
SHAPES = ("circle", "square", "triangle", "cross", "ring")
INKS = {
    "red": (0.86, 0.13, 0.13),
    "orange": (0.98, 0.55, 0.05),
    "yellow": (0.95, 0.85, 0.10),
    "green": (0.10, 0.60, 0.20),
    "blue": (0.12, 0.30, 0.85),
    "purple": (0.55, 0.15, 0.70),
    "black": (0.08, 0.08, 0.08),
}
TEXT_INKS = ("black", "blue", "red")
PAPER = (0.97, 0.97, 0.95)
CELLS = ((8, 8), (24, 8), (8, 24), (24, 24))
GLYPHS = "BCDFHJKLMNPRSTVXZ"
SUPERSAMPLE = 8
GLYPH_WIDTH, GLYPH_HEIGHT, GAP = 8, 11, 2
HATCH_DEPTH = 0.8  #: share of the ink that a hatch of 1 takes from every second row

Picture = Mask = NDArray[np.float32]


@dataclass(frozen=True)
class Shape:
    """One coloured shape, centered at pixel ``(x, y)``, ``size`` pixels wide."""

    kind: str
    color: str
    x: int
    y: int
    size: int = 12


@dataclass(frozen=True)
class Code:
    """A short code in capitals, centered at ``(x, y)``."""

    text: str
    color: str = "black"
    x: int = 16
    y: int = 16


@dataclass(frozen=True)
class Wear:
    """The wear of a print: tint of the paper, fading of the ink, strength of the stains; 0 is pristine."""

    tint: float = 0.0
    fade: float = 0.0
    stain: float = 0.0


@lru_cache(maxsize=256)
def shape_mask(kind: str, size: int) -> Mask:
    """Anti-aliased coverage ``(size, size)`` of a shape that fills its box."""
    n = size * SUPERSAMPLE
    y, x = (np.mgrid[0:n, 0:n] + 0.5) / n * 2 - 1
    radius = np.hypot(x, y)
    inside = {
        "circle": radius <= 1,
        "square": (np.abs(x) <= 0.92) & (np.abs(y) <= 0.92),
        "triangle": (y <= 0.9) & (np.abs(x) <= (y + 0.95) / 1.85),
        "cross": (np.abs(x) <= 0.34) | (np.abs(y) <= 0.34),
        "ring": (radius <= 1) & (radius >= 0.52),
    }[kind]
    fine = inside.astype(np.float32).reshape(size, SUPERSAMPLE, size, SUPERSAMPLE)
    return fine.mean(axis=(1, 3))


@lru_cache(maxsize=64)
def glyph_mask(letter: str) -> Mask:
    """Coverage ``(11, 8)`` of one bold capital letter that fills its box."""
    font = ImageFont.load_default(size=80)
    canvas = Image.new("L", (160, 160), 0)
    ImageDraw.Draw(canvas).text((30, 30), letter, fill=255, font=font, stroke_width=2, stroke_fill=255)
    ink = canvas.crop(canvas.getbbox())
    small = np.asarray(ink.resize((GLYPH_WIDTH, GLYPH_HEIGHT), Image.Resampling.BOX), dtype=np.float32)
    return (small / 255).astype(np.float32)


def code_mask(text: str) -> Mask:
    """Coverage of a whole code, its letters side by side."""
    step = GLYPH_WIDTH + GAP
    mask = np.zeros((GLYPH_HEIGHT, step * len(text) - GAP), dtype=np.float32)
    for i, letter in enumerate(text):
        mask[:, i * step : i * step + GLYPH_WIDTH] = glyph_mask(letter)
    return mask


def render(
    items: Sequence[Shape | Code], wear: Wear = Wear(), rng: np.random.Generator | None = None, hatch: float = 0.0
) -> Picture:
    """Draw shapes and codes on paper, hatch them, then apply the wear; ``rng`` places the stains.

    ``hatch`` in [0, 1] takes up to `HATCH_DEPTH` of the ink from the rows of odd number.
    """
    paper = np.asarray(PAPER, dtype=np.float32)
    picture = np.broadcast_to(paper, (SIDE, SIDE, 3)).copy()
    for item in items:
        mask = shape_mask(item.kind, item.size) if isinstance(item, Shape) else code_mask(item.text)
        _blend(picture, mask, np.asarray(INKS[item.color], dtype=np.float32), item.x, item.y)
    picture[1::2] = paper + (picture[1::2] - paper) * (1 - HATCH_DEPTH * hatch)
    picture = paper + (picture - paper) * (1 - wear.fade)
    picture *= 1 - wear.tint * np.array([0.22, 0.30, 0.50], dtype=np.float32)
    if wear.stain and rng is not None:
        picture = picture - _stains(rng) * wear.stain
    return np.clip(picture, 0, 1)


def _blend(picture: Picture, mask: Mask, ink: Mask, x: int, y: int) -> None:
    height, width = mask.shape
    top, left = y - height // 2, x - width // 2
    rows = slice(max(top, 0), min(top + height, SIDE))
    cols = slice(max(left, 0), min(left + width, SIDE))
    part = mask[rows.start - top : rows.stop - top, cols.start - left : cols.stop - left, None]
    picture[rows, cols] = picture[rows, cols] * (1 - part) + ink * part


def _stains(rng: np.random.Generator) -> Picture:
    """A few soft stains, ``(32, 32, 3)``, of strength about one."""
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)
    field = np.zeros((SIDE, SIDE), dtype=np.float32)
    for _ in range(rng.integers(2, 5)):
        cx, cy, width = rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(3, 6)
        field += np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
    return field[..., None] * np.array([0.22, 0.26, 0.34], dtype=np.float32)
