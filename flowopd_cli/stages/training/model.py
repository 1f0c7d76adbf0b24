"""The frozen base and the adapters on it: loading, their roles, their parents, what is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.recipe import AdapterSpec, AnchorSpec, ModelSpec, TeacherSpec
from flowopd_cli.runs.adapter_ref import AdapterRef, recorded_base
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import rank_and_world
from flowopd_cli.system.paths import cache_dir
from flowopd_cli.train.collect import Teacher


def pretrained(spec: ModelSpec) -> str:
    """The folder or hub id behind a base alias such as ``toy``."""
    return str(registry.BASES.load(spec.pretrained)()) if spec.pretrained in registry.BASES.names() else spec.pretrained


def load_model(spec: ModelSpec, targets: Sequence[str]) -> LoadedModel:
    """Load the base once, frozen.

    Raises:
        ArtifactError: it cannot be loaded, or has no latents at the recipe's resolution.
    """
    model = registry.MODELS.load(spec.family).load(pretrained(spec), load_options(spec, targets))
    _ = model.latent_shape
    return model


def inputs(spec: ModelSpec, model: LoadedModel, parents: Sequence[Parent], prompts: str | None = None) -> Inputs:
    """What a run with this model declares; ``prompts`` is their digest."""
    base = Base(ref=spec.pretrained, sha256=model.fingerprint)
    return Inputs(base=base, parents=tuple(parents), prompts=prompts)


def load_options(spec: ModelSpec, targets: Sequence[str]) -> LoadOptions:
    """The fields of a recipe's ``model`` section as the options of a family's ``load``."""
    names = {field.name for field in fields(LoadOptions)} & spec.model_fields.keys()
    return LoadOptions(
        **{name: getattr(spec, name) for name in names},
        targets=tuple(targets),
        prompt_cache=cache_dir() / "embeddings" if spec.cache_prompts else None,
    )


def encode_ahead(model: LoadedModel, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Encode every distinct prompt that no run has yet, each process beginning elsewhere; release the encoders."""
    texts = list(dict.fromkeys(p.text for group in prompts.values() for p in group))
    rank, processes = rank_and_world()
    first = len(texts) * rank // processes
    model.encode_ahead(texts[first:] + texts[:first])


def add_policy(model: LoadedModel, spec: AdapterSpec, seed: int) -> list[Parent]:
    """The trainable adapter, fresh or from ``adapter.init``; returns its parents for the manifest."""
    path = None if spec.init is None else resolve(spec.init, model)
    if path is None:
        model.adapters.add("policy", spec.rank, spec.alpha, seed=seed, trainable=True)
        return []
    model.adapters.load("policy", path, trainable=True)
    return [AdapterRef.parse(str(spec.init)).parent("init", path)]


def add_teachers(
    model: LoadedModel, specs: Mapping[str, TeacherSpec], guidance: float, parents: list[Parent]
) -> dict[str, Teacher]:
    """Load every teacher once as a frozen adapter ``teacher_<task>``; equal references share one adapter."""
    loaded: dict[str, str | None] = {}
    teachers: dict[str, Teacher] = {}
    for task, spec in specs.items():
        if spec.ref not in loaded:
            loaded[spec.ref] = add_frozen(model, f"teacher_{task}", spec.ref, parents)
        teachers[task] = Teacher(loaded[spec.ref], guidance if spec.guidance is None else spec.guidance)
    return teachers


def add_anchor(model: LoadedModel, spec: AnchorSpec, guidance: float, parents: list[Parent]) -> Teacher | None:
    """The anchor of MAR as a frozen adapter; nothing is loaded when its weight is 0."""
    if not spec.beta:
        return None
    return Teacher(add_frozen(model, "anchor", spec.ref, parents), guidance if spec.guidance is None else spec.guidance)


def add_frozen(model: LoadedModel, name: str, ref: str, parents: list[Parent]) -> str | None:
    """Load a frozen adapter; ``base`` is no adapter at all."""
    path = resolve(ref, model)
    parents.append(AdapterRef.parse(ref).parent(name, path))
    if path is None:
        return None
    model.adapters.load(name, path)
    return name


def resolve(ref: str, model: LoadedModel) -> Path | None:
    """The adapter folder behind a reference, refused when it was trained on another base."""
    reference = AdapterRef.parse(ref)
    path = reference.resolve()
    base = recorded_base(path)
    recorded = None if base is None else base.sha256
    if recorded is not None and recorded != model.fingerprint:
        raise ArtifactError(
            f"{ref}: was trained on another base ({recorded[:12]}, this one is {model.fingerprint[:12]}): "
            "choose the base it was trained on with --base, or another adapter"
        )
    return path


def save_adapter(model: LoadedModel, run: RunDir, spec: ModelSpec, *, ema: bool, best: bool = False) -> None:
    """Write the adapter as it stands (the EMA when there is one) in PEFT form; the first process alone does."""
    name = "policy_ema" if ema else "policy"
    run.save_adapter(lambda folder: model.adapters.save(name, folder, spec.pretrained, model.fingerprint), best=best)
