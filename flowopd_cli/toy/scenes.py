"""Random captioned scenes, the training set of the toy base, with some wrong captions and worn prints.

They make the base follow its prompt only most of the time, which leaves room for post-training.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.toy.draw import CELLS, GLYPHS, INKS, SHAPES, TEXT_INKS, Code, Picture, Shape, Wear, render

Scene = list[Shape | Code]


@dataclass(frozen=True)
class Habits:
    """The rates of errors in a training set."""

    careless: float = 0.10  #: probability of one mistake in a composition
    misspelt: float = 0.08  #: probability that a letter is a random one
    worn: float = 0.15  #: share of worn prints
    hatch: tuple[float, float] = (0.5, 0.95)  #: range of the hatch of a print
    drift: int = 2  #: largest vertical offset of a code from the middle, in pixels
    codes: float = 0.40  #: share of codes in the training set


HABITS = Habits()


def sample(prompt: Prompt, rng: np.random.Generator, habits: Habits = HABITS) -> Picture:
    """One picture for a prompt, with the errors of ``habits``."""
    scene = attempt(prompt, rng, habits)
    return render(scene, wear(rng, habits.worn), rng, rng.uniform(*habits.hatch))


def attempt(prompt: Prompt, rng: np.random.Generator, habits: Habits = HABITS) -> Scene:
    """A scene for a prompt, with a slip or misspelt letters now and then."""
    scene = compose(prompt, rng, habits.drift)
    if prompt.task == "ocr":
        return [_misspell(scene[0], rng, habits.misspelt) if habits.misspelt else scene[0]]
    return _slip(scene, rng) if rng.random() < habits.careless else scene


def wear(rng: np.random.Generator, worn: float) -> Wear:
    """The wear of one print; a share ``worn`` is not pristine."""
    return Wear(rng.uniform(0, 0.8), rng.uniform(0, 0.5), rng.uniform(0, 1.0)) if rng.random() < worn else Wear()


def compose(prompt: Prompt, rng: np.random.Generator, drift: int = HABITS.drift) -> Scene:
    """A scene that matches its prompt."""
    if prompt.task == "ocr":
        ink = str(rng.choice(TEXT_INKS))
        x, y = 16 + int(rng.integers(-1, 2)), 16 + int(rng.integers(-drift, drift + 1))
        return [Code(prompt.metadata["target"], ink, x, y)]
    include = prompt.metadata["include"]
    if prompt.metadata["tag"] == "position":
        cells = _related_cells(include[1]["position"][0], rng)
    else:
        total = sum(clause["count"] for clause in include)
        cells = [int(c) for c in rng.permutation(4)[:total]]
    scene: Scene = []
    for clause in include:
        color = clause.get("color") or str(rng.choice(list(INKS)))
        scene += [_place(clause["class"], color, cells.pop(0), rng) for _ in range(clause["count"])]
    return scene


def _place(kind: str, color: str, cell: int, rng: np.random.Generator) -> Shape:
    x, y = CELLS[cell]
    jitter = rng.integers(-1, 2, size=2)
    return Shape(kind, color, x + int(jitter[0]), y + int(jitter[1]), int(rng.integers(11, 14)))


def _related_cells(relation: str, rng: np.random.Generator) -> list[int]:
    """Cells of (reference, subject) such that the subject is in ``relation`` to the reference."""
    axis = 0 if relation in ("left of", "right of") else 1
    sign = -1 if relation in ("left of", "above") else 1
    pairs = [(ref, sub) for ref in range(4) for sub in range(4) if (CELLS[sub][axis] - CELLS[ref][axis]) * sign > 0]
    return list(pairs[int(rng.integers(len(pairs)))])


def _misspell(code: Shape | Code, rng: np.random.Generator, misspelt: float) -> Code:
    assert isinstance(code, Code)
    letters = [str(rng.choice(list(GLYPHS))) if rng.random() < misspelt else c for c in code.text]
    return replace(code, text="".join(letters))


def _slip(scene: Scene, rng: np.random.Generator) -> Scene:
    """One mistake: a wrong color, a wrong shape, colors or places swapped, one object too many or too few."""
    shapes = [item for item in scene if isinstance(item, Shape)]
    victim = int(rng.integers(len(shapes)))
    kind = str(rng.choice(["color", "shape", "swap", "swap", "count"])) if len(shapes) > 1 else "shape"
    if len(shapes) == 1 and rng.random() < 0.5:
        kind = "color"
    if kind == "color":
        shapes[victim] = replace(shapes[victim], color=str(rng.choice(list(INKS))))
    elif kind == "shape":
        shapes[victim] = replace(shapes[victim], kind=str(rng.choice(SHAPES)))
    elif kind == "swap":
        first, second = shapes[0], shapes[1]
        shapes[:2] = (
            [replace(first, x=second.x, y=second.y), replace(second, x=first.x, y=first.y)]
            if rng.random() < 0.5
            else [replace(first, color=second.color), replace(second, color=first.color)]
        )
    else:
        shapes = _miscount(shapes, rng)
    return list(shapes)


def _miscount(shapes: list[Shape], rng: np.random.Generator) -> list[Shape]:
    occupied = {(round((s.x - 8) / 16), round((s.y - 8) / 16)) for s in shapes}
    free = [i for i, (x, y) in enumerate(CELLS) if (round((x - 8) / 16), round((y - 8) / 16)) not in occupied]
    if not free or rng.random() < 0.5:
        return shapes[:-1]
    extra = shapes[int(rng.integers(len(shapes)))]
    return [*shapes, _place(extra.kind, extra.color, int(rng.choice(free)), rng)]
