"""``adapter_config.json`` of PEFT, every value checked. No torch here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flowopd_cli.errors import ArtifactError
from flowopd_cli.system.json_files import read_json

BASE_KEY = "base_sha256"
LONGEST_NAME, LARGEST_RANK = 256, 1 << 16
MOST_KEYS, MOST_PATTERNS, LONGEST_PATTERN, MOST_REPEATS = 10_000, 64, 200, 2
PLAIN = re.compile(r"[\w.-]+")
DEFAULT_ALPHA = 8  # PEFT's own, if there is no lora_alpha
NUMERAL = re.compile(r"-?\d{1,9}(\.\d{1,17})?", re.ASCII)
# How some programs write that there is no value.
ABSENT = {"", "none", "null", "false", "[]", "{}", "()"}
# What PEFT adds to plain LoRA, by the key that turns it on.
BEYOND = {
    "use_dora": "a DoRA adapter, whose magnitudes have no low-rank form",
    "modules_to_save": "trains whole modules",
    "bias": "trains biases",
    "lora_bias": "trains biases of its factors",
    "use_qalora": "a QALoRA adapter",
    "use_bdlora": "a BD-LoRA adapter",
    "kasa_config": "a KaSA adapter",
    "monteclora_config": "a MonteCLoRA adapter",
    "alora_invocation_tokens": "an activated LoRA",
    "arrow_config": "a router of several adapters",
    "layer_replication": "repeats layers of its base",
    "target_parameters": "trains parameters that are not a module's weight",
    "trainable_token_indices": "trains tokens",
}
# Initializations that move the base's own weights: the factors alone do not fit the base as it was.
MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What leaves out some of the layers that target_modules matches.
NARROWING = {"layers_to_transform", "exclude_modules"}
EXPECTED = {
    "r": f"a whole number from 1 to {LARGEST_RANK}",
    "lora_alpha": "a finite number that is not 0",
    "use_rslora": "true or false",
    "target_modules": "a pattern, or a list of names",
    "rank_pattern": "numbers by names of modules",
    "alpha_pattern": "numbers by names of modules",
}
ELEMENTS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}


def _number(value: Any) -> Any:
    if isinstance(value, str) and NUMERAL.fullmatch(value):
        return float(value)
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    return _valid(value, value is None or number)


def _names_and_numbers(value: Any) -> Any:
    return _valid(value, isinstance(value, dict) and len(value) <= MOST_KEYS and all(map(_is_name, value)))


def _printable(value: Any) -> str | None:
    return _valid(value, isinstance(value, str) and len(value) <= 4096 and value.isprintable()) or None


def _module_names(value: Any) -> tuple[str, ...]:
    return tuple(_valid(value, isinstance(value, list) and all(map(_is_name, value))))


def _valid(value: Any, condition: bool) -> Any:
    if not condition:
        raise ValueError
    return value


Rank = Annotated[Annotated[int, Field(ge=1, le=LARGEST_RANK)] | None, BeforeValidator(_number)]
Alpha = Annotated[float | None, BeforeValidator(_number), AfterValidator(lambda value: _valid(value, value != 0))]
Text = Annotated[str | None, BeforeValidator(_printable)]
Numbers = BeforeValidator(_names_and_numbers)


class PeftConfig(BaseModel):
    """The used keys of ``adapter_config.json``; ``None`` or empty if a key is absent.

    ``targets`` is empty too if ``target_modules`` is a pattern, or not all layers that it matches are adapted.
    """

    model_config = ConfigDict(frozen=True)

    path: Path | None = Field(default=None, exclude=True)
    rank: Rank = Field(default=None, alias="r")
    alpha: Alpha = Field(default=None, alias="lora_alpha")
    targets: Annotated[tuple[str, ...], BeforeValidator(_module_names)] = Field(default=(), alias="target_modules")
    base: Text = Field(default=None, alias="base_model_name_or_path")
    base_sha256: Text = None
    rank_pattern: Annotated[dict[str, Rank], Numbers] = {}
    alpha_pattern: Annotated[dict[str, Alpha], Numbers] = {}
    rank_stabilized: bool = Field(default=False, alias="use_rslora")

    def rank_of(self, module: str) -> int | None:
        """The rank that a module's factors should have, if the configuration has one."""
        return _match(self.rank_pattern, module, self.rank)

    def scale_of(self, module: str, rank: int) -> float:
        """The factor on the product of a module's factors."""
        alpha = _match(self.alpha_pattern, module, self.alpha if self.alpha is not None else float(rank))
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_config(path: Path) -> PeftConfig:
    """A PEFT configuration file; see :func:`parse_config`."""
    return parse_config(path, read_json(path, "adapter configuration"))


def parse_config(path: Path, data: Mapping[str, Any]) -> PeftConfig:
    """The PEFT configuration found in ``path``; keys that change nothing here are ignored.

    Some programs write a number or a list of modules as text; a text in :data:`ABSENT` counts as absent.

    Raises :class:`ArtifactError`: a value of another kind (its key is named), or more than plain LoRA.
    """
    texts = {key: "".join(value.split()).lower() for key, value in data.items() if isinstance(value, str)}
    data = {"lora_alpha": DEFAULT_ALPHA, **data}
    data = {key: value for key, value in data.items() if value is not None and texts.get(key) not in ABSENT}
    kind, initialization = data.get("peft_type", "LORA"), data.get("init_lora_weights")
    if kind != "LORA":
        raise ArtifactError(f"{path}: the adapter type is {shown(kind)} (peft_type); only plain LoRA can be used")
    for key, what in BEYOND.items():
        if data.get(key) and not (key == "bias" and data[key] == "none"):
            raise ArtifactError(f"{path}: {what} ({key}: {shown(data[key])}); only plain LoRA can be used")
    if isinstance(initialization, str) and initialization.lower().startswith(MOVING):
        raise ArtifactError(
            f"{path}: began by moving the base's own weights (init_lora_weights: {shown(initialization)}): convert it "
            "to plain LoRA with PEFT (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if "target_modules" in texts or data.keys() & NARROWING:
        data.pop("target_modules", None)
    try:
        config = PeftConfig.model_validate({**data, "path": path})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key, inner = str(first["loc"][0]), first["loc"][1:2]
        expected = EXPECTED.get(ELEMENTS.get(key, key) if inner else key, "a text")
        where = ".".join([key, *map(str, inner)])
        raise ArtifactError(f"{path}: key {where}: want {expected}, not {shown(first['input'])}") from None
    _check_patterns(path, [*config.rank_pattern, *config.alpha_pattern])
    return config


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and 0 < len(name) <= LONGEST_NAME


def _match(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that matches the end of the module's name, as a regular expression."""
    for key, value in patterns.items():
        if _ends_with(module, key) if _is_plain(key) else re.fullmatch(rf"(.*\.)?({key})", module):
            return 1 if value is None else value
    return default


def _bare(key: str) -> str:
    return key.removeprefix("^").removesuffix("$")


def _is_plain(key: str) -> bool:
    return PLAIN.fullmatch(_bare(key)) is not None


def _ends_with(module: str, key: str) -> bool:
    """Whether a name ends with a plain key, or after ``^`` equals it, without compiling a pattern; as in a pattern, a
    dot of the key matches any character.
    """
    name = _bare(key)
    start = len(module) - len(name)
    at_part = start == 0 or (start > 0 and key[0] != "^" and module[start - 1] == ".")
    return at_part and all(k in (m, ".") for k, m in zip(name, module[start:], strict=True))


def _check_patterns(path: Path, keys: Iterable[str]) -> None:
    """Refuse patterns whose matching could take forever: each is tried on every module."""
    patterns = [key for key in keys if not _is_plain(key)]
    if len(patterns) > MOST_PATTERNS:
        raise ArtifactError(f"{path}: has {len(patterns)} patterns, at most {MOST_PATTERNS} are read: name the modules")
    for key in patterns:
        bare = re.sub(r"\\.|\[[^]]*\]", "x", key.replace("(?:", "("))
        repeats, groups = len(re.findall(r"[*+?{]", bare)), bare.count("(")
        if re.search(r"\)[*+?{]", bare) or len(key) > LONGEST_PATTERN or max(repeats, groups) > MOST_REPEATS:
            raise ArtifactError(f"{path}: the pattern {shown(key)} is too complex: name the modules")
        try:
            re.compile(rf"(.*\.)?({key})")
        except (re.error, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{path}: the pattern {shown(key)} is not a regular expression") from error


def shown(value: Any) -> str:
    """An untrusted value for an error message, 80 characters at most."""
    try:
        return value[:80] if isinstance(value, str) and value.isprintable() else ascii(value)[:80]
    except RecursionError:
        return f"a {type(value).__name__}"
