"""``flowopd merge``: several adapters of one base become one."""

from __future__ import annotations

from typing import Any

from flowopd_cli.core.merging import MergeOptions, merge
from flowopd_cli.errors import ArtifactError, MergeError
from flowopd_cli.models.adapter_files import AdapterConfig, read_adapter, write_adapter
from flowopd_cli.models.sd3 import base_fingerprint
from flowopd_cli.progress import Progress
from flowopd_cli.recipe import MergeRecipe
from flowopd_cli.refs import AdapterRef
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _wiring as wiring


def run(recipe: MergeRecipe, run: RunDir, progress: Progress, *, resume: bool = False) -> dict[str, Any]:
    """Read the factors, merge the products, write the adapter and the error of any re-compression."""
    parents, adapters, targets, bases = [], [], [], {}
    for ref in recipe.adapters:
        reference = AdapterRef.parse(ref)
        folder = reference.resolve()
        if folder is None:
            raise MergeError("base is no adapter: leave it out and lower the other weights instead")
        config, factors = read_adapter(folder)
        parents.append(reference.parent("adapter"))
        bases[ref] = reference.base_sha256()
        adapters.append(factors)
        targets += [t for t in config.targets if t not in targets]
    known = {sha for sha in bases.values() if sha is not None}
    if len(known) > 1:
        listed = ", ".join(f"{ref} on {sha[:12] if sha else 'unknown'}" for ref, sha in bases.items())
        raise ArtifactError(f"adapters of different bases cannot be merged: {listed}")
    base_sha = known.pop() if known else base_fingerprint(wiring.pretrained(recipe.model))
    run.set_parents(parents)
    run.set_base(recipe.model.pretrained, base_sha)
    spec = recipe.merge
    weights = spec.weights or [1 / len(adapters)] * len(adapters)
    options = MergeOptions(spec.method, spec.rank, spec.density, recipe.seed)
    merged = merge(adapters, weights, options)
    rank = max(f.a.shape[0] for f in merged.factors.values())
    config = AdapterConfig(rank, float(rank), tuple(targets), recipe.model.pretrained, base_sha, {}, {})
    write_adapter(run.adapter_dir, merged.factors, config)
    report = merged.report
    progress.note(
        f"{spec.method}: rank {rank}, energy kept {report.retained_energy:.4f}, error {report.relative_error:.4f}"
    )
    figures = {"rank": rank, "retained_energy": report.retained_energy, "relative_error": report.relative_error}
    return {"metrics": figures}
