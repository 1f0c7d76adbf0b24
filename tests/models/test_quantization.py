"""A base in 8 and 4 bits against closed forms, bitsandbytes, autograd, and the same base in full precision."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from flowopd_cli.errors import ArtifactError
from flowopd_cli.models.files.families import family_of, named_shapes
from flowopd_cli.models.loading import LoadOptions
from flowopd_cli.models.memory import measure
from flowopd_cli.models.quantization import BLOCK, KINDS, NF4, QuantizedLinear, decode, encode, quantize
from flowopd_cli.models.random_weights import make_random, skeleton
from flowopd_cli.registry import MODELS

SHAPES = {str(family_of(name)): shape for name, shape in named_shapes().items() if name.endswith("small")}
CPU = torch.device("cpu")
OPTIONS = LoadOptions(device="cpu", dtype="float32", resolution=128, targets=("all-linear",))
ERROR = {"int8": 0.01, "nf4": 0.15}  # of a velocity, relative


def layer(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Linear(2 * BLOCK, 24).to(dtype).requires_grad_(False)


def models(family, kind, **options):
    """A model of random weights in full precision and quantized, each with the same adapter."""
    both = []
    for quantized in ("none", kind):
        torch.manual_seed(0)
        both.append(make_random(MODELS.load(family), SHAPES[family], replace(OPTIONS, quantize=quantized, **options)))
        both[-1].adapters.add("policy", 4, 8, seed=0, trainable=True)
        state = both[-1].adapters.state("policy")
        noise = torch.Generator().manual_seed(1)
        random = {key: 0.05 * torch.randn(value.shape, generator=noise) for key, value in state.items()}
        both[-1].adapters.load_state("policy", random)
    return both


def velocity(model, rows=2, **options):
    latents = torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(2))
    cond = model.encode(["a", "b"][:rows])
    return model.velocity(latents, torch.full((rows,), 0.5), cond, guidance=1.0, **options)


def gradients(model):
    with model.adapters.use("policy"):
        velocity(model).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.adapters.trainable().items()}


def distance(one, other):
    return float((one - other).norm() / other.norm())


def test_the_values_of_nf4_are_quantiles_of_the_normal_distribution():
    tail = 0.9677083  # the mean of 1 - 1/30 and 1 - 1/32
    upper = torch.special.ndtri(torch.linspace(tail, 0.5, 9, dtype=torch.float64))[:-1]
    lower = -torch.special.ndtri(torch.linspace(tail, 0.5, 8, dtype=torch.float64))[:-1]
    values = torch.cat([lower, torch.zeros(1), upper]).sort().values
    assert torch.tensor(NF4, dtype=torch.float64) == pytest.approx(values / values.max(), abs=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_becomes_the_nearest_value_of_its_block(dtype):
    weight, values = layer(dtype).weight, torch.tensor(NF4).to(dtype)
    codes, scale = encode(weight, values)
    assert codes.shape == (24, BLOCK)
    blocks = weight.unflatten(1, (-1, BLOCK)).double()
    assert torch.equal(scale.double(), blocks.abs().amax(2))
    choices = values.double() * scale.double()[..., None]
    nearest = (blocks[..., None] - choices[:, :, None]).abs().min(-1).values
    decoded = decode(codes, scale, torch.cartesian_prod(values, values)).unflatten(1, (-1, BLOCK)).double()
    rounding = 2.0 ** (-9 if dtype == torch.bfloat16 else -24)
    assert ((blocks - decoded).abs() <= nearest + 2 * rounding * blocks.abs().amax()).all()


def test_eight_bits_are_off_by_half_a_step_at_most():
    weight = layer().weight
    codes, scale = encode(weight, None)
    assert codes.dtype == torch.int8
    assert codes.abs().amax() == 127
    steps = (weight - decode(codes, scale, None)).unflatten(1, (-1, BLOCK)).abs() / scale[..., None]
    assert steps.max() <= 0.5001


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_zeros_stays_zero(kind):
    plain = layer()
    plain.weight[:, :BLOCK] = 0
    coded = QuantizedLinear(plain, kind, CPU)
    assert not decode(coded.weight, coded.scale, coded.table)[:, :BLOCK].any()


def test_codes_and_values_are_those_of_bitsandbytes():
    functional = pytest.importorskip("bitsandbytes.functional", reason="pip install bitsandbytes for the comparison")
    weight = layer().weight
    coded = QuantizedLinear(layer(), "nf4", CPU)
    codes, state = functional.quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    assert torch.equal(codes.view(24, -1), coded.weight)
    assert torch.equal(functional.dequantize_4bit(codes, state), decode(coded.weight, coded.scale, coded.table))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_autograds_with_the_decoded_weight(kind, dtype):
    plain, coded = layer(dtype), QuantizedLinear(layer(dtype), kind, CPU)
    plain.weight.copy_(decode(coded.weight, coded.scale, coded.table))
    results = []
    for module in (plain, coded):
        x = torch.randn(3, 5, 2 * BLOCK, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
        y = module(x)
        results.append((y, *torch.autograd.grad(y.float().square().sum(), x)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: saved.append(tensor) or tensor, lambda t: t):
        coded(torch.randn(3, 2 * BLOCK, dtype=dtype, requires_grad=True))
    assert {t.data_ptr() for t in saved} <= {t.data_ptr() for t in (*coded.parameters(), *coded.buffers())}


@pytest.mark.parametrize(("family", "kind"), [("sd3", "int8"), *((family, "nf4") for family in SHAPES)])
def test_a_quantized_base_answers_nearly_alike_and_trains_its_adapter(family, kind):
    plain, coded = models(family, kind)
    assert any(isinstance(module, QuantizedLinear) for module in coded.transformer.modules())
    with torch.no_grad():
        assert 0 < distance(velocity(coded), velocity(plain)) < ERROR[kind]
    with coded.adapters.use("policy"):
        with torch.no_grad():
            drawn = velocity(coded)
        assert torch.equal(velocity(coded), drawn)  # a rollout and learning see the same velocity
    one, other = gradients(coded), gradients(plain)
    assert {gradient.dtype for gradient in one.values()} == {torch.float32}
    flat = [torch.cat([gradient.flatten() for gradient in grads.values()]) for grads in (one, other)]
    assert distance(*flat) < 2 * ERROR[kind]


def test_it_works_with_everything_that_changes_a_forward():
    _, coded = models("sd3", "nf4")
    coded.adapters.copy("policy", "teacher")
    with torch.no_grad():
        plain, adapted = velocity(coded), velocity(coded, adapters=["teacher"] * 2)
        mixed = velocity(coded, adapters=[None, "teacher"])
    assert torch.allclose(mixed, torch.stack([plain[0], adapted[1]]), atol=1e-5)
    before = {name: gradient.clone() for name, gradient in gradients(coded).items()}
    coded.adapters.fold("teacher")  # not into codes
    _, offloaded = models("sd3", "nf4", offload=True)
    with torch.no_grad():
        assert torch.equal(velocity(offloaded), plain)
    _, saving = models("sd3", "nf4")
    saving.checkpoint_gradients()
    saving.transformer.train()
    for name, gradient in gradients(saving).items():
        assert torch.allclose(gradient, before[name], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_compiled_it_has_the_same_gradients(kind):
    (_, coded), (_, compiled) = models("sd3", kind), models("sd3", kind, compile="aot_eager")
    before = gradients(coded)
    for name, gradient in gradients(compiled).items():
        assert torch.allclose(gradient, before[name], atol=1e-6)


def test_an_adapter_fits_the_base_in_any_precision(tmp_path):
    plain, coded = models("sd3", "nf4")
    coded.adapters.save("policy", tmp_path / "a", "base", "0" * 64)
    plain.adapters.load("other", tmp_path / "a")
    coded.adapters.load("other", tmp_path / "a")
    assert plain.adapters.digest("other") == coded.adapters.digest("policy") == coded.adapters.digest("other")
    assert plain.adapters.digest(None) != coded.adapters.digest(None)


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_the_bytes_of_a_base_are_those_counted(kind):
    options = replace(OPTIONS, dtype="bfloat16", quantize=kind)
    model = make_random(MODELS.load("sd3"), SHAPES["sd3"], options)
    held = [t for name, t in model.transformer.state_dict(keep_vars=True).items()]
    with skeleton(MODELS.load("sd3"), SHAPES["sd3"]) as path:
        footprint = replace(measure("sd3", str(path), replace(options, quantize="none"), 4), quantize=kind)
    assert footprint.weights == pytest.approx(sum(tensor.nbytes for tensor in held), rel=1e-3)


def test_a_base_without_a_fitting_layer_is_refused():
    with pytest.raises(ArtifactError, match=r"model.quantize nf4: the base has no linear layer with a multiple of 64"):
        quantize([nn.Sequential(nn.Linear(BLOCK - 1, 4))], "nf4", CPU)
