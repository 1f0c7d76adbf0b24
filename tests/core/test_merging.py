"""Merges against dense matrices that are added up here."""

import math

import pytest
import torch

from flowopd_cli.core.merging import Dense, LoraFactors, MergeOptions, MergeReport, merge, merge_dense
from flowopd_cli.errors import MergeError

OUT, IN = 24, 20
SCALES = {8: 2.0, 16: 0.5, 4: 1.0}


def lora(rank, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, IN, generator=generator) / IN**0.5
    b = torch.randn(OUT, rank, generator=generator)
    return LoraFactors(a, b, scale)


def adapters(ranks=(8, 16, 4), modules=("q", "k")):
    return [{m: lora(rank, 10 * i + j, SCALES[rank]) for j, m in enumerate(modules)} for i, rank in enumerate(ranks)]


def dense(factors):
    return factors.scale * factors.b.double() @ factors.a.double()


def weighted_sum(parts, weights, module):
    return sum(weight * dense(part[module]) for weight, part in zip(weights, parts, strict=True) if module in part)


def matrix(rows):
    """A dense update as factors of full rank."""
    values = torch.tensor(rows)
    return {"m": LoraFactors(torch.eye(values.shape[1]), values)}


def merged_matrix(parts, weights, **options):
    result = merge(parts, weights, MergeOptions(rank=2, **options))
    return result.factors["m"].delta()


@pytest.mark.parametrize("weights", [(0.5, 0.3, 0.2), (1.0, -0.7, 0.1), (1.0, 1.0, 0.0)])
def test_exact_is_the_dense_weighted_sum_of_adapters_of_any_rank(weights):
    parts = adapters()
    result = merge(parts, weights, MergeOptions(method="exact"))
    for module in ("q", "k"):
        assert result.factors[module].a.shape == (28, IN)
        assert result.factors[module].a.dtype == torch.float32
        torch.testing.assert_close(
            result.factors[module].delta(), weighted_sum(parts, weights, module), atol=1e-5, rtol=1e-5
        )
    assert (result.report.relative_error, result.report.retained_energy) == (0.0, 1.0)


@pytest.mark.parametrize("method", ["linear", "exact", "ties", "factor_average"])
def test_one_adapter_of_weight_one_reproduces_itself(method):
    (part,) = adapters((8,))
    result = merge([part], [1.0], MergeOptions(method=method, density=1.0))
    for module, factors in part.items():
        torch.testing.assert_close(result.factors[module].delta(), dense(factors), atol=1e-5, rtol=1e-5)
    assert result.report.relative_error == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("rank", [None, 3, 12])
def test_linear_is_the_truncated_svd_of_the_dense_sum_and_says_what_it_lost(rank):
    parts, weights = adapters(), (0.5, 0.3, 0.2)
    result = merge(parts, weights, MergeOptions(rank=rank))
    lost = kept = 0.0
    for module in ("q", "k"):
        target = weighted_sum(parts, weights, module)
        u, s, v = torch.linalg.svd(target, full_matrices=False)
        best = (u[:, : rank or 16] * s[: rank or 16]) @ v[: rank or 16]
        torch.testing.assert_close(result.factors[module].delta(), best, atol=1e-5, rtol=1e-5)
        lost, kept = lost + float((target - best).square().sum()), kept + float(best.square().sum())
        report = result.modules[module]
        assert result.factors[module].a.shape[0] == (rank or 16)
        assert report.relative_error == pytest.approx(float((target - best).norm() / target.norm()), abs=1e-6)
    assert result.report.relative_error == pytest.approx((lost / (lost + kept)) ** 0.5, abs=1e-6)
    assert result.report.retained_energy == pytest.approx(kept / (lost + kept), abs=1e-6)


def test_a_module_that_one_adapter_lacks_counts_as_zero_there():
    parts = [adapters((8,), ("q", "k"))[0], adapters((4,), ("q",))[0]]
    result = merge(parts, [0.5, 0.5], MergeOptions(method="exact"))
    torch.testing.assert_close(result.factors["k"].delta(), 0.5 * dense(parts[0]["k"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("count", "error"), [(2, 0.71), (3, 0.82), (4, 0.87)])
def test_averaging_factors_loses_most_of_independent_adapters(count, error):
    generator = torch.Generator().manual_seed(0)
    parts = [
        {"m": LoraFactors(torch.randn(8, 128, generator=generator), torch.randn(128, 8, generator=generator))}
        for _ in range(count)
    ]
    report = merge(parts, [1 / count] * count, MergeOptions(method="factor_average")).report
    assert report.relative_error == pytest.approx(error, abs=0.03)  # a random matrix of finite size


def test_averaging_factors_averages_the_factors_and_reports_its_distance_to_the_dense_sum():
    parts = [{"m": lora(4, seed, 2.0)} for seed in (0, 1)]
    result = merge(parts, [0.5, 0.5], MergeOptions(method="factor_average"))
    a, b = ((getattr(parts[0]["m"], side) + getattr(parts[1]["m"], side)) / 2 for side in "ab")
    target = weighted_sum(parts, (0.5, 0.5), "m")
    torch.testing.assert_close(result.factors["m"].delta(), 2.0 * (b @ a).double(), atol=1e-5, rtol=1e-5)
    error = float((2.0 * (b @ a).double() - target).norm() / target.norm())
    assert result.report.relative_error == pytest.approx(error, rel=1e-5)


def test_ties_by_hand():
    parts = [matrix([[4.0, -1.0], [3.0, 0.1]]), matrix([[2.0, 5.0], [-6.0, 0.2]])]
    # density 3/4 drops each smallest entry; signs of the sums: +, +, -; the mean of those that agree, times 1/2 + 1/2
    expected = torch.tensor([[3.0, 5.0], [-6.0, 0.0]]).double()
    torch.testing.assert_close(
        merged_matrix(parts, [0.5, 0.5], method="ties", density=0.75), expected, atol=1e-5, rtol=0
    )


def test_ties_weighs_the_entries_that_agree():
    parts = [matrix([[4.0, 1.0], [1.0, 1.0]]), matrix([[1.0, -2.0], [1.0, 1.0]])]
    # weights 2 and 1: top left (2 4 + 1 1) / 3; top right sums to 0, so no sign is elected
    expected = torch.tensor([[3.0, 0.0], [1.0, 1.0]]).double()
    torch.testing.assert_close(
        merged_matrix(parts, [2.0, 1.0], method="ties", density=1.0), expected, atol=1e-5, rtol=0
    )


def test_dare_drops_and_rescales_entry_by_entry():
    part = matrix([[1.0, 2.0], [3.0, 4.0]])
    got = [merged_matrix([part], [1.0], method="dare_linear", density=0.25, seed=seed) for seed in range(200)]
    factor = torch.stack(got) / torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    near_zero, near_four = (factor.abs() < 1e-3), ((factor - 4).abs() < 1e-3)
    assert (near_zero | near_four).all()
    assert float(factor.mean()) == pytest.approx(1, abs=0.2)  # 800 draws of 0 or 4: deviation 0.06


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_a_function_of_its_seed(method):
    part = adapters((8, 16))
    first, again, other = (merge(part, [0.5, 0.5], MergeOptions(method=method, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.factors["q"].a, again.factors["q"].a)
    assert not torch.equal(first.factors["q"].a, other.factors["q"].a)


def test_dare_ties_elects_signs():
    parts = [matrix([[4.0, 1.0], [1.0, 1.0]]), matrix([[2.0, -3.0], [1.0, 1.0]])]
    for normalize, sole in ((None, -1.5), (True, -3.0)):  # the one entry that has the sign of its sum
        got = merged_matrix(parts, [0.5, 0.5], method="dare_ties", density=1.0, normalize=normalize)
        torch.testing.assert_close(got, torch.tensor([[3.0, sole], [1.0, 1.0]]).double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("weights", [(1.0, -1.0), (-2.0, -0.5), (1.0, -0.999)])
def test_ties_stays_within_its_updates_for_any_weights(weights):
    parts = adapters((8, 8), ("m",))
    merged = merge(parts, weights, MergeOptions("ties", rank=20)).factors["m"].delta()
    largest = torch.stack([dense(part["m"]) for part in parts]).abs().max(dim=0).values
    assert (merged.abs() <= largest + 1e-5).all()
    assert (merged.abs() > 0.1).any()


@pytest.mark.parametrize("method", ["linear", "exact", "dare_linear", "factor_average"])
def test_normalized_weights_sum_to_one(method):
    parts = adapters((8, 8), ("m",))
    parts = [{"m": LoraFactors(part["m"].a, part["m"].b, 2.0)} for part in parts]
    one, three = (merge(parts, w, MergeOptions(method, normalize=True)) for w in ((0.75, 0.25), (3.0, 1.0)))
    torch.testing.assert_close(one.factors["m"].delta(), three.factors["m"].delta(), atol=1e-5, rtol=1e-5)
    with pytest.raises(MergeError, match=r"the weights sum to .* and cannot be normalized"):
        merge(parts, [0.1, -0.1], MergeOptions(method, normalize=True))


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_error_of_sparse_merges_is_that_of_their_truncation(method):
    parts = adapters((8, 4))
    whole = merge(parts, [0.5, 0.5], MergeOptions(method=method, rank=20, seed=3))
    small = merge(parts, [0.5, 0.5], MergeOptions(method=method, rank=2, seed=3))
    target, kept = whole.factors["q"].delta(), small.factors["q"].delta()
    error = float((target - kept).norm() / target.norm())
    assert whole.report.relative_error == pytest.approx(0, abs=1e-6)
    assert small.modules["q"].relative_error == pytest.approx(error, rel=1e-4)


def rescaled(part):
    """The same update of other factors, equal up to rounding."""
    return {name: LoraFactors(3 * f.a, f.b / 3, f.scale) for name, f in part.items()}


DOUBLE = [{name: LoraFactors(f.a.double(), f.b.double(), f.scale) for name, f in adapters((8,))[0].items()}]


@pytest.mark.parametrize("method", ["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"])
@pytest.mark.parametrize(
    ("parts", "weights"),
    [
        (adapters((8, 8)), (0.0, 0.0)),
        ([{"m": LoraFactors(torch.zeros(2, IN), torch.zeros(OUT, 2))}], (1.0,)),
        ([*DOUBLE, *DOUBLE], (1.0, -1.0)),
        ([*DOUBLE, rescaled(DOUBLE[0])], (1.0, -1.0)),
    ],
)
def test_the_figures_of_a_merge_of_zero_are_undefined(method, parts, weights):
    if method == "factor_average":  # neither equal scales in the first case, nor a merge of 0 in the last
        parts = [{name: LoraFactors(f.a, f.b) for name, f in parts[0].items()}] * len(parts)
    if method in {"ties", "dare_ties"}:  # where updates are equal up to rounding, they elect the sign of the rounding
        parts = [parts[0]] * len(parts)
    result = merge(parts, weights, MergeOptions(method, density=1.0))
    report = result.report
    assert report.norm == 0
    assert math.isnan(report.relative_error)
    assert math.isnan(report.retained_energy)
    assert all(factors.delta().norm() < 1e-5 for factors in result.factors.values())


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_unused_directions_of_a_merge_can_be_trained(method):
    part = {"m": lora(2, 0)}
    factors = merge([part, part], [0.5, 0.5], MergeOptions(method, rank=12, density=1.0)).factors["m"]
    torch.testing.assert_close(factors.delta(), dense(part["m"]), atol=1e-5, rtol=1e-5)
    norms = factors.a[2:].norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))  # with B = 0, the gradient of B is not 0
    assert (factors.b[:, 2:] == 0).all()


@pytest.mark.parametrize("weights", [(1.0, -1.0), (-1.0, -1.0), (1.0, 1e-9), (0.5, 0.5), (5.0, -4.0)])
@pytest.mark.parametrize("method", ["linear", "exact", "ties", "dare_linear", "dare_ties", "factor_average"])
def test_the_energy_retained_is_a_fraction(method, weights):
    parts = [{"m": lora(6, seed)} for seed in (0, 1)]
    for pair in (parts, [parts[0], parts[0]]):
        report = merge(pair, weights, MergeOptions(method)).report
        assert math.isnan(report.retained_energy) or 0 <= report.retained_energy <= 1
        assert math.isnan(report.retained_energy) == (report.norm == 0)


def test_averaged_factors_of_products_that_cancel_have_an_infinite_error():
    part = {"m": lora(4, 0)}
    other = {"m": LoraFactors(2 * part["m"].a, part["m"].b / 2)}
    report = merge([part, other], [1.0, -1.0], MergeOptions("factor_average")).report
    assert (report.norm, report.relative_error, report.retained_energy) == (0, math.inf, 0)
    assert MergeReport(1.0, 4.0).retained_energy == 0


@pytest.mark.parametrize(
    ("parts", "weights", "method", "reason"),
    [
        ([], [], "linear", "give one weight for each adapter"),
        (adapters(), [1.0, 1.0], "linear", "3 adapters and 2 weights"),
        (adapters((8, 4)), [0.5, 0.5], "factor_average", "needs equal ranks and scales"),
        ([{"m": lora(4, 0, 1.0)}, {"m": lora(4, 1, 2.0)}], [0.5, 0.5], "factor_average", "equal ranks and scales"),
        ([{"m": lora(4, 0)}, matrix([[1.0, 2.0]])], [0.5, 0.5], "exact", "m: adapters of different shapes"),
    ],
)
def test_what_cannot_be_merged_is_refused_with_the_reason(parts, weights, method, reason):
    with pytest.raises(MergeError, match=reason):
        merge(parts, weights, MergeOptions(method=method))


def test_empty_adapters_are_refused():
    with pytest.raises(MergeError, match="there is nothing to merge"):
        merge([{}, {}], [1.0, 1.0], MergeOptions())


@pytest.mark.parametrize("rank", [1, 2, 3, 9])
@pytest.mark.parametrize(("rows", "columns"), [(2, 5), (5, 2), (1, 4), (4, 1)])
def test_modules_narrower_than_the_ranks_that_meet_in_them(rows, columns, rank):
    generator = torch.Generator().manual_seed(0)

    def factors():
        a, b = torch.randn(3, columns, generator=generator), torch.randn(rows, 3, generator=generator)
        return LoraFactors(a, b, 0.5)

    parts = [{"m": factors()}, {"m": factors()}]
    merged = merge(parts, [0.5, 0.5], MergeOptions(rank=rank)).factors["m"]
    kept = min(rank, rows, columns)
    assert merged.a.shape == (kept, columns)
    target = sum(0.5 * part["m"].delta() for part in parts)
    u, s, v = torch.linalg.svd(target, full_matrices=False)
    torch.testing.assert_close(merged.delta(), (u[:, :kept] * s[:kept]) @ v[:kept], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["linear", "normalized", "ties", "sum of ties"])
def test_dense_updates_of_any_shape_are_merged_as_by_hand(name):
    one, two = torch.tensor([3.0, -1.0, -4.0, 0.5]), torch.tensor([1.0, 0.0, 8.0, 0.5])
    options, expected = {
        "linear": ({}, [3.5, -1.0, 0.0, 0.75]),
        "normalized": ({"normalize": True}, [3.5 / 10.5, -1.0 / 10.5, 0.0, 0.75 / 10.5]),
        "ties": ({"density": 0.5}, [7 / 3, 0.0, 0.0, 0.0]),  # of (3, 0, -4, 0) and (1, 0, 8, 0), the third cancels
        "sum of ties": ({"density": 0.75, "normalize": False}, [3.5, -1.0, 0.0, 0.25]),
    }[name]
    method = "ties" if "ties" in name else "linear"
    merged = merge_dense("m", [Dense(one), Dense(two), None], [1.0, 0.5, 9.0], MergeOptions(method, **options))
    assert merged.dtype == torch.float64
    torch.testing.assert_close(merged, torch.tensor(expected, dtype=torch.float64))
