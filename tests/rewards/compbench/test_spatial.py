"""The spatial rules, in the plane and in depth, by hand."""

import pytest
import torch

from flowopd_cli.rewards.compbench import spatial
from flowopd_cli.rewards.compbench.phrases import Token
from flowopd_cli.rewards.compbench.spatial import Pair, position_2d, position_3d, score_2d, score_3d
from flowopd_cli.rewards.geneval.rules import Detection

HERE = (0.0, 0.0, 100.0, 100.0)


def shifted(dx, dy, size=100.0):
    return (dx, dy, dx + size, dy + size)


def detections(*rows):
    return [Detection(label, box, score) for label, score, box in rows]


def tagged(text):
    return [Token(*pair.split("/")) for pair in text.split()]


@pytest.mark.parametrize(
    ("relation", "box", "score"),
    [
        ("on the left of", shifted(110, 0), 1.0),
        ("on the left of", shifted(-110, 0), 0.0),
        ("on the right of", shifted(-110, 60), 1.0),
        ("on the top of", shifted(60, 110), 1.0),
        ("on the bottom of", shifted(60, 110), 0.0),
        ("on the bottom of", shifted(-60, -110), 1.0),
        ("on the left of", shifted(120, 120), 0.0),  # a tie of the axes is not strictly larger
        ("on the left of", shifted(60, 0), 0.4),  # IoU 4000 / 16000 = 1/4, so 0.1 / 0.25
        ("on the top of", shifted(0, 95), 1.0),  # IoU 500 / 19500 < 0.1
        ("near", shifted(149, 400), 1.0),  # one axis below 150 is enough
        ("next to", shifted(150, 300), 0.5),  # 150 / 300: neither axis below 150
        ("on side of", shifted(-600, 200), 0.25),
        ("on top of", shifted(0, 200), 0.0),
        (None, shifted(0, 200), 0.0),
    ],
)
def test_positions_in_the_plane(relation, box, score):
    assert position_2d(relation, HERE, box) == pytest.approx(score)


def test_an_iou_of_a_tenth_is_not_below_a_tenth():
    assert spatial.plain_iou((0, 0, 100, 100), (50, 0, 70, 50)) == pytest.approx(0.1)
    assert position_2d("on the left of", HERE, (60.0, 45.0, 110.0, 65.0)) == 1.0
    assert spatial.plain_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_relations_are_substrings_in_the_official_order():
    assert spatial.relation_2d("a cat on the top of a box") == "on the top of"
    assert spatial.relation_2d("a cat on top of a box next to a dog") == "next to"
    assert spatial.relation_2d("two trees nearby") == "near"
    assert spatial.relation_2d("a cat under a box") is None
    assert spatial.relation_3d("a key hidden by a bag") == "hidden"
    assert spatial.relation_3d("a man behind a car in front of a bus") == "in front of"
    assert spatial.relation_3d("a man beside a car") is None


def test_objects_of_a_simple_prompt():
    assert spatial.outer_nouns(tagged("a/DET man/NOUN next/ADJ to/ADP a/DET wine/NOUN glass/NOUN")) == (
        "person",
        "glass",
    )
    assert spatial.outer_nouns(tagged("run/VERB Rex/PROPN")) == (None, None)
    assert spatial.outer_nouns(tagged("a/DET Man/NOUN")) == ("Man", "Man")


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("The/DET big/ADJ dog/NOUN sat/VERB next/ADV to/ADP the/DET old/ADJ tree/NOUN ./PUNCT", ("dog", "tree")),
        ("Rex/PROPN sat/VERB near/ADP the/DET girl/NOUN", ("Rex", "person")),
        ("dog/NOUN near/ADP Rex/PROPN Black/PROPN ./PUNCT", ("dog", "Black")),
        ("dog/NOUN near/ADP Rex/PROPN", (None, None)),  # nothing after the name, so the script never takes it
        ("dog/NOUN near/ADP Rex/PROPN 's/PART bowl/NOUN", ("dog", "bowl")),
        ("a/DET cat/NOUN near/ADP a/DET dog/NOUN next/ADV to/ADP a/DET hat/NOUN", (None, None)),
        ("the/DET moon/NOUN shone/VERB", (None, None)),
        ("on/ADP top/NOUN of/ADP the/DET box/NOUN", (None, None)),
        ("cup/NOUN on/ADP the/DET left/NOUN of/ADP a/DET jug/NOUN", ("cup", "jug")),
        ("cup/NOUN on/ADP the/DET bottom/NOUN of/ADP a/DET jug/NOUN", (None, None)),
    ],
)
def test_objects_of_a_complex_prompt(text, pair):
    assert tuple(spatial.related_nouns(tagged(text))) == pair


def test_scores_of_two_objects_in_the_plane():
    objects = detections(("cat", 0.9, HERE), ("dog", 0.8, shifted(200, 0)), ("cat", 0.7, shifted(400, 0)))
    assert score_2d("on the left of", Pair("cat", "dog"), objects) == pytest.approx(0.25 * 1.7 + 0.5)
    assert score_2d("on the right of", Pair("cat", "dog"), objects) == 0.0  # 0.425 does not reach one half
    assert score_2d("next to", Pair("cat", "cat"), objects) == pytest.approx(0.45 + 0.5)  # the same cat twice
    assert score_2d("on top of", Pair("cat", "dog"), detections(("cat", 1.0, HERE), ("dog", 1.0, HERE))) == 0.5
    assert score_2d("next to", Pair("cat", "hat"), objects) == 0.0
    assert score_2d("next to", Pair("ca", "og"), objects) == 0.0  # labels must be equal
    assert score_2d("next to", Pair(None, None), objects) == 0.0


def relief(*bright, rows=20):
    depth = torch.full((rows, 20), 0.2)
    for first, last in bright:
        depth[first:last] = 0.9
    return depth


@pytest.mark.parametrize(
    ("relation", "box", "depth", "score"),
    [
        ("in front of", (2, 0, 12, 10), relief((0, 2)), 1.0),  # IoU 80/120
        ("behind", (2, 0, 12, 10), relief((10, 12)), 1.0),  # rows are x: only the second box has rows 10 and 11
        ("hidden", (2, 0, 12, 10), relief((0, 2)), 0.0),
        ("in front of", (6, 0, 16, 10), relief((0, 6)), 0.5),  # IoU 40/160 = 1/4
        ("in front of", (0, 0, 10, 5), relief(), 0.0),  # IoU exactly one half
        ("behind", (2, 0, 12, 10), relief(), 0.0),  # no difference of depth
        ("in front of", (10, 0, 20, 10), relief((0, 9)), 0.0),  # they only touch
        ("in front of", (30, 0, 40, 10), relief((0, 9)), 0.0),  # an empty crop has no mean
        ("on the left of", (110, 0, 210, 10), relief(), 1.0),
    ],
)
def test_positions_in_depth(relation, box, depth, score):
    assert position_3d(relation, (0, 0, 10, 10), box, depth) == pytest.approx(score)


def test_scores_of_two_objects_in_depth():
    front, back = (0.0, 0.0, 10.0, 10.0), (2.0, 0.0, 12.0, 10.0)
    objects = detections(("cat", 0.8, front), ("cat", 0.4, back), ("dog", 0.6, back))
    depth = relief((0, 2))
    assert score_3d("in front of", Pair("dog", "cat"), objects, depth) == pytest.approx(0.25)  # of the second cat
    two = detections(("cat", 0.8, front), ("dog", 0.6, back), ("cat", 0.4, back))
    assert score_3d("in front of", Pair("cat", "dog"), two, depth) == pytest.approx(0.35 + 0.5)
    assert score_3d("behind", Pair("cat", "dog"), two, depth) == pytest.approx(0.35)  # and no cut-off
    assert score_3d("behind", Pair("car", "hat"), detections(("carrot", 0.8, front)), depth) == pytest.approx(0.2)
    alone = detections(("cat", 0.8, front), ("cat", 0.4, back))
    assert score_3d("behind", Pair("cat", "dog"), alone, depth) == pytest.approx(0.2)  # alone, the first one counts
    assert score_3d("behind", Pair("hat", "tie"), two, depth) == 0.0


def test_the_detectors_frame():
    assert spatial.frame_size(512, 512) == (479, 479)
    assert spatial.frame_size(1024, 512) == (480, 240)
    assert spatial.frame_size(480, 640) == (360, 480)
