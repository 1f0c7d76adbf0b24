import pytest
import torch

from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.compbench.numeracy import (
    OBJECTS,
    Counted,
    Vocabulary,
    counted,
    distinct,
    duplicates,
    score_numeracy,
)
from flowopd_cli.rewards.compbench.phrases import Token
from flowopd_cli.rewards.compbench.rules import (
    attribute_score,
    clean_question,
    combine,
    file_number,
    file_prompt,
    kind_of,
    question_files,
    questions,
    three_in_one,
    without_adjectives,
)
from flowopd_cli.rewards.compbench.spatial import (
    Pair,
    frame_size,
    outer_nouns,
    plain_iou,
    position_2d,
    position_3d,
    related_nouns,
    relation_2d,
    relation_3d,
    score_2d,
    score_3d,
)
from flowopd_cli.rewards.geneval.rules import Detection

HERE = (0.0, 0.0, 100.0, 100.0)


def shifted(dx, dy, size=100.0):
    return (dx, dy, dx + size, dy + size)


def seen(*rows):
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
    """10000 + 1000 - 1000 of union: the small box lies inside."""
    inside = (60.0, 45.0, 110.0, 65.0)
    assert plain_iou((0, 0, 100, 100), (50, 0, 70, 50)) == pytest.approx(0.1)
    assert position_2d("on the left of", HERE, inside) == 1.0
    assert plain_iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0


def test_relations_are_substrings_in_the_official_order():
    assert relation_2d("a cat on the top of a box") == "on the top of"
    assert relation_2d("a cat on top of a box next to a dog") == "next to"
    assert relation_2d("two trees nearby") == "near"
    assert relation_2d("a cat under a box") is None
    assert relation_3d("a key hidden by a bag") == "hidden"
    assert relation_3d("a man behind a car in front of a bus") == "in front of"
    assert relation_3d("a man beside a car") is None


def test_objects_of_a_simple_prompt():
    assert outer_nouns(tagged("a/DET man/NOUN next/ADJ to/ADP a/DET wine/NOUN glass/NOUN")) == ("person", "glass")
    assert outer_nouns(tagged("run/VERB Rex/PROPN")) == (None, None)
    assert outer_nouns(tagged("a/DET Man/NOUN")) == ("Man", "Man")


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
    assert tuple(related_nouns(tagged(text))) == pair


def test_a_picture_of_two_objects_in_the_plane():
    found = seen(("cat", 0.9, HERE), ("dog", 0.8, shifted(200, 0)), ("cat", 0.7, shifted(400, 0)))
    assert score_2d("on the left of", Pair("cat", "dog"), found) == pytest.approx(0.25 * 1.7 + 0.5)
    assert score_2d("on the right of", Pair("cat", "dog"), found) == 0.0  # 0.425 does not reach one half
    assert score_2d("next to", Pair("cat", "cat"), found) == pytest.approx(0.45 + 0.5)  # the same cat twice
    assert score_2d("on top of", Pair("cat", "dog"), seen(("cat", 1.0, HERE), ("dog", 1.0, HERE))) == 0.5
    assert score_2d("next to", Pair("cat", "hat"), found) == 0.0
    assert score_2d("next to", Pair("ca", "og"), found) == 0.0  # labels must be equal
    assert score_2d("next to", Pair(None, None), found) == 0.0


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


def test_a_picture_of_two_objects_in_depth():
    front, back = (0.0, 0.0, 10.0, 10.0), (2.0, 0.0, 12.0, 10.0)
    found = seen(("cat", 0.8, front), ("cat", 0.4, back), ("dog", 0.6, back))
    depth = relief((0, 2))
    assert score_3d("in front of", Pair("dog", "cat"), found, depth) == pytest.approx(0.25)  # the second cat it is
    two = seen(("cat", 0.8, front), ("dog", 0.6, back), ("cat", 0.4, back))
    assert score_3d("in front of", Pair("cat", "dog"), two, depth) == pytest.approx(0.35 + 0.5)
    assert score_3d("behind", Pair("cat", "dog"), two, depth) == pytest.approx(0.35)  # and no cut-off
    assert score_3d("behind", Pair("car", "hat"), seen(("carrot", 0.8, front)), depth) == pytest.approx(0.2)
    alone = seen(("cat", 0.8, front), ("cat", 0.4, back))
    assert score_3d("behind", Pair("cat", "dog"), alone, depth) == pytest.approx(0.2)  # alone, the first one counts
    assert score_3d("behind", Pair("hat", "tie"), two, depth) == 0.0


def test_the_detectors_frame():
    assert frame_size(512, 512) == (479, 479)
    assert frame_size(1024, 512) == (480, 240)
    assert frame_size(480, 640) == (360, 480)


def words(text):
    return [Token(word, "X") for word in text.split()]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("two dogs and a cat", [("dog", 2), ("cat", 1)]),
        ("three women near one ship", [("person", 3), ("boat", 1)]),
        ("five sheep", [("sheep", 5)]),
        ("a goldfish , six paintings", [("fish", 1), ("picture", 6)]),
        ("eight televisions", [("television", 8)]),
        ("Two dogs", []),  # capitals are not recognised
        ("nine dogs and two ghosts", []),
        ("dogs two", []),
        ("a dogs and two cats", [("dog", 2), ("cat", None)]),  # a number that is none shifts the later ones
    ],
)
def test_what_a_prompt_counts(prompt, wanted):
    assert [(thing.label, thing.count) for thing in counted(words(prompt))] == wanted


def test_objects_of_two_words():
    vocabulary = Vocabulary.parse("hot dog - hot dogs\ndog - dogs\n")
    assert counted(words("two hot dogs and one hot dog"), vocabulary) == [Counted("hot dog", 2), Counted("hot dog", 1)]
    assert counted(words("two hot dog ."), vocabulary) == [Counted("hot dog", 1)]
    with pytest.raises(PromptError, match="singular - plural"):
        Vocabulary.parse("dog, dogs")


def test_the_built_in_objects():
    pairs = dict(zip(OBJECTS.singular, OBJECTS.plural, strict=True))
    assert len(pairs) == len(OBJECTS.singular) == 88
    assert (pairs["knife"], pairs["mouse"], pairs["deer"], pairs["person"]) == ("knives", "mice", "deer", "people")
    assert (pairs["toy"], pairs["butterfly"], pairs["couch"]) == ("toys", "butterflies", "couches")


def test_duplicates_count_once():
    assert duplicates((0, 0, 99, 99), (0, 0, 99, 95))
    assert duplicates((0, 0, 99, 99), (10, 10, 29, 29))  # wholly covered
    assert not duplicates((0, 0, 99, 99), (20, 0, 119, 99))
    assert duplicates((0, 0, 99, 99), (3, 3, 102, 102))  # IoU 0.888, but 0.941 of either is covered
    assert not duplicates((0, 0, 99, 99), (5, 6, 104, 105))  # 95 * 94 / 10000 = 0.893
    found = seen(("cat", 0.9, (0, 0, 99, 99)), ("cat", 0.8, (0, 0, 99, 97)), ("dog", 0.7, (0, 0, 99, 97)))
    assert [d.label for d in distinct(found)] == ["cat", "dog"]


def test_numeracy_of_pictures():
    two = seen(("dog", 0.9, HERE), ("dog", 0.8, shifted(200, 0)))
    assert score_numeracy([Counted("dog", 2)], two) == 1.0
    assert score_numeracy([Counted("dog", 3)], two) == 0.5
    assert score_numeracy([Counted("dog", 2), Counted("cat", 1)], two) == 0.5
    assert score_numeracy([Counted("dog", None)], two) == 0.5
    assert score_numeracy([Counted("cat", 1)], []) == 0.0
    with pytest.raises(PromptError, match="counts no known object"):
        score_numeracy([], two)


def test_a_name_inside_labels_renames_them_for_good():
    found = seen(("carrot", 0.9, HERE), ("cat, carnivore", 0.8, shifted(200, 0)))
    assert score_numeracy([Counted("car", 2)], found) == 1.0
    wanted = [Counted("car", 2), Counted("carrot", 1)]
    assert score_numeracy(wanted, found) == 0.5  # the carrot has become a car
    assert score_numeracy(wanted[::-1], found) == 1.0  # and was still a carrot when carrots were counted first


def test_questions_of_a_prompt():
    assert questions(["a red hat", "top", "the left", "The left"]) == ["a red hat?", "The left?"]
    assert len(questions([f"thing {i}" for i in range(12)])) == 8
    assert questions([]) == []


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ('The "Red" Hat?', "the red hat?"),
        ("Rubik's cube; (new) #1: *now* ~!.?", "rubik's cube new 1 now ?"),
        ("trailing.  ", "trailing"),
        ("", ""),
        (" ".join(["w"] * 60) + "?", " ".join(["w"] * 50)),
    ],
)
def test_questions_are_cleaned(raw, clean):
    assert clean_question(raw) == clean


def test_question_files_are_sorted_by_number():
    names = ["a dog_000010.png", "a cat_000009.png"]
    chunks = {"a dog": ["a dog", "a tail"], "a cat": ["a cat"]}
    assert question_files(names, chunks, 1) == [
        {"question_id": 0, "image": "a cat_000009.png", "question": ""},
        {"question_id": 1, "image": "a dog_000010.png", "question": "a tail?"},
    ]
    assert (file_prompt(names[0]), file_number(names[0])) == ("a dog", 10)


@pytest.mark.parametrize(
    ("answers", "score"),
    [
        ([], "1.0000"),
        ([0.5, 0.5, 0.5], "0.1250"),
        ([0.99995, 0.8], "0.8000"),  # rounded up to 1.0000
        ([0.00004, 0.9], "0.0000"),
        ([0.123449, 1.0], "0.1234"),
    ],
)
def test_attribute_scores_are_products_of_rounded_answers(answers, score):
    assert attribute_score(answers) == score


def test_clip_reads_complex_prompts_without_adjectives():
    tokens = tagged("The/DET red/ADJ hat/NOUN fell/VERB ./PUNCT")
    assert without_adjectives(tokens) == "The hat fell ."


def test_three_in_one():
    scores = {"attribute": 0.6, "spatial": 0.3, "action": 0.9}
    assert three_in_one("spatial", scores) == pytest.approx(0.45)
    assert three_in_one("action", scores) == pytest.approx(0.75)
    assert three_in_one("both", scores) == pytest.approx(0.6)


def test_kinds_of_complex_prompts():
    spatial, action = ["The Cup is here.\n"], ["the dog runs"]
    assert kind_of("the cup is HERE. And more.", spatial, action) == "spatial"
    assert kind_of("The dog runs.", spatial, action) == "action"
    assert kind_of("The dog runs home.", spatial, action) == "both"


def test_a_category_is_combined_by_position():
    scores = {"attribute": [1.0, 0.0, 0.5, 0.5], "spatial": [0.0, 1.0, 0.5, 1.0], "action": [0.2] * 4}
    assert combine(["spatial", "both"], scores, images=2) == pytest.approx([0.5, 0.5, 0.4, 1.7 / 3])
