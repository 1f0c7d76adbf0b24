"""The hidden judge of the preference scorer: mistakes counted by hand, utilities, kinds of pairs."""

import numpy as np
import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.toy import pairs, prompts
from flowopd_cli.toy.draw import PAPER, Code, Shape, Wear, render

RED, BLUE = Shape("circle", "red", 8, 8), Shape("square", "blue", 24, 24)
PAIR = [{"class": "circle", "count": 1, "color": "red"}, {"class": "square", "count": 1, "color": "blue"}]
BELOW = [{"class": "circle", "count": 1}, {"class": "square", "count": 1, "position": ["below", 0]}]
RINGS = [{"class": "ring", "count": 2}]


def composition(clauses):
    return Prompt("", "", "geneval", {"include": clauses})


@pytest.mark.parametrize(
    ("clauses", "scene", "count"),
    [
        (PAIR, [RED, BLUE], 0),
        (PAIR, [BLUE, RED], 0),
        (PAIR, [RED, Shape("square", "red", 24, 24)], 1),
        (PAIR, [Shape("circle", "blue", 8, 8), Shape("square", "red", 24, 24)], 2),
        (PAIR, [RED], 1),
        (PAIR, [], 2),
        (PAIR, [RED, BLUE, RED], 1),
        (BELOW, [RED, BLUE], 0),
        (BELOW, [Shape("circle", "red", 24, 24), Shape("square", "blue", 8, 8)], 1),
        (BELOW, [Shape("circle", "red", 8, 9), Shape("square", "blue", 24, 8)], 1),
        (RINGS, [RED, Shape("ring", "black", 24, 8)], 1),
        (RINGS, [Shape("ring", "red", 8, 8)] * 3, 1),
    ],
)
def test_mistakes_of_a_composition(clauses, scene, count):
    assert pairs.mistakes(composition(clauses), scene) == count


@pytest.mark.parametrize(("text", "count"), [("BRD", 0), ("BRT", 1), ("DRB", 2), ("", 3)])
def test_mistakes_of_a_code_are_its_edits(text, count):
    assert pairs.mistakes(Prompt("", "", "ocr", {"target": "BRD"}), [Code(text)]) == count


class Copier:
    """An autoencoder without loss."""

    def encode(self, x):
        return type("Posterior", (), {"latent_dist": type("Law", (), {"mean": x})})

    def decode(self, x):
        return type("Decoded", (), {"sample": x})


def test_pairs_differ_in_what_their_kind_says():
    drawn = pairs.make_pairs(64, "train", 0, Copier())
    own, defects = drawn.mistakes[:, :, 0], drawn.defects
    obedience, quality = (drawn.kind == pairs.KINDS.index(name) for name in ("obedience", "quality"))
    assert (obedience.sum(), quality.sum()) == (32, 16)
    assert (own[obedience, 0] != own[obedience, 1]).all()
    assert drawn.mistakes[quality, 0].equal(drawn.mistakes[quality, 1])
    assert (defects[obedience, 0] - defects[obedience, 1]).abs().max() < 0.05 < defects.max()
    assert set(drawn.texts) <= {prompt.text for prompt in prompts.everything("train")}
    again = pairs.make_pairs(64, "train", 0, Copier())
    assert all(getattr(drawn, name).equal(getattr(again, name)) for name in ("images", "text", "mistakes", "defects"))


def test_the_judge_weighs_a_mistake_as_a_defect_of_an_eighth_and_prompts_by_mistakes_alone():
    drawn = pairs.Pairs(
        images=torch.zeros(1, 2, 3, 32, 32, dtype=torch.uint8),
        texts=["a", "b"],
        text=torch.tensor([[0, 1]]),
        mistakes=torch.tensor([[[1.0, 3.0], [0.0, 2.0]]]),
        defects=torch.tensor([[0.0, 0.25]]),
        kind=torch.zeros(1, dtype=torch.long),
        code=torch.zeros(1, dtype=torch.bool),
    )
    assert drawn.picture_margin.tolist() == [-1 + 8 * 0.25]
    assert drawn.prompt_margin.tolist() == [[[2.0], [2.0]]]


def test_the_defect_of_a_print_is_its_mean_absolute_error():
    faulty = [pairs.Print(Wear(fade=0.5)), pairs.Print(noise=0.1), pairs.Print(blur=1.0), pairs.Print(hatch=0.0)]
    sheets = [([RED], sheet) for sheet in (*faulty, pairs.Print(hatch=0.9))]
    images, defects = pairs._pictures([([RED], pairs.Print()), *sheets], Copier())
    clean = render([RED], hatch=pairs.CLEAN_HATCH)
    half = np.asarray(PAPER) + (clean - np.asarray(PAPER)) / 2
    assert float(defects[0]) == 0
    assert float(defects[1]) == pytest.approx(np.abs(half - clean).mean(), abs=1e-6)
    assert 0.04 < float(defects[2]) < 0.1 * np.sqrt(2 / np.pi)
    assert float(defects[3]) > 0
    assert float(defects[4]) == pytest.approx(np.abs(render([RED]) - clean).mean(), abs=1e-6)
    assert float(defects[5]) == 0, "more of the hatch is no defect"
    np.testing.assert_allclose(images[0].permute(1, 2, 0) / 255, clean, atol=1 / 255)
