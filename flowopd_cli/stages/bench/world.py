"""The measured model, with random adapters of the recipe's size, and one draw of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Int
from torch import Tensor

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler, trained_steps
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import RecipeError
from flowopd_cli.models.base import FlowModel
from flowopd_cli.models.files.families import named_shapes
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.random_weights import make_random
from flowopd_cli.recipe import DistillRecipe, ModelSpec
from flowopd_cli.runs.adapter_ref import Adapters
from flowopd_cli.runs.manifest import Parent
from flowopd_cli.stages.training.data import make_drawer, make_sampler
from flowopd_cli.stages.training.fit import save_memory
from flowopd_cli.stages.training.model import Roles, load_model, load_options, load_own_base, make_routes
from flowopd_cli.stages.training.objective import opd_settings
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.objectives import OPDSettings
from flowopd_cli.train.routes import Route, Teacher


@dataclass(frozen=True)
class World:
    """One distilled iteration: ``draw`` of ``B`` prompts, all their steps, one optimizer step.

    ``bases`` are those that teachers have of their own.
    """

    recipe: DistillRecipe
    model: PipelineModel
    bases: Mapping[ModelSpec, PipelineModel]
    sampler: Sampler
    draw: Draw
    routes: Mapping[str, Route]
    anchor: Teacher | None
    settings: OPDSettings
    optimizer: torch.optim.Optimizer
    sources: Mapping[str, list[Prompt]]

    @property
    def batch(self) -> int:
        """Pictures of the iteration, which are also the rows of every pass."""
        return len(self.draw.prompts)

    @property
    def labelers(self) -> list[tuple[Teacher, Int[Tensor, " n"]]]:
        """Who labels which rows, but for the anchor, whose velocity serves both. One teacher stands for all adapters of
        a base with the same guidance, since they may share a forward.
        """
        groups: dict[tuple[object, ...], tuple[Teacher, list[int]]] = {}
        for row, prompt in enumerate(self.draw.prompts):
            for teacher, _ in self.routes[prompt.task].target(prompt):
                key = teacher.model, teacher.guidance, teacher.adapter is None
                if teacher != self.anchor:
                    groups.setdefault(key, (teacher, []))[1].append(row)
        return [(teacher, torch.tensor(rows)) for teacher, rows in groups.values()]

    @property
    def anchor_share(self) -> float:
        """The share of the trained steps with a pass of the anchor: all if its velocity is part of a target."""
        prompts = self.draw.prompts
        if any(teacher == self.anchor for p in prompts for teacher, _ in self.routes[p.task].target(p)):
            return 1.0
        return self.recipe.anchor.probability / self.recipe.anchor.every

    @property
    def steps(self) -> int:
        """Trained steps of each picture."""
        return len(trained_steps(self.sampler).steps)

    def noise(self, model: FlowModel | None = None) -> tuple[Tensor, Tensor, Conditioning]:
        """Latents ``(B, C, H, W)``, a sigma for each row, and its prompt as ``model`` encodes it, by default the
        student's.
        """
        device = self.model.device
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(self.batch, *self.model.latent_shape, generator=generator).to(device)
        cond = (model or self.model).encode([prompt.text for prompt in self.draw.prompts])
        return latents, torch.full((self.batch,), 0.5, device=device), cond


def build(recipe: DistillRecipe, batch: int | None, *, real_prompts: bool) -> World:
    """The recipe's model and roles; random adapters of the recipe's rank stand for its references.

    ``batch`` is the number of pictures, ``None`` that of the recipe's micro-batch. ``real_prompts`` draws prompts from
    the recipe's sources, which its rewards may need.

    Raises :class:`RecipeError`: the batch has more pictures than the recipe's iteration.
    Raises :class:`FlowOPDError`: the base cannot be loaded, a prompt source cannot be read.
    """
    count = batch or min(recipe.train.groups * recipe.train.group_size, recipe.train.micro)
    sources, draw = _prompts(recipe, count, real_prompts)
    model = load(recipe.model, recipe.adapter.targets)
    save_memory(model, recipe.train)
    guidance, parts = recipe.sampling.guidance, recipe.adapter
    model.adapters.add("policy", parts.rank, parts.alpha, seed=recipe.seed, trainable=True)
    roles = _RandomRoles(model, Adapters(), recipe=recipe)
    routes = make_routes(recipe, roles.add_teachers(recipe.teachers, guidance, recipe.model))
    anchor = roles.add_anchor(recipe.anchor, guidance)
    for owner in (model, *roles.bases.values()):
        for index, name in enumerate(owner.adapters.names):
            _randomize(owner, name, seed=index)
    model.adapters.copy("policy", "policy_ema")
    optimizer = torch.optim.AdamW(model.adapters.trainable().values(), lr=0.0)
    sampler = make_sampler(model, recipe.sampling, seed=recipe.seed)
    return World(recipe, model, roles.bases, sampler, draw, routes, anchor, opd_settings(recipe), optimizer, sources)


@dataclass
class _RandomRoles(Roles):
    """Random adapters of the recipe's rank in place of its references."""

    recipe: DistillRecipe = field(kw_only=True)

    def load_base(self, own: ModelSpec, *, offload: bool) -> PipelineModel:
        """A teacher's own base, of random weights if the student's are."""
        targets = self.recipe.adapter.targets
        if self.recipe.model.pretrained not in named_shapes():
            return load_own_base(own.model_copy(update={"cache_prompts": False}), self.model, targets, offload=offload)
        if own.pretrained not in named_shapes():
            raise RecipeError(f"{own.pretrained}: the student has random weights, so a teacher's base is a shape too")
        model = load(own, targets, offload=offload)
        if model.latent_shape != self.model.latent_shape:
            shapes = f"takes latents of shape {model.latent_shape}, the student's are {self.model.latent_shape}"
            raise RecipeError(f"{own.pretrained}: {shapes}: set model.resolution (--resolution)")
        return model

    def add_frozen(self, name: str, ref: str, own: ModelSpec | None = None) -> str | None:
        """A random adapter under ``name``; a bare base has none."""
        self.parents.append(Parent(role=name, ref=ref))
        if ref == "base":
            return None
        model, parts = self.model if own is None else self.bases[own], self.recipe.adapter
        model.adapters.add(name, parts.rank, parts.alpha, seed=0, trainable=False)
        return name


def load(spec: ModelSpec, targets: Sequence[str], *, offload: bool = False) -> PipelineModel:
    """A base: of random weights if ``pretrained`` is a shape's name."""
    spec = spec.model_copy(update={"cache_prompts": False})
    shape = named_shapes().get(spec.pretrained)
    if shape is not None:
        options = replace(load_options(spec, targets), offload=offload)
        return make_random(registry.MODELS.load(spec.family), shape, options)
    model = load_model(spec, targets)
    if not isinstance(model, PipelineModel):
        raise RecipeError(f"model.family {spec.family}: bench measures only families over diffusers pipelines")
    return model


def _prompts(recipe: DistillRecipe, count: int, real: bool) -> tuple[dict[str, list[Prompt]], Draw]:
    if real:
        drawer, sources = make_drawer(recipe.prompts, recipe.train, recipe.seed)
        draw = drawer(0)
        if count > len(draw.prompts):
            raise RecipeError(f"--batch {count}: an iteration of the recipe has {len(draw.prompts)} pictures")
        return sources, Draw(draw.prompts[:count], draw.group[:count], draw.seeds[:count])
    tasks = list(recipe.routing)
    prompts = tuple(Prompt(f"p{i}", f"prompt number {i}", tasks[i % len(tasks)]) for i in range(count))
    return {}, Draw(prompts, torch.arange(count), tuple(range(count)))


def _randomize(model: PipelineModel, name: str, *, seed: int) -> None:
    """Small random factors, so that no role is the base."""
    generator = torch.Generator().manual_seed(seed)
    state = model.adapters.state(name)
    random = {key: (0.02 * torch.randn(value.shape, generator=generator)).to(value) for key, value in state.items()}
    model.adapters.load_state(name, random)
