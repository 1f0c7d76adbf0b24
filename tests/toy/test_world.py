"""The toy's pictures and what its rewards see in them."""

import numpy as np
import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.toy import prompts, rewards, scenes
from flowopd_cli.toy.draw import CELLS, INKS, PAPER, SHAPES, Code, Shape, Wear, render
from flowopd_cli.toy.quality import print_quality


def tensor(*pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def true_pictures(chosen, worn=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return tensor(*(scenes.sample(p, rng, scenes.Habits(0, 0, worn)) for p in chosen))


@pytest.mark.parametrize(("worn", "least"), [(0.0, 0.97), (1.0, 0.6)])
def test_the_detector_finds_what_was_drawn(worn, least):
    chosen = prompts.geneval("validation")
    result = rewards.geneval()(true_pictures(chosen, worn), chosen)
    assert result.scores["official"].mean() >= least


@pytest.mark.parametrize("kind", SHAPES)
def test_every_shape_has_its_name_and_color(kind):
    from flowopd_cli.toy.detector import PixelDetector

    inks = list(INKS)
    pictures = tensor(*(render([Shape(kind, ink, *CELLS[i % 4])]) for i, ink in enumerate(inks)))
    found = PixelDetector()(pictures, [Prompt("", "", "")] * len(inks))
    assert [(row[0].label, row[0].color) for row in found] == [(kind, ink) for ink in inks]
    assert all(d.score > 0.9 for row in found for d in row[:1])


def test_an_empty_sheet_has_no_objects_and_no_quality():
    blank = tensor(render([]))
    result = rewards.geneval()(blank, [p for p in prompts.geneval("test") if p.metadata["tag"] == "counting"][:1])
    assert float(result.scores["official"]) == 0
    assert float(print_quality(blank)) == pytest.approx(0, abs=1e-3)


def test_a_careless_drawer_makes_mistakes():
    chosen = prompts.geneval("validation")
    rng = np.random.default_rng(0)
    pictures = tensor(*(scenes.sample(p, rng, scenes.Habits(1.0, 0.18, 0)) for p in chosen))
    assert rewards.geneval()(pictures, chosen).scores["official"].mean() < 0.5


class TestQuality:
    clean = render([Shape("circle", "red", 8, 8), Shape("square", "blue", 24, 24)])

    def score(self, picture):
        return float(print_quality(tensor(np.asarray(picture, dtype=np.float32))))

    def test_a_clean_print_is_nearly_perfect(self):
        assert self.score(self.clean) > 0.95

    def test_text_is_a_clean_print_too(self):
        assert self.score(render([Code("BCD")])) > 0.9

    @pytest.mark.parametrize("wear", [Wear(tint=0.6), Wear(fade=0.5), Wear(stain=1.0)])
    def test_wear_lowers_it(self, wear):
        worn = render([Shape("circle", "red", 8, 8)], wear, np.random.default_rng(0))
        assert self.score(worn) < self.score(render([Shape("circle", "red", 8, 8)])) - 0.1

    def test_noise_and_off_palette_colors_lower_it(self):
        noise = np.random.default_rng(0).normal(0, 0.1, self.clean.shape)
        assert self.score(np.clip(self.clean + noise, 0, 1)) < self.score(self.clean) - 0.1
        pink = np.broadcast_to(np.asarray(PAPER, dtype=np.float32), (32, 32, 3)).copy()
        pink[4:14, 4:14] = (1.0, 0.4, 0.8)
        assert self.score(pink) < self.score(self.clean) - 0.1

    def test_it_does_not_look_at_the_prompt(self):
        picture = tensor(self.clean)
        reward = rewards.quality()
        assert float(reward(picture, [Prompt("a", "x", "t")]).total) == float(
            reward(picture, [Prompt("b", "y", "u")]).total
        )
