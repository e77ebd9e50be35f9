"""The kernels for blocks of rows that are alike: against dense convolutions, and bit by bit against themselves."""

import random

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.kernels.blocks import Blocks, alike
from dst.kernels.product import products
from dst.kernels.shape import Shape, tiles_of
from dst.kernels.unstructured import Unstructured
from tests.kernels.test_unstructured import expected


def in_blocks(generator, shape, height, density):
    """Return a mask of groups of rows, any rows: each has columns, or none, of its own."""
    columns = torch.rand(shape.outs // height, shape.channels, *shape.kernel, generator=generator) < density
    mask = torch.empty(shape.outs, shape.channels, *shape.kernel, dtype=torch.bool)
    mask[torch.randperm(shape.outs, generator=generator)] = columns.repeat_interleave(height, 0)
    return mask


def made(library, shape, samples, mask, seed=0, with_bias=False):
    """Return outputs, gradients of inputs and gradients of weights, with what they are made of."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*size):
        return torch.randn(*size, generator=generator)

    layer = Blocks(library, shape, mask, alike(mask))
    weight = drawn(*mask.shape) * mask
    values = weight.flatten()[layer.places]
    x, dy = drawn(samples, shape.height, shape.width, shape.channels), drawn(samples, *shape.out, shape.outs)
    bias = drawn(shape.outs) if with_bias else None
    tiles = tiles_of(samples)
    tiled_x, tiled_dy = torch.zeros(tiles, *shape.input_tile), torch.zeros(tiles, *shape.gradient_tile)
    layer.tile_inputs(x, tiled_x)
    layer.tile_gradients(dy, tiled_dy)
    y, dx = torch.full_like(dy, torch.nan), torch.full_like(x, torch.nan)
    layer.forward(values, bias, tiled_x, y)
    layer.input_gradient(values, tiled_dy, dx)
    return (y, dx, layer.weight_gradient(tiled_x, tiled_dy)), (weight, x, dy, layer.places), bias


sizes = st.sampled_from([1, 3, 16, 17, 33, 70])


@st.composite
def shapes(draw, height):
    """Any layer that there may be: also kernels, strides and paddings that are not square, and padding beyond them."""
    outs = height * draw(st.integers(1, 3))
    if draw(st.booleans()):
        return Shape(draw(sizes), outs)
    kernel = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    padding = draw(st.integers(0, 3)), draw(st.integers(0, 5))
    stride = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    least = [max(1, k - 2 * p) for k, p in zip(kernel, padding, strict=True)]
    high, wide = (draw(st.integers(n, n + 6)) for n in least)
    return Shape(draw(sizes), outs, high, wide, kernel, stride, padding)


@settings(deadline=None, max_examples=60)
@given(
    data=st.data(),
    height=st.sampled_from([8, 16, 24, 32, 64]),
    samples=st.sampled_from([1, 5, 31, 32, 33, 64, 100]),
    density=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_all_passes_are_those_of_a_dense_convolution(kernels, data, height, samples, density, with_bias, seed):
    shape = data.draw(shapes(height))
    mask = in_blocks(torch.Generator().manual_seed(seed), shape, height, density)
    mask[0, 0] |= not mask.any()
    if not mask.any(1).any() or alike(mask) is None:  # a weight that was added is alone
        mask[:, 0] = True
    found, given_, bias = made(kernels, shape, samples, mask, seed, with_bias)
    y, dx, dw = expected(shape, *given_)
    if bias is not None:
        y = y + bias.double()
    for ours, exact in zip(found, (y, dx, dw), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().amax()))


@pytest.mark.parametrize("height", [8, 16, 40])
def test_masks_in_single_precision_agree(kernels, height):
    shape = Shape(70, 80, 9, 7, (3, 3), (1, 1), (1, 1))
    mask = in_blocks(torch.Generator().manual_seed(1), shape, height, 0.1)
    found, (weight, x, dy, places), _ = made(kernels, shape, 40, mask)
    x, weight = x.permute(0, 3, 1, 2).requires_grad_(), weight.requires_grad_()
    y = F.conv2d(x, weight, padding=1)
    y.backward(dy.permute(0, 3, 1, 2))
    dense = y.permute(0, 2, 3, 1).detach(), x.grad.permute(0, 2, 3, 1), weight.grad.flatten()[places]
    for ours, theirs in zip(found, dense, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def some_layers():
    drawn, generator = random.Random(0), torch.Generator().manual_seed(0)
    for height in (8, 16, 48):
        stride, size, width = drawn.choice([1, 2]), drawn.choice([5, 6]), drawn.choice([6, 18])
        shape = Shape(drawn.choice([3, 70]), 96, size, width, (3, 3), (stride, stride), (1, 1))
        yield shape, drawn.choice([5, 33, 96]), in_blocks(generator, shape, height, 0.3)
    for shape, samples in ((Shape(300, 64), 96), (Shape(20, 1600), 128), (Shape(512, 32), 32), (Shape(1000, 16), 600)):
        yield shape, samples, in_blocks(generator, shape, 16, 0.5)
    everywhere = Shape(64, 64, 1, 1, (1, 1))
    yield everywhere, 32, torch.ones(64, 64, 1, 1, dtype=torch.bool)  # a single group


def test_bits_do_not_depend_on_threads_nor_on_the_width_of_vectors(kernels_of):
    for shape, samples, mask in some_layers():
        found = []
        for library in kernels_of.values():
            for threads in (1, 2, 3, 2):
                torch.set_num_threads(threads)
                found.append(made(library, shape, samples, mask)[0])
        assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@settings(deadline=None, max_examples=50)
@given(
    copies=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    columns=st.sampled_from([1, 9, 130, 300]),
    seed=st.integers(0, 99),
)
def test_rows_that_are_alike_are_found(copies, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(len(copies), columns, generator=generator) < 0.5
    mask = rows.repeat_interleave(8 * torch.tensor(copies), 0)
    mask = mask[torch.randperm(len(mask), generator=generator)]
    found = alike(mask)
    if not mask.any():
        assert found is None
        return
    assert sorted(found.rows.tolist()) == [*range(len(mask))]
    groups = found.rows.split(found.sizes.tolist())
    assert len(groups) == len({tuple(row) for row in rows.tolist()})
    assert [group[0] for group in groups] == sorted(group[0] for group in groups)
    for group in groups:
        assert group.tolist() == sorted(group.tolist())
        assert (mask[group.long()] == mask[group[0]]).all()
    moved = mask.clone()
    moved[0, 0] = ~moved[0, 0]  # one row leaves its group
    assert alike(moved) is None


def test_other_masks_have_no_blocks():
    for rows in (12, 64):
        assert alike(torch.rand(rows, 40, generator=torch.Generator().manual_seed(0)) < 0.3) is None
    assert alike(torch.ones(12, 40, dtype=torch.bool)) is None
    assert alike(torch.zeros(16, 40, dtype=torch.bool)) is None
    late = torch.zeros(16, 400, dtype=torch.bool)
    late[3, 399] = True
    assert alike(late) is None


def test_the_order_of_values_depends_on_the_mask_alone_and_is_told(kernels):
    shape = Shape(33, 48, 6, 6, (3, 3), (1, 1), (1, 1))
    mask = in_blocks(torch.Generator().manual_seed(0), shape, 16, 0.2)
    groups = alike(mask)
    places = Blocks(kernels, shape, mask, groups).places
    assert sorted(places.tolist()) == mask.flatten().nonzero()[:, 0].tolist()
    other = Shape(33, 48, 9, 4, (3, 3), (2, 2), (0, 1))
    assert torch.equal(places, Blocks(kernels, other, mask, groups).places)
    octets = (places // (33 * 9)).view(-1, 8)
    assert torch.equal(octets[0], groups.rows[:8].long())
    assert (places.view(-1, 8) % (33 * 9) == places.view(-1, 8)[:, :1] % (33 * 9)).all()


def test_the_products_follow_from_the_mask(kernels):
    shape = Shape(20, 16)
    mask = in_blocks(torch.Generator().manual_seed(0), shape, 8, 0.3).view(16, 20)
    assert isinstance(products(kernels, shape, mask, alike(mask)), Blocks)
    mask[0] = ~mask[0]
    assert isinstance(products(kernels, shape, mask, alike(mask)), Unstructured)


def test_a_group_may_be_empty(kernels):
    shape = Shape(20, 32, 5, 5, (3, 3), (1, 1), (1, 1))
    mask = in_blocks(torch.Generator().manual_seed(0), shape, 8, 0.3)
    mask[alike(mask).rows[8:24].long()] = False
    found, given_, _ = made(kernels, shape, 33, mask)
    for ours, exact in zip(found, expected(shape, *given_), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().amax()))


def test_what_32_bits_cannot_reach_is_refused(kernels):
    mask = torch.ones(8, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"a tile of \(64, 512, 512, 16, 32\) numbers is too large"):
        Blocks(kernels, Shape(1024, 8, 512, 512), mask, alike(mask))
