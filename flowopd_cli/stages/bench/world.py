"""The measured model, with random adapters of the recipe's size, and one draw of prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowopd_cli import registry
from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.sampler import Sampler, trained_steps
from flowopd_cli.core.types import Conditioning
from flowopd_cli.errors import RecipeError
from flowopd_cli.models.files.families import named_shapes
from flowopd_cli.models.pipeline import PipelineModel
from flowopd_cli.models.random_weights import make_random
from flowopd_cli.recipe import AnchorSpec, DistillRecipe, TeacherSpec
from flowopd_cli.stages.training.data import make_drawer, make_sampler
from flowopd_cli.stages.training.fit import save_memory
from flowopd_cli.stages.training.model import load_model, load_options, make_routes
from flowopd_cli.stages.training.objective import opd_settings
from flowopd_cli.train.collect import Draw
from flowopd_cli.train.objectives import OPDSettings
from flowopd_cli.train.routes import Route, Teacher


@dataclass(frozen=True)
class World:
    """One distilled iteration: ``draw`` of ``B`` prompts, all their steps, one optimizer step."""

    recipe: DistillRecipe
    model: PipelineModel
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
    def labelers(self) -> list[Teacher]:
        """The teachers of the costliest target, but for the anchor, whose velocity serves both."""
        targets = [self.routes[prompt.task].target(prompt) for prompt in self.draw.prompts]
        labelers = [[teacher for teacher, _ in target if teacher != self.anchor] for target in targets]
        return max(labelers, key=lambda teachers: sum(1 + (teacher.guidance != 1) for teacher in teachers))

    @property
    def steps(self) -> int:
        """Trained steps of each picture."""
        return len(trained_steps(self.sampler).steps)

    def noise(self) -> tuple[Tensor, Tensor, Conditioning]:
        """Latents ``(B, C, H, W)``, a sigma for each row, and its prompt."""
        device = self.model.device
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(self.batch, *self.model.latent_shape, generator=generator).to(device)
        cond = self.model.encode([prompt.text for prompt in self.draw.prompts])
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
    model = _load(recipe)
    save_memory(model, recipe.train)
    guidance, parts = recipe.sampling.guidance, recipe.adapter
    model.adapters.add("policy", parts.rank, parts.alpha, seed=recipe.seed, trainable=True)
    refs = list(dict.fromkeys(spec.ref for spec in recipe.teachers.values()))

    def role(name: str, spec: TeacherSpec | AnchorSpec) -> Teacher:
        return Teacher(None if spec.ref == "base" else name, guidance if spec.guidance is None else spec.guidance)

    teachers = {key: role(f"teacher_{refs.index(spec.ref)}", spec) for key, spec in recipe.teachers.items()}
    routes = make_routes(recipe, teachers)
    anchor = role("anchor", recipe.anchor) if recipe.anchor.beta else None
    roles = [*teachers.values(), *([anchor] if anchor else [])]
    for index, name in enumerate(dict.fromkeys(teacher.adapter for teacher in roles if teacher.adapter)):
        model.adapters.add(name, parts.rank, parts.alpha, seed=recipe.seed + 1 + index, trainable=False)
    for index, name in enumerate(model.adapters.names):
        _randomize(model, name, seed=index)
    model.adapters.copy("policy", "policy_ema")
    optimizer = torch.optim.AdamW(model.adapters.trainable().values(), lr=0.0)
    sampler = make_sampler(model, recipe.sampling, seed=recipe.seed)
    return World(recipe, model, sampler, draw, routes, anchor, opd_settings(recipe), optimizer, sources)


def _load(recipe: DistillRecipe) -> PipelineModel:
    """The base: random weights if ``pretrained`` is a shape's name, else the recipe's base."""
    spec = recipe.model.model_copy(update={"cache_prompts": False})
    shape = named_shapes().get(spec.pretrained)
    if shape is not None:
        return make_random(registry.MODELS.load(spec.family), shape, load_options(spec, recipe.adapter.targets))
    model = load_model(spec, recipe.adapter.targets)
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
