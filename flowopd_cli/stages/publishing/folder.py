"""The files of a pushed folder besides the weights: card, recipe, evaluations and pictures.

Only listed fields of results and rows are published; local paths and private addresses in them are shortened.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flowopd_cli import recipe as recipes
from flowopd_cli.errors import ArtifactError, printable
from flowopd_cli.models.files.families import family
from flowopd_cli.models.files.full_weights import CONFIG
from flowopd_cli.models.files.pipelines import absent_parts, locate
from flowopd_cli.recipe import PushRecipe
from flowopd_cli.registry import base_source
from flowopd_cli.runs.adapter_ref import Adapter
from flowopd_cli.runs.layout import part_name
from flowopd_cli.runs.manifest import Base, Manifest
from flowopd_cli.runs.reported import Reported, reported
from flowopd_cli.runs.run import RunDir
from flowopd_cli.stages.publishing import card as cards
from flowopd_cli.stages.publishing.licenses import inherited_license
from flowopd_cli.system.files import is_dir
from flowopd_cli.system.json_files import json_lines, read_json, read_json_lines, read_json_value
from flowopd_cli.system.pictures import read_picture
from flowopd_cli.system.redact import public_name, public_reference, public_text

PICTURES = "eval"  # the sheet of pictures of an evaluation
RESULT = {"suite", "version", "reward", "engine", "weights", "exact", "note", "mean", "stderr", "n", "invalid"}
RESULT |= {"prompts", "by_tag", "figures", "published", "protocol", "parts", "experimental"}
ROW = {"prompt", "task", "text", "index", "tag", "valid", "value", "scores", "details"}
REFERENCES = {"ref", "init", "adapters"}
VERBATIM = {"text", "target", "read"}  # of a row: the prompt, and the text read in its picture
NOTE = "# As it ran, with local paths and private addresses shortened.\n"


def fill(recipe: PushRecipe, source: RunDir, run: RunDir, adapter: Adapter) -> str:
    """Write all but the weights into the pushed folder; returns how the card's guidance was chosen, if it was."""
    push, trained = recipe.push, source.recipe()
    sampling = trained.sampling if isinstance(trained, recipes.TrainedRecipe) else None
    scores = reported(source, push.evaluations, adapter, sampling.guidance if sampling else None)
    picture, gallery = None, []
    if scores.model is not None:
        copy_evaluation(scores.model.run.eval_dir, run.hub_dir / scores.model.run.eval_dir.name)
        picture, gallery = pictures(scores.model.run, run.hub_dir, scores.model.part)
    settings, guidance_note = usage(scores, sampling)
    if settings:
        settings |= family(trained.model.family).call(settings.pop("guidance_scale"), trained.model)
    (run.hub_dir / source.recipe_file.name).write_text(public_recipe(trained), encoding="utf-8")
    spec = model_of(recipe, source)
    base = locate(base_source(spec.pretrained), spec.revision)
    card = cards.Card(
        title=(push.repo or run.hub_dir.name).rsplit("/")[-1],
        manifest=public_manifest(source.manifest()),
        evaluations=scores.rows,
        repo=push.repo or run.hub_dir.name,
        revision=push.revision if push.repo else None,
        published=push.repo is not None,
        license=push.license,
        inherited=inherited_license(public_name(trained.model.pretrained), base, spec.revision),
        picture=picture,
        gallery=gallery,
        max_sequence_length=spec.max_sequence_length,
        sampling=settings,
        guidance_note=guidance_note,
        absent=tuple(absent_parts(base)),
        trained=trained_on(trained),
        transformer_class=_transformer_class(adapter),
        base_revision=spec.revision,
    )
    for folder in (run.hub_dir, run.path):
        (folder / run.card_file.name).write_text(cards.build(card), encoding="utf-8")
    return guidance_note


def _transformer_class(adapter: Adapter) -> str:
    """The class of a full model's transformer, empty for an adapter."""
    if adapter.path is None or not adapter.full:
        return ""
    name = read_json(adapter.path / CONFIG, "configuration of a transformer").get("_class_name", "")
    return name if isinstance(name, str) and name.isidentifier() else ""


def model_of(recipe: PushRecipe, source: RunDir) -> recipes.ModelSpec:
    """The model of a pushed run in full precision; its base is ``--base``'s where the recorded folder is gone."""
    model, moved = source.recipe().model.model_copy(update={"quantize": "none"}), recipe.model.pretrained
    gone = not is_dir(base_source(model.pretrained)) and is_dir(base_source(moved))
    return model.model_copy(update={"pretrained": moved}) if gone else model


def public_manifest(manifest: Manifest) -> Manifest:
    """The manifest with the paths of base and parents shortened; their digests identify them."""

    def shortened(base: Base | None) -> Base | None:
        return base and base.model_copy(update={"ref": public_name(base.ref)})

    parents = tuple(
        p.model_copy(update={"ref": public_reference(p.ref), "base": shortened(p.base)}) for p in manifest.parents
    )
    return manifest.model_copy(update={"parents": parents, "base": shortened(manifest.base)})


def public_recipe(recipe: recipes.Recipe) -> str:
    """The recipe as YAML that loads."""
    return NOTE + recipes.dump(type(recipe).model_validate(_public(recipe.model_dump(mode="json"))))


def copy_evaluation(source: Path, target: Path) -> None:
    """Copy the prompts of an evaluation and the public fields of its results and rows.

    A damaged file, or a link, which could publish a file outside the run, is an :class:`ArtifactError`.
    """
    files = sorted(source.iterdir())
    for path in (source, *files):
        if path.is_symlink():
            raise ArtifactError(f"{path}: is a link; only files of the run itself are published: remove it")
    target.mkdir(parents=True)
    for path in files:
        try:
            if path.suffix == ".jsonl":
                text = json_lines([_fields(row, ROW, VERBATIM) for row in read_json_lines(path)])
            elif path.suffix == ".json":
                value = read_json_value(path, "result of an evaluation")
                text = json.dumps(_fields(value, RESULT) if isinstance(value, dict) else _texts(value), indent=1)
            else:
                continue
        except RecursionError as error:
            raise ArtifactError(f"{path}: damaged result of an evaluation (nested too deeply)") from error
        (target / path.name).write_text(text, encoding="utf-8")


def _fields(value: Mapping[str, Any], names: Collection[str], verbatim: Collection[str] = ()) -> dict[str, Any]:
    return {name: _public(inner, name, verbatim) for name, inner in value.items() if name in names}


def _public(value: Any, key: str = "", verbatim: Collection[str] = ()) -> Any:
    if isinstance(value, Mapping):
        return {name: _public(inner, name, verbatim) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_public(inner, key, verbatim) for inner in value]
    if not isinstance(value, str) or key in verbatim:
        return value
    return public_reference(value) if key in REFERENCES else public_text(value)


def _texts(value: Any) -> list[str]:
    return value if isinstance(value, list) and all(isinstance(text, str) for text in value) else []


def pictures(scored: RunDir, folder: Path, part: str = "") -> tuple[str | None, list[tuple[str, str]]]:
    """Copy an evaluation's sheet into ``folder`` and cut it up; returns its name, and each prompt with its picture.

    Only pixels are published, without other data of the file. A sheet without one picture a prompt is not cut.
    """
    row = scored.image_file(part_name(PICTURES, part))
    if not row.is_file() or row.is_symlink():
        return None, []
    try:
        image = read_picture(row)
    except ArtifactError as error:
        raise ArtifactError(f"{error}; remove it and push again, or evaluate again") from error
    home = folder / scored.samples_dir.name
    home.mkdir(parents=True, exist_ok=True)
    image.save(home / row.name)
    prompts, side, gallery = [], image.height, []
    with suppress(ArtifactError):
        prompts = _texts(read_json_value(scored.eval_file("prompts"), "prompts of an evaluation"))
    for index, text in enumerate(prompts if image.width == side * len(prompts) else ()):
        name = scored.image_file(f"{PICTURES}-{index}").name
        image.crop((index * side, 0, (index + 1) * side, side)).save(home / name)
        gallery.append((printable(text), f"{home.name}/{name}"))
    return f"{home.name}/{row.name}", gallery


def usage(scores: Reported, sampling: recipes.SamplingSpec | None) -> tuple[dict[str, Any], str]:
    """The steps and guidance of the figures, else of the training, as of a pipeline; and why that guidance.

    Of several guidances the best on validation prompts counts; figures on test prompts choose none.
    """
    one, listed = scores.model or scores.best, ", ".join(f"{value:g}" for value in scores.guidances)
    settings = one.protocol if one else sampling.model_dump() if sampling else None
    if settings is None:
        return {}, ""
    guidance, note = scores.guidance, ""
    if scores.best is not None:
        suites = ", ".join(scores.best.results)
        note = f"Of the guidances {listed}, {scores.best.guidance:g} is the best on validation prompts ({suites})."
    elif listed:
        guidance, source = (sampling.guidance, "that of the training") if sampling else (None, "the first of them")
        note = f"Guidances {listed} were compared on test prompts only, which choose none: "
        note += f"{settings['guidance'] if guidance is None else guidance:g} is {source}."
    guidance = settings["guidance"] if guidance is None else guidance
    return {"num_inference_steps": settings["steps"], "guidance_scale": guidance}, note


def trained_on(recipe: recipes.Recipe) -> str:
    """The rewards or tasks of a training in words, empty for a merge."""
    if isinstance(recipe, recipes.TeacherRecipe):
        return f"the rewards {', '.join(public_text(spec.name) for spec in recipe.rewards)}"
    tasks: Collection[str] = ()
    if isinstance(recipe, recipes.DistillRecipe):
        tasks = recipe.routing
    elif isinstance(recipe, recipes.ColdstartRecipe):
        tasks = recipe.teachers
    return f"prompts of the tasks {', '.join(tasks)}" if tasks else ""
