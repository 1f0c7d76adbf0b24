"""Merging adapters by their products ``scale B A``, not by their factors, except with ``factor_average``.

The mean of products is not the product of means: for K independent adapters the mean of factors contains only 1/K of
the mean product (relative error 0.71, 0.82, 0.87 for K = 2, 3, 4). Every merge reports its error: that of the cut to
its rank, and for ``factor_average`` the distance to the weighted sum of products. TIES and DARE follow mergekit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from flowopd_cli.errors import MergeError

Method = Literal["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"]
ROUNDING = 1e-14  # of |A| |B|: products below are rounding errors of float64


@dataclass(frozen=True)
class LoraFactors:
    """One module's low-rank update ``scale * b @ a``."""

    a: Float[Tensor, "r in"]
    b: Float[Tensor, "out r"]
    scale: float = 1.0

    def delta(self) -> Float[Tensor, "out in"]:
        """The dense update, float64."""
        return self.scale * (self.b.double() @ self.a.double())


class Update(Protocol):
    """A change of one tensor of the base."""

    def delta(self) -> Float[Tensor, "*shape"]:
        """The dense update, float64."""
        ...


@dataclass(frozen=True)
class Dense:
    """The update of a tensor of any shape that was trained as a whole."""

    change: Float[Tensor, "*shape"]

    def delta(self) -> Float[Tensor, "*shape"]:
        """The dense update, float64."""
        return self.change.double()


@dataclass(frozen=True)
class MergeReport:
    """Squared Frobenius norms of the target and of the merge's error; 0 where they are rounding errors."""

    target: float = 0.0
    error: float = 0.0

    @property
    def norm(self) -> float:
        """Frobenius norm of the target."""
        return self.target**0.5

    @property
    def relative_error(self) -> float:
        """``|merged - target| / |target|``; infinite for a target of 0, NaN if the error is 0 as well."""
        if self.target:
            return (self.error / self.target) ** 0.5
        return math.inf if self.error else math.nan

    @property
    def retained_energy(self) -> float:
        """``1 - relative_error^2``, the fraction of the target that the merge reproduces; 0 if the error is larger."""
        return max(1 - self.relative_error**2, 0.0)  # in this order NaN stays NaN


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
    """``rank``: of the result (the largest input's if None); ``density``: share of entries TIES and DARE keep.

    ``normalize``: divide by the sum of the weights, for TIES and ``dare_ties`` entry by entry by the sum of those that
    agree; None is mergekit's default, true for TIES only.
    """

    method: Method = "linear"
    rank: int | None = None
    density: float = 0.5
    seed: int = 0
    normalize: bool | None = None


def merge(
    adapters: Sequence[Mapping[str, LoraFactors]], weights: Sequence[float], options: MergeOptions
) -> MergeResult:
    """Merge adapters of any ranks; a module missing from an adapter counts as zero.

    Raises :class:`MergeError`: no adapters, weights that do not match or cannot be normalized, unequal ranks for
    ``factor_average``, shapes that differ, a result that float32 cannot hold.
    """
    if not adapters or len(weights) != len(adapters):
        raise MergeError(f"{len(adapters)} adapters and {len(weights)} weights: give one weight for each adapter")
    if not any(adapters):
        raise MergeError("the adapters are empty: there is nothing to merge")
    if options.normalize and options.method not in ELECTING:
        weights = _normalized(weights)
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
Updates = Sequence[tuple[float, Update]]


def merge_dense(
    name: str, updates: Sequence[Update | None], weights: Sequence[float], options: MergeOptions
) -> Float[Tensor, "*shape"]:
    """The merged update of one tensor, float64; ``None`` counts as zero. ``options.rank`` has no meaning here.

    Raises :class:`MergeError`: a method of LoRA factors, or weights that cannot be normalized.
    """
    if options.method in ("exact", "factor_average"):
        raise MergeError(f"method {options.method} merges LoRA factors, and a full model has none: use linear")
    if options.normalize and options.method not in ELECTING:
        weights = _normalized(weights)
    parts = [(weight, update) for weight, update in zip(weights, updates, strict=True) if update is not None]
    if options.method == "linear":
        return torch.stack([weight * update.delta() for weight, update in parts]).sum(dim=0)
    return DENSE[options.method](name, parts, options)


def _merge_module(name: str, parts: Parts, rank: int, options: MergeOptions) -> tuple[LoraFactors, MergeReport]:
    floor = sum(ROUNDING * abs(w * f.scale) * float(f.a.double().norm() * f.b.double().norm()) for w, f in parts)
    if options.method in DENSE:
        u, s, v = torch.linalg.svd(DENSE[options.method](name, parts, options), full_matrices=False)
        return _from_svd(u, s, v, rank, floor)
    wide = concatenate(parts)
    if options.method == "linear":
        return truncate(wide, rank, floor)
    if options.method == "exact":
        return wide, MergeReport(_energy(wide, floor), 0.0)
    merged = average_factors(name, parts)
    difference = concatenate([(1.0, merged), (-1.0, wide)])  # whose energy is |merged - wide|^2
    return merged, MergeReport(_energy(wide, floor), _energy(difference, floor))


def _normalized(weights: Sequence[float]) -> list[float]:
    total = sum(weights)
    if not abs(total) > ROUNDING * sum(map(abs, weights)):  # also where the sum overflows
        raise MergeError(f"the weights sum to {total:g} and cannot be normalized: set normalize to false")
    return [weight / total for weight in weights]


def concatenate(parts: Parts) -> LoraFactors:
    """``sum_k w_k s_k B_k A_k`` exactly, as one pair of rank ``sum_k r_k``; scales are split evenly over both sides."""
    roots = [abs(weight * factors.scale) ** 0.5 for weight, factors in parts]
    signs = [1 if weight * factors.scale >= 0 else -1 for weight, factors in parts]
    a = [root * factors.a.double() for root, (_, factors) in zip(roots, parts, strict=True)]
    b = [sign * root * f.b.double() for sign, root, (_, f) in zip(signs, roots, parts, strict=True)]
    return LoraFactors(torch.cat(a), torch.cat(b, dim=1))


def truncate(wide: LoraFactors, rank: int, floor: float = 0.0) -> tuple[LoraFactors, MergeReport]:
    """The best approximation of rank ``rank`` (Eckart-Young), by QR of both sides: ``out x in`` is never formed.

    Singular values up to ``floor`` count as 0.
    """
    q_b, r_b = torch.linalg.qr(wide.b.double() * wide.scale)
    q_a, r_a = torch.linalg.qr(wide.a.double().T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    return _from_svd(q_b @ u, s, v @ q_a.T, rank, floor)


def average_factors(name: str, parts: Parts) -> LoraFactors:
    """Upstream's merge: separate weighted sums of the A and B factors."""
    ranks = {factors.a.shape[0] for _, factors in parts}
    scales = {factors.scale for _, factors in parts}
    if len(ranks) > 1 or len(scales) > 1:
        raise MergeError(f"{name}: factor_average needs equal ranks and scales ({sorted(ranks)}): use linear or exact")
    a = sum(weight * factors.a.double() for weight, factors in parts)
    b = sum(weight * factors.b.double() for weight, factors in parts)
    return LoraFactors(torch.as_tensor(a), torch.as_tensor(b), scales.pop())


def ties(name: str, parts: Updates, options: MergeOptions) -> Float[Tensor, "*shape"]:
    """TIES (arXiv 2306.01708): trim to the largest entries, elect a sign, add or average the entries that agree."""
    trimmed = [(weight, _trim(factors.delta(), options.density)) for weight, factors in parts]
    return _elect(trimmed, normalize=options.normalize is not False)


def dare_linear(name: str, parts: Updates, options: MergeOptions) -> Float[Tensor, "*shape"]:
    """DARE (arXiv 2311.03099): drop entries at random, rescale the rest by ``1 / density``, sum."""
    dropped = _dropped(name, parts, options)
    return torch.stack([weight * delta for weight, delta in dropped]).sum(dim=0)


def dare_ties(name: str, parts: Updates, options: MergeOptions) -> Float[Tensor, "*shape"]:
    """DARE's dropping, TIES' election.

    Unbiased for updates of equal signs if not normalized: the mean of the entries that were not dropped has a factor
    of ``(1 - (1 - density)^K) / density`` for K equal updates.
    """
    return _elect(_dropped(name, parts, options), normalize=bool(options.normalize))


DENSE: Mapping[str, Callable[[str, Updates, MergeOptions], Tensor]] = {
    "ties": ties,
    "dare_linear": dare_linear,
    "dare_ties": dare_ties,
}
ELECTING = ("ties", "dare_ties")


def _trim(delta: Float[Tensor, "*shape"], density: float) -> Float[Tensor, "*shape"]:
    """Keep the ``int(density * size)`` largest entries, at least one."""
    values = delta.flatten()
    largest = values.abs().topk(max(1, int(density * len(values))), sorted=False).indices
    return torch.zeros_like(values).index_copy(0, largest, values[largest]).view_as(delta)


def _elect(parts: Sequence[tuple[float, Tensor]], *, normalize: bool) -> Float[Tensor, "*shape"]:
    """The sum of the weighted entries with the sign of their sum; ``normalize`` divides by the sum of their |weights|.

    An entry whose sum is exactly 0 has no sign and stays 0.
    """
    weighted = torch.stack([weight * delta for weight, delta in parts])
    agree = weighted.sign() == weighted.sum(dim=0).sign()
    merged = (weighted * agree).sum(dim=0)
    if not normalize:
        return merged
    share = torch.stack([agree[i].double() * abs(weight) for i, (weight, _) in enumerate(parts)]).sum(dim=0)
    return merged / torch.where(share > 0, share, 1.0)


def _dropped(name: str, parts: Updates, options: MergeOptions) -> list[tuple[float, Tensor]]:
    seed = int.from_bytes(hashlib.sha256(f"{options.seed}/{name}".encode()).digest()[:7], "big")
    generator = torch.Generator().manual_seed(seed)

    def drop(delta: Tensor) -> Tensor:
        mask = torch.rand(delta.shape, generator=generator, dtype=torch.float64) < options.density
        return delta * mask / options.density

    return [(weight, drop(factors.delta())) for weight, factors in parts]


def _from_svd(u: Tensor, s: Tensor, v: Tensor, rank: int, floor: float) -> tuple[LoraFactors, MergeReport]:
    """The first ``rank`` directions; those of value 0 keep a row of A, so that a training can use them."""
    s = torch.where(s > floor, s, 0.0)
    root = s[:rank].sqrt()
    factors = LoraFactors(torch.where(root > 0, root, 1.0)[:, None] * v[:rank], u[:, :rank] * root)
    return factors, MergeReport(float(s.square().sum()), float(s[rank:].square().sum()))


def _energy(factors: LoraFactors, floor: float) -> float:
    """``|B A|^2`` through the small core; 0 if ``|B A|`` is at most ``floor``."""
    core = torch.linalg.qr(factors.b.double() * factors.scale).R @ torch.linalg.qr(factors.a.double().T).R.T
    norm = float(core.square().sum()) ** 0.5
    return norm**2 if norm > floor else 0.0
