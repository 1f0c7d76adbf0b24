"""Checks of the base, and of adapters against it, before the base is loaded. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flowopd_cli import registry
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.adapter_header import Pair
from flowopd_cli.models.files.families import family_of
from flowopd_cli.models.files.pipelines import base_fingerprint, linear_shapes
from flowopd_cli.recipe import ModelSpec
from flowopd_cli.runs.adapter_ref import AdapterRef, Adapters
from flowopd_cli.system.paths import is_dir, is_file, is_hub_id, is_revision


def check_base(model: ModelSpec) -> None:
    """Refuse a base that is neither a known name, nor a pipeline's folder, nor the name of a repository.

    Raises:
        ArtifactError: with the way out.
    """
    name = model.pretrained
    _check_family(model)
    if model.revision is not None and not is_revision(model.revision):
        raise ArtifactError(f"model.revision {model.revision[:80]!r}: is no branch, tag or commit")
    if name in registry.BASES.names():
        return
    if is_dir(name):
        if not is_file(Path(name) / "model_index.json"):
            raise ArtifactError(f"--base {name}: not a diffusers pipeline folder (no model_index.json in it)")
        return
    if "/" not in name and not name.startswith("."):
        registry.BASES.target(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ArtifactError(f"--base {name}: no such folder")
    if not is_hub_id(name):
        raise ArtifactError(f"--base {name}: no such folder, and no repository of the Hub (owner/name)")


def _check_family(model: ModelSpec) -> None:
    """Refuse a base that is known to be of another family than the recipe says."""
    actual = family_of(model.pretrained)
    if actual is not None and actual != model.family and model.family in registry.FAMILIES.names():
        raise ArtifactError(
            f"model.family {model.family}: {model.pretrained} is of the family {actual}: "
            f"use --set model.family={actual}"
        )


def check_refs(refs: Mapping[str, str], adapters: Adapters, *, fetch: bool = False) -> None:
    """Refuse adapters, named by their place in the recipe, that are missing or damaged. Those on the Hub are passed
    over, or with ``fetch`` fetched first.

    Raises:
        ArtifactError: see :func:`flowopd_cli.models.files.adapter_header.read_adapter_header`.
    """
    for role, ref in refs.items():
        try:
            if fetch or AdapterRef.parse(ref).kind != "hub":
                _ = adapters[ref].header
        except ArtifactError as error:
            raise ArtifactError(f"{role}: {error}") from error


def check_bases(model: ModelSpec, refs: Mapping[str, str], adapters: Adapters, *, fetch: bool = False) -> None:
    """Refuse adapters of different bases, or of another base than the recipe's, as far as files say.
    ``fetch`` as in :func:`check_refs`.

    Raises:
        ArtifactError: the records differ, or the base has no such module, or it has another shape there.
    """
    resolved = {ref: adapters[ref] for ref in refs.values() if fetch or AdapterRef.parse(ref).kind != "hub"}
    recorded = [(ref, adapter.base.sha256) for ref, adapter in resolved.items() if adapter.base and adapter.base.sha256]
    _check_one_base(recorded)
    folder = _folder(model.pretrained)
    if model.family not in registry.FAMILIES.names() or folder is None:
        return
    fingerprint = base_fingerprint(folder) if recorded else ""
    for text, sha in recorded:
        if sha != fingerprint:
            raise ArtifactError(
                f"{text}: was trained on another base ({sha[:12]}, {model.pretrained} is {fingerprint[:12]}): name "
                "its base with --base, or another adapter"
            )
    modules = linear_shapes(folder)
    for ref, adapter in resolved.items() if modules else ():
        if adapter.header is not None:
            _check_modules(ref, adapter.header.pairs, modules)


def _folder(pretrained: str) -> Path | None:
    """Where a base lies on this machine; ``None`` where it is on the Hub."""
    path = str(registry.BASES.load(pretrained)()) if pretrained in registry.BASES.names() else pretrained
    return Path(path) if is_dir(path) else None


def _check_one_base(recorded: Sequence[tuple[str, str]]) -> None:
    """Adapters whose runs recorded different bases cannot meet."""
    for text, sha in recorded[1:]:
        if sha != recorded[0][1]:
            first = recorded[0][0]
            raise ArtifactError(
                f"{first} and {text} were trained on different bases ({recorded[0][1][:12]}, {sha[:12]}): "
                "use adapters of one base"
            )


def _check_modules(text: str, pairs: Mapping[str, Pair], modules: Mapping[str, tuple[int, int]]) -> None:
    for name, pair in pairs.items():
        shape = (pair.outputs, pair.inputs)
        if name not in modules:
            raise ArtifactError(f"{text}: is of another base: this one has no module {name}")
        if shape != modules[name]:
            raise ArtifactError(
                f"{text}: is of another base: {name} is {modules[name]} here, the adapter expects {shape}"
            )
