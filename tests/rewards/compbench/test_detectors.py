"""The detectors against ``transformers``, on tiny networks."""

import sys

import pytest
import torch
from support.tiny_compbench import save_dino, save_owl, without
from support.tiny_scorers import pictures

from flowopd_cli.errors import ArtifactError, MissingDependency, RewardError
from flowopd_cli.rewards.compbench.detectors import GroundingDino, Owlv2, choose, corners, load_grounder
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.weights import weights_id

NAMES = [["cat", "red dog"], ["person"], []]


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    return str(folder), save_dino(folder)


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owl")
    return str(folder), save_owl(folder)


@pytest.fixture(params=["grounding-dino", "owlv2"])
def grounder(request, dino, owl):
    """The name of a detector and its folder."""
    return request.param, {"grounding-dino": dino, "owlv2": owl}[request.param][0]


@pytest.fixture(scope="module")
def images():
    return to_pil(pictures(3))


def assert_same(detections, expected):
    assert [d.label for d in detections] == [d.label for d in expected]
    for one, other in zip(detections, expected, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.box == pytest.approx(other.box, abs=1e-3)


def test_boxes_become_corners_within_the_picture():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.0, 1.0, 0.5, 0.5]])
    expected = torch.tensor([[50.0, 0.0, 150.0, 100.0], [0.0, 75.0, 50.0, 100.0]])
    assert torch.allclose(corners(boxes, (200, 100)), expected)


def test_each_box_takes_its_best_name():
    scores = torch.tensor([[0.3, 0.6], [0.9, 0.1], [0.2, 0.2], [0.35, 0.0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    chosen = choose(scores, boxes, ["cat", "dog"], 0.35)
    assert [(d.label, round(d.score, 2)) for d in chosen] == [("cat", 0.9), ("dog", 0.6)]  # 0.35 is not above 0.35


def test_overlaps_of_one_name_and_empty_boxes_are_dropped():
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.6, 0.0], [0.5, 0.0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 5], [5, 5, 5, 9]])
    chosen = choose(scores, boxes, ["cat", "dog"], 0.1)
    assert [(d.label, round(d.score, 1)) for d in chosen] == [("cat", 0.9), ("dog", 0.7), ("cat", 0.6)]
    assert choose(scores[:, :0], boxes, [], 0.1) == []


def test_grounding_dino_scores_a_name_by_its_best_token(dino, images):
    """Against the model itself on one picture, with the text written out."""
    from transformers import BertTokenizer, GroundingDinoImageProcessorPil

    folder, model = dino
    words = BertTokenizer.from_pretrained(folder)("cat. red dog.", return_tensors="pt")
    inputs = GroundingDinoImageProcessorPil.from_pretrained(folder)([images[0]], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, **words)
    likely = output.logits[0].sigmoid()
    scores = torch.stack([likely[:, 1], likely[:, 3:5].amax(dim=1)], dim=1)
    expected = choose(scores, corners(output.pred_boxes[0], images[0].size), NAMES[0], 0.2)
    detector = GroundingDino(folder, threshold=0.2)
    detections = detector(images, NAMES)
    assert expected
    assert_same(detections[0], expected)
    assert {d.label for d in detections[1]} == {"person"}
    assert detections[2] == []
    assert detector.engine == f"grounding-dino/{weights_id(folder)}"


def test_owl_boxes_are_in_a_padded_square(owl, images):
    from transformers import CLIPTokenizer, Owlv2ImageProcessorPil

    folder, model = owl
    texts = ["a photo of a cat", "a photo of a red dog"]
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    words = tokenizer(texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt")
    processor = Owlv2ImageProcessorPil.from_pretrained(folder)
    pixels = processor([images[0]], return_tensors="pt").pixel_values
    with torch.no_grad():
        output = model(pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask)
    (expected,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(40, 56)])
    best, *_ = Owlv2(folder, threshold=0.0)(images, NAMES)[0]
    row = int(expected["scores"].argmax())
    assert best.score == pytest.approx(float(expected["scores"][row]), abs=1e-5)
    x1, y1, x2, y2 = expected["boxes"][row].tolist()
    assert best.box == pytest.approx((max(x1, 0), max(y1, 0), min(x2, 56), min(y2, 40)), abs=1e-3)


def test_detections_do_not_depend_on_the_batch(grounder, images):
    one, eight = (load_grounder(*grounder, batch=size)(images, NAMES) for size in (1, 8))
    for detections, expected in zip(one, eight, strict=True):
        assert_same(detections, expected)


def test_a_network_with_non_finite_output_gives_no_detections(grounder, images):
    detector = load_grounder(*grounder, threshold=0.0)
    with torch.no_grad():
        for weight in detector._model.parameters():
            weight.fill_(torch.nan)
    assert detector(images, NAMES)[:2] == [None, None]


def test_a_detector_that_cannot_be_loaded_is_one_line(tmp_path, dino, monkeypatch):
    with pytest.raises(RewardError, match="detector 'yolo' is not one of unidet, grounding-dino, owlv2"):
        load_grounder("yolo")
    with pytest.raises(ArtifactError, match="no such folder"):
        load_grounder("grounding-dino", str(tmp_path / "none"))
    with pytest.raises(ArtifactError, match=r"missing .first .*enc_output_norm"):
        load_grounder("grounding-dino", without(dino[0], tmp_path, "enc_output_norm"))
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependency, match=r"scipy is not installed"):
        load_grounder("owlv2", str(tmp_path))
