"""``adapter_config.json``: what PEFT wrote, every value of the kind that it writes. No torch here."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flowopd_cli.errors import ArtifactError

BASE_KEY = "base_sha256"
LARGEST = 4 << 20  # bytes
LONGEST_NAME, LARGEST_RANK = 256, 1 << 16
MOST_KEYS, MOST_PATTERNS, LONGEST_PATTERN, MOST_REPEATS = 10_000, 64, 200, 2
PLAIN = re.compile(r"[\w.-]+")
ALL = "all-linear"
NUMERAL = re.compile(r"-?\d{1,9}(\.\d{1,17})?")
# How some programs write that there is nothing.
ABSENT = {"", "none", "null", "false", "[]", "{}", "()"}
# What PEFT adds to plain LoRA, by the key that turns it on.
BEYOND = {
    "use_qalora": "a QALoRA adapter",
    "use_bdlora": "a BD-LoRA adapter",
    "kasa_config": "a KaSA adapter",
    "monteclora_config": "a MonteCLoRA adapter",
    "alora_invocation_tokens": "an activated LoRA",
    "arrow_config": "a router of several adapters",
    "layer_replication": "repeats layers of its base",
    "target_parameters": "trains parameters that are no module's weight",
    "trainable_token_indices": "trains tokens",
}
# Starts that move the base's own weights, so that the factors alone are of no use with the base as it was.
MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class PeftConfig:
    """``adapter_config.json`` as far as it is used; ``None`` and empty where it says nothing."""

    path: Path | None = None
    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] = ()
    target_pattern: bool = False
    base: str | None = None
    base_sha256: str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rank_stabilized: bool = False

    def rank_of(self, module: str) -> int | None:
        """The rank that a module's factors should have; ``None`` where nothing is said."""
        return _match(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """What the product of a module's factors is multiplied by."""
        alpha = _match(self.alpha_pattern, module, self.alpha if self.alpha is not None else float(rank))
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_config(path: Path) -> PeftConfig:
    """A PEFT configuration file; see :func:`config_of`."""
    return config_of(path, _read_object(path))


def config_of(path: Path, data: Mapping[str, Any]) -> PeftConfig:
    """A PEFT configuration that was found in ``path``, every value of the kind that PEFT writes. A number may be
    written as a text, the names of modules as the text of a list, and nothing as a text of :data:`ABSENT`, as some
    programs do.

    Raises:
        ArtifactError: a value of another kind (its key is named), or more than plain LoRA.
    """
    data = {key: None if _is_absent(value) else value for key, value in data.items()}
    _check_plain(path, data)
    targets, pattern = _targets(path, data.get("target_modules"))
    ranks, alphas = _mapping(path, "rank_pattern", data), _mapping(path, "alpha_pattern", data)
    _check_patterns(path, [*ranks, *alphas])
    return PeftConfig(
        path=path,
        rank=_whole(path, "r", data.get("r")),
        alpha=_number(path, "lora_alpha", data.get("lora_alpha")),
        targets=targets,
        target_pattern=pattern,
        base=text_or_none(path, "base_model_name_or_path", data.get("base_model_name_or_path")),
        base_sha256=text_or_none(path, BASE_KEY, data.get(BASE_KEY)),
        rank_pattern={name: _whole(path, f"rank_pattern.{name}", value) or 1 for name, value in ranks.items()},
        alpha_pattern={name: _number(path, f"alpha_pattern.{name}", value) or 1.0 for name, value in alphas.items()},
        rank_stabilized=_switch(path, "use_rslora", data.get("use_rslora")),
    )


def _check_plain(path: Path, data: Mapping[str, Any]) -> None:
    """Refuse what is more than plain LoRA."""
    kind, start = data.get("peft_type"), data.get("init_lora_weights")
    if kind not in (None, "LORA"):
        raise ArtifactError(f"{path}: an adapter of the kind {shown(kind)} (peft_type); only plain LoRA can be used")
    if _switch(path, "use_dora", data.get("use_dora")):
        raise ArtifactError(
            f"{path}: a DoRA adapter (use_dora), whose magnitudes have no low-rank form; use plain LoRA"
        )
    if data.get("bias"):
        raise ArtifactError(
            f"{path}: trains biases (bias: {shown(data['bias'])}); only plain LoRA adapters can be used"
        )
    if data.get("modules_to_save"):
        found = shown(data["modules_to_save"])
        raise ArtifactError(f"{path}: trains whole modules ({found}); only plain LoRA can be used")
    for key, what in BEYOND.items():
        if data.get(key):
            raise ArtifactError(f"{path}: {what} ({key}); only plain LoRA can be used")
    if isinstance(start, str) and start.lower().startswith(MOVING):
        raise ArtifactError(
            f"{path}: began by moving the base's own weights (init_lora_weights: {shown(start)}): convert it to plain "
            "LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )


def _is_absent(value: Any) -> bool:
    return isinstance(value, str) and len(value) < 16 and "".join(value.split()).lower() in ABSENT


def _targets(path: Path, told: Any) -> tuple[tuple[str, ...], bool]:
    """The names of modules that are adapted, and whether the one name is a pattern."""
    named = _listed(told) if isinstance(told, str) else told
    named = [] if named is None else named
    if not isinstance(named, list) or not all(isinstance(name, str) and _sound(name) for name in named):
        raise ArtifactError(f"{path}: key target_modules: want names of modules, not {shown(told)}")
    return tuple(named), named == [told] and (told == ALL or not PLAIN.fullmatch(told))


def _listed(text: str) -> list[str]:
    """The names in the text of a list, as Python or JSON writes one; of any other text itself."""
    bare = text.strip()
    if not bare.startswith(("[", "(", "{")) or not bare.endswith(("]", ")", "}")):
        return [text] if text else []
    parts = [part.strip() for part in bare[1:-1].strip().rstrip(",").split(",")]
    names = [part[1:-1] for part in parts if part[:1] in ("'", '"') and part[:1] == part[-1:]]
    return [] if parts == [""] else names if len(names) == len(parts) else [text]


def _read_object(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            content = handle.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"more than {LARGEST >> 20} MiB")
        data = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: not readable as JSON ({reason(error)})") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{path}: holds no adapter configuration")
    return data


def text_or_none(path: Path, key: str, value: Any) -> str | None:
    """A text that can be printed, ``None`` where there is none.

    Raises:
        ArtifactError: it is something else; ``key`` names it.
    """
    if value is not None and (not isinstance(value, str) or len(value) > 4096 or not value.isprintable()):
        raise ArtifactError(f"{path}: key {key}: want a text, not {shown(value)}")
    return value or None


def _match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name, as a regular expression."""
    for key, value in patterns.items():
        if _ends(module, key) if PLAIN.fullmatch(key) else re.fullmatch(rf"(.*\.)?({key})", module):
            return value
    return default


def _ends(module: str, key: str) -> bool:
    """Whether a name ends with a key in which nothing but the dot, any letter, means more than itself."""
    start = len(module) - len(key)
    fits = start == 0 or (start > 0 and module[start - 1] == ".")
    return fits and all(k in (m, ".") for k, m in zip(key, module[start:], strict=True))


def _check_patterns(path: Path, keys: Iterable[str]) -> None:
    """Refuse patterns over which matching could take forever: each is tried on every module."""
    patterns = [key for key in keys if not PLAIN.fullmatch(key)]
    if len(patterns) > MOST_PATTERNS:
        raise ArtifactError(f"{path}: has {len(patterns)} patterns, at most {MOST_PATTERNS} are read: name the modules")
    for key in patterns:
        bare = re.sub(r"\\.|\[[^]]*\]", "x", key.replace("(?:", "("))
        repeated, groups = len(re.findall(r"[*+?{]", bare)), bare.count("(")
        if re.search(r"\)[*+?{]", bare) or len(key) > LONGEST_PATTERN or max(repeated, groups) > MOST_REPEATS:
            raise ArtifactError(f"{path}: the pattern {shown(key)} is too complicated: name the modules")
        try:
            re.compile(rf"(.*\.)?({key})")
        except (re.error, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{path}: the pattern {shown(key)} is no regular expression") from error


def _mapping(path: Path, key: str, data: Mapping[str, Any]) -> dict[str, Any]:
    value = data.get(key) or {}
    if not isinstance(value, dict) or not all(map(_sound, value)) or len(value) > MOST_KEYS:
        raise ArtifactError(f"{path}: key {key}: want numbers by names of modules, not {shown(value)}")
    return value


def _whole(path: Path, key: str, value: Any) -> int | None:
    number = _numeral(value)
    number = int(number) if type(number) is float and number.is_integer() else number
    if number is not None and (type(number) is not int or not 1 <= number <= LARGEST_RANK):
        raise ArtifactError(f"{path}: key {key}: want a whole number from 1 to {LARGEST_RANK}, not {shown(value)}")
    return number


def _number(path: Path, key: str, value: Any) -> float | None:
    number = _numeral(value)
    if number is None:
        return None
    sound = isinstance(number, int | float) and not isinstance(number, bool) and 0 < abs(number) < 1e9
    if not sound:
        raise ArtifactError(f"{path}: key {key}: want a finite number that is not 0, not {shown(value)}")
    return float(number)


def _numeral(value: Any) -> Any:
    """The number that a text spells; anything else as it is."""
    return float(value) if isinstance(value, str) and NUMERAL.fullmatch(value) else value


def _switch(path: Path, key: str, value: Any) -> bool:
    """Yes or no, which may be written as a text.

    Raises:
        ArtifactError: neither.
    """
    told = value.lower() if isinstance(value, str) else value
    if told not in (None, False, True, "true"):
        raise ArtifactError(f"{path}: key {key}: want true or false, not {shown(value)}")
    return told in (True, "true")


def _sound(name: str) -> bool:
    return name.isprintable() and 0 < len(name) <= LONGEST_NAME


def shown(value: Any) -> str:
    """Somebody else's value in an error, 80 characters at most."""
    try:
        return value[:80] if isinstance(value, str) and value.isprintable() else ascii(value)[:80]
    except RecursionError:
        return f"a {type(value).__name__}"


def reason(error: Exception) -> str:
    """Why something could not be read, in a few words."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
