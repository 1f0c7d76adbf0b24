"""Generated training prompts in GenEval's grammar: wording, weights, held-out scenes, seeds."""

import hashlib
import json
from collections import Counter
from itertools import permutations

import pytest

from flowopd_cli.prompts.clauses import GENEVAL_CLASSES, TAGS, faulty
from flowopd_cli.prompts.make_geneval import COLORS, WEIGHTS, describe, held_out, make
from flowopd_cli.rewards.geneval.rules import COLORS as SCORED_COLORS


def scene(tag, *clauses):
    return {"tag": tag, "include": list(clauses)}


def thing(name, color=None, position=None, count=1):
    clause = {"class": name, "count": count, "color": color, "position": position and [position, 0]}
    return {key: value for key, value in clause.items() if value}


@pytest.fixture(scope="module")
def rows():
    return list(make(4000, 0))


@pytest.mark.parametrize(
    ("row", "official", "english"),
    [
        (scene("two_object", thing("oven"), thing("cup")), "an oven and a cup", None),
        (scene("counting", thing("sandwich", count=3)), "three sandwichs", "three sandwiches"),
        (scene("counting", thing("wine glass", count=2)), "two wine glasses", None),
        (scene("counting", thing("knife", count=4)), "four knifes", "four knives"),
        (scene("counting", thing("scissors", count=2)), "two scissorses", "two pairs of scissors"),
        (scene("counting", thing("person", count=2)), "two persons", "two people"),
        (scene("colors", thing("skis", "brown")), "a brown skis", "a pair of brown skis"),
        (scene("position", thing("bear"), thing("umbrella", position="left of")), "an umbrella left of a bear", None),
        (scene("color_attr", thing("cup", "red"), thing("tie", "orange")), "a red cup and an orange tie", None),
    ],
)
def test_scenes_are_worded_as_in_the_evaluation_prompts(row, official, english):
    assert describe(row) == f"a photo of {official}"
    assert describe(row, "english") == f"a photo of {english or official}"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (scene("single_object", thing("giraffe")), True),
        (scene("position", thing("teddy bear"), thing("dog", position="right of")), True),
        (scene("position", thing("dog"), thing("teddy bear", position="right of")), True),
        (scene("position", thing("dog"), thing("teddy bear", position="left of")), True),
        (scene("position", thing("teddy bear"), thing("dog", position="above")), False),
        (scene("color_attr", thing("wine glass", "purple"), thing("apple", "black")), True),
        (scene("color_attr", thing("apple", "black"), thing("wine glass", "purple")), True),
        (scene("color_attr", thing("apple", "purple"), thing("wine glass", "black")), True),
        (scene("color_attr", thing("apple", "purple"), thing("wine glass", "red")), False),
    ],
)
def test_an_evaluation_prompt_and_its_swaps_are_held_out(row, expected):
    assert held_out(row) == expected


def test_exactly_the_evaluation_prompts_are_held_out():
    def number(tag, scenes):
        return sum(held_out(scene(tag, *clauses)) for clauses in scenes)

    pairs = list(permutations(GENEVAL_CLASSES, 2))
    assert number("two_object", ((thing(a), thing(b)) for a, b in pairs)) == 2 * 99
    assert number("counting", [(thing(a, count=n),) for a in GENEVAL_CLASSES for n in (2, 3, 4)]) == 80
    assert number("colors", [(thing(a, color),) for a in GENEVAL_CLASSES for color in COLORS]) == 94


def test_no_made_prompt_is_held_out_and_tags_have_their_weights(rows):
    assert not any(held_out(row) for row in rows)
    tags, total = Counter(row["tag"] for row in rows), sum(WEIGHTS.values())
    assert {tag: round(count / len(rows), 1) for tag, count in tags.items()} == {
        tag: round(weight / total, 1) for tag, weight in WEIGHTS.items()
    }


def test_every_row_is_valid_for_the_reward(rows):
    assert COLORS == SCORED_COLORS
    assert {row["tag"] for row in rows} < set(TAGS)
    for row in rows:
        assert faulty(row) is None
        names = [clause["class"] for clause in row["include"]]
        colors = [clause["color"] for clause in row["include"] if "color" in clause]
        assert set(names) <= set(GENEVAL_CLASSES)
        assert len(set(names)) == len(names)
        assert len(set(colors)) == len(colors)
        assert not (colors and "person" in names)
        assert ("exclude" in row) == (row["tag"] == "counting")
        if "exclude" in row:
            count = row["include"][0]["count"]
            assert count in (2, 3, 4)
            assert row["exclude"] == [thing(names[0], count=count + 1)]


def test_a_row_depends_on_seed_and_number_alone(rows):
    assert list(make(50, 0)) == rows[:50]
    assert [row["prompt"] for row in make(50, 1)] != [row["prompt"] for row in rows[:50]]
    assert [row["include"] for row in make(50, 0, wording="english")] == [row["include"] for row in rows[:50]]


def test_the_same_prompts_on_every_machine():
    text = "".join(json.dumps(row) for row in make(200, 0))
    digest = "f5208c2529e84bc74d2d42bf4689faf974350d31e1a81a2b095c9f3b747e7968"
    assert hashlib.sha256(text.encode()).hexdigest() == digest
