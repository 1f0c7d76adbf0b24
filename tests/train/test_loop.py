"""The loop: what it trains, what it leaves alone, how it averages, stops and goes on."""

import os
import signal

import pytest
import torch
from diffusers.optimization import get_scheduler
from support.recorders import Recorder
from support.tiny import experience_of, gradients, labelled, make_draw, make_sampler, randomize

from flowopd_cli.core.types import Loss, RewardResult
from flowopd_cli.errors import Interrupted
from flowopd_cli.train import collect
from flowopd_cli.train.checkpoint import TrainState
from flowopd_cli.train.loop import FitSettings, fit, lr_factor
from flowopd_cli.train.objectives import GRPOSettings, OPDSettings, grpo, opd


def run(model, *, settings=None, estimator="pathwise", state=None, recorder=None, beta=0.02, **options):
    """A few iterations of distillation."""
    objective = opd(model, make_sampler(model), OPDSettings(estimator=estimator, beta=beta, clip=0.2))
    settings = settings or FitSettings(3, 0.01)
    return fit(model, experience_of(model, **options), objective, settings, state=state, recorder=recorder)


def distance(model):
    """KL of the policy's steps to ``other``'s on noise that training has not seen."""
    sampler = make_sampler(model)
    rolled = labelled(model, sampler, make_draw("a" * 16, "0123" * 4, first_seed=10**6))
    objective = opd(model, sampler, OPDSettings(beta=0.0))
    (batch,) = next(collect.step_batches(rolled, sampler, updates=1, micro=1000, seed=0))
    with model.adapters.use("policy"), torch.no_grad():
        return float(objective(batch).total)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_pathwise_estimator_brings_the_policy_to_its_teacher(trainee):
    before = distance(trainee)
    run(trainee, settings=FitSettings(8, 0.02), beta=0.0)
    assert distance(trainee) < 0.5 * before


def test_the_score_estimator_brings_the_policy_nearer(trainee):
    before = distance(trainee)
    many = {"tasks": "a" * 48, "groups": "0123" * 12}
    run(trainee, settings=FitSettings(8, 0.01), beta=0.0, estimator="score", **many)
    assert distance(trainee) < 0.9 * before


def test_the_anchor_holds_the_policy_back(trainee, make_trainee):
    run(trainee, settings=FitSettings(8, 0.02), beta=0.0)
    held = make_trainee()
    run(held, settings=FitSettings(8, 0.02), beta=10.0)
    assert distance(held) > distance(trainee)


@pytest.mark.parametrize("estimator", ["pathwise", "score"])
def test_teachers_anchor_and_base_stay_bitwise_the_same(trainee, estimator):
    frozen = ("other", "third", None)
    before, policy = [trainee.adapters.digest(name) for name in frozen], trainee.adapters.digest("policy")
    run(trainee, estimator=estimator)
    assert [trainee.adapters.digest(name) for name in frozen] == before
    assert trainee.adapters.digest("policy") != policy
    assert trainee.adapters.active is None


@pytest.mark.parametrize("std", ["group", "global"])
def test_a_constant_reward_teaches_nothing(trainee, std):
    sampler, before = make_sampler(trainee), trainee.adapters.digest("policy")

    def constant(images, prompts):
        total = torch.full((len(prompts),), 0.7)  # whose float32 sum over eight pictures is rounded
        return RewardResult(total, {}, torch.ones(len(prompts), dtype=torch.bool))

    def experience(iteration):
        rolled = collect.rollout(trainee, sampler, make_draw("a" * 16, "01" * 8, first_seed=1000 * iteration))
        scored = collect.with_rewards(collect.with_images(trainee, rolled), constant)
        advantages = collect.with_advantages(scored, std=std, clip=5.0)
        return collect.step_batches(advantages, sampler, updates=1, micro=100, seed=iteration), {}

    fit(trainee, experience, grpo(trainee, sampler, GRPOSettings(clip=1e-4)), FitSettings(3, 0.01, weight_decay=0.0))
    assert trainee.adapters.digest("policy") == before


def first_moments(model, micro):
    state = run(model, settings=FitSettings(1, 0.01), micro=micro)
    return {name: value for name, value in state.tensors.items() if name.endswith("exp_avg")}


def test_micro_batches_change_nothing(trainee, make_trainee):
    whole, split = first_moments(trainee, 100), first_moments(make_trainee(), 5)
    assert len(whole) == len(trainee.adapters.trainable())
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, atol=1e-6, rtol=1e-4)  # float32 sums in another order


def test_parameters_that_are_summed_and_updated_in_parts_learn_the_same(trainee, make_trainee, monkeypatch):
    whole = run(trainee)
    monkeypatch.setattr("flowopd_cli.train.loop.BUCKET", 100)
    assert same(run(make_trainee()).tensors, whole.tensors)


@pytest.mark.parametrize("micro", [100, 5])
def test_the_gradient_is_the_mean_over_all_rows(trainee, make_trainee, micro):
    updates, _ = experience_of(trainee, micro=micro)(0)
    objective = opd(trainee, make_sampler(trainee), OPDSettings(beta=0.02))
    expected = list(gradients(trainee, objective, next(iter(updates))).values())
    moments = first_moments(make_trainee(), micro)
    for index, value in enumerate(expected):
        moment = moments[f"optimizer/{index}/exp_avg"]
        torch.testing.assert_close(moment, 0.1 * value, atol=1e-8, rtol=1e-3)  # Adam keeps a tenth of the first one


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(trainee, make_trainee, tmp_path, updates):
    def keep(iteration, state):
        if iteration == 2:
            state.save(tmp_path)

    settings = FitSettings(4, 0.01, checkpoint_every=2, warmup=3, schedule="cosine", updates=updates)
    whole = run(trainee, settings=settings, updates=updates, recorder=Recorder(checkpoint=keep))
    other = make_trainee()
    randomize(other, "policy", seed=99)
    resumed = run(other, settings=settings, updates=updates, state=TrainState.load(tmp_path))
    assert (resumed.iteration, resumed.step) == (whole.iteration, whole.step) == (4, 4 * updates)
    assert same(resumed.tensors, whole.tensors)
    assert other.adapters.digest("policy_ema") == trainee.adapters.digest("policy_ema")


@pytest.mark.parametrize(("every", "decay"), [(1, 0.9), (1, 0.15), (2, 0.9), (1, 0.0)])
def test_the_average_follows_its_formula(trainee, every, decay):
    expected, seen = trainee.adapters.state("policy"), []

    def follow(row):
        n = row["step"]
        if decay and n % every == 0:
            kept = min((1 + n) / (10 + n), decay)
            for name, value in trainee.adapters.state("policy").items():
                expected[name] = kept * expected[name] + (1 - kept) * value
        seen.append(n)

    run(trainee, settings=FitSettings(4, 0.01, ema_decay=decay, ema_every=every), recorder=Recorder(row=follow))
    assert seen == [1, 2, 3, 4]
    for name, value in trainee.adapters.state("policy_ema").items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_the_recorder_gets_checkpoints_at_their_cadence_and_samples_after_each_iteration(trainee):
    checkpoints, samples = [], []
    recorder = Recorder(
        checkpoint=lambda iteration, state: checkpoints.append((iteration, state.iteration, len(state.tensors) > 0)),
        sample=lambda iteration, last: samples.append((iteration, last)),
    )
    run(trainee, settings=FitSettings(5, 0.01, checkpoint_every=2), recorder=recorder)
    assert checkpoints == [(2, 2, True), (4, 4, True), (5, 5, True)]
    assert samples == [(1, False), (2, False), (3, False), (4, False), (5, True)]


def movement(model, **settings):
    before = model.adapters.state("policy")
    run(model, settings=FitSettings(1, 0.01, weight_decay=0.0, **settings))
    after = model.adapters.state("policy")
    return max(float((after[name] - before[name]).abs().max()) for name in before)


def test_the_learning_rate_is_warmed_up(trainee, make_trainee):
    assert movement(trainee) == pytest.approx(0.01, rel=1e-3)  # Adam's first step has the length of the rate
    assert movement(make_trainee(), warmup=9) == pytest.approx(0.001, rel=1e-3)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_learning_rate_follows_the_schedule_of_diffusers(name):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    (factor,) = get_scheduler(name, optimizer, num_warmup_steps=0, num_training_steps=12).lr_lambdas
    settings = FitSettings(4, 0.01, schedule=name, updates=3)
    assert [lr_factor(step, settings) for step in range(12)] == pytest.approx([factor(step) for step in range(12)])


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_schedule_falls_from_the_end_of_the_warm_up_to_the_planned_end(name):
    settings = FitSettings(5, 0.01, schedule=name, updates=2, warmup=4)
    factors = [lr_factor(step, settings) for step in range(12)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[7] == pytest.approx(0.5)
    assert factors[10:] == pytest.approx([0.0, 0.0])


def test_gradients_are_clipped_to_their_norm(trainee):
    rows = []
    settings = FitSettings(1, 0.01, max_grad_norm=1e-3)
    state = run(trainee, settings=settings, recorder=Recorder(row=rows.append))
    moments = torch.cat([value.flatten() for name, value in state.tensors.items() if name.endswith("exp_avg")])
    assert rows[0]["grad_norm"] > 1e-3
    assert float(moments.norm()) == pytest.approx(0.1 * 1e-3, rel=1e-3)  # Adam keeps a tenth of the first gradient


def stop_at(number):
    """A function that asks for a stop, as Ctrl-C would, in iteration ``number``."""

    def hook(row):
        if (row if isinstance(row, int) else row["iteration"]) == number:
            os.kill(os.getpid(), signal.SIGINT)

    return hook


@pytest.mark.parametrize("moment", ["row", "sample"])
def test_a_stopped_run_leaves_its_last_iteration_in_a_checkpoint_and_can_go_on(trainee, make_trainee, moment):
    states, rows = {}, []
    stop, handler = stop_at(2), signal.getsignal(signal.SIGINT)
    recorder = Recorder(
        checkpoint=lambda iteration, state: states.update({iteration: state}),
        row=lambda row: (rows.append(row), stop(row) if moment == "row" else None)[1],
        sample=lambda iteration, last: stop(iteration) if moment == "sample" else None,
    )
    with pytest.raises(Interrupted, match=r"stopped after iteration \d of 5") as stopped:
        run(trainee, settings=FitSettings(5, 0.01), recorder=recorder)
    assert stopped.value.exit_code == 130
    assert max(states) == rows[-1]["iteration"] < 5
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = run(make_trainee(), settings=FitSettings(5, 0.01), state=states[max(states)])
    assert same(resumed.tensors, run(make_trainee(), settings=FitSettings(5, 0.01)).tensors)


def test_a_stop_in_the_last_iteration_is_a_finished_run(trainee):
    assert run(trainee, recorder=Recorder(row=stop_at(3))).iteration == 3


def test_the_second_request_stops_at_once(trainee):
    def twice(row):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        run(trainee, recorder=Recorder(row=twice))
    assert trainee.adapters.active is None


def test_a_parameter_without_a_gradient_is_an_error(trainee):
    first = next(iter(trainee.adapters.trainable().values()))

    def objective(batch):
        return Loss(first.sum(), len(batch))

    with pytest.raises(RuntimeError, match="got no gradient"):
        fit(trainee, experience_of(trainee), objective, FitSettings(1, 0.01))
