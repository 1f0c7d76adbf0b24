"""The toy's pictures and their scores."""

import numpy as np
import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.toy import prompts, rewards, scenes
from flowopd_cli.toy.detector import PixelDetector
from flowopd_cli.toy.draw import CELLS, INKS, PAPER, SHAPES, Code, Shape, Wear, render
from flowopd_cli.toy.ink import HATCH_FULL, hatch, read_ink
from flowopd_cli.toy.rewards import print_quality


def tensor(*pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


READABLE = (0.0, 0.65)  # hatches


@pytest.mark.parametrize(
    ("habits", "low", "high"),
    [
        (scenes.Habits(0, 0, 0, READABLE), 0.97, 1.0),
        (scenes.Habits(0, 0, 1.0, READABLE), 0.6, 1.0),
        (scenes.Habits(0, 0, 0, (0.95, 1.0)), 0.0, 0.4),
        (scenes.Habits(careless=1.0, worn=0, hatch=READABLE), 0.0, 0.5),
    ],
)
def test_the_detector_sees_correct_scenes_worn_prints_and_mistakes(habits, low, high):
    rows, rng = prompts.geneval("validation"), np.random.default_rng(0)
    result = rewards.geneval()(tensor(*(scenes.sample(prompt, rng, habits) for prompt in rows)), rows)
    assert low <= result.scores["official"].mean() <= high


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_has_its_name_and_color(kind):
    pictures = tensor(*(render([Shape(kind, ink, *CELLS[i % 4])]) for i, ink in enumerate(INKS)))
    best = [row[0] for row in PixelDetector()(pictures, [Prompt("", "", "")] * len(INKS))]
    assert [(d.label, d.color) for d in best] == [(kind, ink) for ink in INKS]
    assert all(d.score > 0.9 for d in best)


def test_an_empty_sheet_has_no_objects_and_no_quality():
    blank = tensor(render([]))
    result = rewards.geneval()(blank, [p for p in prompts.geneval("test") if p.metadata["tag"] == "counting"][:1])
    assert float(result.scores["official"]) == 0
    assert float(print_quality(blank)) == pytest.approx(0, abs=1e-3)


def test_the_hatch_of_a_picture_is_read_as_it_was_drawn():
    hatches = [0.0, 0.3, 0.6, 1.0]
    for items in ([Code("BCD", "blue")], [Shape("circle", "red", 8, 8), Shape("square", "black", 24, 24)]):
        pictures = tensor(*(render(items, hatch=value) for value in hatches))
        coverage = read_ink(pictures, pictures.new_tensor(PAPER).view(1, 3, 1, 1)).coverage
        torch.testing.assert_close(hatch(coverage), torch.tensor(hatches), atol=0.12, rtol=0)


def test_a_code_is_read_until_the_hatch_is_strong():
    rows, rng = prompts.ocr("test")[:12], np.random.default_rng(0)
    scenes_of_rows = [scenes.compose(prompt, rng) for prompt in rows]
    weak, strong = (tensor(*(render(scene, hatch=value) for scene in scenes_of_rows)) for value in (0.6, 1.0))
    assert float(rewards.ocr()(weak, rows).total.mean()) > 0.8
    assert float(rewards.ocr()(strong, rows).total.mean()) < 0.1


CLEAN = render([Shape("circle", "red", 8, 8), Shape("square", "blue", 24, 24)], hatch=HATCH_FULL)


def quality(picture):
    return float(print_quality(tensor(np.asarray(picture, dtype=np.float32))))


@pytest.mark.parametrize("wear", [Wear(tint=0.6), Wear(fade=0.5), Wear(stain=1.0)])
def test_wear_lowers_the_quality(wear):
    worn = render([Shape("circle", "red", 8, 8)], wear, np.random.default_rng(0), HATCH_FULL)
    assert quality(worn) < quality(render([Shape("circle", "red", 8, 8)], hatch=HATCH_FULL)) - 0.1


def test_less_of_the_hatch_lowers_the_quality_and_more_does_not():
    none, half, full, more = (quality(render([Code("BCD")], hatch=value)) for value in (0, 0.35, 0.7, 1))
    assert none < 0.2 < half < full - 0.2
    assert more == pytest.approx(full, abs=0.02)


def test_clean_prints_are_nearly_perfect_and_noise_and_off_palette_colors_lower_the_quality():
    assert quality(CLEAN) > 0.93
    assert quality(render([Code("BCD")], hatch=0.7)) > 0.9
    noise = np.random.default_rng(0).normal(0, 0.1, CLEAN.shape)
    assert quality(np.clip(CLEAN + noise, 0, 1)) < quality(CLEAN) - 0.1
    pink = np.broadcast_to(np.asarray(PAPER, dtype=np.float32), (32, 32, 3)).copy()
    pink[4:14, 4:14] = (1.0, 0.4, 0.8)
    assert quality(pink) < quality(CLEAN) - 0.1
