"""UniDet against detections of the reference itself, and its checkpoints.

``unidet_detections.json`` holds what T2I-CompBench's own classes (detectron2 0.6) find in two scenes with the weights
of ``support.tiny_unidet``: the number of detections, and of the first ones label, confidence and box.
"""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from support.tiny_scorers import pictures
from support.tiny_unidet import NAMES, SIZES, save_unidet, scene, tensors

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.compbench import unidet, unidet_network
from flowopd_cli.rewards.compbench.rewards import NumeracyReward, SpatialReward, in_frame
from flowopd_cli.rewards.compbench.unidet import UniDet, read_labels
from flowopd_cli.rewards.pictures import to_pil
from flowopd_cli.system.files import sha256_file

REFERENCE = json.loads(Path(__file__).with_name("unidet_detections.json").read_text())


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    root = tmp_path_factory.mktemp("unidet")
    return {kind: save_unidet(root / kind, kind) for kind in SIZES}


@pytest.fixture(scope="module")
def detectors(checkpoints):
    return {kind: UniDet(kind, str(path), batch=2) for kind, path in checkpoints.items()}


@pytest.mark.parametrize("case", REFERENCE)
def test_detections_are_those_of_the_reference(detectors, case):
    kind, size = case.split()
    width, height = map(int, size.split("x"))
    (found,) = detectors[kind]([Image.fromarray(scene(int(width != height), height, width))], [()])
    expected = REFERENCE[case]
    assert len(found) == expected["count"]
    for detection, (label, score, *box) in zip(found, expected["first"], strict=False):
        assert detection.label == NAMES[label % len(NAMES)]
        assert detection.score == pytest.approx(score, abs=2e-5)
        assert detection.box == pytest.approx(box, abs=0.02)


def test_pictures_are_enlarged_to_the_frame_and_their_boxes_stay_there(detectors):
    images = to_pil(pictures(3))  # 56 x 40
    framed = in_frame(detectors["rs200"], images, [["dog"], [], []])
    assert framed[1:] == [[], []]
    pixels = unidet.to_pixels(images[0])
    assert pixels.shape == (3, 343, 480)
    rows = detectors["rs200"]([images[0]], [()])[0]
    assert [d.box for d in framed[0]] == [d.box for d in rows]
    assert all(0 <= d.box[0] < d.box[2] <= 480 and 0 <= d.box[1] < d.box[3] <= 343 for d in rows)
    resized = images[0].resize((480, 343), Image.Resampling.BILINEAR)
    assert tuple(pixels[:, 10, 20].int().tolist()) == resized.getpixel((20, 10))[::-1]  # blue first


def test_a_batch_does_not_change_detections(detectors):
    images = [Image.fromarray(scene(seed, 479, 479)) for seed in (3, 0)]
    found = detectors["rs200"](images, [()] * 2)[1]
    expected = REFERENCE["rs200 479x479"]
    assert len(found) == expected["count"]
    assert [d.score for d in found[:25]] == pytest.approx([row[1] for row in expected["first"]], abs=2e-5)


@pytest.mark.parametrize("part", ["backbone.fpn_output3", "roi_heads.box_predictor.1.cls_score"])
def test_a_network_without_finite_outputs_finds_none(checkpoints, part):
    detector = UniDet("r50", str(checkpoints["r50"]))
    detector._network.get_submodule(part).weight.fill_(torch.nan)
    assert detector([Image.fromarray(scene(0, 64, 64))], [()]) == [None]


def test_rewards_over_unidet_have_the_benchmarks_names(checkpoints):
    images = torch.from_numpy(scene(0, 128, 128)).permute(2, 0, 1)[None] / 255
    spatial = SpatialReward(f"unidet={checkpoints['rs200']}", parser="builtin")
    assert (spatial.info.name, spatial.info.exact) == ("spatial", False)
    assert (
        spatial.info.note
        == "another network than UniDet's rs200; parsed by builtin-1, not by spaCy's en_core_web_sm 3.5.0"
    )
    assert spatial.engine == f"unidet-rs200/sha256:{sha256_file(checkpoints['rs200'])}/builtin-1"
    result = spatial(images, [Prompt("0", "a dog next to a cat", "t2i-compbench")])
    assert result.valid.all()
    assert {row[0] for row in result.details[0]["found"]} <= set(NAMES)
    numeracy = NumeracyReward(f"unidet={checkpoints['r50']}", parser="builtin")
    assert numeracy.info.name == "numeracy"
    assert float(numeracy(images, [Prompt("0", "three dogs", "t2i-compbench")]).total) in (0.0, 0.5, 1.0)


def test_the_published_networks_are_exact():
    with torch.device("meta"):
        state = {
            kind: unidet_network.UniDetNetwork(sizes).state_dict() for kind, (sizes, _) in unidet.CHECKPOINTS.items()
        }
    for kind, (sizes, _) in unidet.CHECKPOINTS.items():
        assert unidet_network.sizes_of(state[kind]) == sizes
    assert sum(value.numel() for value in state["r50"].values()) == pytest.approx(70e6, rel=0.2)


def test_other_files_are_refused(checkpoints, tmp_path):
    with pytest.raises(ArtifactError, match=r"Google Drive: fetch it .* detector=unidet=FILE#sha256=DIGEST"):
        UniDet("r50")
    with pytest.raises(ArtifactError, match="is not UniDet's rs200, which this category uses"):
        UniDet("rs200", str(checkpoints["r50"]))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ArtifactError, match=r"not a checkpoint of UniDet: it has no tensor 'backbone\.bottom_up"):
        UniDet("r50", str(tmp_path / "other.safetensors"))
    state = tensors("r50")
    del state["backbone.top_block.p7.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ArtifactError, match=r"1 missing .first backbone\.top_block\.p7\.bias"):
        UniDet("r50", str(tmp_path / "part.safetensors"))


def test_a_pickled_checkpoint_is_read_with_its_digest(detectors, tmp_path):
    """As detectron2 writes it: in a wrapper, with constants of the configuration and counters."""
    state = tensors("r50") | {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(9, 4)
    state["backbone.bottom_up.stem.conv1.norm.num_batches_tracked"] = torch.tensor(7)
    torch.save({"model": state, "iteration": 3}, tmp_path / "model.pth")
    (tmp_path / "labels.json").write_text(json.dumps(["dog"] * 722))
    detector = UniDet("r50", f"{tmp_path / 'model.pth'}#sha256={sha256_file(tmp_path / 'model.pth')}")
    picture = Image.fromarray(scene(0, 96, 96))
    rows = detector([picture], [()])[0]
    assert [d.box for d in rows] == [d.box for d in detectors["r50"]([picture], [()])[0]]
    assert {d.label for d in rows} == {"dog"}


def test_labels_are_the_benchmarks_or_those_beside_the_checkpoint(tmp_path, monkeypatch):
    torch.save({"labels": ["dog", "table, desk"], "features": torch.zeros(2, 3)}, tmp_path / "features.pt")
    monkeypatch.setattr(unidet, "download", lambda url, sha256: tmp_path / "features.pt")
    assert read_labels(tmp_path / "labels.json", 2) == ["dog", "table, desk"]
    with pytest.raises(ArtifactError, match=r"features\.pt: has not the names of the detector's 3 labels"):
        read_labels(tmp_path / "labels.json", 3)
    (tmp_path / "labels.json").write_text('["one", "two", "three"]')
    assert read_labels(tmp_path / "labels.json", 3) == ["one", "two", "three"]
