"""What is not learned: losses and gradients that are not finite; what is warned of; what a stopped run leaves."""

import math

import pytest
import torch
from support.recorders import Recorder
from support.tiny import experience_of, make_sampler
from torch import nn

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.types import Conditioning, Loss, StepBatch
from flowopd_cli.errors import DivergedError, RewardError
from flowopd_cli.train.faults import Dump, Fault
from flowopd_cli.train.loop import FitSettings, Guard, fit
from flowopd_cli.train.objectives import OPDSettings, opd


def objective_of(model, spoil=lambda batch, loss: loss):
    """Distillation whose losses go through ``spoil``."""
    inner = opd(model, make_sampler(model), OPDSettings())

    def objective(batch):
        return spoil(batch, inner(batch))

    return objective


class Spoiler:
    """Makes the loss of the ``k``-th micro-batch, or its gradient, not finite; if ``always`` those after it too."""

    def __init__(self, k, what="gradient", always=False):
        self.k, self.what, self.always, self.count = k, what, always, 0

    def __call__(self, batch, loss):
        self.count += 1
        if not (self.count == self.k or (self.always and self.count >= self.k)):
            return loss
        if self.what == "loss":
            return Loss(loss.total * math.nan, loss.count, loss.metrics)
        root = (loss.total - loss.total.detach()).abs().sqrt()  # 0, with a slope that is not finite
        return Loss(loss.total + root, loss.count, loss.metrics)


def state_of(model):
    return {name: value.clone() for name, value in model.adapters.state("policy").items()}


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_an_optimizer_step_that_is_not_finite_is_skipped_counted_and_named(trainee, make_trainee, what):
    rows, faults = [], []
    recorder = Recorder(row=rows.append, fault=lambda iteration, fault, dump: faults.append((iteration, fault)))
    batches = 12 // 3  # four pictures of three taught steps
    spoiled = objective_of(trainee, Spoiler(batches + 2, what))
    state = fit(trainee, experience_of(trainee, micro=3), spoiled, FitSettings(3, 0.01), recorder=recorder)
    assert [row["skipped"] for row in rows] == [0, 1, 0]
    assert [row["step"] for row in rows] == [1, 1, 2]
    assert state.step == 2
    ((iteration, fault),) = faults
    assert (iteration, fault.what) == (2, what)
    assert set(fault.prompts) <= {"a red circle", "a blue square"}
    assert fault.prompts
    assert all(bool(torch.isfinite(value).all()) for value in state.tensors.values())
    assert "loss" not in rows[1]


def test_a_skipped_step_moves_nothing(trainee):
    before, average = state_of(trainee), []

    def note(row):
        average.append(trainee.adapters.state("policy_ema"))

    spoiled = objective_of(trainee, Spoiler(1, always=True))
    fit(trainee, experience_of(trainee, micro=3), spoiled, FitSettings(2, 0.01), recorder=Recorder(row=note))
    after = state_of(trainee)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(torch.equal(average[-1][name], value) for name, value in before.items())


def test_too_many_in_a_row_stop_the_run_with_a_dump_that_says_the_same_again(trainee, tmp_path):
    spoiled = objective_of(trainee, Spoiler(4, "loss", always=True))
    dumps = []

    def save(iteration, fault, dump):
        dumps.append(dump)
        if dump is not None:
            dump.save(tmp_path)
        return f"see {tmp_path}"

    settings = FitSettings(50, 0.01, skip_limit=3)
    with pytest.raises(DivergedError, match=r"3\. optimizer step in a row; see ") as caught:
        fit(trainee, experience_of(trainee, micro=3), spoiled, settings, recorder=Recorder(fault=save))
    assert caught.value.exit_code == 5
    found, made = Dump.load(tmp_path), dumps[-1]
    assert dumps[:-1] == [None, None]
    assert (found.iteration, found.step, found.fault) == (made.iteration, made.step, made.fault)
    assert all(torch.equal(found.policy[name], value) for name, value in made.policy.items())
    assert found.batch.prompts == made.batch.prompts
    for name in ("latents", "sigma", "target_velocity"):
        assert torch.equal(getattr(found.batch, name), getattr(made.batch, name))
    with trainee.adapters.use("policy"):
        one, two = (objective_of(trainee)(batch).total for batch in (found.batch, made.batch))
    assert torch.equal(one, two)


def test_a_good_step_in_between_starts_the_count_anew(trainee):
    def every_other(batch, loss, seen=[]):  # noqa: B006
        seen.append(batch)
        return Loss(loss.total * math.nan, loss.count, loss.metrics) if (len(seen) - 1) // 4 % 2 else loss

    rows = []
    settings, spoiled = FitSettings(6, 0.01, skip_limit=2), objective_of(trainee, every_other)
    fit(trainee, experience_of(trainee, micro=3), spoiled, settings, recorder=Recorder(row=rows.append))
    assert [row["skipped"] for row in rows] == [0, 1, 0, 1, 0, 1]


def test_an_iteration_without_optimizer_steps_is_an_iteration(trainee):
    rows, before = [], state_of(trainee)
    fit(
        trainee,
        lambda iteration: ([], {}),
        objective_of(trainee),
        FitSettings(2, 0.01),
        recorder=Recorder(row=rows.append),
    )
    assert [(row["iteration"], row["step"], row["skipped"]) for row in rows] == [(1, 0, 0), (2, 0, 0)]
    assert all(torch.equal(state_of(trainee)[name], value) for name, value in before.items())


@pytest.mark.parametrize("error", [RewardError("the worker is gone"), RuntimeError("a bug")])
def test_what_ends_a_run_leaves_its_last_iteration_in_a_checkpoint(trainee, error):
    checkpoints, inner = [], experience_of(trainee, micro=3)

    def experience(iteration):
        if iteration == 2:
            raise error
        return inner(iteration)

    recorder = Recorder(checkpoint=lambda iteration, state: checkpoints.append((iteration, state.step)))
    with pytest.raises(type(error)):
        fit(trainee, experience, objective_of(trainee), FitSettings(9, 0.01, checkpoint_every=5), recorder=recorder)
    assert checkpoints == [(2, 2)]


def test_an_iteration_that_has_begun_to_learn_is_not_taken_for_a_finished_one(trainee):
    checkpoints, inner = [], experience_of(trainee, updates=2, micro=3)

    def experience(iteration):
        updates, figures = inner(iteration)

        def broken():
            yield next(iter(updates))
            raise RewardError("too late")

        return (broken() if iteration == 2 else updates), figures

    recorder = Recorder(checkpoint=lambda iteration, state: checkpoints.append(iteration))
    with pytest.raises(RewardError):
        fit(trainee, experience, objective_of(trainee), FitSettings(9, 0.01, checkpoint_every=5), recorder=recorder)
    assert checkpoints == []


def test_the_first_bad_batch_is_the_one_that_is_kept():
    weight, x = nn.Parameter(torch.ones(2)), torch.zeros(1, 4, 4, 4)
    guard, cond = Guard([weight]), Conditioning(torch.zeros(1, 2, 3))
    prompts = [(Prompt(name, name, "a"),) for name in ("good", "bad", "after")]
    for own, value in zip(prompts, (1.0, math.inf, 1.0), strict=True):
        weight.grad = torch.full((2,), value) if weight.grad is None else weight.grad + value
        batch = StepBatch(x, x, torch.ones(1), torch.zeros(1), cond, prompts=own)
        guard.passes(Loss(torch.tensor(0.0), 1), batch)
    assert guard.fault == Fault("gradient", ("bad",))
    assert guard.batch.prompts == prompts[1]
