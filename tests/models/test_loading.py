"""The device and the precision of a process, with and without a launcher."""

import pytest
import torch

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models import loading
from flowopd_cli.models.loading import pick_device, pick_dtype, take_device


@pytest.mark.parametrize(
    ("name", "cuda", "environment", "expected"),
    [
        ("auto", 0, {}, "cpu"),
        ("auto", 2, {}, "cuda:0"),
        ("cuda:1", 2, {}, "cuda:1"),
        ("cpu", 2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "cpu"),
        ("auto", 4, {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}, "cuda:3"),
        ("cuda", 4, {"LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "4"}, "cuda:2"),
        ("cuda:1", 4, {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "cuda:1"),
    ],
)
def test_each_process_uses_the_device_of_its_rank(name, cuda, environment, expected):
    assert pick_device(name, cuda, environment) == torch.device(expected)


@pytest.mark.parametrize(
    ("name", "cuda", "environment", "words"),
    [
        ("gpu", 1, {}, "model.device 'gpu' is not a PyTorch device here: use auto, cpu, cuda or cuda:N"),
        ("meta", 1, {}, "is not a PyTorch device here"),
        ("cuda", 0, {}, "PyTorch sees no CUDA device: use --set model.device=cpu"),
        ("cuda:2", 2, {}, "no CUDA device 2 here; this machine has 2"),
        ("auto", 1, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "no CUDA device 1 here"),
        ("cuda:0", 2, {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, "is one device for 2 processes"),
    ],
)
def test_a_missing_device_is_refused(name, cuda, environment, words):
    with pytest.raises(ArtifactError) as refused:
        pick_device(name, cuda, environment)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_cuda_device_becomes_the_current_one(monkeypatch):
    devices = []
    monkeypatch.setattr(loading.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(loading.torch.cuda, "set_device", devices.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert take_device("cpu") == torch.device("cpu")
    assert take_device("auto") == torch.device("cuda:1")
    assert devices == [torch.device("cuda:1")]


@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        ("auto", "cpu", torch.float32),
        ("auto", "cuda:1", torch.bfloat16),
        ("float32", "cuda", torch.float32),
        ("float16", "cpu", torch.float16),
    ],
)
def test_automatic_precision_is_half_on_cuda_alone(name, device, expected):
    assert pick_dtype(name, torch.device(device)) == expected
