"""Merges against PEFT's, and against mergekit's rules, written here entry by entry."""

import peft
import pytest
import torch
from peft.utils import merge_utils

from flowopd_cli.core.merging import LoraFactors, MergeOptions, merge

pytestmark = pytest.mark.filterwarnings("ignore:The density 1:UserWarning")  # PEFT, at density 1
OUT, IN, RANK = 9, 7, 3
WEIGHTS = (0.5, 0.3, 0.9)


def adapters(count=3, scale=2.0):
    generator = torch.Generator().manual_seed(3)

    def factors():
        return LoraFactors(
            torch.randn(RANK, IN, generator=generator), torch.randn(OUT, RANK, generator=generator), scale
        )

    return [{"m": factors()} for _ in range(count)]


def dense(parts):
    return [part["m"].scale * part["m"].b.double() @ part["m"].a.double() for part in parts]


def merged(parts, weights, method, **options):
    """The dense result, at full rank."""
    rank = None if method in {"exact", "factor_average"} else IN
    return merge(parts, weights, MergeOptions(method, rank, **options)).factors["m"].delta()


def masks(parts, density):
    """The entries that DARE keeps of each adapter."""
    one_hot = [[float(i == k) for i in range(len(parts))] for k in range(len(parts))]
    return [merged(parts, weights, "dare_linear", density=density).abs() > 1e-4 for weights in one_hot]


def trimmed(values, density):
    """mergekit's ``magnitude``: the ``int(density * size)`` largest entries."""
    largest = sorted(range(len(values)), key=lambda i: -abs(values[i]))[: int(density * len(values))]
    return [value if i in largest else 0.0 for i, value in enumerate(values)]


def mergekit(deltas, weights, *, elect, normalize):
    """mergekit's task arithmetic on sparse updates, with its election by the sum of the weighted entries."""
    result = []
    for entries in zip(*deltas, strict=True):
        pairs = [(weight, weight * entry) for weight, entry in zip(weights, entries, strict=True)]
        if elect:
            sign = 1 if sum(value for _, value in pairs) >= 0 else -1
            pairs = [(weight, value) for weight, value in pairs if value * sign > 0]
        divisor = sum(weight for weight, _ in pairs) if normalize else 1
        result.append(sum(value for _, value in pairs) / (divisor or 1))
    return torch.tensor(result, dtype=torch.float64).view(OUT, IN)


NORMALIZED = {"linear": False, "exact": False, "ties": True, "dare_linear": False, "dare_ties": False}


@pytest.mark.parametrize("weights", [WEIGHTS, (1.0, 1.0, 1.0), (2.0, 0.0, 0.1)])
@pytest.mark.parametrize("normalize", [None, True, False])
@pytest.mark.parametrize("method", list(NORMALIZED))
def test_merges_follow_mergekit(method, normalize, weights):
    parts, density = adapters(), 0.4
    sparse = [delta.flatten().tolist() for delta in dense(parts)]
    if method == "ties":
        sparse = [trimmed(values, density) for values in sparse]
    if method.startswith("dare"):
        pairs = zip(dense(parts), masks(parts, density), strict=True)
        sparse = [(delta * mask / density).flatten().tolist() for delta, mask in pairs]
    divide = NORMALIZED[method] if normalize is None else normalize
    expected = mergekit(sparse, weights, elect=method.endswith("ties"), normalize=divide)
    result = merged(parts, weights, method, density=density, normalize=normalize)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
def test_ties_does_not_depend_on_the_scale_of_the_weights(scale):
    parts = adapters()
    expected = merged(parts, WEIGHTS, "ties")
    torch.testing.assert_close(merged(parts, [scale * w for w in WEIGHTS], "ties"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("density", [0.5, 0.8])
@pytest.mark.parametrize(
    ("method", "normalize", "bias"),
    [
        ("dare_linear", None, lambda density: 1),
        ("dare_ties", None, lambda density: 1),
        ("dare_ties", True, lambda density: (1 - (1 - density) ** 2) / density),
    ],
)
def test_dare_of_two_equal_adapters_has_the_documented_mean(method, normalize, bias, density):
    part = {"m": LoraFactors(torch.eye(16), torch.full((16, 16), 2.0))}
    options = [MergeOptions(method, 16, density, seed, normalize) for seed in range(30)]
    mean = torch.stack([merge([part, part], [0.5, 0.5], option).factors["m"].delta() for option in options]).mean()
    assert float(mean) == pytest.approx(2 * bias(density), rel=0.03)  # 15360 draws: deviation .01


@pytest.mark.parametrize("weight", [1.0, 0.2])
@pytest.mark.parametrize("density", [0.3, 0.5, 1.0])
def test_ties_of_equal_weights_is_that_of_peft_divided_by_the_weight(density, weight):
    parts = adapters()
    expected = merge_utils.ties(dense(parts), torch.full((3,), weight), density) / weight
    torch.testing.assert_close(merged(parts, [0.2] * 3, "ties", density=density), expected, atol=1e-5, rtol=1e-5)


def test_ties_of_one_adapter_is_the_magnitude_pruning_of_peft():
    parts = adapters(1)
    expected = merge_utils.magnitude_prune(dense(parts), torch.ones(1), 0.3)
    torch.testing.assert_close(merged(parts, [1.0], "ties", density=0.3), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_dare_is_that_of_peft_where_both_drop_the_same_entries(method, monkeypatch):
    parts, density = adapters(), 0.6
    draws = iter(masks(parts, density))
    monkeypatch.setattr(merge_utils.torch, "bernoulli", lambda probabilities: next(draws).to(probabilities))
    weights = torch.tensor(WEIGHTS).double() if method == "dare_linear" else torch.ones(3)
    expected = getattr(merge_utils, method)(dense(parts), weights, density)
    result = merged(parts, weights.tolist(), method, density=density, normalize=method == "dare_ties")
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def weighted_adapter(parts, weights, combination, density):
    """The update of PEFT's ``add_weighted_adapter``."""
    names = [f"a{i}" for i in range(len(parts))]
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["m"])
    model = peft.get_peft_model(torch.nn.ModuleDict({"m": torch.nn.Linear(IN, OUT)}), config, names[0])
    for name in names[1:]:
        model.add_adapter(name, config)
    layer = model.base_model.model["m"]
    for name, part in zip(names, parts, strict=True):
        layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = part["m"].a, part["m"].b
    rank = IN if combination.endswith("svd") else None
    model.add_weighted_adapter(names, weights, "w", combination, svd_rank=rank, density=density)
    return layer.get_delta_weight("w").detach().double()


@pytest.mark.parametrize(
    ("method", "combination", "weights", "density"),
    [
        ("exact", "cat", WEIGHTS, None),
        ("linear", "svd", WEIGHTS, None),
        ("linear", "svd", (1.0, -0.5, 0.2), None),
        ("ties", "ties_svd", (1.0, 1.0, 1.0), 0.4),
        ("dare_linear", "dare_linear_svd", WEIGHTS, 1.0),
    ],
)
def test_merges_are_those_of_pefts_weighted_adapters(method, combination, weights, density):
    parts = adapters()
    expected = weighted_adapter(parts, list(weights), combination, density)
    options = {} if density is None else {"density": density}
    torch.testing.assert_close(merged(parts, weights, method, **options), expected, atol=1e-4, rtol=1e-4)


def test_factor_average_of_root_weights_is_pefts_linear():
    parts = adapters()
    expected = weighted_adapter(parts, list(WEIGHTS), "linear", None)
    roots = [weight**0.5 for weight in WEIGHTS]
    torch.testing.assert_close(merged(parts, roots, "factor_average"), expected, atol=1e-4, rtol=1e-4)
