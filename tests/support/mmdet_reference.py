"""A slow, independent mmdet Mask2Former with Swin: names, shapes and layouts of mmdet 3.

It shares nothing with ``transformers``: query, key and value stay fused, patch merging unfolds channel by channel, and
windows and sampling points are computed one at a time.
"""

import itertools
import math
import re

import torch
import torch.nn.functional as F
from torch import nn

from flowopd_cli.rewards.geneval.mmdet_keys import Architecture

TINY = Architecture(8, (1, 2, 1, 1), (1, 2, 2, 4), 4, 32, 4, 2, 40, 4, 48, queries=10)


def named(**children):
    return nn.ModuleDict(children)


def feedforward(width, hidden, activation):
    return named(layers=nn.Sequential(nn.Sequential(nn.Linear(width, hidden), activation), nn.Linear(hidden, width)))


def run(ffn, x):
    return ffn.layers[1](ffn.layers[0](x))


class WindowAttention(nn.Module):
    def __init__(self, width, heads, window):
        super().__init__()
        self.heads, self.window = heads, window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        steps = torch.arange(window)[:, None] * (2 * window - 1) + torch.arange(window)
        self.register_buffer("relative_position_index", (steps.view(1, -1) + steps.view(-1, 1)).flip(1))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens, mask):
        """One window: tokens (B, N, C), mask (N, N) with -100 between two regions."""
        batch, count, width = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = qkv[0] * (width // self.heads) ** -0.5 @ qkv[1].transpose(-1, -2)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        weights = (scores + bias + mask).softmax(-1)
        return self.proj((weights @ qkv[2]).transpose(1, 2).reshape(batch, count, width))


class SwinBlock(nn.Module):
    def __init__(self, width, heads, window, shifted):
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = named(w_msa=WindowAttention(width, heads, window))
        self.ffn = feedforward(width, 4 * width, nn.GELU())

    def forward(self, grid):
        """grid (B, H, W, C)"""
        _, height, breadth, _ = grid.shape
        w, s = self.window, self.shift
        x = F.pad(self.norm1(grid), (0, 0, 0, -breadth % w, 0, -height % w))
        tall, wide = x.shape[1:3]
        region = torch.zeros(tall, wide)
        if s:
            parts = (slice(0, -w), slice(-w, -s), slice(-s, None))
            for i, (rows, columns) in enumerate(itertools.product(parts, parts)):
                region[rows, columns] = i
        x = x.roll((-s, -s), (1, 2))
        out = torch.zeros_like(x)
        for top, left in itertools.product(range(0, tall, w), range(0, wide, w)):
            window = x[:, top : top + w, left : left + w]
            regions = region[top : top + w, left : left + w].flatten()
            mask = torch.where(regions[:, None] == regions[None], 0.0, -100.0)
            attended = self.attn.w_msa(window.reshape(len(x), w * w, -1), mask)
            out[:, top : top + w, left : left + w] = attended.view_as(window)
        grid = grid + out.roll((s, s), (1, 2))[:, :height, :breadth]
        return grid + run(self.ffn, self.norm2(grid))


class PatchMerging(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, grid):
        x = grid.permute(0, 3, 1, 2)
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2))
        size = (x.shape[2] // 2, x.shape[3] // 2)
        x = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2).unflatten(1, size)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    def __init__(self, a):
        super().__init__()
        widths = [a.embed * 2**i for i in range(4)]
        self.patch_embed = named(projection=nn.Conv2d(3, a.embed, 4, 4), norm=nn.LayerNorm(a.embed))
        self.stages = nn.ModuleList()
        for i, (depth, heads, width) in enumerate(zip(a.depths, a.heads, widths, strict=True)):
            blocks = nn.ModuleList(SwinBlock(width, heads, a.window, b % 2 == 1) for b in range(depth))
            self.stages.append(named(blocks=blocks, **({"downsample": PatchMerging(width)} if i < 3 else {})))
            self.add_module(f"norm{i}", nn.LayerNorm(width))

    def forward(self, pixels):
        x = self.patch_embed.projection(pixels).permute(0, 2, 3, 1)
        x = self.patch_embed.norm(x)
        out = []
        for i, stage in enumerate(self.stages):
            for block in stage.blocks:
                x = block(x)
            out.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2))
            if i < 3:
                x = stage.downsample(x)
        return out


def sine(height, width, features):
    """Positions (2 * features, H, W): rows first, sines and cosines in turn."""
    planes = []
    for size, shape in ((height, (-1, 1)), (width, (1, -1))):
        steps = torch.arange(1.0, size + 1) / (size + 1e-6) * 2 * math.pi
        for i in range(features):
            angle = steps / 10000 ** (2 * (i // 2) / features)
            planes.append((angle.cos() if i % 2 else angle.sin()).view(shape).expand(height, width))
    return torch.stack(planes)


class DeformableAttention(nn.Module):
    def __init__(self, width, heads, levels=3, points=4):
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)

    def forward(self, x, positions, sizes):
        """x (B, N, C) with the levels' pixels one after the other, row by row."""
        batch, count, width = x.shape
        query = x + positions
        offsets = self.sampling_offsets(query).view(batch, count, self.heads, self.levels, self.points, 2)
        weights = self.attention_weights(query).view(batch, count, self.heads, -1).softmax(-1)
        weights = weights.view(batch, count, self.heads, self.levels, self.points)
        values = self.value_proj(x).split([h * w for h, w in sizes], dim=1)
        centres = torch.tensor([((c + 0.5) / w, (r + 0.5) / h) for h, w in sizes for r in range(h) for c in range(w)])
        out = torch.zeros(batch, self.heads, width // self.heads, count)
        for b, head, (level, (h, w)) in itertools.product(range(batch), range(self.heads), enumerate(sizes)):
            plane = values[level][b].view(h, w, self.heads, -1)[:, :, head].permute(2, 0, 1)
            for point in range(self.points):
                grid = 2 * (centres + offsets[b, :, head, level, point] / torch.tensor([w, h])) - 1
                samples = F.grid_sample(plane[None], grid[None, None].to(plane), align_corners=False)[0, :, 0]
                out[b, head] += samples * weights[b, :, head, level, point]
        return self.output_proj(out.flatten(1, 2).transpose(1, 2))


class PixelDecoder(nn.Module):
    def __init__(self, a):
        super().__init__()
        widths = [a.embed * 2**i for i in range(4)]

        def conv(into, kernel=1, bias=True):
            convolution = nn.Conv2d(into, a.width, kernel, padding=kernel // 2, bias=bias)
            return named(conv=convolution, gn=nn.GroupNorm(32, a.width))

        self.input_convs = nn.ModuleList(conv(width) for width in widths[:0:-1])
        layers = [
            named(
                self_attn=DeformableAttention(a.width, a.attention_heads),
                ffn=feedforward(a.width, a.pixel_feedforward, nn.ReLU()),
                norms=nn.ModuleList(nn.LayerNorm(a.width) for _ in range(2)),
            )
            for _ in range(a.pixel_layers)
        ]
        self.encoder = named(layers=nn.ModuleList(layers))
        self.level_encoding = nn.Embedding(3, a.width)
        self.lateral_convs = nn.ModuleList([conv(a.embed, bias=False)])
        self.output_convs = nn.ModuleList([conv(a.width, 3, bias=False)])
        self.mask_feature = nn.Conv2d(a.width, a.width, 1)

    def forward(self, features):
        coarse_first = features[:0:-1]
        sizes = [tuple(f.shape[-2:]) for f in coarse_first]
        maps = [c.gn(c.conv(f)) for c, f in zip(self.input_convs, coarse_first, strict=True)]
        half = self.level_encoding.weight.shape[1] // 2
        places = [
            (sine(*s, half) + e[:, None, None]).flatten(1).T
            for s, e in zip(sizes, self.level_encoding.weight, strict=True)
        ]
        x, positions = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], 1), torch.cat(places)
        for layer in self.encoder.layers:
            x = layer.norms[0](x + layer.self_attn(x, positions, sizes))
            x = layer.norms[1](x + run(layer.ffn, x))
        parts = x.split([h * w for h, w in sizes], dim=1)
        maps = [p.transpose(1, 2).unflatten(2, s) for p, s in zip(parts, sizes, strict=True)]
        lateral, output = self.lateral_convs[0], self.output_convs[0]
        fine = lateral.gn(lateral.conv(features[0]))
        fine = fine + F.interpolate(maps[-1], fine.shape[-2:], mode="bilinear", align_corners=False)
        fine = F.relu(output.gn(output.conv(fine)))
        return self.mask_feature(fine), maps


class Head(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.heads = a.attention_heads
        self.pixel_decoder = PixelDecoder(a)
        layers = [
            named(
                cross_attn=named(attn=nn.MultiheadAttention(a.width, a.attention_heads)),
                self_attn=named(attn=nn.MultiheadAttention(a.width, a.attention_heads)),
                ffn=feedforward(a.width, a.query_feedforward, nn.ReLU()),
                norms=nn.ModuleList(nn.LayerNorm(a.width) for _ in range(3)),
            )
            for _ in range(a.query_layers)
        ]
        self.transformer_decoder = named(layers=nn.ModuleList(layers), post_norm=nn.LayerNorm(a.width))
        self.query_embed = nn.Embedding(a.queries, a.width)
        self.query_feat = nn.Embedding(a.queries, a.width)
        self.level_embed = nn.Embedding(3, a.width)
        self.cls_embed = nn.Linear(a.width, 81)
        linears = [nn.Linear(a.width, a.width) for _ in range(3)]
        self.mask_embed = nn.Sequential(linears[0], nn.ReLU(), linears[1], nn.ReLU(), linears[2])

    def forward(self, features):
        fine, maps = self.pixel_decoder(features)
        batch = len(fine)
        query = self.query_feat.weight[:, None].expand(-1, batch, -1)
        place = self.query_embed.weight[:, None]
        half = self.level_embed.weight.shape[1] // 2
        classes, masks = self.predict(query, fine)
        for i, layer in enumerate(self.transformer_decoder.layers):
            level = maps[i % 3]
            memory = (level + self.level_embed.weight[i % 3][:, None, None]).flatten(2).permute(2, 0, 1)
            where = sine(*level.shape[-2:], half).flatten(1).T[:, None]
            near = F.interpolate(masks, level.shape[-2:], mode="bilinear", align_corners=False).flatten(2)
            hidden = near.sigmoid() < 0.5
            hidden[hidden.all(-1)] = False
            hidden = hidden[:, None].expand(-1, self.heads, -1, -1).flatten(0, 1)
            attended = layer.cross_attn.attn(query + place, memory + where, memory, attn_mask=hidden)[0]
            query = layer.norms[0](query + attended)
            query = layer.norms[1](query + layer.self_attn.attn(query + place, query + place, query)[0])
            query = layer.norms[2](query + run(layer.ffn, query))
            classes, masks = self.predict(query, fine)
        return classes, masks

    def predict(self, query, fine):
        query = self.transformer_decoder.post_norm(query).transpose(0, 1)
        return self.cls_embed(query), torch.einsum("bqc,bchw->bqhw", self.mask_embed(query), fine)


class Mask2Former(nn.Module):
    """Pixels (B, 3, H, W) to class logits (B, Q, 81) and mask logits (B, Q, H/4, W/4)."""

    def __init__(self, architecture):
        super().__init__()
        self.backbone = Swin(architecture)
        self.panoptic_head = Head(architecture)

    def forward(self, pixels):
        return self.panoptic_head(self.backbone(pixels))


def random_reference(architecture, seed=0):
    """The model with random parameters, norms around 1."""
    torch.manual_seed(seed)
    model = Mask2Former(architecture).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            norm = re.search(r"norm\w*\.(\d+\.)?weight|gn\.weight", name)
            width = parameter[0].numel() if parameter.ndim > 1 else 100
            spread = 1.0 if re.search(r"query_\w+|level_\w+", name) else width**-0.5
            parameter.copy_(torch.randn(parameter.shape) * spread + (1 if norm else 0))
    return model


def mmcv1(state):
    """The same tensors under the names of mmdet 2."""
    renamed = {}
    for name, tensor in state.items():
        if ".pixel_decoder.encoder." in name:
            name = name.replace(".self_attn.", ".attentions.0.")
        name = name.replace(".cross_attn.", ".attentions.0.").replace(".self_attn.", ".attentions.1.")
        if "panoptic_head" in name:
            name = name.replace(".ffn.", ".ffns.0.")
        renamed[name] = tensor
    return renamed
