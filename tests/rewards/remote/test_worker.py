"""A reward behind the protocol: its description, pictures of several sizes, prompts it refuses."""

import hashlib
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from flowopd_cli.core.types import RewardResult
from flowopd_cli.errors import PromptError
from flowopd_cli.rewards.base import Reward, RewardInfo
from flowopd_cli.rewards.pictures import to_tensor
from flowopd_cli.rewards.remote.protocol import Refusal
from flowopd_cli.rewards.remote.worker import RewardScorer, effective_options, weights_of


class Area(Reward):
    """The height and width of each picture, and its top left red."""

    info = RewardInfo("area", "none", 0.0, float("inf"), exact=False, note="a note")

    def __init__(self, model="owner/name", revision="abc", device="auto", batch=2):
        self.calls = []

    def check(self, prompts):
        if any(not prompt.metadata for prompt in prompts):
            raise PromptError("prompt 'x': no metadata")

    def __call__(self, images, prompts):
        self.calls.append((tuple(images.shape), [p.id for p in prompts]))
        if any(p.text == "bad" for p in prompts):
            raise PromptError("prompt is bad")
        total = torch.full((len(prompts),), float(images.shape[2] * images.shape[3]))
        return RewardResult(
            total, {"red": images[:, 0, 0, 0]}, images[:, 0, 0, 0] > 0, tuple({"id": p.id} for p in prompts)
        )


def texts(*ids, text="x", metadata=None):
    return [{"id": i, "text": text, "task": "t", "metadata": metadata or {}} for i in ids]


def test_pictures_of_several_sizes_keep_their_places():
    reward = Area()
    sizes, reds = [(4, 2), (3, 3), (4, 2)], [255, 51, 0]
    pictures = [Image.new("RGB", size, (red, 0, 0)) for size, red in zip(sizes, reds, strict=True)]
    answer = RewardScorer("mine:Area", reward, {})(pictures, texts("a", "b", "c"))
    assert reward.calls == [((2, 3, 2, 4), ["a", "c"]), ((1, 3, 3, 3), ["b"])]
    assert answer.total == [8.0, 9.0, None]
    assert answer.valid == [True, True, False]
    assert answer.scores["red"] == pytest.approx([1.0, 0.2, 0.0])
    assert [detail["id"] for detail in answer.details] == ["a", "b", "c"]


def test_pixels_arrive_unchanged():
    image = Image.effect_noise((5, 7), 50).convert("RGB")
    tensor = to_tensor([image])
    assert tensor.shape == (1, 3, 7, 5)
    assert tensor[0, :, 2, 1].mul(255).round().int().tolist() == list(image.getpixel((1, 2)))


def test_its_description():
    info = RewardScorer("area", Area(), {"device": "cpu", "soft": True}, Area).info
    assert (info["reward"], info["exact"], info["note"]) == ("area", False, "a note")
    assert info["package"].startswith("flowopd ")
    assert info["weights"] == {"model": "owner/name@abc"}
    assert info["options"] == {"soft": True}


def test_prompts_are_refused():
    scorer = RewardScorer("area", Area(), {})
    scorer.check(texts("a", metadata={"k": 1}))
    for act in (
        lambda: scorer.check(texts("a")),
        lambda: scorer([Image.new("RGB", (2, 2))], texts("a", text="bad")),
    ):
        with pytest.raises(Refusal) as refusal:
            act()
        assert refusal.value.status == 422


def test_a_reward_of_the_wrong_shape_is_refused():
    class Wrong(Area):
        def __call__(self, images, prompts):
            good = torch.ones(len(prompts), dtype=torch.bool)
            return SimpleNamespace(total=torch.ones(len(prompts), 1), scores={}, valid=good, details=())

    with pytest.raises(Refusal, match=r"total of shape \(1, 1\) for 1 picture"):
        RewardScorer("wrong", Wrong(), {})([Image.new("RGB", (2, 2))], texts("a"))


def test_weights_by_digest_or_by_name(tmp_path):
    single, folder = tmp_path / "one.pt", tmp_path / "folder"
    single.write_bytes(b"abc")
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"abc")
    (folder / "config.json").write_text("{}")
    digest = hashlib.sha256(b"abc").hexdigest()
    options = effective_options(Area, {"head": str(single), "clip": folder, "clip_revision": "r", "device": "cpu"})
    weights = weights_of(Area(), options)
    assert weights["model"] == "owner/name@abc"
    assert weights["head"] == f"sha256:{digest}"
    assert weights["clip"] == f"sha256:{hashlib.sha256(digest.encode()).hexdigest()}"
    assert weights.keys() == {"model", "head", "clip"}
    assert weights_of(Area(), {"source": "a/b@c1", "url": "https://h/w.pth", "score": "training", "dtype": "auto"}) == {
        **{"source": "a/b@c1", "url": "https://h/w.pth"}
    }
    (folder / "config.json").write_text("other")
    assert weights_of(Area(), options) == weights
    (folder / "a.safetensors").write_bytes(b"abd")
    assert weights_of(Area(), options)["clip"] != weights["clip"]


def test_a_reward_may_declare_its_weights_or_have_an_engine():
    reward = Area()
    reward.reader = SimpleNamespace(name="rapidocr-3/det+rec")
    assert weights_of(reward, {"reader": "auto"}) == {"reader": "rapidocr-3/det+rec"}
    reward.weights = {"detector": "sha256:1"}
    assert RewardScorer("sure", reward, {}, Area).info["weights"] == {"detector": "sha256:1"}
