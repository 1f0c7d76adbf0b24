"""The pass that learns each step as it goes by: the rollout's latents, and the gradients of replay and of autograd."""

import dataclasses
import itertools

import pytest
import torch
from support.copies import ExactModel
from support.recorders import Recorder
from support.tiny import TEXTS, add_adapters, gradients, hard_routes, make_draw, make_sampler

from flowopd_cli.core.queries import Query, draw_systematic
from flowopd_cli.core.sampler import SeededNoise, TrainedSteps, choose_trained_steps, trained_steps
from flowopd_cli.core.types import Loss
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.train import collect, fused, labels
from flowopd_cli.train.loop import FitSettings, fit
from flowopd_cli.train.objectives import OPDSettings, opd
from flowopd_cli.train.routes import Route, Teacher

A, B, ANCHOR = Teacher("other", 1.0), Teacher("third", 3.0), Teacher(None, 1.0)
ROUTES = hard_routes({"a": A, "b": B})
SOFT = {"a": Route(((A, 1.0), (B, 3.0))), "b": Route(((B, "sharp"), (A, "plain")), extrapolate=1.5)}


@pytest.fixture(scope="module")
def exact(pipeline_folder):
    """The tiny model with three adapters, all in float64."""
    made = add_adapters(ExactModel.load(pipeline_folder, LoadOptions(device="cpu", max_sequence_length=4)))
    made.encode(TEXTS)
    made.release_encoders()
    return made


def weighted_draw():
    """Prompts whose metadata has the weights of ``SOFT``."""
    draw = make_draw("abab", "0123")
    weights = ({"sharp": 0.2 * i, "plain": 1} for i in range(4))
    prompts = tuple(dataclasses.replace(p, metadata=entry) for p, entry in zip(draw.prompts, weights, strict=True))
    return dataclasses.replace(draw, prompts=prompts)


def passed(model, sampler, anchor, micro=3, finish=None, draw=None, batch=32, routes=ROUTES):
    one = fused.FusedStep(model, sampler, routes, anchor, micro, batch)
    return fused.micro_batches(one, draw or weighted_draw(), finish)


def fused_gradients(model, objective, batches):
    """As ``tiny.gradients``, with each loss sent back; and the latents met on the way."""
    seen, count, loss = [], 0, None
    with model.adapters.use("policy"):
        while True:
            try:
                batch = batches.send(loss)
            except StopIteration:
                break
            seen.append(batch)
            loss = objective(batch)
            loss.total.backward()
            count += loss.count
    parameters = model.adapters.trainable()
    found = {name: parameter.grad / count for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return found, seen


def replayed(model, sampler, objective, anchor, micro=5, routes=ROUTES):
    rolled = collect.rollout(model, sampler, weighted_draw())
    rolled = labels.with_labels(model, sampler, rolled, routes, anchor)
    return gradients(model, objective, next(collect.step_batches(rolled, sampler, updates=1, micro=micro, seed=0)))


def hard(said):
    """The target velocities of ``ROUTES``: the first and third row are of task a."""
    a, b = said(A), said(B)
    return torch.stack([a[0], b[1], a[2], b[3]])


def soft(said):
    """Those of ``SOFT``, written out: the sum 1 : 3 for task a; extrapolated with the prompts' weights for task b."""
    a, b, plain, guided = said(A), said(B), said(ANCHOR), said(Teacher(None, 3.0))
    rows = [(a[i] + 3 * b[i]) / 4 for i in range(4)]
    for i, sharp in ((1, 0.2), (3, 0.6)):
        mixed, base = (sharp * b[i] + a[i]) / (1 + sharp), (sharp * guided[i] + plain[i]) / (1 + sharp)
        rows[i] = mixed + 0.5 * (mixed - base)
    return torch.stack(rows)


def naive(model, sampler, settings, anchor, target_of=hard):
    """Autograd through the whole loss at once: every step's graph is alive until the one backward.

    With substeps a label is the difference quotient of a walk of Euler steps that starts at the state.
    """
    draw = make_draw("abab", "0123")
    cond, total, objective = model.encode([p.text for p in draw.prompts]), 0.0, opd(model, sampler, settings)
    noise = SeededNoise(draw.seeds, model.latent_shape)
    x, trained = noise.initial(), trained_steps(sampler)
    for t in trained.steps:
        sigma, sigma_next = sampler.levels(t, x)

        def said(teacher, x, sigma):
            with model.adapters.use(teacher.adapter), torch.no_grad():
                return model.velocity(x, sigma, cond, guidance=teacher.guidance).float()

        def walked(velocity, x=x, sigma=sigma, sigma_next=sigma_next):
            end, grid = x, [torch.lerp(sigma, sigma_next, i / sampler.substeps) for i in range(sampler.substeps + 1)]
            for level, after in itertools.pairwise(grid):
                end = end + velocity(end, level) * (after - level).view(-1, 1, 1, 1)
            return velocity(x, sigma) if len(grid) == 2 else (end - x) / (sigma_next - sigma).view(-1, 1, 1, 1)

        anchored = None if anchor is None else walked(lambda y, s: said(anchor, y, s))
        target = walked(lambda y, s: target_of(lambda teacher: said(teacher, y, s)))
        batch = collect.StepBatch(x, x, sigma, sigma_next, cond, target, anchored)
        with model.adapters.use("policy"):
            loss = objective(batch)
        total = total + loss.total
        x = sampler.advance(loss.velocity, x, t, noise)[0].float()
    with model.adapters.use("policy"):
        (total / (len(draw.prompts) * len(trained.steps))).backward()
    parameters = model.adapters.trainable()
    found = {name: parameter.grad for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = None
    return found


def close(a, b, atol=1e-6, rtol=1e-6):
    assert a.keys() == b.keys()
    assert max(float(value.abs().max()) for value in b.values()) > 1e-4
    for name, value in b.items():
        torch.testing.assert_close(a[name], value, atol=atol, rtol=rtol)


CASES = [
    ("flow_sde", 1.0, "kl", ANCHOR),
    ("flow_sde", 2.5, "kl_no_dt", ANCHOR),
    ("cps", 1.0, "velocity", None),
    ("cps", 2.5, "kl", Teacher("third", 3.0)),
    ("ode", 1.0, "velocity", ANCHOR),
    ("ode", 2.5, "velocity", None),
]


@pytest.mark.parametrize(("kernel", "guidance", "weight", "anchor"), CASES)
def test_one_pass_replay_and_autograd_through_the_whole_loss_agree_in_float64(exact, kernel, guidance, weight, anchor):
    sampler = make_sampler(exact, kernel=kernel, guidance=guidance)
    settings = OPDSettings(step_weight=weight, beta=0.0 if anchor is None else 0.3)
    objective = opd(exact, sampler, settings)
    whole = naive(exact, sampler, settings, anchor)
    close(replayed(exact, sampler, objective, anchor), whole)
    close(fused_gradients(exact, objective, passed(exact, sampler, anchor))[0], whole)


@pytest.mark.parametrize("anchor", [None, ANCHOR, Teacher(None, 3.0), A])
def test_soft_routes_and_extrapolation_agree_in_one_pass_replay_and_autograd(exact, anchor):
    sampler = make_sampler(exact)
    settings = OPDSettings(beta=0.0 if anchor is None else 0.3)
    objective = opd(exact, sampler, settings)
    whole = naive(exact, sampler, settings, anchor, soft)
    close(replayed(exact, sampler, objective, anchor, routes=SOFT), whole)
    close(fused_gradients(exact, objective, passed(exact, sampler, anchor, routes=SOFT))[0], whole)


@pytest.mark.parametrize(("kernel", "guidance", "weight", "anchor"), CASES)
def test_one_pass_is_replay_in_float32(trainee, kernel, guidance, weight, anchor):
    sampler = make_sampler(trainee, kernel=kernel, guidance=guidance)
    objective = opd(trainee, sampler, OPDSettings(step_weight=weight, beta=0.0 if anchor is None else 0.3))
    found = fused_gradients(trainee, objective, passed(trainee, sampler, anchor))[0]
    close(found, replayed(trainee, sampler, objective, anchor), rtol=1e-4)  # float32 sums in another order


@pytest.mark.parametrize(("kernel", "substeps", "anchor", "batch"), [("ode", 2, ANCHOR, 32), ("flow_sde", 3, A, 3)])
def test_average_targets_agree_in_one_pass_replay_and_autograd(exact, kernel, substeps, anchor, batch):
    sampler = dataclasses.replace(make_sampler(exact, steps=3, kernel=kernel), substeps=substeps)
    settings = OPDSettings(step_weight="velocity", beta=0.3)
    objective = opd(exact, sampler, settings)
    for routes, target_of in ((ROUTES, hard), (SOFT, soft)):
        whole = naive(exact, sampler, settings, anchor, target_of)
        close(replayed(exact, sampler, objective, anchor, routes=routes), whole, rtol=1e-4)  # x' - x in float32
        batches = passed(exact, sampler, anchor, routes=routes, batch=batch)
        close(fused_gradients(exact, objective, batches)[0], whole, rtol=1e-4)
    at_the_state = naive(exact, dataclasses.replace(sampler, substeps=1), settings, anchor, soft)
    assert any(not torch.allclose(at_the_state[name], value, rtol=1e-2) for name, value in whole.items())


@pytest.mark.parametrize(("micro", "batch"), [(1, 32), (4, 1), (100, 3)])
def test_micro_batches_cannot_change_the_gradient(exact, micro, batch):
    sampler = make_sampler(exact)
    objective = opd(exact, sampler, OPDSettings(beta=0.3))
    whole = fused_gradients(exact, objective, passed(exact, sampler, ANCHOR, micro=100))[0]
    close(fused_gradients(exact, objective, passed(exact, sampler, ANCHOR, micro=micro, batch=batch))[0], whole)


def followed(model, sampler, **options):
    """The rollout at the end of a pass, and the micro-batches on the way."""
    ends = []
    objective = opd(model, sampler, OPDSettings(beta=0.3))
    seen = fused_gradients(model, objective, passed(model, sampler, ANCHOR, finish=ends.append, **options))[1]
    return ends[0], seen


@pytest.mark.parametrize("kernel", ["flow_sde", "cps", "ode"])
def test_the_latents_are_those_of_the_rollout(trainee, kernel):
    sampler, draw = make_sampler(trainee, kernel=kernel, guidance=2.0), weighted_draw()
    rolled = collect.rollout(trainee, sampler, draw)
    end, seen = followed(trainee, sampler, micro=4)
    torch.testing.assert_close(end.trajectory.final, rolled.trajectory.final, atol=1e-6, rtol=1e-6)
    assert end.prompts == rolled.prompts
    assert end.trajectory.latents.shape[1] == 1
    order = [0, 2, 1, 3]  # rows in the order of their teachers
    for t, batch in enumerate(seen):
        torch.testing.assert_close(batch.latents, rolled.trajectory.latents[order, t], atol=1e-6, rtol=1e-6)
        assert not batch.target_velocity.requires_grad


def test_the_last_rollout_is_whole_whatever_teaches(trainee):
    draw = make_draw("abab", "0123")
    for sampler in (
        make_sampler(trainee, steps=6, window=(1, 3)),
        dataclasses.replace(make_sampler(trainee, steps=6), trained=TrainedSteps((1, 3), (2.0, 0.0))),
    ):
        rolled = collect.rollout(trainee, sampler, draw)
        end, seen = followed(trainee, sampler)
        torch.testing.assert_close(end.trajectory.final, rolled.trajectory.final, atol=1e-6, rtol=1e-6)
        assert len(seen) == 2 * len(trained_steps(sampler).steps)


def test_a_window_and_chosen_steps_give_the_gradients_of_replay(exact):
    for sampler in (
        make_sampler(exact, steps=6, window=(1, 3)),
        dataclasses.replace(make_sampler(exact, steps=6), trained=TrainedSteps((1, 3, 4), (2.0, 0.0, 2.0))),
        dataclasses.replace(make_sampler(exact, steps=6), trained=TrainedSteps((0, 2), (0.0, 0.0))),
    ):
        objective = opd(exact, sampler, OPDSettings(beta=0.3))
        for routes in (ROUTES, SOFT):
            found = fused_gradients(exact, objective, passed(exact, sampler, ANCHOR, routes=routes))[0]
            close(found, replayed(exact, sampler, objective, ANCHOR, routes=routes))


def likelihood(trained, anchor):
    """Of one choice of steps, not normalized: uniform, or Bernoulli for each anchor."""
    chance = anchor.get("probability", 1.0)
    used = sum(weight > 0 for weight in trained.anchor)
    return chance**used * (1 - chance) ** (len(trained.anchor) - used) if chance < 1 else 1.0


@pytest.mark.parametrize(
    ("options", "choices"),
    [
        *(({"every": 2}, 2), ({"every": 3}, 3), ({"every": 5}, 4), ({"probability": 0.3}, 8)),
        *(({"query": Query(1)}, 3), ({"query": Query(2)}, 3)),
        *(({"query": Query(2), "every": 2}, 6), ({"query": Query(1), "probability": 0.6}, 6)),
    ],
)
def test_thinned_steps_have_the_gradient_of_all_on_average(exact, options, choices):
    """The expectation over every choice that may be drawn, each with its chance, is the gradient of all steps."""
    whole = make_sampler(exact)
    objective = opd(exact, whole, OPDSettings(beta=3.0))
    expected = fused_gradients(exact, objective, passed(exact, whole, ANCHOR))[0]
    candidates = trained_steps(whole).steps
    drawn = [choose_trained_steps(candidates, seed, **options) for seed in range(400)]
    likelihoods = {trained: likelihood(trained, options) for trained in drawn}
    assert len(likelihoods) == choices
    if "every" in options and options["every"] > len(candidates):  # the offsets beyond the last step are one choice
        likelihoods = {key: 1.0 if any(key.anchor) else options["every"] - len(candidates) for key in likelihoods}
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    for trained, weight in likelihoods.items():
        sampler = dataclasses.replace(whole, trained=trained)
        gradient = fused_gradients(exact, objective, passed(exact, sampler, ANCHOR))[0]
        for name, value in gradient.items():
            mean[name] += weight / sum(likelihoods.values()) * value
    close(mean, expected)


@pytest.mark.parametrize(("steps", "beta"), [(1, (5.0, 2.0)), (2, (2.0, 5.0)), (2, (0.5, 1.0))])
def test_a_law_of_steps_has_the_gradient_of_all_on_average(exact, steps, beta):
    """The expectation over the offsets of the draw, between whose breaks the choice is the same."""
    whole, query = make_sampler(exact), Query(steps, beta)
    objective = opd(exact, whole, OPDSettings(beta=0.3))
    expected = fused_gradients(exact, objective, passed(exact, whole, ANCHOR))[0]
    candidates, chances = trained_steps(whole).steps, query.chances(3)
    breaks = sorted({0.0, 1.0, *(round(edge % 1, 12) for edge in itertools.accumulate(chances))})
    mean = {name: torch.zeros_like(value) for name, value in expected.items()}
    for start, stop in itertools.pairwise(breaks):
        chosen = draw_systematic(chances, (start + stop) / 2)
        assert len(chosen) == steps
        weights = tuple(query.weights(3)[i] for i in chosen)
        trained = TrainedSteps(tuple(candidates[i] for i in chosen), (1.0,) * steps, weights)
        sampler = dataclasses.replace(whole, trained=trained)
        gradient = fused_gradients(exact, objective, passed(exact, sampler, ANCHOR))[0]
        close(replayed(exact, sampler, objective, ANCHOR), gradient)
        for name, value in gradient.items():
            mean[name] += (stop - start) * value
    close(mean, expected)


@pytest.fixture
def counted(trainee, monkeypatch):
    """The rows of every forward of the transformer, and whether it was for gradients."""
    rows, forward = [], trainee.transformer.forward

    def count(*args, **kwargs):
        rows.append((len(kwargs["hidden_states"]), torch.is_grad_enabled()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(trainee.transformer, "forward", count)
    return rows


def test_no_forward_is_made_twice(trainee, counted):
    sampler = make_sampler(trainee)  # four steps, of which the last does not teach
    objective = opd(trainee, sampler, OPDSettings(beta=0.3))
    fused_gradients(trainee, objective, passed(trainee, sampler, ANCHOR, micro=4))
    # four pictures: two teacher rows plain, two guided (and so four), four of the anchor, in one mixed batch
    assert counted == [(2 + 4 + 4, False), (4, True)] * 3


def test_a_step_without_a_lesson_costs_one_forward(trainee, counted):
    sampler = dataclasses.replace(make_sampler(trainee), trained=TrainedSteps((1,), (0.0,)))
    objective = opd(trainee, sampler, OPDSettings(beta=0.3))
    fused_gradients(trainee, objective, passed(trainee, sampler, ANCHOR, micro=4, draw=make_draw("aaaa", "0123")))
    assert counted == [(4, False), (4, False), (4, True)]  # to step 1, its teacher, its lesson; then it stops


def test_a_loss_without_the_velocity_is_an_error(trainee):
    batches = passed(trainee, make_sampler(trainee), ANCHOR)
    next(batches)
    with pytest.raises(ValueError, match="carries no policy velocity"):
        batches.send(Loss(torch.zeros(()), 1))


def trained(model, fuse, iterations=4):
    """The rows logged by a few iterations under either schedule."""
    sampler, rows = make_sampler(model, guidance=2.0), []

    def experience(iteration):
        draw = make_draw("abab", "0123", first_seed=1000 * iteration)
        if fuse:
            return [passed(model, sampler, ANCHOR, draw=draw)], {}
        rolled = labels.with_labels(model, sampler, collect.rollout(model, sampler, draw), ROUTES, ANCHOR)
        return collect.step_batches(rolled, sampler, updates=1, micro=5, seed=iteration), {}

    objective = opd(model, sampler, OPDSettings(beta=0.3))
    fit(model, experience, objective, FitSettings(iterations, 0.01), recorder=Recorder(row=rows.append))
    return rows


def test_the_loop_trains_alike_by_either_schedule(make_trainee):
    one, other = make_trainee(), make_trainee()
    for ours, theirs in zip(trained(one, True), trained(other, False), strict=True):
        for name in ("loss", "kl", "kl_anchor", "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)  # float32, and Adam divides small by small
