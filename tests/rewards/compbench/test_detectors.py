import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.tiny_compbench import save_depth, save_dino, save_owl
from support.tiny_scorers import pictures

from flowopd_cli.errors import ArtifactError, MissingDependency, RewardError
from flowopd_cli.rewards.compbench.depth import DepthEstimator, to_frame
from flowopd_cli.rewards.compbench.detectors import GroundingDino, Owlv2, choose, corners, load_grounder
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.rewards.weights import weights_id

WANTED = [["cat", "red dog"], ["person"], []]


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    return str(folder), save_dino(folder)


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    folder = tmp_path_factory.mktemp("owl")
    return str(folder), save_owl(folder)


@pytest.fixture(scope="module")
def depth(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    return str(folder), save_depth(folder)


@pytest.fixture(scope="module")
def shown():
    return to_pil(pictures(3))


def same(found, wanted):
    assert [d.label for d in found] == [d.label for d in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.score == pytest.approx(other.score, abs=1e-5)
        assert one.box == pytest.approx(other.box, abs=1e-3)


def test_boxes_become_corners_within_the_picture():
    boxes = torch.tensor([[0.5, 0.5, 0.5, 1.0], [0.0, 1.0, 0.5, 0.5]])
    wanted = torch.tensor([[50.0, 0.0, 150.0, 100.0], [0.0, 75.0, 50.0, 100.0]])
    assert torch.allclose(corners(boxes, (200, 100)), wanted)


def test_each_box_takes_its_best_name():
    scores = torch.tensor([[0.3, 0.6], [0.9, 0.1], [0.2, 0.2], [0.35, 0.0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]])
    found = choose(scores, boxes, ["cat", "dog"], 0.35)
    assert [(d.label, round(d.score, 2)) for d in found] == [("cat", 0.9), ("dog", 0.6)]  # 0.35 is not above 0.35


def test_overlaps_of_one_name_and_empty_boxes_are_dropped():
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.0], [0.0, 0.7], [0.6, 0.0], [0.5, 0.0]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [0, 0, 10, 5], [5, 5, 5, 9]])
    found = choose(scores, boxes, ["cat", "dog"], 0.1)
    assert [(d.label, round(d.score, 1)) for d in found] == [("cat", 0.9), ("dog", 0.7), ("cat", 0.6)]
    assert choose(scores[:, :0], boxes, [], 0.1) == []


def test_grounding_dino_scores_a_name_by_its_best_token(dino, shown):
    """Against the model itself, asked for one picture with the text written out."""
    from transformers import BertTokenizer, GroundingDinoImageProcessorPil

    folder, model = dino
    words = BertTokenizer.from_pretrained(folder)("cat. red dog.", return_tensors="pt")
    assert words.input_ids[0].tolist()[0] == 101
    inputs = GroundingDinoImageProcessorPil.from_pretrained(folder)([shown[0]], return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs, **words)
    likely = output.logits[0].sigmoid()
    scores = torch.stack([likely[:, 1], likely[:, 3:5].amax(dim=1)], dim=1)
    wanted = choose(scores, corners(output.pred_boxes[0], shown[0].size), WANTED[0], 0.2)
    detector = GroundingDino.load(folder, threshold=0.2)
    found = detector(shown, WANTED)
    same(found[0], wanted)
    assert found[0]
    assert {d.label for d in found[1]} == {"person"}
    assert found[2] == []
    assert all(d.score > 0.2 for row in found for d in row)
    assert detector.engine == f"grounding-dino/{weights_id(folder)}"
    assert "sha256:" in detector.engine


def test_owl_boxes_live_in_a_padded_square(owl, shown):
    from transformers import CLIPTokenizer, Owlv2ImageProcessorPil

    folder, model = owl
    texts = ["a photo of a cat", "a photo of a red dog"]
    words = CLIPTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=16, return_tensors="pt"
    )
    processor = Owlv2ImageProcessorPil.from_pretrained(folder)
    pixels = processor([shown[0]], return_tensors="pt").pixel_values
    with torch.no_grad():
        output = model(pixel_values=pixels, input_ids=words.input_ids, attention_mask=words.attention_mask)
    (plain,) = processor.post_process_object_detection(output, threshold=0.0, target_sizes=[(40, 56)])
    found = Owlv2.load(folder, threshold=0.0)(shown, WANTED)
    assert len({d.label for d in found[0]}) >= 1
    best = int(plain["scores"].argmax())
    assert found[0][0].score == pytest.approx(float(plain["scores"][best]), abs=1e-5)
    x1, y1, x2, y2 = plain["boxes"][best].tolist()
    inside = (max(x1, 0), max(y1, 0), min(x2, 56), min(y2, 40))
    if inside[2] > inside[0] and inside[3] > inside[1]:
        assert found[0][0].box == pytest.approx(inside, abs=1e-3)
    assert {d.label for d in found[1]} == {"person"}
    assert found[2] == []


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2"])
def test_detections_do_not_depend_on_the_batch(kind, dino, owl, shown):
    folder = {"grounding-dino": dino, "owlv2": owl}[kind][0]
    one, all_at_once = (load_grounder(kind, folder, batch=size)(shown, WANTED) for size in (1, 8))
    for found, wanted in zip(one, all_at_once, strict=True):
        same(found, wanted)


def test_what_cannot_be_loaded_is_one_line(tmp_path, dino, monkeypatch):
    with pytest.raises(RewardError, match="detector 'unidet' is not one of grounding-dino, owlv2"):
        load_grounder("unidet")
    with pytest.raises(ArtifactError, match="no such folder"):
        load_grounder("grounding-dino", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependency, match=r"scipy is not installed"):
        load_grounder("owlv2", str(tmp_path))


def without(source, target, part):
    """A copy of a model's folder that lacks the tensors whose names contain ``part``."""
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    file = target / "model.safetensors"
    save_file({n: v for n, v in load_file(file).items() if part not in n}, file, metadata={"format": "pt"})
    return str(target)


def test_missing_weights_are_refused(tmp_path, dino, depth):
    from pathlib import Path

    for name, (folder, _), load, part in (
        ("dino", dino, GroundingDino.load, "enc_output_norm"),
        ("depth", depth, DepthEstimator.load, "head.head.0"),
    ):
        target = tmp_path / name
        target.mkdir()
        with pytest.raises(ArtifactError, match=f"missing .first .*{part}"):
            load(without(Path(folder), target, part))


def test_depth_is_that_of_the_model_at_480_pixels(depth, shown):
    """Also: weights that the model never reads may be missing, as they are in the published file."""
    folder, model = depth
    model.dpt.embeddings.image_size = (480, 480)
    small = np.array(shown[1].resize((480, 480), Image.Resampling.BILINEAR))
    pixels = (torch.from_numpy(small).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    with torch.no_grad():
        predicted = model(pixel_values=pixels).predicted_depth[0]
    estimate = DepthEstimator.load(folder, batch=2)
    maps = estimate(shown)
    assert [tuple(found.shape) for found in maps] == [(343, 480)] * 3  # 56 x 40: long side 480
    assert torch.allclose(maps[1], to_frame(predicted, shown[1].size), atol=2 / 255)
    assert estimate.engine == f"dpt-hybrid/{weights_id(folder)}"
    assert "sha256:" in estimate.engine


def test_depth_is_stretched_stored_in_bytes_and_reduced():
    predicted = torch.tensor([[2.0, 6.0], [2.0, 6.0]])
    framed = to_frame(predicted, (479, 479))
    assert framed.shape == (479, 479)
    assert float(framed.min()) == 0.0
    assert float(framed.max()) == 1.0
    steps = framed[0] * 255
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert torch.all(steps.diff() >= 0)
    assert not to_frame(torch.full((2, 2), 3.0), (64, 64)).any()


@pytest.mark.parametrize("kind", ["grounding-dino", "owlv2"])
def test_a_network_that_gives_no_numbers_has_found_nothing_that_counts(kind, dino, owl, shown):
    grounder = load_grounder(kind, {"grounding-dino": dino, "owlv2": owl}[kind][0], threshold=0.0)
    with torch.no_grad():
        for weight in grounder._model.parameters():
            weight.fill_(torch.nan)
    found = grounder(shown, WANTED)
    assert found[0] is None
    assert found[1] is None


def test_a_depth_map_without_numbers_is_not_a_flat_one():
    for hole in (float("nan"), float("inf")):
        framed = to_frame(torch.tensor([[1.0, hole], [2.0, 3.0]]), (64, 48))
        assert framed.isnan().all()
        assert framed.shape == to_frame(torch.ones(2, 2), (64, 48)).shape
