"""The frozen base and the adapters on it: loading, their roles, their parents, what is saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import count

import torch

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.base import LoadedModel
from flowopd_cli.models.files.latents import check_same_latents
from flowopd_cli.models.files.pipelines import AUTOENCODER_FILES, locate, pixels_per_latent
from flowopd_cli.models.full_weights import WeightBank
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.recipe import AdapterSpec, AnchorSpec, DistillRecipe, ModelSpec, TeacherSpec, TrainedRecipe, TrainSpec
from flowopd_cli.runs.adapter_ref import Adapter, Adapters
from flowopd_cli.runs.manifest import Base, Inputs, Parent
from flowopd_cli.runs.run import RunDir
from flowopd_cli.system.distributed import GROUP
from flowopd_cli.system.paths import cache_dir
from flowopd_cli.train import average
from flowopd_cli.train.routes import Route, Teacher


def load_model(spec: ModelSpec, targets: Sequence[str]) -> LoadedModel:
    """Load the base, frozen; :class:`ArtifactError` if it has no latents at the recipe's resolution."""
    model = registry.MODELS.load(spec.family).load(registry.base_source(spec.pretrained), load_options(spec, targets))
    _ = model.latent_shape
    return model


def load_own_base(
    spec: ModelSpec, student: LoadedModel, targets: Sequence[str] = (), *, offload: bool
) -> PipelineModel:
    """Load the base of a teacher that has its own, for the student's latents; equal encoders are not loaded twice.

    Raises :class:`ArtifactError`: it has other latents, which is checked before it is loaded, or cannot be compared.
    """
    kind = registry.MODELS.load(spec.family)
    if not (isinstance(student, PipelineModel) and issubclass(kind, PipelineModel)):
        raise ArtifactError(
            f"{spec.pretrained}: a base of its own needs families over diffusers pipelines, for student and teacher"
        )
    source = registry.base_source(spec.pretrained)
    check_same_latents(locate(source, spec.revision, files=AUTOENCODER_FILES), student.folder)
    pixels = student.latent_shape[1] * pixels_per_latent(student.folder)
    options = load_options(spec.model_copy(update={"resolution": pixels}), targets)
    model = kind.load(source, replace(options, offload=offload))
    if model.latent_shape != student.latent_shape:
        raise ArtifactError(
            f"{spec.pretrained}: takes latents of shape {model.latent_shape}, the student's are {student.latent_shape}"
        )
    model.share_prompts(student)
    return model


def load_options(spec: ModelSpec, targets: Sequence[str]) -> LoadOptions:
    """The fields of a recipe's ``model`` section as the options of a family's ``load``."""
    names = {option.name for option in fields(LoadOptions)} & ModelSpec.model_fields.keys()
    cache = cache_dir() / "embeddings" if spec.cache_prompts else None
    return LoadOptions(**{name: getattr(spec, name) for name in names}, targets=tuple(targets), prompt_cache=cache)


def encode_ahead(model: LoadedModel, prompts: Iterable[Prompt]) -> None:
    """Encode every distinct prompt that is not cached, each process starting at another one; release the encoders."""
    texts = list(dict.fromkeys(prompt.text for prompt in prompts))
    first = len(texts) * GROUP.rank // GROUP.size
    model.encode_ahead(texts[first:] + texts[:first])


@dataclass
class Roles:
    """Loads the adapters of a stage onto its base, each in its role, and collects them as parents of the run."""

    model: LoadedModel
    adapters: Adapters
    parents: list[Parent] = field(default_factory=list)
    bases: dict[ModelSpec, PipelineModel] = field(default_factory=dict)  # of teachers that have their own

    def inputs(self, spec: ModelSpec, prompts: str | None = None) -> Inputs:
        """The inputs that the run declares; ``prompts`` is the digest of its training prompts."""
        return Inputs(base=Base.of(spec, self.model.fingerprint), parents=tuple(self.parents), prompts=prompts)

    def add_policy(self, spec: AdapterSpec, seed: int) -> None:
        """The trainable adapter or weights, new or from ``adapter.init``.

        Raises :class:`ArtifactError`: a LoRA cannot start from a full model, or the family trains adapters only.
        """
        init = None if spec.init is None else self._compatible(spec.init, self.model)
        bank, path = self.model.adapters, None if init is None else init.path
        if spec.kind == "full" and not isinstance(bank, WeightBank):
            raise ArtifactError("adapter.kind full: this model family trains LoRAs alone: set adapter.kind to lora")
        if isinstance(bank, WeightBank) and spec.kind == "full":
            bank.copies_device = torch.device("cpu") if spec.copies == "cpu" else None
            bank.add_full("policy", path, trainable=True)
        elif path is None:
            bank.add("policy", spec.rank, spec.alpha, seed=seed, trainable=True)
        elif init is not None and init.full:
            raise ArtifactError(f"adapter.init {spec.init}: is a full model, no LoRA: --set adapter.kind=full")
        else:
            bank.load("policy", path, trainable=True)
        if init is not None and path is not None:
            self.parents.append(init.parent("init"))

    def add_teachers(self, specs: Mapping[str, TeacherSpec], guidance: float, student: ModelSpec) -> dict[str, Teacher]:
        """Each teacher as a frozen adapter, ``teacher_<task>`` if that name is free.

        Equal references on a base share one adapter. A teacher's own base is loaded once, with the other
        settings of the ``student``'s.
        """
        names: dict[tuple[ModelSpec | None, str], str | None] = {}
        teachers: dict[str, Teacher] = {}
        for task, spec in specs.items():
            own = spec.own_model(student)
            if own is not None and own not in self.bases:
                self.bases[own] = self.load_base(own, offload=spec.offload == "cpu")
            if (own, spec.ref) not in names:
                names[own, spec.ref] = self.add_frozen(self._unused(f"teacher_{task}"), spec.ref, own)
            scale = guidance if spec.guidance is None else spec.guidance
            teachers[task] = Teacher(names[own, spec.ref], scale, None if own is None else self.bases[own])
        return teachers

    def _unused(self, name: str) -> str:
        """The name of an adapter without dots, which PEFT does not take, that no role has yet."""
        name, roles = name.replace(".", "_"), {parent.role for parent in self.parents}
        return name if name not in roles else next(f"{name}_{i}" for i in count(2) if f"{name}_{i}" not in roles)

    def load_base(self, own: ModelSpec, *, offload: bool) -> PipelineModel:
        """Load the base of a teacher that has its own."""
        return load_own_base(own, self.model, offload=offload)

    def add_anchor(self, spec: AnchorSpec, guidance: float) -> Teacher | None:
        """The anchor of MAR as a frozen adapter; nothing is loaded when its weight is 0."""
        if not spec.beta:
            return None
        return Teacher(self.add_frozen("anchor", spec.ref), guidance if spec.guidance is None else spec.guidance)

    def add_frozen(self, name: str, ref: str, own: ModelSpec | None = None) -> str | None:
        """Load a frozen adapter under ``name``, onto its ``own`` base if it has one; a bare base has no adapter."""
        model = self.model if own is None else self.bases[own]
        adapter = self._compatible(ref, model)
        base = None if own is None else Base.of(own, model.fingerprint)
        self.parents.append(adapter.parent(name, base))
        if adapter.path is None:
            return None
        model.adapters.load(name, adapter.path)
        return name

    def _compatible(self, ref: str, model: LoadedModel) -> Adapter:
        adapter = self.adapters[ref]
        recorded = None if adapter.base is None else adapter.base.sha256
        if recorded is not None and recorded != model.fingerprint:
            raise ArtifactError(
                f"{ref}: was trained on another base ({recorded[:12]}, this one is {model.fingerprint[:12]}): "
                "choose the base it was trained on with --base, or another adapter"
            )
        return adapter


@contextmanager
def saved_policy(model: LoadedModel, train: TrainSpec, step: int) -> Iterator[str]:
    """The adapter that a run saves after an optimizer step, complete inside the block: the policy or its average."""
    with average.completed(model, train.ema_decay, train.ema_every, step):
        yield "policy_ema" if train.ema_decay else "policy"


def make_routes(recipe: DistillRecipe, teachers: Mapping[str, Teacher]) -> dict[str, Route]:
    """Each task's route over the ``teachers`` of :attr:`DistillRecipe.teachers`."""
    return {
        task: Route(tuple((teachers[key], spec.share) for key, spec in mixture.items()), recipe.opd.extrapolate)
        for task, mixture in recipe.mixtures.items()
    }


def save_adapter(model: LoadedModel, run: RunDir, recipe: TrainedRecipe, step: int, *, best: bool = False) -> None:
    """Write the policy, or its average, after an optimizer step; only the first process writes."""
    ref = recipe.model.pretrained
    with saved_policy(model, recipe.train, step) as name:
        run.save_adapter(lambda folder: model.adapters.save(name, folder, ref, model.fingerprint), best=best)
