"""UniDet, T2I-CompBench's detector, from its published checkpoints: ResNeSt-200 for 2D, ResNet-50 for 3D and counts.

Source: Zhou et al. 2022, arXiv 2102.13086 (Apache-2.0), and T2I-CompBench's scripts, quirks included: a picture enters
in the order blue, green, red, and objects count above a confidence of 0.1. The scripts run in half precision, this in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.compbench.spatial import frame_size
from flowopd_cli.rewards.compbench.unidet_network import RESNEST_200, RESNET_50, Sizes, UniDetNetwork, sizes_of
from flowopd_cli.rewards.geneval.rules import Detection
from flowopd_cli.rewards.weights import check_tensors, download, load_tensors, pick_device, split_digest, weights_id
from flowopd_cli.system.json_files import read_json_value

PRISMER = "https://huggingface.co/shikunl/prismer/resolve/main/expert_weights"
#: Published weights: the sizes, and a URL, or else how to fetch them.
CHECKPOINTS = {
    "rs200": (RESNEST_200, f"{PRISMER}/Unified_learned_OCIM_RS200_6x%2B2x.pth"),
    "r50": (RESNET_50, None),
}
ON_DRIVE = "Unified_learned_OCIM_R50_6x+2x.pth lies on Google Drive: fetch it (gdown 1C4sgkirmgMumKXXiLOPmCKNTZAc3oVbq)"
# The benchmark's names of the labels, several of some ("table, desk"), in a file of tensors.
LABELS = (
    "https://raw.githubusercontent.com/Karine-Huang/T2I-CompBench/1b7094991a57f3c22abdd4f6e8ba6c1a15517073/"
    "UniDet_eval/dataset/detection_features.pt"
)
LABELS_SHA256 = "c38ba9352b2a9f832b14fdc19ac407527ffeaa2903958a73f6eb649f78119c76"
OWN_LABELS = "labels.json"  # beside a checkpoint: a list of names in place of the benchmark's
UNUSED = ("pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")  # constants of the configuration
COUNTER = "num_batches_tracked"


class UniDet:
    """The detector of a category: all objects of a picture, whatever its prompt names, in the 479-pixel frame.

    ``approximations`` are differences from the benchmark's own.
    """

    name = "unidet"
    framed = True

    def __init__(self, backbone: str, source: str | None = None, *, device: str = "auto", batch: int = 8) -> None:
        """``backbone`` is ``rs200`` or ``r50``, ``source`` its checkpoint: a file or URL, ``.pth#sha256=digest``.

        Raises :class:`ArtifactError`: it is missing, not pinned, or not a checkpoint of UniDet with this backbone.
        """
        official, url = CHECKPOINTS[backbone]
        if source is None and url is None:
            raise ArtifactError(f"{ON_DRIVE} and name it, detector=unidet=FILE#sha256=DIGEST ({backbone} of the suite)")
        source = source or str(url)
        path, digest = split_digest(source)
        file = download(path, sha256=digest) if path.startswith(("http://", "https://")) else Path(path)
        network, sizes = load_network(file, digest, path)
        if sizes.split != official.split:
            raise ArtifactError(f"{path}: is not UniDet's {backbone}, which this category uses")
        self.approximations = [] if sizes == official else [f"another network than UniDet's {backbone}"]
        self._labels = read_labels(file.parent / OWN_LABELS, sizes.labels)
        self._network, self._batch = network.to(pick_device(device)), batch
        self._device = pick_device(device)
        self.engine = f"unidet-{backbone}/{weights_id(file)}"

    def __call__(self, pictures: Sequence[Image.Image], names: Sequence[Sequence[str]]) -> list[list[Detection] | None]:
        """All detections of pictures of one size, most confident first; ``None`` where an output is not finite."""
        detections: list[list[Detection] | None] = []
        for start in range(0, len(pictures), self._batch):
            part = [to_pixels(picture) for picture in pictures[start : start + self._batch]]
            for output in self._network(torch.stack(part).to(self._device)):
                rows = output and zip(
                    output.labels.tolist(), output.boxes.tolist(), output.scores.tolist(), strict=True
                )
                detections.append(rows and [Detection(self._labels[i], tuple(box), score) for i, box, score in rows])
        return detections


def to_pixels(picture: Image.Image) -> torch.Tensor:
    """A picture in the detector's frame, ``(3, H, W)``, blue first, from 0 to 255."""
    framed = picture.convert("RGB").resize(frame_size(*picture.size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(framed)[:, :, ::-1].copy()).permute(2, 0, 1).float()


def load_network(file: Path, digest: str | None, name: str) -> tuple[UniDetNetwork, Sizes]:
    """The network of a checkpoint and its sizes.

    Raises :class:`ArtifactError`: its tensors are not exactly those of the network.
    """
    stored = load_tensors(file, digest, name)
    tensors = {key: value.float() for key, value in stored.items() if not key.startswith(UNUSED) and COUNTER not in key}
    sizes = sizes_of(tensors)
    with torch.device("meta"):
        network = UniDetNetwork(sizes)
    check_tensors(name, {key: value for key, value in network.state_dict().items() if COUNTER not in key}, tensors)
    network = network.to_empty(device="cpu")
    network.load_state_dict(tensors, strict=False)
    return network.eval().requires_grad_(False), sizes


def read_labels(own: Path, count: int) -> list[str]:
    """The names of the labels, from ``own`` if there is such a file, else the benchmark's, which are fetched.

    Raises :class:`ArtifactError`: they cannot be had, or are not ``count`` names.
    """
    if own.is_file():
        place, names = str(own), read_json_value(own, "list of names")
    else:
        path = download(LABELS, sha256=LABELS_SHA256)
        place, names = str(path), torch.load(path, map_location="cpu", weights_only=True)["labels"]
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise ArtifactError(f"{place}: has not the names of the detector's {count} labels")
    return names
