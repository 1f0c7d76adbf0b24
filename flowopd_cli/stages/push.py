"""``flowopd push``: the weights and their card, checked, uploaded, read back from the Hub, checked again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.models.adapter_files import read_adapter, write_adapter, write_diffusers
from flowopd_cli.models.files.full_weights import CONFIG
from flowopd_cli.models.full_files import read_tensor, write_folder
from flowopd_cli.recipe import PushRecipe
from flowopd_cli.runs.adapter_ref import Adapter, Adapters
from flowopd_cli.runs.manifest import Inputs
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing.folder import fill
from flowopd_cli.stages.publishing.hub import Hub
from flowopd_cli.stages.publishing.verify import Check
from flowopd_cli.system.files import remove, storing
from flowopd_cli.system.json_files import read_json
from flowopd_cli.system.progress import Progress
from flowopd_cli.system.redact import public_name

NAMES = {"difference": "diffusers", "difference_peft": "PEFT"}


def run(
    recipe: PushRecipe, run: RunDir, progress: Progress, *, adapters: Adapters | None = None, resume: bool = False
) -> dict[str, Any]:
    """Write the folder, check it, upload it and check the uploaded files; ``push.dry_run`` leaves out the Hub."""
    dry_run = recipe.push.dry_run
    if not dry_run and not recipe.push.repo:
        raise RecipeError("push needs a repository (--repo OWNER/NAME), or --dry-run to write the folder only")
    hub = None if dry_run else Hub(recipe.push, progress)
    if hub is not None:
        hub.check()
    source = RunDir.open(recipe.run, writes=False)
    guidance_note = write(recipe, source, run, (adapters or Adapters())[recipe.run])
    if guidance_note:
        progress.note(guidance_note)
    check = Check(source, run.hub_dir, recipe)
    figures = check.compare(run.hub_dir, "nothing was uploaded")
    progress.note(
        f"plain {' and '.join(NAMES[name] for name in figures)} draw the same picture: {_differences(figures)}"
    )
    if hub is not None:
        published = publish(hub, run, check, progress)
    else:
        published = {} if recipe.push.repo is None else plan(Hub(recipe.push, progress), run, progress)
    return {
        "folder": str(run.hub_dir),
        "repo": recipe.push.repo,
        "uploaded": not dry_run,
        **published,
        "metrics": figures | published.get("metrics", {}),
    }


def write(recipe: PushRecipe, source: RunDir, run: RunDir, adapter: Adapter) -> str:
    """Write the folder that is pushed anew: the adapter in both forms, or the transformer, and what belongs to it.

    Returns how the card's guidance was chosen, if it was.
    """
    assert adapter.path is not None, "a run is never the base"
    with storing(run.hub_dir):
        remove(run.hub_dir)
    if adapter.full is None:
        config, factors = read_adapter(adapter.path)
        write_adapter(run.hub_dir, factors, replace(config, base=public_name(config.base) if config.base else None))
        write_diffusers(run.hub_dir, factors)
    else:
        tensors = {name: read_tensor(adapter.full, name) for name in adapter.full.files}
        config = read_json(adapter.path / CONFIG, "configuration of a transformer")
        base = public_name(adapter.full.base) if adapter.full.base else None
        with storing(run.hub_dir):
            write_folder(run.hub_dir, tensors, config, base, adapter.full.base_sha256)
    run.declare(Inputs(parents=(adapter.parent("pushed"),)))
    with storing(run.hub_dir):
        return fill(recipe, source, run, adapter)


def plan(hub: Hub, run: RunDir, progress: Progress) -> dict[str, Any]:
    """The files of the repository that an upload would delete, as far as they can be seen from here."""
    try:
        stale = hub.stale(run.hub_dir)
    except ArtifactError as error:
        progress.note(str(error))
        return {}
    if stale is None:
        progress.note(
            f"{hub.repo}: not there, or not visible with this login, so what an upload would delete is unknown"
        )
        return {}
    if stale:
        progress.note(f"files of {hub.repo} that an upload would delete: {', '.join(stale)}")
    return {"deleted": stale}


def publish(hub: Hub, run: RunDir, check: Check, progress: Progress) -> dict[str, Any]:
    """Upload the folder, download it and check it again; returns the commit and its differences."""
    commit = hub.upload(run.hub_dir)
    if commit.new:
        progress.note(f"uploaded to {commit.url}")
        if commit.deleted:
            progress.note(f"deleted there, because this push has no such file: {', '.join(commit.deleted)}")
    else:
        progress.note(f"{hub.repo}@{commit.sha} has these very files: nothing was uploaded")
    with TemporaryDirectory() as temporary:
        fetched = hub.fetch(commit, run.hub_dir, Path(temporary))
        figures = check.compare(fetched, f"it is {hub.repo}@{commit.sha}: push again, and do not use this commit")
    progress.note(f"read back from the Hub, every file is the same, and so is the picture: {_differences(figures)}")
    hub.publish()
    metrics = {f"hub_{name}": value for name, value in figures.items()}
    result = {"commit": commit.sha, "url": commit.url, "changed": commit.new, "deleted": list(commit.deleted)}
    return result | {"metrics": metrics}


def _differences(figures: Mapping[str, float]) -> str:
    listed = " and ".join(f"{value * 255:.2f} ({NAMES[name]})" for name, value in figures.items())
    return f"largest difference {listed} of 255"
