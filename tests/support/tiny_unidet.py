"""UniDet in miniature, its weights given by a formula that does not depend on torch's random numbers."""

import json
import zlib
from itertools import cycle, islice

import numpy as np
import torch
from safetensors.torch import save_file

from flowopd_cli.rewards.compbench.unidet_network import Sizes, UniDetNetwork

SIZES = {
    "r50": Sizes(False, 8, (3, 4, 6, 3), 4, 8, 0, 2, 12, 722),
    "rs200": Sizes(True, 32, (3, 4, 6, 3), 4, 8, 4, 1, 12, 722),
}
NAMES = ("dog", "cat", "person", "boat, ship", "key", "bowl", "bench2")
SCORES = {"r50": (0.1, -5.2), "rs200": (2.0, -6.8)}  # scale and bias of the class scores: a few dozen detections


def weight(name, shape, scale, bias):
    """A parameter by its name: normal numbers, scaled so that every activation is of the order of one."""
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        return 0.5 + abs(x)
    if name.endswith("conv3.norm.weight"):
        return 0.3 + 0.1 * x
    if any(part in name for part in (".norm.weight", ".bn0.weight", ".bn1.weight")):
        return 1 + 0.2 * x
    if name.endswith("cls_score.bias"):
        return 0.5 * x + bias
    if name.endswith("cls_score.weight"):
        return scale * x
    if name.endswith(("bias", "running_mean", "anchor_deltas.weight")):
        return 0.1 * x
    if name.endswith("bbox_pred.weight"):
        return 0.3 * x
    if name.endswith("stem.conv1.weight"):
        return 0.0016 * x
    return x * np.float32(np.sqrt(1.6 / np.prod(shape[1:])))


def tensors(kind):
    shapes = {n: t.shape for n, t in UniDetNetwork(SIZES[kind]).state_dict().items() if "num_batches" not in n}
    return {name: torch.from_numpy(np.asarray(weight(name, shape, *SCORES[kind]))) for name, shape in shapes.items()}


def save_unidet(folder, kind):
    """A checkpoint of the published form, as safetensors, with names of its labels beside it. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{kind}.safetensors"
    save_file(tensors(kind), path)
    (folder / "labels.json").write_text(json.dumps(list(islice(cycle(NAMES), SIZES[kind].labels))))
    return path


def scene(seed, height, width):
    """A picture of waves and rectangles, ``(H, W, 3)`` in bytes."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 60 * np.sin(x / (7 + 3 * c) + seed) + 60 * np.cos(y / (5 + 2 * c)) for c in range(3)]
    picture, rng = np.stack(waves, axis=-1), np.random.RandomState(seed)
    for _ in range(6):
        top, left = rng.randint(0, height - 20), rng.randint(0, width - 20)
        rows, columns = rng.randint(15, height // 2), rng.randint(15, width // 2)
        picture[top : top + rows, left : left + columns] = rng.randint(0, 256, 3)
    return picture.round().clip(0, 255).astype(np.uint8)
