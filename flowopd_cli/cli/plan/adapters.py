"""Checks of the base, and of adapters against it, before the base is loaded. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowopd_cli import registry
from flowopd_cli.cli.plan.memory import footprint
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family, family_of, known_shape
from flowopd_cli.models.files.full_weights import WHOLE_BASE
from flowopd_cli.models.files.latents import check_same_latents
from flowopd_cli.models.files.pipelines import AUTOENCODER_FILES, base_fingerprint, linear_shapes, locate
from flowopd_cli.models.files.targets import target_layers
from flowopd_cli.recipe import ModelSpec, TrainedRecipe
from flowopd_cli.runs.adapter_ref import Adapter, AdapterRef, Adapters
from flowopd_cli.system.files import is_dir, is_file
from flowopd_cli.system.paths import is_hub_id, is_revision


def check_base(model: ModelSpec, section: str = "model") -> None:
    """Refuse a base that is not a known name, a pipeline folder or a repository name.

    ``section`` is where the recipe names it: ``model``, or the teacher whose own base it is.

    Raises :class:`ArtifactError`: says how to fix it.
    """
    name, family = model.pretrained, family_of(model.pretrained)
    flag, place = ("--base", "model.pretrained") if section == "model" else (f"{section}.base", f"{section}.base")
    if family not in (None, model.family) and model.family in registry.FAMILIES.names():
        raise ArtifactError(
            f"{section}.family {model.family}: {name} belongs to the family {family}: use --set "
            f"{section}.family={family}"
        )
    if model.revision is not None and not is_revision(model.revision):
        raise ArtifactError(f"{section}.revision {model.revision[:80]!r}: is not a branch, tag or commit")
    if name in registry.BASES.names():
        return
    if is_dir(name):
        if not is_file(Path(name) / "model_index.json"):
            raise ArtifactError(f"{flag} {name}: not a diffusers pipeline folder (no model_index.json in it)")
        return
    if "/" not in name and not name.startswith("."):
        registry.BASES.target(name)
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ArtifactError(
            f"base {name}: no such folder; name the right one by {flag}, on --resume by --set {place}=DIR"
        )
    if not is_hub_id(name):
        raise ArtifactError(f"{flag} {name}: no such folder, and no repository of the Hub (owner/name)")


def check_own_base(field: str, own: ModelSpec, student: ModelSpec, *, fetch: bool = False) -> None:
    """Refuse a teacher's own base whose latents or path are not the student's, before any model is loaded.

    Of a base on the Hub, configurations and autoencoder are fetched with ``fetch``; otherwise it is not checked.

    Raises :class:`ArtifactError`, which names the field.
    """
    check_base(own, field)
    try:
        sources = [(registry.base_source(model.pretrained), model.revision) for model in (own, student)]
        if fetch or all(is_dir(Path(source)) for source, _ in sources):
            check_same_latents(*(locate(*source, files=AUTOENCODER_FILES) for source in sources))
    except ArtifactError as error:
        raise ArtifactError(f"{field}.base: {error}") from error


def check_adapters(
    model: ModelSpec, refs: Mapping[str, str], adapters: Adapters, *, fetch: bool = False, loads: bool = True
) -> None:
    """Refuse adapters, keyed by their recipe field, that are missing, damaged, or (by their files) trained on another
    base, and where the base ``loads`` full models that it does not take. Adapters on the Hub are skipped, or fetched
    first with ``fetch``.

    Raises :class:`ArtifactError`, which names the field or the adapter.
    """
    resolved: dict[str, Adapter] = {}
    for field, ref in refs.items():
        try:
            if fetch or AdapterRef.parse(ref).kind != "hub":
                resolved[ref] = adapters[ref]
                full, _ = resolved[ref].full, resolved[ref].header
                if full and loads and (model.shard or model.quantize != "none"):
                    raise ArtifactError(f"{ref} is a full model, and a sharded or quantized base {WHOLE_BASE}")
        except ArtifactError as error:
            raise ArtifactError(f"{field}: {error}") from error
    recorded = {ref: adapter.base.sha256 for ref, adapter in resolved.items() if adapter.base and adapter.base.sha256}
    for ref, sha256 in recorded.items():
        first, expected = next(iter(recorded.items()))
        if sha256 != expected:
            raise ArtifactError(
                f"{first} and {ref} were trained on different bases ({expected[:12]}, {sha256[:12]}): "
                "use adapters of one base"
            )
    folder = Path(registry.base_source(model.pretrained))
    if is_dir(folder) and model.family in registry.FAMILIES.names():
        _check_fingerprint(model.pretrained, folder, recorded)
        _check_modules(folder, resolved)


def check_targets(recipe: TrainedRecipe) -> None:
    """Refuse targets of a new adapter that match no linear layer, if the base's layers are known without its weights.

    Raises :class:`RecipeError`, which names the target.
    """
    model, adapter = recipe.model, recipe.adapter
    if adapter.init not in (None, "base") or adapter.kind == "full" or model.family not in registry.FAMILIES.names():
        return
    if layers := linear_shapes(Path(registry.base_source(model.pretrained))):
        target_layers(adapter.targets, list(layers))
    elif known_shape(model.pretrained) and adapter.targets != family(model.family).targets:
        footprint(recipe)  # it builds the base without weights, and the adapter on it


def _check_fingerprint(pretrained: str, folder: Path, recorded: Mapping[str, str]) -> None:
    fingerprint = base_fingerprint(folder) if recorded else ""
    for ref, sha256 in recorded.items():
        if sha256 != fingerprint:
            raise ArtifactError(
                f"{ref}: was trained on another base ({sha256[:12]}, {pretrained} is {fingerprint[:12]}): name "
                "its base with --base, or another adapter"
            )


def _check_modules(folder: Path, adapters: Mapping[str, Adapter]) -> None:
    modules = linear_shapes(folder)
    for ref, adapter in adapters.items() if modules else ():
        for name, shape in _linear_shapes(adapter).items():
            prefix = f"{ref}: was made for another base"
            if name not in modules:
                raise ArtifactError(f"{prefix}: this one has no module {name}")
            if shape != modules[name]:
                raise ArtifactError(f"{prefix}: {name} is {modules[name]} here, the adapter expects {shape}")


def _linear_shapes(adapter: Adapter) -> dict[str, tuple[int, ...]]:
    """``(outputs, inputs)`` of the linear modules that an adapter or a full model changes."""
    if adapter.full:
        shapes = {name: shape for name, shape in adapter.full.shapes.items() if len(shape) == 2}
        return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}
    pairs = adapter.header.pairs if adapter.header else {}
    return {name: (pair.outputs, pair.inputs) for name, pair in pairs.items()}
