"""The kernels for unstructured masks: against dense convolutions in float64, and bit by bit against themselves."""

import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.kernels.shape import SAMPLES, Shape, layout, tiles_of
from dst.kernels.unstructured import Unstructured

sizes = st.sampled_from([1, 3, 7, 16, 17, 33, 70])


@st.composite
def shapes(draw):
    """Any layer that there may be: also kernels, strides and paddings that are not square, and padding beyond them."""
    if draw(st.booleans()):
        return Shape(draw(sizes), draw(sizes))
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    height, width = (draw(st.integers(n, n + 6)) for n in least)
    return Shape(draw(sizes), draw(sizes), height, width, kernel, stride, padding)


def made(library, shape, samples, density, seed=0):
    """Return outputs, gradients of inputs and gradients of weights, with what they are made of."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size):
        return torch.randn(*size, generator=generator)

    mask = torch.rand(shape.outs, shape.channels, *shape.kernel, generator=generator) < density
    weight = drawn(*mask.shape) * mask
    layer = Unstructured(library, shape, mask)
    values = weight.flatten()[layer.places]
    x = drawn(samples, shape.height, shape.width, shape.channels)
    dy = drawn(samples, *shape.out, shape.outs)
    tiles = tiles_of(samples)
    tiled_x, tiled_dy = torch.zeros(tiles, *shape.input_tile), torch.zeros(tiles, *shape.gradient_tile)
    layer.tile_inputs(x, tiled_x)
    layer.tile_gradients(dy, tiled_dy)
    y, dx = torch.full_like(dy, torch.nan), torch.full_like(x, torch.nan)
    layer.forward(values, None, tiled_x, y)
    layer.input_gradient(values, tiled_dy, dx)
    return (y, dx, layer.weight_gradient(tiled_x, tiled_dy)), (weight, x, dy, layer.places)


def expected(shape, weight, x, dy, places):
    x = x.double().permute(0, 3, 1, 2).requires_grad_()
    weight = weight.double().requires_grad_()
    y = F.conv2d(x, weight, stride=shape.stride, padding=shape.padding)
    y.backward(dy.double().permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).detach(), x.grad.permute(0, 2, 3, 1), weight.grad.flatten()[places]


@settings(deadline=None, max_examples=60)
@given(
    shape=shapes(),
    samples=st.sampled_from([1, 5, 31, 32, 33, 64, 100]),
    density=st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_all_passes_are_those_of_a_dense_convolution(kernels, shape, samples, density, seed):
    found, given_ = made(kernels, shape, samples, density, seed)
    for ours, exact in zip(found, expected(shape, *given_), strict=True):
        largest = float(exact.abs().amax()) if exact.numel() else 0.0
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("size", [*range(1, 10), 16, 17])
@pytest.mark.parametrize("samples", [1, 33, 65, 100, 129])
def test_every_position_is_met_once_alone_only_if_all_sizes_are_odd(size, samples):
    tiles = tiles_of(samples)
    for shape in (Shape(3, 5, size, 9, (3, 3), (1, 1), (1, 1)), Shape(3, 5, 9, size, (1, 1), (2, 2)), Shape(3, 5)):
        outputs, found = layout(shape, tiles).outputs, []
        for at in outputs:
            one, two = at.out_steps.tolist()
            steps = torch.tensor({4: [0, one, two, one + two], 2: [0, one], 1: [0]}[at.group])
            found += (at.out[:, None] + steps).flatten().tolist()
        image = shape.out[0] * shape.out[1]
        tile, place = torch.meshgrid(torch.arange(tiles), torch.arange(image), indexing="ij")
        assert sorted(found) == ((tile * SAMPLES * image + place) * shape.outs).flatten().tolist()
        are_alone = any(at.group == 1 for at in outputs)
        assert are_alone == all(n % 2 for n in (tiles, *shape.out))


def test_values_come_in_an_order_that_is_told(kernels):
    mask = torch.rand(9, 70, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.3
    layer = Unstructured(kernels, Shape(70, 9, 4, 4, (3, 3), (1, 1), (1, 1)), mask)
    assert sorted(layer.places.tolist()) == mask.flatten().nonzero()[:, 0].tolist()


def some_shapes():
    drawn = random.Random(0)
    for _ in range(8):
        stride, size, width = drawn.choice([1, 2]), drawn.choice([5, 6]), drawn.choice([6, 8])
        shape = Shape(drawn.choice([3, 70]), 40, size, width, (3, 3), (stride, stride), (1, 1))
        yield shape, drawn.choice([5, 33, 64, 96])
    yield Shape(300, 40), 96
    yield Shape(20, 700), 128


def test_bits_do_not_depend_on_threads_nor_on_the_width_of_vectors(kernels_of):
    for shape, samples in some_shapes():
        found = []
        for library in kernels_of.values():
            for threads in (1, 2, 3, 2):
                torch.set_num_threads(threads)
                found.append(made(library, shape, samples, 0.3)[0])
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_32_bits_cannot_reach_is_refused(kernels):
    shape = Shape(1024, 1, 512, 512)
    with pytest.raises(ValueError, match=r"a tile of \(64, 512, 512, 16, 32\) numbers is too large"):
        Unstructured(kernels, shape, torch.ones(1, 1, dtype=torch.bool))
