"""Signs in the logged metrics of a failing training: flat groups, collapse, clipping, explosions, a hacked reward."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from statistics import fmean, median

from flowopd_cli.train.drift import DriftMonitor

WINDOW = 10  # iterations that a mean is taken over
FLAT, FLAT_ROWS = 0.9, 5
CLIPPED, CLIPPED_ROWS = 0.8, 5
EXPLOSION = 10.0
GRADIENT, GRADIENT_ROWS = 4.0, 5  # times its first norm: before DiffusionNFT collapses it rises sevenfold


@dataclass
class HealthMonitor:
    """Warnings about a failing training, with a remedy; each appears once until its cause disappears."""

    _rewards: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))
    _spreads: list[float] = field(default_factory=list)
    _best: float = -inf
    _recent: dict[str, deque[float]] = field(default_factory=dict)
    _norms: list[float] = field(default_factory=list)
    _drift: DriftMonitor = field(default_factory=DriftMonitor)
    _active: set[str] = field(default_factory=set)

    def observe(self, row: Mapping[str, float | None]) -> list[str]:
        """Warnings that begin with this row of the metrics, as logged or as read again; rows come in order."""
        row = {name: value for name, value in row.items() if value is not None and isfinite(value)}
        warnings = {
            "flat": self._flat(row),
            "invalid": self._invalid(row),
            "reward": self._collapse(row),
            "clip": self._clipped(row),
            "gradient": self._gradient(row),
            **self._drift.observe(row),
            **self._explosions(row),
        }
        new = [text for name, text in warnings.items() if text and name not in self._active]
        self._active = {name for name, text in warnings.items() if text}
        return new

    def _flat(self, row: Mapping[str, float]) -> str | None:
        if self._least("flat_groups", row, FLAT_ROWS) < FLAT:
            return None
        return (
            f"for {FLAT_ROWS} iterations {FLAT:.0%} of the groups or more have had equal rewards, which teach nothing: "
            "try prompts that are neither hopeless nor solved, a larger train.group_size, train.resample_flat, "
            "or a reward with finer steps"
        )

    def _invalid(self, row: Mapping[str, float]) -> str | None:
        if row.get("invalid", 0.0) < 1:
            return None
        return "no picture of this iteration could be scored, so nothing was learned from it: look at the reward"

    def _collapse(self, row: Mapping[str, float]) -> str | None:
        """A warning if the mean reward fell below its best by one standard deviation of single pictures."""
        if "reward" not in row:
            return None
        self._rewards.append(row["reward"])
        if len(self._spreads) < WINDOW:
            self._spreads.append(row.get("reward_std", 0.0))
        if len(self._rewards) < WINDOW:
            return None
        mean, spread = fmean(self._rewards), fmean(self._spreads)
        self._best = max(self._best, mean)
        if spread <= 0 or self._best - mean < spread:
            return None
        return (
            f"the reward has fallen to {mean:.3g}, from {self._best:.3g}: the policy is collapsing; try a lower "
            "train.lr, or a fresh run with a larger weight to hold it: grpo.beta, nft.base_weight, awm.base_weight or "
            "anchor.beta"
        )

    def _clipped(self, row: Mapping[str, float]) -> str | None:
        if self._least("clip_fraction", row, CLIPPED_ROWS) < CLIPPED:
            return None
        return (
            f"for {CLIPPED_ROWS} iterations {CLIPPED:.0%} of the rows or more were clipped: the policy moves too far "
            "within an iteration; try a lower train.lr, fewer train.updates, or a wider clip range"
        )

    def _explosions(self, row: Mapping[str, float]) -> dict[str, str | None]:
        """The warnings of ``kl``, ``kl_anchor`` and ``kl_base``.

        ``kl`` must have exploded for a task and for a sampling step of the row: other rows may have other ones.
        """
        warnings = {name: self._explosion(name, row) for name in row if name.startswith("kl")}
        for prefix in ("kl_step/", "kl/"):
            parts = [warnings.pop(name) for name in row if name.startswith(prefix)]
            if parts and warnings.get("kl"):
                warnings["kl"] = next(filter(None, parts), None)
        return warnings

    def _explosion(self, name: str, row: Mapping[str, float]) -> str | None:
        before = self._recent.setdefault(name, deque(maxlen=2 * WINDOW))
        usual = median(before) if len(before) >= WINDOW else None
        before.append(row[name])
        if not usual or usual <= 0 or row[name] < EXPLOSION * usual:
            return None
        return (
            f"{name} is {row[name]:.3g}, {row[name] / usual:.0f} times what it was: try a lower train.lr, "
            "a lower train.max_grad_norm, or a larger grpo.beta, nft.base_weight, awm.base_weight or anchor.beta"
        )

    def _gradient(self, row: Mapping[str, float]) -> str | None:
        """A warning if the gradient's norm stays at several times that of the first iterations."""
        if not row.get("grad_norm"):  # 0: every optimizer step was skipped
            return None
        self._norms.append(row["grad_norm"])
        usual, now = median(self._norms[:WINDOW]), median(self._norms[-GRADIENT_ROWS:])
        if len(self._norms) < WINDOW + GRADIENT_ROWS or now < GRADIENT * usual:
            return None
        return (
            f"grad_norm is {now:.3g}, {now / usual:.0f} times that of the first iterations, as before a collapse: try "
            "a lower train.lr, train.schedule linear, or train.stop on grad_norm to end with the checkpoint before"
        )

    def _least(self, name: str, row: Mapping[str, float], rows: int) -> float:
        """The minimum of the last ``rows`` values; 0 while there are fewer."""
        if name not in row:
            return 0.0
        recent = self._recent.setdefault(name, deque(maxlen=rows))
        recent.append(row[name])
        return min(recent) if len(recent) == rows else 0.0
