"""The weights that networks start from: how they vary, which maps they are, and that the default changes no bit."""

import copy
import itertools
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dst import registry
from dst.models import ModelError
from dst.models.initialise import initialise
from dst.options import OptionError

INITS = sorted(registry.members("model_init"))
FEW = settings(max_examples=20, deadline=None)
widths = st.lists(st.integers(1, 12).map(lambda half: 2 * half), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


def built(name, shape=(3, 32, 32), classes=10, device="cpu", **options):
    with torch.device(device):
        return registry.find("model", name).load()(shape, classes, **options)


def started(model, name, seed=0, **options):
    """Return a copy of a network that starts from other weights."""
    model = copy.deepcopy(model)
    torch.manual_seed(seed)
    initialise(model, registry.find("model_init", name).load(), **options)
    return model


def maps(model):
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def chain(*modules):
    return nn.Sequential(*modules).double()


def perceptron(sizes):
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return chain(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def convolutions(channels, kernel):
    layers = [nn.Conv2d(a, b, kernel, padding=kernel // 2) for a, b in itertools.pairwise(channels)]
    return chain(*[part for layer in layers for part in (layer, nn.ReLU())][:-1])


def identical(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# -- the builder's own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lenet_5", "vgg16", "resnet20", "wrn_22_2", "resnet18_imagenet"])
def test_the_default_changes_no_bit_and_draws_no_number(name):
    torch.manual_seed(3)
    model = built(name)
    drawn = torch.get_rng_state()
    other = copy.deepcopy(model)
    initialise(other, registry.find("model_init", "default").load())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert identical(model, other)


def test_the_default_may_be_divided_too():
    model = built("lenet_5")
    other = started(model, "default", init_density=0.25)
    for before, after in zip(maps(model), maps(other), strict=True):
        assert torch.equal(after.weight, before.weight / 0.5)
        assert torch.equal(after.bias, before.bias)


def test_fan_in_has_the_bits_that_torch_draws_for_convolutions_in_their_order():
    model = built("resnet18_imagenet", (1, 64, 64))
    expected = copy.deepcopy(model)
    torch.manual_seed(0)
    for layer in maps(expected)[:-1]:
        nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")
    assert identical(started(model, "fan_in"), expected)


# -- the whole zoo -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("name", sorted(registry.members("model")))
def test_every_network_takes_every_init_of_what_it_has(name, init):
    options = {"hidden": [7, 5]} if name == "mlp" else {}
    model = built(name, device="meta", **options)
    if init == "fan_in" and all(isinstance(m, nn.Linear) for m in maps(model)):
        with pytest.raises(ModelError, match="init=fan_in would be ignored: this model has no convolutions"):
            started(model, init)
        return
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    scale = 0.0 if any(m.bias is not None for m in maps(model)) else None
    other = started(model, init, bias_scale=scale, init_density=0.1)
    assert {key: value.shape for key, value in other.state_dict().items()} == shapes


@pytest.mark.parametrize("init", ["kaiming_normal", "signed_constant", "looks_linear"])
def test_all_weights_are_drawn_and_nothing_else(init):
    """Not the norms, nor the biases, unless there is a scale for them."""
    model = built("vgg_like")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    before, after = model.state_dict(), started(model, init).state_dict()
    weights = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert {key for key in before if not torch.equal(before[key], after[key])} == weights
    zero = started(model, init, bias_scale=0.0)
    assert not any(m.bias.any() for m in maps(zero))
    assert torch.equal(zero.state_dict()["features.1.bias"], before["features.1.bias"])


@pytest.mark.parametrize("init", [name for name in INITS if name != "default"])
def test_the_seed_decides(init):
    model = built("lenet_5")
    assert identical(started(model, init, seed=1), started(model, init, seed=1))
    assert not identical(started(model, init, seed=1), started(model, init, seed=2))


# -- how weights vary --------------------------------------------------------------------------------------------------


@FEW
@given(
    inputs=st.integers(1, 40),
    kernel=st.sampled_from([0, 1, 3, 5]),
    density=st.none() | st.floats(0.01, 1.0),
    scale=st.floats(0.1, 3.0),
    init=st.sampled_from(["kaiming_normal", "signed_constant"]),
    seed=seeds,
)
def test_weights_vary_by_two_over_fan_in_and_density_and_biases_likewise(inputs, kernel, density, scale, init, seed):
    """To 5 standard errors of a sample variance: sqrt(2 / n) of it for the normal distribution."""
    outputs = 4000
    layer = nn.Conv2d(inputs, outputs, kernel) if kernel else nn.Linear(inputs, outputs)
    started_layer = started(chain(layer), init, seed, bias_scale=scale, init_density=density)[0]
    weight, bias = started_layer.weight.detach(), started_layer.bias.detach()
    fan_in = inputs * (kernel or 1) ** 2
    wanted = 2 / fan_in
    assert weight.var(unbiased=False).item() == pytest.approx(
        wanted / (density or 1), rel=5 * (2 / weight.numel()) ** 0.5
    )
    assert bias.var(unbiased=False).item() == pytest.approx(scale**2 * wanted, rel=5 * (2 / outputs) ** 0.5)
    assert abs(weight.mean().item()) < 5 * (wanted / (density or 1) / weight.numel()) ** 0.5
    if init == "signed_constant":
        assert weight.abs().unique().numel() == 1
        assert weight.abs().max().item() == pytest.approx((wanted / (density or 1)) ** 0.5, rel=1e-12)
        assert bias.abs().unique().numel() == 1


def test_a_mask_of_that_density_leaves_signals_as_large_as_they_were():
    """Of 0.1, over ten layers with ReLU: to a factor of 1.5, where weights as they are would leave 1e-10 of it."""
    torch.manual_seed(0)
    dense = chain(*[part for _ in range(10) for part in (nn.Linear(1000, 1000), nn.ReLU())])
    signals = torch.randn(200, 1000, dtype=torch.float64)
    for init in ("kaiming_normal", "signed_constant"):
        model = started(dense, init, bias_scale=0.0, init_density=0.1)
        with torch.no_grad():
            for layer in maps(model):
                layer.weight.mul_(torch.rand_like(layer.weight) < 0.1)
            energy = model(signals).square().mean().item()
        assert 1 / 1.5 < energy < 1.5


# -- looks linear ------------------------------------------------------------------------------------------------------


@FEW
@given(inputs=st.integers(1, 20), widths=widths, classes=st.integers(1, 12), seed=seeds)
def test_a_perceptron_that_looks_linear_is_the_product_of_its_orthogonal_matrices(inputs, widths, classes, seed):
    model = started(perceptron([inputs, *widths, classes]), "looks_linear", seed, bias_scale=0.0)
    product = torch.eye(inputs, dtype=torch.float64)
    for number, layer in enumerate(maps(model)):
        outputs, of = layer.weight.shape
        half = layer.weight[: math.ceil(outputs / 2), : of if number == 0 else of // 2]
        smaller = half @ half.T if half.shape[0] <= half.shape[1] else half.T @ half
        assert torch.allclose(smaller, torch.eye(len(smaller), dtype=torch.float64), atol=1e-12)
        product = half @ product
    product = torch.cat([product, -product])[:classes]
    x = torch.randn(7, inputs, dtype=torch.float64)
    assert torch.allclose(model(x), x @ product.T, atol=1e-12)


@FEW
@given(inputs=st.integers(1, 4), widths=widths, kernel=st.sampled_from([1, 3]), seed=seeds)
def test_a_chain_of_convolutions_that_looks_linear_is_linear(inputs, widths, kernel, seed):
    model = started(convolutions([inputs, *widths, 6], kernel), "looks_linear", seed, bias_scale=0.0)
    x, y = torch.randn(2, 3, inputs, 5, 5, dtype=torch.float64)
    assert torch.allclose(model(2 * x - 3 * y), 2 * model(x) - 3 * model(y), atol=1e-12)
    rows = maps(model)[0].weight[: math.ceil(maps(model)[0].out_channels / 2)].flatten(1)
    smaller = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    assert torch.allclose(smaller, torch.eye(len(smaller), dtype=torch.float64), atol=1e-12)


@FEW
@given(inputs=st.integers(1, 9), widths=widths, scale=st.floats(0.1, 2.0), seed=seeds)
def test_paired_biases_leave_it_affine(inputs, widths, scale, seed):
    model = started(perceptron([inputs, *widths, 4]), "looks_linear", seed, bias_scale=scale)
    x, y = torch.randn(2, 5, inputs, dtype=torch.float64)
    assert torch.allclose(model(x + y) + model(0 * x), model(x) + model(y), atol=1e-10)
    assert model(torch.zeros(1, inputs, dtype=torch.float64)).abs().max() > 0
    first = maps(model)[0]
    assert torch.equal(first.bias[: len(first.bias) // 2], -first.bias[len(first.bias) // 2 :])


def test_other_inits_are_not_linear():
    """So that the tests of linearity can fail; and odd widths leave a unit without its opposite."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 50, 6, dtype=torch.float64)
    for model in (
        started(perceptron([6, 8, 8, 4]), "kaiming_normal", bias_scale=0.0),
        started(perceptron([6, 7, 7, 4]), "looks_linear", bias_scale=0.0),
        started(perceptron([6, 8, 8, 4]), "looks_linear"),  # biases of the builder
    ):
        assert not torch.allclose(model(x + y), model(x) + model(y), atol=1e-3)


def test_density_divides_what_looks_linear():
    model = perceptron([6, 8, 4])
    whole, part = started(model, "looks_linear"), started(model, "looks_linear", init_density=0.04)
    for a, b in zip(maps(whole), maps(part), strict=True):
        assert torch.allclose(b.weight, a.weight / 0.2, rtol=1e-12)


# -- attention ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"kdim": 64, "vdim": 256}])
def test_queries_keys_and_values_are_three_maps(sizes):
    attention = nn.MultiheadAttention(128, 4, **sizes)
    drawn = started(attention, "signed_constant", bias_scale=2.0)
    fused = drawn.in_proj_weight
    weights = fused.chunk(3) if fused is not None else (drawn.q_proj_weight, drawn.k_proj_weight, drawn.v_proj_weight)
    for weight, bias in zip(
        (*weights, drawn.out_proj.weight), (*drawn.in_proj_bias.chunk(3), drawn.out_proj.bias), strict=True
    ):
        size = (2 / weight.shape[1]) ** 0.5
        assert torch.allclose(weight.abs(), torch.full_like(weight, size), rtol=1e-6)
        assert torch.allclose(bias.abs(), torch.full_like(bias, 2 * size), rtol=1e-6)
    paired = started(attention, "looks_linear")
    query = paired.out_proj.weight
    assert torch.equal(query[:64], -query[64:])


# -- what cannot be ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            {"bias_scale": 0.0},
            "bias_scale=0 would be ignored: this model's convolutions and linear layers have no biases",
        ),
        ({"bias_scale": -1.0}, "initialise: bias_scale=-1.0: must be >= 0"),
        ({"init_density": 0.0}, "initialise: init_density=0.0: must be in (0, 1]"),
        ({"init_density": 1.1}, "initialise: init_density=1.1: must be in (0, 1]"),
    ],
)
def test_what_cannot_be_is_refused(options, told):
    with pytest.raises((ModelError, OptionError), match=re.escape(told)):
        started(built("resnet18", device="meta"), "kaiming_normal", **options)
