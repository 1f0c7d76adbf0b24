"""Weights of targets: shares of a prompt's teachers, and extrapolation beyond them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowopd_cli.core.prompt import Prompt
from flowopd_cli.core.steps import ODE, make_kernel
from flowopd_cli.core.targets import extrapolated, shares
from flowopd_cli.errors import PromptError

X = np.linspace(-12, 12, 48001)


def prompt(**metadata):
    return Prompt("p1", "a sign", "ocr", metadata)


def density(mean, deviation):
    return np.exp(-((X - mean) ** 2) / (2 * deviation**2)) / (deviation * np.sqrt(2 * np.pi))


def velocity(data, x, sigma):
    """``E[eps - x0 | x_sigma = x]`` for a density of the data, by integrating over ``x0``."""
    noise = (x - (1 - sigma) * X) / sigma
    weight = data * np.exp(-(noise**2) / 2)
    return float(((noise - X) * weight).sum() / weight.sum())


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.25, 2.0, 3.0])
@pytest.mark.parametrize(("x", "sigma"), [(0.3, 0.9), (-1.2, 0.5), (2.0, 0.1)])
def test_extrapolation_is_the_velocity_of_the_product_of_densities(factor, x, sigma):
    """The product of the powers of both densities, normalized and integrated by numbers."""
    teacher, base = density(1.3, 0.8), density(-0.4, 0.8)
    product = np.exp(factor * np.log(teacher) + (1 - factor) * np.log(base))
    weights = extrapolated({"teacher": 1.0}, lambda _: "base", factor)
    parts = {"teacher": velocity(teacher, x, sigma), "base": velocity(base, x, sigma)}
    assert sum(weight * parts[name] for name, weight in weights.items()) == pytest.approx(
        velocity(product, x, sigma), abs=1e-9
    )


@pytest.mark.parametrize("kernel", ["flow_sde", "cps", "ode"])
def test_a_weighted_velocity_makes_the_step_of_the_weighted_means(kernel):
    """So the target's step is the product of the teachers' steps, whose variance is common."""
    v, x = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    sigma, sigma_next = torch.tensor([0.9, 0.6, 0.4]).double(), torch.tensor([0.6, 0.4, 0.2]).double()
    step = make_kernel(kernel, 0.7, torch.tensor([1.0, 0.9])) if kernel != "ode" else ODE()
    one, other, both = (step(velocity, x, sigma, sigma_next) for velocity in (v[0], v[1], 1.5 * v[0] - 0.5 * v[1]))
    torch.testing.assert_close(both.mean, 1.5 * one.mean - 0.5 * other.mean, atol=1e-12, rtol=1e-12)
    assert torch.equal(both.std, one.std)


def test_extrapolated_weights():
    base_of = {"a": "base", "b": "base", "base": "base"}.__getitem__
    assert extrapolated({"a": 1.0}, base_of, 1.0) == {"a": 1.0}  # no forward of the base
    assert extrapolated({"a": 1.0}, base_of, 1.25) == {"a": 1.25, "base": -0.25}
    assert extrapolated({"a": 0.5, "b": 0.5}, base_of, 2.0) == {"a": 1.0, "base": -1.0, "b": 1.0}
    assert extrapolated({"base": 1.0}, base_of, 3.0) == {"base": 1.0}


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=5), st.floats(0.1, 4))
def test_weights_sum_to_one(weights, factor):
    parts = dict(enumerate(shares(weights, prompt())))
    assert sum(extrapolated(parts, lambda key: f"base of {key % 2}", factor).values()) == pytest.approx(1)


def test_shares_are_relative_and_read_metadata():
    assert shares([7], prompt()) == (1.0,)
    assert shares([1, 3], prompt()) == (0.25, 0.75)
    assert shares(["a", "b", 1], prompt(a=3, b=0, c=5)) == (0.75, 0.0, 0.25)


@pytest.mark.parametrize("value", [None, "1", -0.1, float("nan"), float("inf"), True, 1e308, 10**400])
def test_a_metadata_entry_that_is_no_weight_is_refused(value):
    words = r"^prompt 'p1' of task 'ocr': the metadata entry share is .*: a weight is a number, 0 or more$"
    with pytest.raises(PromptError, match=words):
        shares([1, "share"], prompt(share=value))


def test_a_missing_metadata_entry_is_named():
    with pytest.raises(PromptError, match="the metadata entry share is missing"):
        shares([1, "share"], prompt(other=1))


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(PromptError, match="the weights a, b are all 0"):
        shares(["a", "b"], prompt(a=0, b=0))
