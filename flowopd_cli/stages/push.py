"""``flowopd push``: card, adapter in PEFT and diffusers form, checked by plain diffusers, then uploaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowopd_cli import card as cards
from flowopd_cli.errors import ArtifactError, RecipeError, one_line
from flowopd_cli.files import storing
from flowopd_cli.models.adapter_files import read_adapter, write_adapter, write_diffusers
from flowopd_cli.models.folders import absent_parts, locate
from flowopd_cli.progress import Progress
from flowopd_cli.recipe import PushRecipe
from flowopd_cli.refs import AdapterRef
from flowopd_cli.run import RunDir
from flowopd_cli.stages import _model
from flowopd_cli.stages._public import copy_evaluation, public_manifest, public_name, public_recipe
from flowopd_cli.stages._verify import verify


def run(
    recipe: PushRecipe, run: RunDir, progress: Progress, *, resume: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Write the folder, check it, upload it; with ``dry_run`` leave out the upload."""
    if not dry_run and not recipe.push.repo:
        raise RecipeError("push needs a repository (--repo OWNER/NAME), or --dry-run to write the folder only")
    source = RunDir.open(recipe.run, writes=False)
    reference = AdapterRef.parse(str(source.path))
    adapter = reference.resolve()
    assert adapter is not None, "a run is never the base"
    config, factors = read_adapter(adapter)
    name = public_name(config.base) if config.base else None
    write_adapter(run.hub_dir, factors, replace(config, base=name))
    write_diffusers(run.hub_dir, factors)
    run.set_parents([reference.parent("pushed", adapter)])
    with storing(run.hub_dir):
        fill(recipe, source, run)
    largest = verify(source, run, recipe)
    progress.note(f"plain diffusers draws the same picture: largest difference {largest * 255:.2f} of 255")
    if not dry_run:
        progress.note(f"uploaded to {upload(recipe, run.hub_dir)}")
    return {
        "folder": str(run.hub_dir),
        "repo": recipe.push.repo,
        "uploaded": not dry_run,
        "metrics": {"difference": largest},
    }


def fill(recipe: PushRecipe, source: RunDir, run: RunDir) -> None:
    """Card, recipe, evaluations and pictures beside the weights, without local paths."""
    found = cards.evaluations(source, recipe.push.evaluations)
    own = next((e for e in found if e.of == cards.MODEL), None)
    picture = None
    if own is not None:
        copy_evaluation(own.run.eval_dir, run.hub_dir / own.run.eval_dir.name)
        drawn = own.run.image_file("eval")
        if drawn.is_file() and not drawn.is_symlink():
            picture = drawn.name
            shutil.copy(drawn, run.hub_dir / picture)
    (run.hub_dir / source.recipe_file.name).write_text(public_recipe(source.recipe()), encoding="utf-8")
    repo = recipe.push.repo or run.hub_dir.name
    spec = source.recipe().model
    absent = absent_parts(locate(_model.pretrained(spec), spec.revision))
    card = cards.Card(
        title=repo.rsplit("/")[-1],
        manifest=public_manifest(source.manifest()),
        evaluations=found,
        repo=repo,
        license=recipe.push.license,
        picture=picture,
        max_sequence_length=spec.max_sequence_length,
        absent=tuple(absent),
    )
    text = cards.build(card)
    (run.hub_dir / run.card_file.name).write_text(text, encoding="utf-8")
    run.card_file.write_text(text, encoding="utf-8")


def upload(recipe: PushRecipe, folder: Path) -> str:
    """Create the repository where it is missing and upload the folder; returns its address.

    Raises:
        ArtifactError: the Hub refused.
    """
    from huggingface_hub import HfApi

    repo = str(recipe.push.repo)
    try:
        api = HfApi()
        api.create_repo(repo, private=recipe.push.private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload by flowopd push")
    except Exception as error:
        reason = one_line(error)[:200]
        raise ArtifactError(f"{repo}: not uploaded ({reason}); log in with `hf auth login`, then push again") from error
    return str(getattr(commit, "commit_url", repo))
