"""What the stages share: from recipe sections to models, adapters, samplers, prompts, rewards and the loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flowopd_cli import registry
from flowopd_cli.core.sampler import Sampler, draw_window
from flowopd_cli.core.steps import make_kernel
from flowopd_cli.core.types import Prompt
from flowopd_cli.errors import ArtifactError, RecipeError
from flowopd_cli.manifest import Parent
from flowopd_cli.models.base import FlowModel
from flowopd_cli.models.sd3 import ENCODE_BATCH, SD3Model
from flowopd_cli.progress import Progress
from flowopd_cli.prompts import GroupSampler, load_prompts
from flowopd_cli.recipe import (
    AdapterSpec,
    AnchorSpec,
    DistillRecipe,
    ModelSpec,
    PromptSpec,
    RewardSpec,
    SamplingSpec,
    TeacherSpec,
    TrainSpec,
)
from flowopd_cli.refs import AdapterRef, recorded_base
from flowopd_cli.rewards.base import RewardMix, Weighted
from flowopd_cli.rewards.function import make_reward
from flowopd_cli.run import RunDir
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.collect import Draw, Teacher
from flowopd_cli.train.loop import FitSettings, Hooks, everyone
from flowopd_cli.train.objectives import OPDSettings
from flowopd_cli.train.share import Share


def pretrained(spec: ModelSpec) -> str:
    """The folder or hub id behind a base alias such as ``toy``."""
    return str(registry.BASES.load(spec.pretrained)()) if spec.pretrained in registry.BASES.names() else spec.pretrained


def load_model(spec: ModelSpec, targets: Sequence[str], run: RunDir | None = None) -> SD3Model:
    """Load the base once, frozen; note its fingerprint in the manifest.

    Raises:
        ArtifactError: it cannot be loaded, or has no latents at the recipe's resolution.
    """
    family = registry.MODELS.load(spec.family)
    model = family.load(
        pretrained(spec),
        revision=spec.revision,
        dtype=spec.dtype,
        device=spec.device,
        resolution=spec.resolution,
        max_sequence_length=spec.max_sequence_length,
        targets=targets,
    )
    _ = model.latent_shape
    if run is not None:
        run.set_base(spec.pretrained, model.fingerprint)
    return model


def make_sampler(model: FlowModel, spec: SamplingSpec, *, seed: int = 0) -> Sampler:
    """The recipe's sampler; ``seed`` places its SDE window."""
    sigmas = model.sigmas(spec.steps, spec.shift) if spec.shift else model.sigmas(spec.steps)
    window = None
    if spec.window is not None:
        window = draw_window(spec.window.size, spec.window.start_min, spec.window.start_max, seed)
    return Sampler(sigmas, make_kernel(spec.kernel, spec.eta, sigmas), spec.guidance, window)


def make_rewards(specs: Sequence[RewardSpec], prompts: Mapping[str, Sequence[Prompt]]) -> RewardMix:
    """Build the rewards of a recipe, and let them refuse now any prompt that they could not score later.

    Raises:
        RewardError: a reward is unknown or does not take its options.
        PromptError: a prompt lacks what its reward needs.
    """
    built = [make_reward(registry.REWARDS.load(spec.name), spec.name, spec.options) for spec in specs]
    mix = RewardMix([Weighted(reward, spec.weight, spec.task) for reward, spec in zip(built, specs, strict=True)])
    mix.check([prompt for group in prompts.values() for prompt in group])
    return mix


def read_prompts(specs: Sequence[PromptSpec]) -> tuple[dict[str, list[Prompt]], dict[str, float]]:
    """Prompts and weights of each task; a source of several tasks gives each of them its weight."""
    prompts: dict[str, list[Prompt]] = {}
    weights: dict[str, float] = {}
    for spec in specs:
        loaded = load_prompts(spec.source, task=spec.task, split=spec.split, limit=spec.limit)
        for prompt in loaded:
            prompts.setdefault(prompt.task, []).append(prompt)
        for task in sorted({prompt.task for prompt in loaded}):
            weights[task] = weights.get(task, 0.0) + spec.weight
    return prompts, weights


@dataclass(frozen=True)
class Drawer:
    """Draws the prompts of an iteration: a function of the recipe's seed and the iteration alone.

    Of several processes each takes whole groups of the same draw, in turn.
    """

    sampler: GroupSampler
    rank: int = 0
    processes: int = 1

    def __call__(self, iteration: int) -> Draw:
        """This process's prompts, groups and seeds of one iteration."""
        prompts, group, seeds = self.sampler.draw(iteration)
        if self.processes == 1:
            return Draw(prompts, torch.tensor(group), tuple(seeds))
        rows = [i for i, g in enumerate(group) if g % self.processes == self.rank]
        share = Share(torch.tensor(rows), len(group), everyone)
        return Draw(tuple(prompts[i] for i in rows), torch.tensor(group)[rows], tuple(seeds[i] for i in rows), share)


def make_drawer(specs: Sequence[PromptSpec], train: TrainSpec, seed: int) -> tuple[Drawer, dict[str, list[Prompt]]]:
    """The drawer of a training stage, and its prompts by task."""
    prompts, weights = read_prompts(specs)
    sampler = GroupSampler(prompts, weights, train.groups, train.group_size, seed)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if train.groups < processes:
        raise RecipeError(f"train.groups is {train.groups}, but {processes} processes want at least one group each")
    return Drawer(sampler, int(os.environ.get("RANK", "0")), processes), prompts


def encode_ahead(model: SD3Model, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Encode every distinct prompt once, whatever their number, and release the encoders.

    The embeddings stay in the host's memory, 1.7 MB a text for SD3 (:meth:`SD3Model.encode`): 50,000 texts take 84 GB
    in each process. ``limit`` in the recipe's ``prompts`` takes fewer.
    """
    texts = list(dict.fromkeys(p.text for group in prompts.values() for p in group))
    model.encode(texts[:1])  # with the empty text, which belongs to every model; whole batches from here on
    for start in range(1, len(texts), ENCODE_BATCH):
        model.encode(texts[start : start + ENCODE_BATCH])
    model.release_encoders()


def add_policy(model: SD3Model, spec: AdapterSpec, seed: int) -> list[Parent]:
    """The trainable adapter, fresh or from ``adapter.init``; returns its parents for the manifest."""
    path = None if spec.init is None else resolve(spec.init, model)
    if path is None:
        model.adapters.add("policy", spec.rank, spec.alpha, seed=seed, trainable=True)
        return []
    model.adapters.load("policy", path, trainable=True)
    return [AdapterRef.parse(str(spec.init)).parent("init")]


def add_teachers(
    model: SD3Model, specs: Mapping[str, TeacherSpec], guidance: float, parents: list[Parent]
) -> dict[str, Teacher]:
    """Load every teacher once as a frozen adapter ``teacher_<task>``; equal references share one adapter."""
    loaded: dict[str, str | None] = {}
    teachers: dict[str, Teacher] = {}
    for task, spec in specs.items():
        if spec.ref not in loaded:
            loaded[spec.ref] = add_frozen(model, f"teacher_{task}", spec.ref, parents)
        teachers[task] = Teacher(loaded[spec.ref], guidance if spec.guidance is None else spec.guidance)
    return teachers


def add_anchor(model: SD3Model, spec: AnchorSpec, guidance: float, parents: list[Parent]) -> Teacher | None:
    """The anchor of MAR as a frozen adapter; nothing is loaded when its weight is 0."""
    if not spec.beta:
        return None
    return Teacher(add_frozen(model, "anchor", spec.ref, parents), guidance if spec.guidance is None else spec.guidance)


def opd_settings(recipe: DistillRecipe) -> OPDSettings:
    """The distillation objective's numbers; ODE steps have no variance, so theirs is plain velocity matching."""
    opd, ode = recipe.opd, recipe.sampling.kernel == "ode" or recipe.sampling.eta == 0
    weight = "velocity" if ode else opd.step_weight
    return OPDSettings(opd.estimator, weight, recipe.anchor.beta, opd.clip, opd.adv_clip)


def add_frozen(model: SD3Model, name: str, ref: str, parents: list[Parent]) -> str | None:
    """Load a frozen adapter; ``base`` is no adapter at all."""
    path = resolve(ref, model)
    parents.append(AdapterRef.parse(ref).parent(name))
    if path is None:
        return None
    model.adapters.load(name, path)
    return name


def resolve(ref: str, model: SD3Model) -> Path | None:
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


def fit_settings(train: TrainSpec) -> FitSettings:
    """The loop's numbers from a recipe."""
    return FitSettings(
        iterations=train.iterations,
        lr=train.lr,
        warmup=train.warmup,
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        ema_decay=train.ema_decay,
        ema_every=train.ema_every,
        checkpoint_every=train.checkpoint_every,
    )


def make_hooks(run: RunDir, progress: Progress, train: TrainSpec, sample: Callable[[int], None] | None) -> Hooks:
    """Metrics, checkpoints and sample pictures of a training stage go into its run directory."""

    def on_iteration(row: dict[str, float]) -> None:
        run.log(row)
        progress.step(row)

    def on_checkpoint(iteration: int, state: TrainState) -> None:
        run.save_checkpoint(iteration, state.save, train.keep_checkpoints)

    return Hooks(on_iteration, on_checkpoint, sample or (lambda iteration: None), train.sample_every if sample else 0)


def resume_state(run: RunDir, resume: bool, progress: Progress) -> TrainState | None:
    """The newest sound checkpoint's state; metrics written after it are dropped.

    Raises:
        ArtifactError: there are checkpoints, but none is sound.
    """
    if not resume:
        return None
    found = run.latest_checkpoint()
    written = sorted(path for path in run.checkpoints_dir.glob("[!.]*") if path.is_dir())
    if found is None and written:
        names = ", ".join(path.name for path in written)
        raise ArtifactError(
            f"{run.path}: its checkpoints are damaged ({names}), so there is nothing to go on from; "
            f"start again with --out {run.path} --force"
        )
    if found is None:
        progress.note("no checkpoint yet: starting with the first iteration")
    elif written[-1] != found[1]:
        progress.note(f"checkpoint {written[-1].name} is damaged: going on from {found[1].name}")
    run.truncate_metrics(0 if found is None else found[0])
    return None if found is None else TrainState.load(found[1])


def save_adapter(model: SD3Model, run: RunDir, spec: ModelSpec, *, ema: bool) -> None:
    """Write the finished adapter (the EMA when there is one) in PEFT form."""
    model.adapters.save("policy_ema" if ema else "policy", run.adapter_dir, spec.pretrained, model.fingerprint)
