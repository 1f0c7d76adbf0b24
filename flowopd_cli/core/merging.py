"""Merging adapters by their products ``scale B A``, not by their factors, except with ``factor_average``.

The mean of products is not the product of means: for K independent adapters the mean of factors contains only 1/K of
the mean product (relative error 0.71, 0.82, 0.87 for K = 2, 3, 4). Every merge reports its truncation error: against
the dense weighted sum, and for TIES and DARE against their own dense result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.errors import MergeError

Method = Literal["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"]


@dataclass(frozen=True)
class LoraFactors:
    """One module's low-rank update ``scale * b @ a``."""

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]
    scale: float = 1.0

    def delta(self) -> Float[Tensor, "out in"]:
        """The dense update, float64."""
        return self.scale * (self.b.double() @ self.a.double())


@dataclass(frozen=True)
class MergeReport:
    """Squared Frobenius norms of the target and of the merge's error."""

    target: float = 0.0
    error: float = 0.0

    @property
    def relative_error(self) -> float:
        """``|merged - target| / |target|``."""
        return (self.error / self.target) ** 0.5 if self.target else 0.0

    @property
    def retained_energy(self) -> float:
        """``1 - relative_error^2``: the fraction of the target that the merge reproduces."""
        return 1 - self.relative_error**2


@dataclass(frozen=True)
class MergeResult:
    """The merged factors, float32, and the report of each module."""

    factors: dict[str, LoraFactors]
    modules: dict[str, MergeReport]

    @property
    def report(self) -> MergeReport:
        """The report over all modules."""
        reports = self.modules.values()
        return MergeReport(sum(report.target for report in reports), sum(report.error for report in reports))


@dataclass(frozen=True)
class MergeOptions:
    """``rank``: of the result (the largest input's if None); ``density``: share of entries TIES and DARE keep."""

    method: Method = "linear"
    rank: int | None = None
    density: float = 0.5
    seed: int = 0


def merge(
    adapters: Sequence[Mapping[str, LoraFactors]], weights: Sequence[float], options: MergeOptions
) -> MergeResult:
    """Merge adapters of any ranks; a module missing from an adapter counts as zero.

    Raises :class:`MergeError`: no adapters, weights that do not match, unequal ranks for ``factor_average``, shapes
    that differ, a result that float32 cannot hold.
    """
    if not adapters or len(weights) != len(adapters):
        raise MergeError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight for each adapter")
    if not any(adapters):
        raise MergeError("the adapters are empty: there is nothing to merge")
    rank = options.rank or max(factors.a.shape[0] for adapter in adapters for factors in adapter.values())
    merged: dict[str, LoraFactors] = {}
    reports: dict[str, MergeReport] = {}
    for name in dict.fromkeys(name for adapter in adapters for name in adapter):
        parts = [(weight, adapter[name]) for weight, adapter in zip(weights, adapters, strict=True) if name in adapter]
        shapes = {(factors.b.shape[0], factors.a.shape[1]) for _, factors in parts}
        if len(shapes) > 1:
            raise MergeError(f"{name}: adapters of different shapes {sorted(shapes)}: are they of one base?")
        try:
            factors, reports[name] = _merge_module(name, parts, rank, options)
        except torch.linalg.LinAlgError as error:  # pyright: ignore[reportPrivateImportUsage]
            raise MergeError(f"{name}: cannot be merged with these weights (no finite numbers)") from error
        a, b = factors.a.float().contiguous(), factors.b.float().contiguous()
        merged[name] = LoraFactors(a, b, factors.scale)
        if not (a.isfinite().all() and b.isfinite().all()):
            raise MergeError(f"{name}: the merge has numbers that are not finite: lower the weights")
    return MergeResult(merged, reports)


Parts = Sequence[tuple[float, LoraFactors]]


def _merge_module(name: str, parts: Parts, rank: int, options: MergeOptions) -> tuple[LoraFactors, MergeReport]:
    if options.method in DENSE:
        target = DENSE[options.method](name, parts, options)
        u, s, v = torch.linalg.svd(target, full_matrices=False)
        merged = _from_svd(u, s, v, rank)
        energy, error = float(target.square().sum()), float((merged.delta() - target).square().sum())
        return merged, MergeReport(energy, error)
    wide = concatenate(parts)
    if options.method == "exact":
        return wide, MergeReport(_energy(wide), 0.0)
    merged = truncate(wide, rank) if options.method == "linear" else average_factors(name, parts)
    difference = concatenate([(1.0, merged), (-1.0, wide)])  # whose energy is |merged - wide|^2
    return merged, MergeReport(_energy(wide), _energy(difference))


def concatenate(parts: Parts) -> LoraFactors:
    """``sum_k w_k s_k B_k A_k`` exactly, as one pair of rank ``sum_k r_k``; scales are split evenly over both sides."""
    roots = [abs(weight * factors.scale) ** 0.5 for weight, factors in parts]
    signs = [1 if weight * factors.scale >= 0 else -1 for weight, factors in parts]
    a = [root * factors.a.double() for root, (_, factors) in zip(roots, parts, strict=True)]
    b = [sign * root * f.b.double() for sign, root, (_, f) in zip(signs, roots, parts, strict=True)]
    return LoraFactors(torch.cat(a), torch.cat(b, dim=1))


def truncate(wide: LoraFactors, rank: int) -> LoraFactors:
    """The best approximation of rank ``rank`` (Eckart-Young), by QR of both sides: ``out x in`` is never formed."""
    q_b, r_b = torch.linalg.qr(wide.b.double() * wide.scale)
    q_a, r_a = torch.linalg.qr(wide.a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _from_svd(q_b @ u, s, v @ q_a.T, rank)


def average_factors(name: str, parts: Parts) -> LoraFactors:
    """Upstream's merge: separate weighted sums of the A and B factors."""
    ranks = {factors.a.shape[0] for _, factors in parts}
    scales = {factors.scale for _, factors in parts}
    if len(ranks) > 1 or len(scales) > 1:
        raise MergeError(f"{name}: factor_average needs equal ranks and scales ({sorted(ranks)}): use linear or exact")
    a = sum(weight * factors.a.double() for weight, factors in parts)
    b = sum(weight * factors.b.double() for weight, factors in parts)
    return LoraFactors(torch.as_tensor(a), torch.as_tensor(b), scales.pop())


def ties(name: str, parts: Parts, options: MergeOptions) -> Float[Tensor, "out in"]:
    """TIES (arXiv 2306.01708): trim to the largest entries, elect a sign, average the entries that agree with it."""
    return _elect([(weight, _trim(factors.delta(), options.density)) for weight, factors in parts])


def dare_linear(name: str, parts: Parts, options: MergeOptions) -> Float[Tensor, "out in"]:
    """DARE (arXiv 2311.03099): drop entries at random, rescale the rest by ``1 / density``, sum."""
    dropped = _dropped(name, parts, options)
    return torch.stack([weight * delta for weight, delta in dropped]).sum(dim=0)


def dare_ties(name: str, parts: Parts, options: MergeOptions) -> Float[Tensor, "out in"]:
    """DARE's dropping, TIES' election."""
    return _elect(_dropped(name, parts, options))


DENSE: Mapping[str, Callable[[str, Parts, MergeOptions], Tensor]] = {
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}


def _trim(delta: Float[Tensor, "out in"], density: float) -> Float[Tensor, "out in"]:
    keep = max(1, round(density * delta.numel()))
    floor = delta.abs().flatten().kthvalue(delta.numel() - keep + 1).values
    return torch.where(delta.abs() >= floor, delta, 0.0)


def _elect(parts: Sequence[tuple[float, Tensor]]) -> Float[Tensor, "out in"]:
    weighted = torch.stack([weight * delta for weight, delta in parts])
    agree = weighted.sign() == weighted.sum(dim=0).sign()
    share = torch.stack([agree[i].double() * abs(weight) for i, (weight, _) in enumerate(parts)]).sum(dim=0)
    whole = sum(abs(weight) for weight, _ in parts)
    return torch.where(share > 0, (weighted * agree).sum(dim=0) * whole / share.clamp(min=1e-12), 0.0)


def _dropped(name: str, parts: Parts, options: MergeOptions) -> list[tuple[float, Tensor]]:
    seed = int.from_bytes(hashlib.sha256(f"{options.seed}/{name}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)

    def drop(delta: Tensor) -> Tensor:
        mask = torch.rand(delta.shape, generator=generator, dtype=torch.float64) < options.density
        return delta * mask / options.density

    return [(weight, drop(factors.delta())) for weight, factors in parts]


def _from_svd(u: Tensor, s: Tensor, v: Tensor, rank: int) -> LoraFactors:
    root = s[:rank].sqrt()
    return LoraFactors(root[:, None] * v[:rank], u[:, :rank] * root)


def _energy(factors: LoraFactors) -> float:
    """``|B A|^2`` through the small core."""
    core = torch.linalg.qr(factors.b.double() * factors.scale).R @ torch.linalg.qr(factors.a.double().T).R.T
    return float(core.square().sum())
