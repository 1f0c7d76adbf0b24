"""What lies beside the weights in a pushed folder: card, recipe, evaluations and pictures, without local paths."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError, printable
from flowopd_cli.models.files.pipelines import absent_parts, locate
from flowopd_cli.recipe import PushRecipe
from flowopd_cli.rewards.pictures import read_picture
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing import card as cards
from flowopd_cli.stages.publishing.licenses import inherited_license
from flowopd_cli.stages.publishing.public import copy_evaluation, public_manifest, public_recipe
from flowopd_cli.stages.training import model as _model
from flowopd_cli.system.json_files import read_json_value
from flowopd_cli.system.redact import public_name, public_text

ROW = "eval"


def fill(recipe: PushRecipe, source: RunDir, run: RunDir) -> None:
    """Write all but the weights into the folder that is pushed."""
    push, trained = recipe.push, source.recipe()
    found = cards.evaluations(source, push.evaluations)
    own = next((e for e in found if e.of == cards.MODEL), None)
    if own is not None:
        copy_evaluation(own.run.eval_dir, run.hub_dir / own.run.eval_dir.name)
    picture, gallery = pictures(own.run, run.hub_dir) if own else (None, [])
    (run.hub_dir / source.recipe_file.name).write_text(public_recipe(trained), encoding="utf-8")
    spec = trained.model
    folder = locate(_model.pretrained(spec), spec.revision)
    card = cards.Card(
        title=(push.repo or run.hub_dir.name).rsplit("/")[-1],
        manifest=public_manifest(source.manifest()),
        evaluations=found,
        repo=push.repo or run.hub_dir.name,
        revision=push.revision if push.repo else None,
        published=push.repo is not None,
        license=push.license,
        inherited=inherited_license(public_name(spec.pretrained), folder, spec.revision),
        picture=picture,
        gallery=gallery,
        max_sequence_length=spec.max_sequence_length,
        sampling=_sampling(trained, own),
        absent=tuple(absent_parts(folder)),
        trained=_trained_on(trained),
        base_revision=spec.revision,
    )
    text = cards.build(card)
    (run.hub_dir / run.card_file.name).write_text(text, encoding="utf-8")
    run.card_file.write_text(text, encoding="utf-8")


def pictures(scored: RunDir, folder: Path) -> tuple[str | None, list[tuple[str, str]]]:
    """The row of pictures that an evaluation shows, and each alone; their names in ``folder``, with the prompts. Only
    pixels are published, nothing else that the file may hold. A row that is not of one picture a prompt is written as a
    whole alone.

    Raises:
        ArtifactError: the row is damaged, or far larger than any of ours.
    """
    row = scored.image_file(ROW)
    if not row.is_file() or row.is_symlink():
        return None, []
    try:
        image = read_picture(row)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; remove it and push again, or evaluate again") from error
    home = folder / scored.samples_dir.name
    home.mkdir(parents=True, exist_ok=True)
    image.save(home / row.name)
    texts, side, gallery = _prompts(scored), image.height, []
    for index, text in enumerate(texts if image.width == side * len(texts) else ()):
        name = scored.image_file(f"{ROW}-{index}").name
        image.crop((index * side, 0, (index + 1) * side, side)).save(home / name)
        gallery.append((printable(text), f"{home.name}/{name}"))
    return f"{home.name}/{row.name}", gallery


def _prompts(scored: RunDir) -> list[str]:
    try:
        texts = read_json_value(scored.eval_file("prompts"), "prompts of an evaluation")
    except ArtifactError:
        return []
    return texts if isinstance(texts, list) and all(isinstance(text, str) for text in texts) else []


def _sampling(recipe: recipes.Recipe, own: cards.Evaluation | None) -> Mapping[str, float]:
    """How the pictures of the figures were drawn, else how the training draws."""
    if own is not None:
        return {"num_inference_steps": own.protocol["steps"], "guidance_scale": own.protocol["guidance"]}
    if isinstance(recipe, recipes.TrainedRecipe):
        return {"num_inference_steps": recipe.sampling.steps, "guidance_scale": recipe.sampling.guidance}
    return {}


def _trained_on(recipe: recipes.Recipe) -> str:
    """The rewards or tasks of a training, in words; empty of a merge, whose parents the lineage names."""
    if isinstance(recipe, recipes.TeacherRecipe):
        return f"the rewards {', '.join(public_text(spec.name) for spec in recipe.rewards)}"
    if isinstance(recipe, recipes.DistillRecipe):
        return f"prompts of the tasks {', '.join(recipe.routing)}"
    return f"prompts of the tasks {', '.join(recipe.teachers)}" if isinstance(recipe, recipes.ColdstartRecipe) else ""
