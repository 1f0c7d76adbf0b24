"""The files of an adapter before a tensor is read: configuration, names, kinds and shapes. No torch here."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Collection, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from flowopd_cli.errors import ArtifactError, one_line
from flowopd_cli.models.files.foreign_names import as_peft, other_kind, parts
from flowopd_cli.models.files.peft_config import (
    BASE_KEY,
    LARGEST_RANK,
    LONGEST_NAME,
    PLAIN,
    PeftConfig,
    parse_config,
    read_config,
    shown,
)
from flowopd_cli.models.files.targets import uncovered
from flowopd_cli.system.files import is_file

CONFIG, PEFT_WEIGHTS, DIFFUSERS_WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
PEFT_PREFIX, DIFFUSERS_PREFIX = "base_model.model.", "transformer."
PREFIXES = (PEFT_PREFIX, "module.", "_orig_mod.", DIFFUSERS_PREFIX)  # as wrapped, parallel, compiled, in a pipeline
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # where diffusers keeps PEFT's configuration, in the header of its weights
MOST_MODULES = 20_000
KINDS = {
    "F64": "<d",
    "F32": "<f",
    "F16": "<e",
    "BF16": "<f",
}  # as the struct module reads one; BF16 with two more bytes
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B)(?:\.[^.]+)?\.weight")


class Entry(NamedTuple):
    """A tensor in a header: its kind as safetensors calls it (``F32``) and its shape."""

    kind: str
    shape: tuple[int, ...]


class Pair(NamedTuple):
    """A module's factors: the names in their file of A ``(rank, inputs)`` and B ``(outputs, rank)``; their sizes.

    B is these spans of rows of its tensor, one after the other; all rows if there are none.
    """

    a: str
    b: str
    rank: int
    inputs: int
    outputs: int
    rows: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class AdapterHeader:
    """An adapter before its factors are read: their names and shapes, and diffusers' ``alpha`` scalars, by module."""

    file: Path
    config: PeftConfig
    pairs: Mapping[str, Pair]
    alphas: Mapping[str, float]

    @property
    def rank(self) -> int:
        """The rank of the configuration, the largest if no module has it."""
        ranks = {pair.rank for pair in self.pairs.values()}
        return self.config.rank if self.config.rank in ranks else max(ranks)

    @property
    def alpha(self) -> float:
        """The alpha of a module of this rank, where the scale is alpha / rank."""
        if self.config.alpha is not None and not self.config.rank_stabilized:
            return self.config.alpha
        return self.rank * self.scale(next(name for name, pair in self.pairs.items() if pair.rank == self.rank))

    def scale(self, module: str) -> float:
        """The factor on the product of a module's factors."""
        rank = self.pairs[module].rank
        return self.alphas[module] / rank if self.alphas else self.config.scale_of(module, rank)

    @property
    def targets(self) -> tuple[str, ...]:
        """The targets of the configuration; none if PEFT could adapt further modules by them, or not all of these."""
        targets = self.config.targets
        return () if uncovered(targets, self.pairs) or not self.pairs.keys().isdisjoint(targets) else targets


def weights_file(place: Path) -> Path | None:
    """The weights of an adapter: the file itself, or those of a folder; ``None`` if it has none.

    Raises :class:`ArtifactError`: none of several files has the name that PEFT or diffusers gives.
    """
    if is_file(place):
        return place
    if is_file(place / CONFIG):
        return place / PEFT_WEIGHTS
    files = sorted(place.glob("*.safetensors"))
    named = [file for file in files if file.name == DIFFUSERS_WEIGHTS]
    if len(files) > 1 and not named:
        listed = ", ".join(shown(file.name) for file in files[:3])
        raise ArtifactError(f"{place}: has {len(files)} safetensors files ({listed}): name the file of the adapter")
    return next(iter([*named, *files]), None)


def read_adapter_header(place: Path) -> AdapterHeader:
    """The header of an adapter: a folder in PEFT's or diffusers' form, or a safetensors file, also of other programs.

    Raises :class:`ArtifactError`: a file is missing, damaged or not safetensors; it is not plain LoRA; factors do not
    pair up, are of no floating kind, of another rank than the configuration says, or of no certain scale.
    """
    file = weights_file(place) or place / DIFFUSERS_WEIGHTS
    beside = file.with_name(CONFIG)
    config = read_config(beside) if file.name == PEFT_WEIGHTS and is_file(beside) else None
    entries, metadata = read_header(file, place)
    pairs, alphas = _pairs(file, entries)
    if config is None:
        if any(name.startswith(PEFT_PREFIX) for name in entries):
            raise ArtifactError(f"{file}: has PEFT's names, but no {CONFIG} beside it, which holds the scale")
        config = _config_in(file, metadata, entries)
        if alphas and config.path:
            raise ArtifactError(f"{file}: gives its scales twice ({DIFFUSERS_CONFIG}, and tensors called alpha)")
    elif alphas:
        raise ArtifactError(f"{file}: {next(iter(alphas.values()))[:LONGEST_NAME]} is not a LoRA factor")
    elif config.targets and (module := uncovered(config.targets, pairs)):
        raise ArtifactError(
            f"{config.path}: key target_modules does not match {module}, which has factors in {file.name}; PEFT would "
            "leave them out: add the module, or remove its factors"
        )
    for module, pair in pairs.items():
        rank = config.rank_of(module)
        if rank not in (None, pair.rank):
            raise ArtifactError(
                f"{config.path}: key r (or rank_pattern) says rank {rank} for {module}, but its factors in {file.name} "
                f"have rank {pair.rank}: configuration and weights belong to different adapters"
            )
    base = config.base_sha256 or _base_in(file, metadata)
    config = config.model_copy(update={"base_sha256": base})
    return AdapterHeader(file, config, pairs, _scalars(file, pairs.keys(), alphas, entries))


def _config_in(file: Path, metadata: Mapping[str, str], names: Collection[str]) -> PeftConfig:
    """The configuration of the transformer's adapter in the metadata of diffusers' weights; empty without one.

    Its keys have the prefix of the tensors' names: a pipeline writes ``transformer.``, a transformer none.
    """
    prefixed = sum(name.startswith(DIFFUSERS_PREFIX) for name in names)
    if 0 < prefixed < len(names):
        raise ArtifactError(f"{file}: has names with and without {DIFFUSERS_PREFIX}; diffusers reads only one kind")
    text = metadata.get(DIFFUSERS_CONFIG)
    if not text:
        return PeftConfig()
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: {DIFFUSERS_CONFIG} is not readable as JSON ({one_line(error)[:200]})") from error
    if not isinstance(config, dict) or any(key.startswith(DIFFUSERS_PREFIX) != bool(prefixed) for key in config):
        raise ArtifactError(
            f"{file}: {DIFFUSERS_CONFIG} does not describe its tensors: both must begin with {DIFFUSERS_PREFIX}, or "
            "neither"
        )
    return parse_config(file, {key.removeprefix(DIFFUSERS_PREFIX): value for key, value in config.items()})


def read_header(path: Path, folder: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Names, kinds and shapes of a safetensors file, and its metadata; no tensor is read.

    Raises :class:`ArtifactError`: there is none in ``folder``, or it is not a whole safetensors file.
    """
    if not is_file(path):
        raise ArtifactError(
            f"{folder}: no {path.name} in it (pickled weights are not read; those you trust, load with PEFT or "
            "diffusers and save again, which writes safetensors)"
        )
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            entries = {name: Entry(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
            return entries, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"{path}: damaged or not safetensors ({one_line(error)[:200]})") from error


def recorded_in_weights(path: Path) -> str | None:
    """The digest of the base in the metadata of a weights file, if it has one."""
    try:
        _, metadata = read_header(path, path.parent)
    except ArtifactError:
        return None
    return _base_in(path, metadata)


def _base_in(path: Path, metadata: Mapping[str, str]) -> str | None:
    return parse_config(path, {BASE_KEY: metadata.get(BASE_KEY)}).base_sha256


def _pairs(file: Path, entries: Mapping[str, Entry]) -> tuple[dict[str, Pair], dict[str, str]]:
    """Factors by module, and the names of the ``alpha`` scalars beside them."""
    sides: dict[str, dict[str, str]] = {}
    alphas: dict[str, str] = {}
    for name, entry in entries.items():
        bare = as_peft(name)
        for prefix in PREFIXES:
            bare = bare.removeprefix(prefix)
        _check_entry(file, name, entry)
        if bare.endswith(".alpha") and math.prod(entry.shape) == 1:
            alphas[bare.removesuffix(".alpha")] = name
            continue
        match = _NAME.fullmatch(bare)
        if match is None or not PLAIN.fullmatch(match["module"]):
            raise ArtifactError(f"{file}: {shown(name)} is not a LoRA factor")
        if match["side"] in sides.setdefault(match["module"], {}):
            raise ArtifactError(f"{file}: {shown(name)} is a second {match['side']} factor of {match['module']}")
        sides[match["module"]][match["side"]] = name
    if len(sides) > MOST_MODULES:
        raise ArtifactError(f"{file}: names {len(sides)} modules, at most {MOST_MODULES} are taken")
    if not sides:
        raise ArtifactError(f"{file.parent}: the adapter is empty")
    return _split(file, {module: _pair(file, module, names, entries) for module, names in sides.items()}, alphas)


def _split(file: Path, pairs: Mapping[str, Pair], alphas: Mapping[str, str]) -> tuple[dict[str, Pair], dict[str, str]]:
    """Factors and ``alpha`` scalars by diffusers' modules, where another program has one module for several."""
    split: dict[str, Pair] = {}
    scalars = {module: name for module, name in alphas.items() if module not in pairs}
    for module, pair in pairs.items():
        try:
            modules = parts(module, pair.inputs, pair.outputs)
        except ValueError as error:
            raise ArtifactError(f"{file}: {module} is no linear module of FLUX or SD3 of this shape") from error
        for part in modules:
            if part.module in split:
                raise ArtifactError(f"{file}: {shown(pair.a)} is a second A factor of {part.module}")
            rows = sum(end - start for start, end in part.rows) or pair.outputs
            split[part.module] = pair._replace(outputs=rows, rows=part.rows)
            if module in alphas:
                scalars[part.module] = alphas[module]
    return split, scalars


def _scalars(file: Path, modules: Set[str], names: Mapping[str, str], entries: Mapping[str, Entry]) -> dict[str, float]:
    """The values of the ``alpha`` scalars by module: for every module, or none."""
    if names.keys() - modules:
        raise ArtifactError(f"{file}: {names[min(names.keys() - modules)]} belongs to no factors")
    if names and modules - names.keys():
        raise ArtifactError(f"{file}: {min(modules - names.keys())} has no alpha, other modules have: scale unknown")
    values: dict[str, float] = {}
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size)) if names else {}
        for module, name in names.items():
            begin, end = header[name]["data_offsets"]
            stream.seek(8 + size + begin)
            kind = entries[name].kind
            (values[module],) = struct.unpack(KINDS[kind], b"\0\0" * (kind == "BF16") + stream.read(end - begin))
            if not values[module] or not math.isfinite(values[module]):
                raise ArtifactError(f"{file}: {name} is {values[module]:g}; an alpha is a finite number that is not 0")
    return values


def _check_entry(file: Path, name: str, entry: Entry) -> None:
    if kind := other_kind(name):
        raise ArtifactError(f"{file}: {kind} ({shown(name)}); only plain LoRA of the transformer is read")
    if len(name) > LONGEST_NAME:
        raise ArtifactError(f"{file}: {name[:40]}… is not a LoRA factor")
    if entry.kind not in KINDS:
        raise ArtifactError(f"{file}: {shown(name)} holds {shown(entry.kind)}; factors are {', '.join(KINDS)}")


def _pair(file: Path, module: str, names: Mapping[str, str], entries: Mapping[str, Entry]) -> Pair:
    a, b = names.get("A", ""), names.get("B", "")
    left, right = (entries[name].shape if name else () for name in (b, a))
    if len(left) > 2 and len(right) > 2:
        raise ArtifactError(f"{file}: {module} is a convolution ({shown(a)}); only linear layers can be adapted")
    if len(left) != 2 or len(right) != 2 or left[1] != right[0] or not all((*left, *right)):
        shapes = f"A {list(right) if a else 'missing'}, B {list(left) if b else 'missing'}"
        raise ArtifactError(f"{file.parent}: the A and B factors of {module} do not pair up ({shapes})")
    if right[0] > LARGEST_RANK:
        raise ArtifactError(f"{file}: {module} has rank {right[0]}; at most {LARGEST_RANK} is taken")
    return Pair(a, b, right[0], right[1], left[0])
