"""The numeracy rule by hand."""

import pytest

from flowopd_cli.rewards.compbench import numeracy
from flowopd_cli.rewards.compbench.numeracy import Quantity, distinct, duplicates, quantities, score_numeracy
from flowopd_cli.rewards.compbench.phrases import Token
from flowopd_cli.rewards.geneval.rules import Detection

HERE, THERE = (0.0, 0.0, 100.0, 100.0), (200.0, 0.0, 300.0, 100.0)


def detections(*rows):
    return [Detection(label, box, 0.9) for label, box in rows]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("two dogs and a cat", [("dog", 2), ("cat", 1)]),
        ("three women near one ship", [("person", 3), ("boat", 1)]),
        ("a goldfish , six paintings", [("fish", 1), ("picture", 6)]),
        ("eight televisions", [("television", 8)]),
        ("Two dogs", []),  # capitals are not recognised
        ("nine dogs and two ghosts", []),
        ("dogs two", []),
        ("a dogs and two cats", [("dog", 2), ("cat", None)]),  # a number that is none shifts the later ones
    ],
)
def test_quantities_of_a_prompt(prompt, expected):
    assert quantities([Token(word, "X") for word in prompt.split()]) == expected


def test_the_objects_of_the_benchmark():
    assert len(numeracy.SINGULAR_OF) == 88
    irregular = {"knives": "knife", "mice": "mouse", "deer": "deer", "people": "person", "butterflies": "butterfly"}
    irregular |= {"toys": "toy", "couches": "couch"}
    assert irregular.items() <= numeracy.SINGULAR_OF.items()


def test_duplicates_count_once():
    assert duplicates((0, 0, 99, 99), (0, 0, 99, 95))
    assert duplicates((0, 0, 99, 99), (10, 10, 29, 29))  # wholly covered
    assert not duplicates((0, 0, 99, 99), (20, 0, 119, 99))
    assert duplicates((0, 0, 99, 99), (3, 3, 102, 102))  # IoU 0.888, but 0.941 of either is covered
    assert not duplicates((0, 0, 99, 99), (5, 6, 104, 105))  # 95 * 94 / 10000 = 0.893
    objects = detections(("cat", (0, 0, 99, 99)), ("cat", (0, 0, 99, 97)), ("dog", (0, 0, 99, 97)))
    assert [d.label for d in distinct(objects)] == ["cat", "dog"]


def test_scores_of_quantities():
    two = detections(("dog", HERE), ("dog", THERE))
    assert score_numeracy([Quantity("dog", 2)], two) == 1.0
    assert score_numeracy([Quantity("dog", 3)], two) == 0.5
    assert score_numeracy([Quantity("dog", 2), Quantity("cat", 1)], two) == 0.5
    assert score_numeracy([Quantity("dog", None)], two) == 0.5
    assert score_numeracy([Quantity("cat", 1)], []) == 0.0


def test_a_name_inside_labels_renames_them_for_the_later_things():
    objects = detections(("carrot", HERE), ("cat, carnivore", THERE))
    assert score_numeracy([Quantity("car", 2)], objects) == 1.0
    things = [Quantity("car", 2), Quantity("carrot", 1)]
    assert score_numeracy(things, objects) == 0.5  # the carrot has become a car
    assert score_numeracy(things[::-1], objects) == 1.0  # it was still a carrot when carrots were counted first
