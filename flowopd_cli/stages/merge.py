"""``flowopd merge``: several adapters or full models of one base become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from flowopd_cli.core.merging import Dense, MergeOptions, MergeReport, Update, merge, merge_dense
from flowopd_cli.errors import ArtifactError, MergeError
from flowopd_cli.models.adapter_files import AdapterConfig, read_adapter, write_adapter
from flowopd_cli.models.files.full_weights import CONFIG, read_weights_header
from flowopd_cli.models.files.pipelines import TRANSFORMER_FILES, base_fingerprint, locate
from flowopd_cli.models.full_files import read_tensor, write_folder
from flowopd_cli.recipe import MergeRecipe, ModelSpec
from flowopd_cli.registry import base_source
from flowopd_cli.runs.adapter_ref import Adapter, Adapters
from flowopd_cli.runs.manifest import Base, Inputs
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.progress import Progress


def run(
    recipe: MergeRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Merge LoRAs to one LoRA, or full models and LoRAs to a full model, and report the error of the merge."""
    resolver = adapters or Adapters()
    inputs = [resolver[ref] for ref in recipe.adapters]
    base_sha = base_digest(recipe.model, {adapter.ref.text: adapter.base for adapter in inputs})
    base = Base(ref=recipe.model.pretrained, sha256=base_sha)
    run.declare(Inputs(base=base, parents=tuple(adapter.parent("adapter") for adapter in inputs)))
    spec = recipe.merge
    weights = spec.weights or [1 / len(inputs)] * len(inputs)
    options = MergeOptions(spec.method, spec.rank, spec.density, recipe.seed, spec.normalize)
    if any(adapter.full for adapter in inputs):
        figures = _merge_full(recipe, inputs, weights, options, run)
        what = "a full model"
    else:
        figures = _merge_loras(recipe, inputs, weights, options, run)
        what = f"rank {figures['rank']}"
    energy, error = figures["retained_energy"], figures["relative_error"]
    text = f"energy retained {energy:.4f}, error {error:.4f}"
    if math.isnan(error):
        text = "the merged update is zero: the weighted updates cancel, or each of them is 0"
    progress.note(f"{spec.method}: {what}, {text}")
    return {"metrics": figures}


def _merge_loras(
    recipe: MergeRecipe, inputs: Sequence[Adapter], weights: Sequence[float], options: MergeOptions, run: RunDir
) -> dict[str, Any]:
    """Read the factors, merge the products, write the adapter; figures are null where there is none."""
    configs, factors = zip(*(read_adapter(path) for path in map(_path, inputs)), strict=True)
    merged = merge(factors, weights, options)
    rank = max(f.a.shape[0] for f in merged.factors.values())
    targets = [config.targets for config in configs]
    union = tuple(dict.fromkeys(chain(*targets))) if all(targets) else ()  # exact only if all of them are
    base = run.manifest().base
    config = AdapterConfig(rank, float(rank), union, recipe.model.pretrained, base and base.sha256)
    run.save_adapter(lambda folder: write_adapter(folder, merged.factors, config))
    return {"rank": rank, **_figures(merged.report)}


def _merge_full(
    recipe: MergeRecipe, inputs: Sequence[Adapter], weights: Sequence[float], options: MergeOptions, run: RunDir
) -> dict[str, Any]:
    """Merge the differences to the base, tensor by tensor; the error is that of rounding the sum to float32."""
    source = base_source(recipe.model.pretrained)
    folder = locate(source, recipe.model.revision, files=TRANSFORMER_FILES) / "transformer"
    header = read_weights_header(folder)
    changes = [_changes(adapter, header.shapes) for adapter in inputs]
    tensors, target, error = {}, 0.0, 0.0
    for name in header.files:
        base = read_tensor(header, name)
        updates = [change(name, base) for change in changes]
        merged = base.float()
        if any(update is not None for update in updates):
            delta = merge_dense(name, updates, weights, options)
            exact = base.double() + delta
            merged = exact.float()
            target += float(delta.square().sum())
            error += float((merged.double() - exact).square().sum())
        if not merged.isfinite().all():
            raise MergeError(f"{name}: the merge has numbers that are not finite: lower the weights")
        tensors[name] = merged
    config = read_json(folder / CONFIG, "configuration of a transformer")
    base = run.manifest().base
    run.save_adapter(lambda place: write_folder(place, tensors, config, recipe.model.pretrained, base and base.sha256))
    return _figures(MergeReport(target, error))


def _changes(adapter: Adapter, base: Mapping[str, tuple[int, ...]]) -> Callable[[str, Tensor], Update | None]:
    """A function that returns the update of one tensor of the base, ``None`` where there is none.

    Raises :class:`ArtifactError`: a tensor is missing or has another shape than in the base, whose shapes are given.
    """
    header = adapter.full
    if header is None:
        factors = {f"{module}.weight": pair for module, pair in read_adapter(_path(adapter))[1].items()}
        shapes = {name: (pair.b.shape[0], pair.a.shape[1]) for name, pair in factors.items()}
        _check_shapes(adapter.ref.text, shapes, {name: base[name] for name in shapes if name in base})
        return lambda name, tensor: factors.get(name)
    _check_shapes(adapter.ref.text, header.shapes, base)
    return lambda name, tensor: Dense(read_tensor(header, name).double() - tensor.double())


def _check_shapes(ref: str, shapes: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> None:
    for name in {**base, **shapes}:
        here, there = (f"{named[name]}" if name in named else "missing" for named in (shapes, base))
        if here != there:
            raise ArtifactError(
                f"{ref}: was made for another base: {name} is {here} in it, {there} there: name its base with --base"
            )


def _figures(report: MergeReport) -> dict[str, Any]:
    return {
        "update_norm": report.norm,
        "retained_energy": report.retained_energy,
        "relative_error": report.relative_error,
    }


def _path(adapter: Adapter) -> Path:
    assert adapter.path is not None, "a recipe has no base among its adapters"
    return adapter.path


def base_digest(model: ModelSpec, bases: Mapping[str, Base | None]) -> str | None:
    """The digest of the adapters' one base; :class:`ArtifactError` if bases differ, ``None`` if it is unknown."""
    digests = {ref: base.sha256 if base else None for ref, base in bases.items()}
    known = {sha for sha in digests.values() if sha is not None}
    listed = ", ".join(f"{ref} on {sha[:12] if sha else 'unknown'}" for ref, sha in digests.items())
    if len(known) > 1:
        raise ArtifactError(f"adapters of different bases cannot be merged: {listed}")
    source = Path(base_source(model.pretrained))
    own = base_fingerprint(source) if source.is_dir() else None
    if own is not None and known - {own}:
        raise ArtifactError(
            f"the adapters were trained on another base than {model.pretrained}, which is {own[:12]} ({listed}): "
            "name theirs with --base"
        )
    return own or next(iter(known), None)
