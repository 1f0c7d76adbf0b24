"""``flowopd merge``: several adapters of one base become one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from flowopd_cli.core.merging import MergeOptions, merge
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.adapter_files import AdapterConfig, read_adapter, write_adapter
from flowopd_cli.models.files.pipelines import base_fingerprint
from flowopd_cli.recipe import MergeRecipe, ModelSpec
from flowopd_cli.registry import base_source
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.manifest import Base, Inputs
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.progress import Progress


def run(
    recipe: MergeRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Read the factors, merge the products, write the adapter and the error of the merge; null where there is none."""
    adapters = adapters or Adapters()
    parents, inputs, targets, bases = [], [], [], {}
    for ref in recipe.adapters:
        adapter = adapters[ref]
        assert adapter.path is not None, "a recipe has no base among its adapters"
        config, factors = read_adapter(adapter.path)
        parents.append(adapter.parent("adapter"))
        bases[ref] = adapter.base
        inputs.append(factors)
        targets.append(config.targets)
    base_sha = base_digest(recipe.model, bases)
    run.declare(Inputs(base=Base(ref=recipe.model.pretrained, sha256=base_sha), parents=tuple(parents)))
    spec = recipe.merge
    weights = spec.weights or [1 / len(inputs)] * len(inputs)
    options = MergeOptions(spec.method, spec.rank, spec.density, recipe.seed, spec.normalize)
    merged = merge(inputs, weights, options)
    rank = max(f.a.shape[0] for f in merged.factors.values())
    union = tuple(dict.fromkeys(chain(*targets))) if all(targets) else ()  # exact only if all of them are
    config = AdapterConfig(rank, float(rank), union, recipe.model.pretrained, base_sha)
    run.save_adapter(lambda folder: write_adapter(folder, merged.factors, config))
    norm, energy, error = merged.report.norm, merged.report.retained_energy, merged.report.relative_error
    figures = f"energy retained {energy:.4f}, error {error:.4f}"
    if math.isnan(error):
        figures = "the merged update is zero: the weighted updates cancel, or each of them is 0"
    progress.note(f"{spec.method}: rank {rank}, {figures}")
    return {"metrics": {"rank": rank, "update_norm": norm, "retained_energy": energy, "relative_error": error}}


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
