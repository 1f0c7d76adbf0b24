"""The objective of a recipe's stage."""

from __future__ import annotations

from flowopd_cli.models.base import LoadedModel
from flowopd_cli.recipe import AWMSpec, DistillRecipe, NFTSpec, TeacherRecipe, TrainedRecipe
from flowopd_cli.stages.training.data import make_sampler
from flowopd_cli.train import objectives
from flowopd_cli.train.objectives import AWMSettings, GRPOSettings, Objective, OPDSettings


def make_objective(recipe: TrainedRecipe, model: LoadedModel) -> Objective:
    """The loss that the stage minimizes, from the fields of its recipe."""
    if isinstance(recipe, DistillRecipe):
        return objectives.opd(model, make_sampler(model, recipe.sampling), opd_settings(recipe))
    if not isinstance(recipe, TeacherRecipe):
        return objectives.sft(model, recipe.sampling.guidance)
    spec = recipe.forward
    if spec is None:
        grpo = recipe.grpo
        settings = GRPOSettings(grpo.clip, grpo.beta, grpo.trust, grpo.tau, grpo.ratio, grpo.level_weight)
        return objectives.grpo(model, make_sampler(model, recipe.sampling), settings)
    guidance = forward_guidance(recipe, model)
    if isinstance(spec, NFTSpec):
        weights = {"beta": spec.beta, "base_weight": spec.base_weight, "adv_clip": spec.adv_clip}
        return objectives.nft(model, guidance=guidance, **weights)
    assert isinstance(spec, AWMSpec)
    settings = AWMSettings(spec.power, spec.clip, spec.adv_clip, spec.base_weight, spec.slow_weight)
    return objectives.awm(model, settings, guidance=guidance)


def forward_guidance(recipe: TeacherRecipe, model: LoadedModel) -> float:
    """The guidance of velocities on noised latents: none where it would double the batch."""
    return 1.0 if model.classifier_free else recipe.sampling.guidance


def opd_settings(recipe: DistillRecipe) -> OPDSettings:
    """The settings of the distillation objective; ODE steps have no variance, so they match velocities."""
    opd = recipe.opd
    weight = "velocity" if recipe.sampling.deterministic else opd.step_weight
    return OPDSettings(opd.estimator, weight, recipe.anchor.beta, opd.clip, opd.adv_clip)
