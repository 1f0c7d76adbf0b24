"""UniDet's network in plain torch: a cascade of three box heads on a feature pyramid, with one label space.

Sources: Zhou et al. 2022, arXiv 2102.13086 (UniDet); Cai and Vasconcelos 2018, arXiv 1712.00726 (the cascade); Zhang et
al. 2020, arXiv 2004.08955 (ResNeSt). Its parameters have the names of the published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from flowopd_cli.errors import ArtifactError
from flowopd_cli.rewards.compbench.boxes import anchors, clip, decode, pool, suppress

STRIDES = (8, 16, 32, 64, 128)  # of the pyramid's levels; boxes are pooled from the first three
POOLED_FROM, BINS, ANCHORS = 3, 7, 9
PROPOSALS, PROPOSAL_OVERLAP = 1000, 0.7
STAGES = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))  # weights of their steps
THRESHOLD, OVERLAP, MOST = 0.1, 0.5, 300
RADIX = 2
SPLIT_MARK = "backbone.bottom_up.stem.conv1_1.weight"
# Mean and deviation of blue, green and red. The benchmark gives ResNeSt this order too, against its configuration.
PIXELS = {
    False: ((103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    True: ((123.68, 116.779, 103.939), (58.393, 57.12, 57.375)),
}


class Sizes(NamedTuple):
    """The sizes of a network; ``split`` is ResNeSt in place of ResNet."""

    split: bool
    stem: int
    blocks: tuple[int, ...]
    width: int  #: of the first stage's inner convolutions; its outputs are four times as wide
    pyramid: int
    convolutions: int  #: of a box head
    layers: int  #: of a box head
    hidden: int  #: outputs of these layers
    labels: int


RESNET_50 = Sizes(False, 64, (3, 4, 6, 3), 64, 256, 0, 2, 1024, 722)
RESNEST_200 = Sizes(True, 64, (3, 24, 36, 3), 64, 256, 4, 1, 1024, 722)


class Found(NamedTuple):
    """What the network found in a picture, most confident first, with boxes in its pixels."""

    boxes: Float[Tensor, "N 4"]
    scores: Float[Tensor, " N"]
    labels: Int[Tensor, " N"]


def sizes_of(tensors: Mapping[str, Tensor]) -> Sizes:
    """The sizes of a checkpoint, read off its tensors.

    Raises :class:`ArtifactError`: tensors that every checkpoint of UniDet has are missing.
    """
    split, body, head = SPLIT_MARK in tensors, "backbone.bottom_up.", "roi_heads.box_head.0."

    def parts(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in tensors if name.startswith(prefix)})

    try:
        return Sizes(
            split,
            tensors[SPLIT_MARK if split else f"{body}stem.conv1.weight"].shape[0],
            tuple(parts(f"{body}res{stage}.") for stage in range(2, 6)),
            tensors[f"{body}res2.0.conv1.weight"].shape[0],
            tensors["backbone.fpn_lateral3.weight"].shape[0],
            parts(f"{head}conv"),
            parts(f"{head}fc"),
            tensors[f"{head}fc1.weight"].shape[0],
            tensors["roi_heads.box_predictor.0.cls_score.weight"].shape[0] - 1,
        )
    except KeyError as error:
        raise ArtifactError(f"not a checkpoint of UniDet: it has no tensor {error}") from error


class Conv(nn.Conv2d):
    """A convolution that keeps the size, but for its stride, followed by ``norm`` and a ReLU where wanted."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, norm: bool = True, relu: bool = False):
        super().__init__(inputs, outputs, size, stride, size // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self._relu = relu

    def forward(self, input: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        """Feature maps of ``outputs`` channels."""
        output = self.norm(super().forward(input))
        return output.relu() if self._relu else output


class SplitAttention(nn.Module):
    """Two groups of channels, summed with weights that depend on their mean (split attention)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width * RADIX // 4, 32)
        self.conv = nn.Conv2d(width, RADIX * width, 3, padding=1, groups=RADIX, bias=False)
        self.bn0 = nn.BatchNorm2d(RADIX * width)
        self.fc1 = nn.Conv2d(width, inner, 1)
        self.bn1 = nn.BatchNorm2d(inner)
        self.fc2 = nn.Conv2d(inner, RADIX * width, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Feature maps of the same shape."""
        parts = self.bn0(self.conv(x)).relu().unflatten(1, (RADIX, -1))
        gate = self.fc2(self.bn1(self.fc1(parts.sum(dim=1).mean(dim=(2, 3), keepdim=True))).relu())
        return (parts * gate.unflatten(1, (RADIX, -1)).softmax(dim=1)).sum(dim=1)


class Block(nn.Module):
    """A bottleneck. ResNet's stride is in its first convolution; ResNeSt averages instead."""

    def __init__(self, inputs: int, width: int, stride: int, split: bool) -> None:
        super().__init__()
        outputs, step = 4 * width, 1 if split else stride
        self.conv1 = Conv(inputs, width, 1, step, relu=True)
        self.conv2 = SplitAttention(width) if split else Conv(width, width, 3, relu=True)
        self.conv3 = Conv(width, outputs, 1)
        self.shortcut = Conv(inputs, outputs, 1, step) if inputs != outputs else nn.Identity()
        average = split and stride > 1
        self.pool = nn.AvgPool2d(3, stride, padding=1) if average else nn.Identity()
        shortcut = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False) if average else nn.Identity()
        self.shortcut_pool = shortcut

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        """Feature maps of four times the inner width."""
        residual = self.conv3(self.pool(self.conv2(self.conv1(x))))
        return (residual + self.shortcut(self.shortcut_pool(x))).relu()


class Body(nn.Module):
    """ResNet or ResNeSt; its output are the maps of strides 8, 16 and 32."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        stem = OrderedDict[str, nn.Module]()
        inputs = sizes.stem * (2 if sizes.split else 1)
        if sizes.split:
            stem["conv1_1"] = Conv(3, sizes.stem, 3, 2, relu=True)
            stem["conv1_2"] = Conv(sizes.stem, sizes.stem, 3, relu=True)
            stem["conv1_3"] = Conv(sizes.stem, inputs, 3, relu=True)
        else:
            stem["conv1"] = Conv(3, inputs, 7, 2, relu=True)
        stem["pool"] = nn.MaxPool2d(3, 2, padding=1)
        self.stem = nn.Sequential(stem)
        for stage, count in enumerate(sizes.blocks):
            width = sizes.width * 2**stage
            widths = [inputs, *[4 * width] * (count - 1)]
            strides = [1 if stage == 0 else 2, *[1] * (count - 1)]
            blocks = [Block(i, width, stride, sizes.split) for i, stride in zip(widths, strides, strict=True)]
            self.add_module(f"res{stage + 2}", nn.Sequential(*blocks))
            inputs = 4 * width

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The maps of the last three stages, the finest first."""
        maps = [self.stem(x)]
        for stage in range(2, 6):
            maps.append(self.get_submodule(f"res{stage}")(maps[-1]))
        return maps[2:]


class Pyramid(nn.Module):
    """Maps of one width at five strides, the coarser ones added to the finer."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.bottom_up = Body(sizes)
        for stage in range(3, 6):
            inputs = sizes.width * 2**stage
            self.add_module(f"fpn_lateral{stage}", Conv(inputs, sizes.pyramid, 1, norm=sizes.split))
            self.add_module(f"fpn_output{stage}", Conv(sizes.pyramid, sizes.pyramid, 3, norm=sizes.split))
        coarse = {name: nn.Conv2d(sizes.pyramid, sizes.pyramid, 3, 2, 1) for name in ("p6", "p7")}
        self.top_block = nn.ModuleDict(coarse)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """The five maps, the finest first."""
        sums: list[Tensor] = []
        for stage, features in zip((5, 4, 3), reversed(self.bottom_up(x)), strict=True):
            lateral = self.get_submodule(f"fpn_lateral{stage}")(features)
            sums.append(lateral + nn.functional.interpolate(sums[-1], scale_factor=2.0) if sums else lateral)
        maps = [self.get_submodule(f"fpn_output{3 + i}")(each) for i, each in enumerate(reversed(sums))]
        sixth = self.top_block["p6"](maps[-1])
        return [*maps, sixth, self.top_block["p7"](sixth.relu())]


class UniDetNetwork(nn.Module):
    """The detector, for evaluation only."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        width = sizes.pyramid
        self.backbone = Pyramid(sizes)
        proposer = {
            "conv": nn.Conv2d(width, width, 3, padding=1),
            "objectness_logits": nn.Conv2d(width, ANCHORS, 1),
            "anchor_deltas": nn.Conv2d(width, 4 * ANCHORS, 1),
        }
        self.proposal_generator = nn.ModuleDict({"rpn_head": nn.ModuleDict(proposer)})
        predictors = [
            nn.ModuleDict(
                {"cls_score": nn.Linear(sizes.hidden, sizes.labels + 1), "bbox_pred": nn.Linear(sizes.hidden, 4)}
            )
            for _ in STAGES
        ]
        heads = [_head(sizes) for _ in STAGES]
        self.roi_heads = nn.ModuleDict({"box_head": nn.ModuleList(heads), "box_predictor": nn.ModuleList(predictors)})
        self._pixels = PIXELS[sizes.split]

    @torch.no_grad()
    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> list[Found | None]:
        """Detections in pictures of blue, green and red from 0 to 255; ``None`` where an output is not finite."""
        size = (pixels.shape[2], pixels.shape[3])
        mean, deviation = (pixels.new_tensor(values)[:, None, None] for values in self._pixels)
        padding = [-edge % STRIDES[POOLED_FROM - 1] for edge in size]
        maps = self.backbone(nn.functional.pad((pixels - mean) / deviation, (0, padding[1], 0, padding[0])))
        proposals = self._propose(maps, size)
        fine = maps[:POOLED_FROM]
        return [
            row if row is None else self._refine([m[i] for m in fine], row, size) for i, row in enumerate(proposals)
        ]

    def _propose(self, maps: list[Tensor], size: tuple[int, int]) -> list[Float[Tensor, "N 4"] | None]:
        """The best proposals of each picture, at most 1000 of a level and 1000 in all; ``None`` without finite ones."""
        names = ("conv", "objectness_logits", "anchor_deltas")
        hide, judge, move = (self.get_submodule(f"proposal_generator.rpn_head.{name}") for name in names)
        boxes, scores = list[Tensor](), list[Tensor]()
        for features, stride in zip(maps, STRIDES, strict=True):
            hidden = hide(features).relu()
            logits = judge(hidden).permute(0, 2, 3, 1).flatten(1)
            steps = move(hidden).unflatten(1, (ANCHORS, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            best, place = logits.topk(min(PROPOSALS, logits.shape[1]), dim=1)
            cells = anchors(features.shape[2], features.shape[3], stride, features.device)
            boxes.append(decode(steps.gather(1, place[..., None].expand(-1, -1, 4)), cells[place], (1.0,) * 4))
            scores.append(best)
        level = torch.cat([torch.full((row.shape[1],), i, device=row.device) for i, row in enumerate(scores)])
        proposals: list[Tensor | None] = []
        for edges, likely in zip(torch.cat(boxes, dim=1), torch.cat(scores, dim=1), strict=True):
            if not bool(likely.isfinite().all()):
                proposals.append(None)
                continue
            edges = clip(edges, size)
            good = (edges[:, 2:] > edges[:, :2]).all(dim=1)
            rows = suppress(edges[good], likely[good], level[good], PROPOSAL_OVERLAP)
            proposals.append(edges[good][rows[:PROPOSALS]])
        return proposals

    def _refine(self, maps: list[Tensor], boxes: Float[Tensor, "N 4"], size: tuple[int, int]) -> Found | None:
        """The proposals through the three heads: boxes of the last one, the mean of their scores."""
        total = boxes.new_zeros(())
        for stage, weights in enumerate(STAGES):
            names = (f"box_head.{stage}", f"box_predictor.{stage}.cls_score", f"box_predictor.{stage}.bbox_pred")
            head, judge, move = (self.get_submodule(f"roi_heads.{name}") for name in names)
            hidden = head(pool(maps, STRIDES[:POOLED_FROM], boxes, BINS))
            total = total + judge(hidden).sigmoid()
            boxes = clip(decode(move(hidden), boxes, weights), size)
        scores = (total * (1 / len(STAGES)))[:, :-1]  # the last column is the background
        if not bool(scores.isfinite().all() and boxes.isfinite().all()):
            return None
        row, label = (scores > THRESHOLD).nonzero(as_tuple=True)
        best = suppress(boxes[row], scores[row, label], label, OVERLAP)[:MOST]
        best = best[(boxes[row[best], 2:] > boxes[row[best], :2]).all(dim=1)]
        row, label = row[best], label[best]
        return Found(boxes[row], scores[row, label], label)


def _head(sizes: Sizes) -> nn.Sequential:
    """Convolutions, then layers, each with a ReLU, on the pooled map of a box."""
    parts = OrderedDict[str, nn.Module]()
    for i in range(1, sizes.convolutions + 1):
        parts[f"conv{i}"] = Conv(sizes.pyramid, sizes.pyramid, 3, relu=True)
    parts["flatten"] = nn.Flatten()
    for i in range(1, sizes.layers + 1):
        parts[f"fc{i}"] = nn.Linear(sizes.pyramid * BINS**2 if i == 1 else sizes.hidden, sizes.hidden)
        parts[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(parts)
