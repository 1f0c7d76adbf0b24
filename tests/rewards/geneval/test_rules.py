"""GenEval's rules against cases whose answers follow from the published protocol."""

import pytest
import torch

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import PromptError, RewardError
from flowopd_cli.rewards.geneval import reward as geneval_reward
from flowopd_cli.rewards.geneval.reward import GenEvalHFReward, GenEvalReward
from flowopd_cli.rewards.geneval.rules import (
    Detection,
    Detector,
    GenEvalOptions,
    iou,
    keep,
    relative_position,
    training_score,
    verdict,
)

LEFT, MIDDLE, RIGHT = (0.0, 100.0, 100.0, 200.0), (300.0, 100.0, 400.0, 200.0), (500.0, 100.0, 600.0, 200.0)


def detection(label, score=0.95, box=LEFT, color=None):
    return Detection(label, box, score, color)


def include(name, count=1, **more):
    return {"class": name, "count": count, **more}


def judge(tag, clauses, detections, **metadata):
    """Verdict, reason, training score."""
    objects = keep(detections, tag)
    metadata = {"tag": tag, "include": clauses, **metadata}
    return *verdict(metadata, objects), pytest.approx(training_score(metadata, objects).score)


def test_surplus_objects_pass_the_verdict_and_lower_the_training_score():
    detections = [detection("bench"), detection("bench", 0.5, MIDDLE), detection("bench", 0.4, RIGHT)]
    assert judge("single_object", [include("bench")], detections[:2]) == (True, "", 0.0)
    assert judge("single_object", [include("bench")], detections) == (True, "", -1.0)
    objects = keep(detections, "single_object")
    assert not training_score({"include": [include("bench")]}, objects).strict


def test_a_score_equal_to_the_threshold_is_not_kept():
    assert keep([detection("bench", 0.3)], "single_object") == {}
    assert keep([detection("bench", 0.9)], "counting") == {}
    assert keep([detection("bench", 0.31)], "single_object")


def test_equal_scores_put_the_later_detection_first():
    one, two = detection("cat", 0.8, LEFT), detection("cat", 0.8, RIGHT)
    assert keep([one, two], "colors")["cat"] == [two, one]


def test_at_most_max_objects_of_a_class_are_kept():
    assert len(keep([detection("cat", 0.5 + i / 100) for i in range(20)], "colors")["cat"]) == 16


def test_overlaps_count_twice_by_default():
    near = [detection("clock", 0.95, (10, 10, 110, 110)), detection("clock", 0.94, (11, 10, 110, 110))]
    assert len(keep(near, "counting")["clock"]) == 2
    assert len(keep(near, "counting", GenEvalOptions(max_overlap=0.9))["clock"]) == 1


def test_counting_fails_on_too_few_and_on_too_many():
    clocks = [detection("clock", 0.95, (200.0 * i, 0, 200.0 * i + 90, 90)) for i in range(4)]
    few = judge("counting", [include("clock", 4)], clocks[:3], exclude=[include("clock", 5)])
    assert few == (False, "expected clock>=4, found 3", 0.75)
    many = judge("counting", [include("clock", 2)], clocks, exclude=[include("clock", 3)])
    assert many[:2] == (False, "expected clock<3, found 4")


@pytest.mark.parametrize(
    ("colors", "expected"),
    [
        (["red", "blue"], (True, "", 0.0)),
        (["blue", "red"], (False, "expected red car>=1, found 0 red; and 1 blue", 0.0)),
        (["orange"], (False, "expected red car>=1, found 0 red; and 1 orange", 0.5)),
        ([], (False, "expected car>=1, found 0", 0.0)),
    ],
)
def test_only_the_most_confident_objects_decide_the_color(colors, expected):
    cars = [detection("car", 0.8 - i / 10, color=color) for i, color in enumerate(colors)]
    assert judge("colors", [include("car", color="red")], cars) == expected


def test_position_needs_every_pair():
    clauses = [include("cat"), include("dog", 2, position=["left of", 0])]
    animals = [detection("cat", box=MIDDLE), detection("dog", 0.9, LEFT), detection("dog", 0.8, RIGHT)]
    reason = "expected dog left of target, found right of target"
    assert judge("position", clauses, animals) == (False, reason, 2 / 3)
    upstream = training_score({"include": clauses}, keep(animals, "position"), stray_point=True)
    assert upstream.score == 3 / 4
    assert judge("position", clauses, [*animals[:2], detection("dog", 0.8, (0.0, 90.0, 90.0, 190.0))])[0]


def test_position_without_its_target_names_it():
    clauses = [include("cat"), include("dog", position=["above", 0])]
    reason = "expected cat>=1, found 0\nno target for dog to be above"
    assert judge("position", clauses, [detection("dog")]) == (False, reason, 1 / 3)


@pytest.mark.parametrize(
    ("a", "b", "relations"),
    [
        ((0, 0, 10, 10), (100, 50, 110, 60), {"left of"}),
        ((0, 0, 2, 2), (100, 60, 102, 62), {"above", "left of"}),
        ((0, 0, 10, 10), (100, 60, 110, 70), {"left of"}),
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
        ((0, 0, 0, 0), (0, -5, 0, -5), {"below"}),
        ((100, 0, 110, 10), (0, 0, 10, 10), {"right of"}),
        ((7.5, 9.5, 12.5, 14.5), (1.5, 1.5, 6.5, 6.5), {"below"}),
    ],
)
def test_relative_position(a, b, relations):
    assert relative_position(a, b) == relations


def test_iou_counts_border_pixels():
    assert iou((0, 0, 9, 9), (5, 0, 14, 9)) == pytest.approx(1 / 3)
    assert iou((0, 0, 9, 9), (10, 0, 19, 9)) == 0
    assert iou((0, 0, 9, 9), (9, 9, 18, 18)) == pytest.approx(1 / 199)


class Fixed(Detector):
    name = "fixed"

    def __init__(self, *detections):
        self.detections = list(detections)

    def __call__(self, images, prompts):
        return [self.detections for _ in prompts]


def prompt(**metadata):
    return Prompt("p", "a photo of a red car", "geneval", {"tag": "colors", **metadata})


def test_the_reward_gives_all_three_scores_and_the_reason():
    reward = GenEvalReward(Fixed(detection("car", color="blue")), score="official")
    result = reward(torch.zeros(1, 3, 8, 8), [prompt(include=[include("car", color="red")])])
    assert {name: float(v) for name, v in result.scores.items()} == {"training": 0.5, "official": 0.0, "strict": 0.0}
    assert float(result.total) == 0.0
    assert "expected red car" in result.details[0]["reason"]
    assert result.details[0]["detector"] == "fixed"


@pytest.mark.parametrize(
    ("arguments", "word"), [({"score": "best"}, "best"), ({"treshold": 1}, "treshold"), ({"weights": "x"}, "weights")]
)
def test_unknown_options_are_refused(arguments, word):
    with pytest.raises(RewardError, match=word):
        GenEvalReward(Fixed(), **arguments)


def test_without_a_detector_its_own_is_built_with_the_rules_of_the_reward(monkeypatch):
    built = []

    class Built(Fixed):
        def __init__(self, settings, options):
            super().__init__()
            self.official = settings.weights is None
            built.append((settings.weights, settings.batch, options.threshold))

    monkeypatch.setattr(geneval_reward, "Mask2FormerDetector", Built)
    own, other = GenEvalReward(score="official", batch=2), GenEvalHFReward(threshold=0.5)
    assert built == [(None, 2, 0.3), ("facebook/mask2former-swin-small-coco-instance", 4, 0.5)]
    assert (own.info.name, own.info.exact, other.info.name, other.info.exact) == ("geneval", True, "geneval-hf", False)
    assert "Apache-2.0" in own.info.license
    assert "no commercial use" in other.info.license
    assert own.engine == own.detector.name
    assert "Apache" not in GenEvalReward(weights="my.pth").info.license
    for options in ({"weights": "my.pth"}, {"position_threshold": 0.2}, {"detector": Fixed()}, {"score": "training"}):
        assert not GenEvalReward(**{"score": "official", **options}).info.exact


@pytest.mark.parametrize("score", ["training", "official", "strict"])
def test_a_picture_that_cannot_be_processed_is_invalid_and_never_zero(score):
    images = torch.zeros(3, 3, 8, 8)
    images[0, 1, 2, 3] = float("nan")

    class Blind(Fixed):
        def __call__(self, images, prompts):
            assert images.isfinite().all()
            return [self.detections, self.detections, None]

    result = GenEvalReward(Blind(detection("car")), score)(images, [prompt(include=[include("car")])] * 3)
    assert result.valid.tolist() == [False, True, False]
    assert result.total[1] == 1
    assert all(column[[0, 2]].isnan().all() for column in (result.total, *result.scores.values()))
    assert all("not finite" in result.details[i]["error"] for i in (0, 2))


def test_a_prompt_that_only_excludes_is_judged():
    cats = prompt(exclude=[{"class": "cat", "count": 1}])
    for detections, official in (([detection("cat")], 0.0), ([], 1.0)):
        result = GenEvalReward(Fixed(*detections), score="official")(torch.rand(1, 3, 16, 16), [cats])
        assert result.scores["official"].tolist() == [official]
        assert result.scores["training"].tolist() == [0.0]


ONE_CAT = {"class": "cat", "count": 1}


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({}, "no include or exclude"),
        ({"include": [{"count": 1}]}, "without a class"),
        ({"include": [{"class": "cat", "count": "2"}]}, "count of '2'"),
        ({"include": [{"class": "cat", "count": 0}]}, "count of 0"),
        ({"include": [ONE_CAT], "exclude": [{"class": "dog"}]}, "count of None for dog"),
        ({"include": [{"class": "cat", "count": 1, "position": ["left of", 0]}]}, "position"),
        ({"include": [ONE_CAT, {"class": "dog", "count": 1, "position": ["next to", 0]}]}, "next to"),
        ({"include": [ONE_CAT, {"class": "dog", "count": 1, "position": ["above", 2]}]}, "above"),
    ],
)
def test_invalid_clauses_are_refused(metadata, words):
    with pytest.raises(PromptError, match=words):
        GenEvalReward(Fixed()).check([Prompt("p", "text", "geneval", metadata)])
