"""Objectives: their values by hand, their gradients, and the direction in which they move a policy."""

import dataclasses
import math

import pytest
import torch
from support.tiny import gradients, labelled, make_draw, make_sampler, randomize

from flowopd_cli.core.losses import sampled_gain
from flowopd_cli.core.steps import log_prob
from flowopd_cli.train import collect
from flowopd_cli.train.objectives import GRPOSettings, OPDSettings, grpo, opd, sft
from flowopd_cli.train.routes import Teacher

PATHWISE = OPDSettings(beta=0.0)
SCORE = OPDSettings(estimator="score", beta=0.0, clip=0.2)
VARIANTS = {
    "plain": GRPOSettings(clip=0.2),
    "masked": GRPOSettings(trust="mask", tau=1e-3),
    "guarded": GRPOSettings(clip=0.2, ratio="guarded", level_weight="equal"),
    "unscaled": GRPOSettings(trust="mask", tau=1e-3, ratio="unscaled", level_weight="equal"),
}


@pytest.fixture
def sampler(trainee):
    return make_sampler(trainee)


@pytest.fixture
def rolled(trainee, sampler):
    """A rollout with every label an objective may ask for."""
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5])
    return dataclasses.replace(labelled(trainee, sampler, make_draw()), advantages=advantages)


def steps(rolled, sampler, micro=100):
    return next(collect.step_batches(rolled, sampler, updates=1, micro=micro, seed=0))


def one_batch(rolled, sampler):
    (batch,) = steps(rolled, sampler)
    return batch


def loss_of(trainee, objective, batch):
    with trainee.adapters.use("policy"), torch.no_grad():
        return objective(batch)


def close(a, b, atol=1e-6):
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=atol, rtol=1e-4)  # float32 sums in another order


def moved(model, objective, batch, rate):
    """Take one step of gradient descent of length ``rate``."""
    found = gradients(model, objective, [batch])
    norm = torch.cat([g.flatten() for g in found.values()]).norm()
    assert norm > 0
    with torch.no_grad():
        for name, parameter in model.adapters.trainable().items():
            parameter -= rate * found[name] / norm


OBJECTIVES = {
    "grpo": lambda model, sampler: grpo(model, sampler, GRPOSettings(clip=0.2, beta=0.04)),
    "grpo-masked": lambda model, sampler: grpo(model, sampler, VARIANTS["masked"]),
    "grpo-guarded": lambda model, sampler: grpo(model, sampler, VARIANTS["guarded"]),
    "pathwise": lambda model, sampler: opd(model, sampler, OPDSettings()),
    "score": lambda model, sampler: opd(model, sampler, OPDSettings(estimator="score")),
    "sft": lambda model, sampler: sft(model),
}


@pytest.mark.parametrize("micro", [1, 5, 12])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_cannot_change_the_gradient(trainee, sampler, rolled, name, micro):
    objective = OBJECTIVES[name](trainee, sampler)
    whole = gradients(trainee, objective, [one_batch(rolled, sampler)])
    assert max(float(g.abs().max()) for g in whole.values()) > 1e-5
    close(gradients(trainee, objective, steps(rolled, sampler, micro)), whole)


@pytest.mark.parametrize("settings", [PATHWISE, SCORE])
def test_two_teachers_of_one_adapter_are_exactly_one_teacher(trainee, sampler, settings):
    trainee.adapters.copy("other", "twin")
    objective = opd(trainee, sampler, settings)
    found = []
    for second in ("other", "twin"):
        teachers = {"a": Teacher("other", 1.0), "b": Teacher(second, 1.0)}
        rolled = labelled(trainee, sampler, make_draw(), teachers, batch=1)  # rows alone: the same sums for any routing
        found.append(gradients(trainee, objective, steps(rolled, sampler)))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_on_policy_ratio_is_exactly_one(trainee, sampler, rolled):
    clip_nothing = grpo(trainee, sampler, GRPOSettings(clip=0.0, beta=0.0))
    for t in range(3):
        batch = collect.rows_of(rolled, torch.arange(4), torch.full((4,), t))  # the rows of the rollout's own forward
        loss = loss_of(trainee, clip_nothing, batch)
        assert loss.metrics["clip_fraction"] == 0
        assert float(loss.total) == -float(batch.advantage.sum())


def test_away_from_the_rollout_everything_is_clipped(trainee, sampler, rolled):
    randomize(trainee, "policy", seed=77)
    loss = loss_of(trainee, grpo(trainee, sampler, GRPOSettings(clip=1e-6, beta=0.0)), one_batch(rolled, sampler))
    assert loss.metrics["clip_fraction"] == loss.count == 12


@pytest.mark.parametrize("ratio", ["plain", "guarded", "unscaled"])
@pytest.mark.parametrize("trust", ["clip", "mask"])
def test_every_variant_of_grpo_is_minus_the_advantage_on_policy(trainee, sampler, rolled, trust, ratio):
    batch = one_batch(rolled, sampler)
    loss = loss_of(trainee, grpo(trainee, sampler, GRPOSettings(clip=1e-3, trust=trust, ratio=ratio)), batch)
    assert loss.metrics["clip_fraction"] == 0
    assert float(loss.total) == pytest.approx(-float(batch.advantage.sum()), abs=1e-5)


def test_the_mask_drops_what_moved_away_and_no_other_row(trainee, sampler, rolled):
    batch = one_batch(rolled, sampler)
    randomize(trainee, "policy", seed=77)
    settings = GRPOSettings(trust="mask", tau=1e-6)
    loss = loss_of(trainee, grpo(trainee, sampler, settings), batch)
    with trainee.adapters.use("policy"), torch.no_grad():
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
    step = sampler.step(velocity, batch.latents, batch.sigma, batch.sigma_next)
    change = log_prob(step, batch.next_latents) - batch.old_log_prob
    away = change.sign() == batch.advantage.sign()
    assert 0 < int(away.sum()) < 12
    assert loss.metrics["clip_fraction"] == away.sum()
    expected = -(batch.advantage * torch.exp(change))[~away].sum()
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)
    assert loss.count == 12


def closed_form(trainee, batch, beta, weight):
    """KL to the teacher plus ``beta`` times KL to the anchor, row by row, from the definition of the flow SDE."""
    with trainee.adapters.use("policy"), torch.no_grad():
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
    rows = []
    for i, (sigma, sigma_next) in enumerate(zip(batch.sigma.tolist(), batch.sigma_next.tolist(), strict=True)):
        top = sigma if sigma < 1 else float(make_sampler(trainee).sigmas[1])
        dt, s = sigma_next - sigma, 0.7 * math.sqrt(sigma / (1 - top))
        factor = (dt * (1 + s * s * (1 - sigma) / (2 * sigma))) ** 2 / (2 * s * s * -dt)
        teacher = (velocity[i] - batch.target_velocity[i]).square().mean()
        anchor = (velocity[i] - batch.anchor_velocity[i]).square().mean()
        rows.append(factor * weight(dt) * (float(teacher) + beta * float(anchor)))
    return rows


@pytest.mark.parametrize(("name", "weight"), [("kl", lambda dt: 1.0), ("kl_no_dt", lambda dt: -dt)])
def test_distillation_is_the_weighted_kl_to_teacher_and_anchor(trainee, sampler, rolled, name, weight):
    batch = one_batch(rolled, sampler)
    loss = loss_of(trainee, opd(trainee, sampler, OPDSettings(step_weight=name, beta=0.3)), batch)
    assert float(loss.total) == pytest.approx(sum(closed_form(trainee, batch, 0.3, weight)), rel=1e-4)  # float32
    plain = sum(closed_form(trainee, batch, 0.0, lambda dt: 1.0))
    assert float(loss.metrics["kl"]) == pytest.approx(plain, rel=1e-4)
    assert loss.count == 12


def test_the_anchors_gradient_is_added_with_its_weight(trainee, sampler, rolled):
    batch = one_batch(rolled, sampler)
    as_teacher = dataclasses.replace(batch, target_velocity=batch.anchor_velocity)
    both = gradients(trainee, opd(trainee, sampler, OPDSettings(beta=0.3)), [batch])
    teacher = gradients(trainee, opd(trainee, sampler, PATHWISE), [batch])
    anchor = gradients(trainee, opd(trainee, sampler, PATHWISE), [as_teacher])
    close(both, {name: teacher[name] + 0.3 * anchor[name] for name in both})


def test_a_step_down_the_pathwise_loss_brings_the_policy_nearer_to_its_teacher(trainee, sampler, rolled):
    batch, objective = one_batch(rolled, sampler), opd(trainee, sampler, PATHWISE)
    before = loss_of(trainee, objective, batch).total
    moved(trainee, objective, batch, rate=0.05)
    assert loss_of(trainee, objective, batch).total < before


def test_a_step_down_the_score_loss_makes_likelier_what_the_teacher_finds_likelier(trainee, sampler, rolled):
    batch, objective = one_batch(rolled, sampler), opd(trainee, sampler, SCORE)

    def step(velocity):
        return sampler.step(velocity, batch.latents, batch.sigma, batch.sigma_next)

    def policy():
        with trainee.adapters.use("policy"), torch.no_grad():
            return step(trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0))

    gain = sampled_gain(step(batch.target_velocity), policy(), batch.next_latents, SCORE.adv_clip)
    before = log_prob(policy(), batch.next_latents)
    moved(trainee, objective, batch, rate=0.05)
    assert float((gain * (log_prob(policy(), batch.next_latents) - before)).sum()) > 0


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_a_step_down_the_grpo_loss_makes_good_samples_likelier(trainee, sampler, rolled, settings):
    batch, objective = one_batch(rolled, sampler), grpo(trainee, sampler, settings)

    def gained():
        with trainee.adapters.use("policy"), torch.no_grad():
            velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
        step = sampler.step(velocity, batch.latents, batch.sigma, batch.sigma_next)
        density = -((batch.next_latents - step.mean) ** 2) / (2 * step.std**2)
        return float((density.flatten(1).mean(dim=1) * batch.advantage).sum())

    before = gained()
    moved(trainee, objective, batch, rate=0.02)
    assert gained() > before


def test_grpo_charges_for_the_distance_to_the_base(trainee, sampler, rolled):
    batch = one_batch(rolled, sampler)
    free, charged = (
        loss_of(trainee, grpo(trainee, sampler, GRPOSettings(clip=0.2, beta=b)), batch) for b in (0.0, 0.5)
    )
    assert "kl_base" not in free.metrics
    assert float(charged.metrics["kl_base"]) > 0
    assert float(charged.total - free.total) == pytest.approx(0.5 * float(charged.metrics["kl_base"]), rel=1e-3)
    assert float(charged.metrics["policy_loss"]) == float(free.total)


def test_flat_groups_stay_in_the_kl_to_the_base(trainee, sampler, rolled):
    batch = dataclasses.replace(one_batch(rolled, sampler), advantage=torch.zeros(12))
    loss = loss_of(trainee, grpo(trainee, sampler, GRPOSettings(clip=0.2, beta=0.5)), batch)
    assert loss.count == 12
    assert float(loss.metrics["policy_loss"]) == 0
    kl = sum(
        closed_form(trainee, dataclasses.replace(batch, target_velocity=batch.anchor_velocity), 0.0, lambda dt: 1.0)
    )
    assert float(loss.total) == pytest.approx(0.5 * kl, rel=1e-4)


def test_flow_matching_by_hand(trainee, rolled, sampler):
    batch = one_batch(rolled, sampler)
    with trainee.adapters.use("policy"), torch.no_grad():
        velocity = trainee.velocity(batch.latents, batch.sigma, batch.cond, guidance=1.0)
    expected = 0.5 * (velocity - batch.target_velocity).square().mean() * len(batch)
    assert float(loss_of(trainee, sft(trainee), batch).total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(("classifier_free", "asked"), [(True, 1.0), (False, 3.5)])
def test_flow_matching_learns_what_guidance_leaves_to_the_network(
    trainee, rolled, sampler, monkeypatch, classifier_free, asked
):
    velocity, guidances = trainee.velocity, []
    trainee.classifier_free = classifier_free
    monkeypatch.setattr(
        trainee, "velocity", lambda *a, guidance: guidances.append(guidance) or velocity(*a, guidance=1.0)
    )
    sft(trainee, 3.5)(one_batch(rolled, sampler))
    assert guidances == [asked]


def test_a_step_down_the_flow_matching_loss_lowers_it(trainee, rolled, sampler):
    batch, objective = one_batch(rolled, sampler), sft(trainee)
    before = loss_of(trainee, objective, batch).total
    moved(trainee, objective, batch, rate=0.05)
    assert loss_of(trainee, objective, batch).total < before


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("grpo", "old_log_prob"),
        ("grpo", "advantage"),
        ("grpo", "anchor_velocity"),
        ("pathwise", "target_velocity"),
        ("pathwise", "anchor_velocity"),
        ("score", "old_log_prob"),
        ("sft", "target_velocity"),
    ],
)
def test_a_missing_label_is_named(trainee, sampler, rolled, name, label):
    batch = dataclasses.replace(one_batch(rolled, sampler), **{label: None})
    with pytest.raises(ValueError, match=f"the step batch carries no {label}"):
        loss_of(trainee, OBJECTIVES[name](trainee, sampler), batch)


def test_the_kl_is_told_by_task_and_by_step(trainee, sampler, rolled):
    """Each part is the mean KL of its own rows, as the objective tells it of these rows alone."""
    objective, batch = opd(trainee, sampler, PATHWISE), one_batch(rolled, sampler)
    parts = loss_of(trainee, objective, batch).parts
    sums, counts = parts.table.tolist()
    found = {name: (total, count) for name, total, count in zip(parts.names, sums, counts, strict=True) if count}
    tasks = [prompt.task for prompt in batch.prompts]
    levels = sampler.sigmas[:-1].tolist()
    steps = [min(range(len(levels)), key=lambda i: abs(levels[i] - float(sigma))) for sigma in batch.sigma]
    rows = {f"kl/{task}": [i for i, t in enumerate(tasks) if t == task] for task in tasks}
    rows |= {f"kl_step/{step}": [i for i, s in enumerate(steps) if s == step] for step in steps}
    assert found.keys() == rows.keys()
    assert len(set(tasks)) > 1
    assert len(set(steps)) > 1
    for name, own in rows.items():
        alone = loss_of(trainee, objective, batch[torch.tensor(own)])
        assert found[name] == (pytest.approx(float(alone.metrics["kl"]), rel=1e-4), len(own))
