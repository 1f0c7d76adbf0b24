"""Signs that a policy exploits its reward: watched figures that leave their baseline while the reward rises."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

ROWS = 5  # iterations that the reward is averaged over, at the start and now
SCALE = 1.5  # times the latent norm: on the toy a runaway learning rate doubled it, a slow hack changed it by a tenth
DETAIL = 2.0  # times the high-frequency energy: half of it came with empty pictures on the toy
TONE = 0.1  # of the range of brightness and saturation: a visible change of whole pictures
DIVERSITY = 0.5  # share of the diversity that is left
FALL = 0.2  # share of a held-out reward: above the standard error of 32 pictures that are right or wrong
REMEDY = (
    "look at samples/; try a lower train.lr, a mixture of rewards, or more weight of the base (grpo.beta, "
    "nft.base_weight, awm.base_weight), and train.stop to end with the checkpoint before"
)


@dataclass
class DriftMonitor:
    """Compares each watch with the first one."""

    _baseline: dict[str, float] = field(default_factory=dict)
    _first: list[float] = field(default_factory=list)
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=ROWS))
    _warnings: dict[str, str] = field(default_factory=dict)

    def observe(self, row: Mapping[str, float]) -> dict[str, str]:
        """The warnings of the last watch, by figure; ``row`` has finite values only."""
        if "reward" in row:
            self._recent.append(row["reward"])
            self._first += [row["reward"]] if len(self._first) < ROWS else []
        watched = {name: value for name, value in row.items() if name.startswith("watch/")}
        if not self._baseline:
            self._baseline = watched
        elif watched:
            rises = bool(self._first) and fmean(self._recent) > fmean(self._first)
            faults = {name: self._fault(name, value) for name, value in watched.items() if rises}
            self._warnings = {
                name: f"{text}, while the reward rises: {REMEDY}" for name, text in faults.items() if text
            }
        return self._warnings

    def _fault(self, name: str, value: float) -> str | None:
        base, figure = self._baseline.get(name), name.removeprefix("watch/")
        if base is None:
            return None
        factors = {"latent_norm": SCALE, "high_frequency": DETAIL}
        if figure in factors and base > 0 and not 1 / factors[figure] < value / base < factors[figure]:
            return f"{name} is {value:.3g}, {value / base:.2g} times its baseline"
        if figure in {"brightness", "saturation"} and abs(value - base) > TONE:
            return f"{name} is {value:.3g}, its baseline {base:.3g}"
        if figure == "diversity" and value < DIVERSITY * base:
            return f"{name} is {value:.3g}, its baseline {base:.3g}: the pictures of a prompt become alike"
        if figure.startswith("reward/") and value < base - FALL * abs(base):
            return f"{name} has fallen to {value:.3g} from {base:.3g}"
        return None
