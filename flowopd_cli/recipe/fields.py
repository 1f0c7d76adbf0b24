"""Types of recipe fields, with their parsing, and the base of all sections. No torch."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
)

from flowopd_cli.core.targets import LARGEST
from flowopd_cli.system.redact import secret_in_name, secret_in_options
from flowopd_cli.system.text import suggest
from flowopd_cli.system.validation import Checked

Attention = Literal[
    "auto", "sdpa", "sdpa-flash", "sdpa-efficient", "sdpa-cudnn", "sdpa-math", "flash", "flash3", "flex", "xformers"
]
Quantize = Literal["none", "int8", "nf4"]
Base = Annotated[str, AfterValidator(lambda name: name.rstrip("/") or name)]  # `big/` and `big` are one base
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what PyTorch's generators take
INIT = "init"  # as a reference of a distillation: the adapter of `adapter.init`, frozen
METADATA = "meta:"
ONE, SEVERAL = "<one>", "<several>"  # forms of a route, left out of messages
SHARPEST = 50  # numbers of a Beta law; the chances of sharper ones are too small for floating point
BETA_LAW = re.compile(r"beta\(\s*([^,\s]+)\s*,\s*([^,\s]+)\s*\)")
RANKLESS = ("exact", "factor_average")  # methods of a merge whose rank follows from its adapters
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def _parse_trackers(value: Any) -> Any:
    """Tracker names, as a list or as text with commas, become text with commas; ``none`` if there are none."""
    entries = value if isinstance(value, list | tuple) else value.split(",") if isinstance(value, str) else [value]
    names = [str(name).strip() for name in entries if name is not None and str(name).strip() not in {"", "none"}]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"no tracker {name[:40]!r}{suggest(name, TRACKERS)}; known: none, {', '.join(TRACKERS)}")
    return ",".join(dict.fromkeys(names)) or "none"


def refuse_secrets(value: Any) -> Any:
    """Refuse secrets in a reward's name or options, because a recipe is stored and published with its run."""
    secret = secret_in_options(value) if isinstance(value, dict) else secret_in_name(value)
    if secret:
        raise ValueError(secret)
    return value


def _parse_targets(value: Any) -> Any:
    return [name.strip() for name in value.split(",")] if isinstance(value, str) else value


def _one_or_several(value: Any) -> Any:
    """Several different numbers of at least 0, or the only one."""
    numbers = value if isinstance(value, list | tuple) else (value,)
    if not numbers or not all(isinstance(number, int | float) and 0 <= number < math.inf for number in numbers):
        raise ValueError(f"{value!r} should be a number of at least 0, or a list of several to compare")
    first, *others = dict.fromkeys(map(float, numbers))
    return (first, *others) if others else first


def _parse_law(value: str) -> str:
    """``beta(A, B)`` in one form, or ``uniform``."""
    match = BETA_LAW.fullmatch(value)
    with suppress(ValueError):
        if match and min(numbers := [float(match[1]), float(match[2])]) > 0 and max(numbers) <= SHARPEST:
            return f"beta({numbers[0]:g}, {numbers[1]:g})"
    if value != "uniform":
        raise ValueError(
            f"no law {value[:40]!r}: write uniform or beta(A, B), A and B above 0 and at most "
            f"{SHARPEST}, as in beta(5, 2)"
        )
    return value


def _check_weight(value: float | str) -> float | str:
    """A number above 0, or ``meta:KEY``."""
    if value.startswith(METADATA) and len(value) > len(METADATA) if isinstance(value, str) else 0 < value <= LARGEST:
        return value
    raise ValueError(f"{value!r} is no weight: write a number above 0, or {METADATA}KEY for an entry of the metadata")


Weight = Annotated[float | str, AfterValidator(_check_weight)]
Law = Annotated[str, AfterValidator(_parse_law)]
Targets = Annotated[tuple[str, ...], BeforeValidator(_parse_targets)]
Trackers = Annotated[str, BeforeValidator(_parse_trackers)]
RewardName = Annotated[str, AfterValidator(refuse_secrets)]
Options = Annotated[dict[str, Any], AfterValidator(refuse_secrets)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Guidances = Annotated[float | tuple[float, ...], BeforeValidator(_one_or_several)]


class Spec(Checked):
    """Frozen; unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
