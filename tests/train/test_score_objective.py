"""The two estimators of distillation on a model of one number, whose expectations can be taken."""

import math

import pytest
import torch

from flowopd_cli.core.sampler import Sampler
from flowopd_cli.core.steps import FlowSDE
from flowopd_cli.core.types import Conditioning, StepBatch
from flowopd_cli.train.objectives import OPDSettings, opd

COUNT = 20001
SAMPLER = Sampler(torch.tensor([1.0, 0.6, 0.45, 0.0]).double(), FlowSDE(0.7, 0.9), 1.0)
NOISE = torch.special.ndtri((torch.arange(COUNT).double() + 0.5) / COUNT)  # equally likely draws of a standard normal
POLICY, TEACHER = 0.3, 1.1


class Constant:
    """A flow model whose velocity is one number everywhere."""

    latent_shape = (1, 1, 1)
    adapters = None
    classifier_free = True

    def __init__(self):
        self.value = torch.tensor(POLICY, dtype=torch.float64, requires_grad=True)

    def velocity(self, latents, sigma, cond, *, guidance):
        return self.value.expand_as(latents)

    sigmas = encode = decode = velocity


def batch():
    """Equally likely draws of the policy from one state, with their log-probabilities and the teacher's velocity."""
    x = torch.zeros(COUNT, 1, 1, 1).double()
    sigma, sigma_next = (torch.full((COUNT,), level) for level in (0.6, 0.45))
    step = SAMPLER.step(torch.full_like(x, POLICY), x, sigma, sigma_next)
    drawn = step.mean + step.std * NOISE.view(-1, 1, 1, 1)
    old = -0.5 * NOISE**2 - torch.log(step.std.flatten()) - 0.5 * math.log(2 * math.pi)
    cond = Conditioning(torch.zeros(COUNT, 1, 1))
    return StepBatch(x, drawn, sigma, sigma_next, cond, torch.full_like(x, TEACHER), old_log_prob=old)


def gradient(settings):
    model = Constant()
    loss = opd(model, SAMPLER, settings)(batch())
    (loss.total / loss.count).backward()
    return float(model.value.grad)


@pytest.mark.parametrize("weight", ["kl", "kl_no_dt", "velocity"])
def test_the_expected_score_gradient_is_the_pathwise_gradient(weight):
    pathwise = gradient(OPDSettings("pathwise", weight, beta=0.0))
    score = gradient(OPDSettings("score", weight, beta=0.0, clip=0.2, adv_clip=1e3))
    assert pathwise < 0  # the teacher's number is larger: descent raises ours
    assert score == pytest.approx(pathwise, rel=1e-3)


def test_the_pathwise_gradient_is_the_hand_formula():
    s = 0.7 * math.sqrt(0.6 / 0.4)
    coefficient = -0.15 * (1 + s * s * 0.4 / 1.2)
    expected = coefficient**2 * (POLICY - TEACHER) / (s * s * 0.15)
    assert gradient(OPDSettings(beta=0.0)) == pytest.approx(expected, rel=1e-5)


def test_a_clipped_reward_still_points_the_same_way():
    clipped = gradient(OPDSettings("score", beta=0.0, clip=0.2, adv_clip=0.01))
    assert gradient(OPDSettings(beta=0.0)) < clipped < 0
