"""Sparse products in autograd: gradients of a network, and buffers that nobody takes twice."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from torch.utils.checkpoint import checkpoint

from dst.kernels.product import Tiles, product
from dst.kernels.shape import Shape
from dst.kernels.unstructured import Unstructured


class Conv(nn.Module):
    def __init__(self, kernels, pool, shape, density=0.3, read=None, bias=None):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        mask = torch.rand(shape.outs, shape.channels, *shape.kernel, generator=generator) < density
        self.weight = torch.randn(mask.shape, generator=generator) * mask
        self.layer, self.pool, self.read = Unstructured(kernels, shape, mask), pool, read
        self.values = nn.Parameter(self.weight.flatten()[self.layer.places])
        self.bias = bias

    def forward(self, x):
        return product(x, self.values, self.layer, self.pool, self.read, self.bias)


def linear(kernels, pool, **options):
    return Conv(kernels, pool, Shape(20, 12), **options)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("samples", [1, 31, 32, 33, 100])
def test_gradients_are_those_of_the_masked_weight(kernels, samples, channels_last):
    shape = Shape(17, 20, 6, 5, (3, 3), (2, 1), (1, 1))
    conv = Conv(kernels, Tiles(), shape)
    ours = torch.randn(samples, 17, 6, 5)
    if channels_last:
        ours = ours.to(memory_format=torch.channels_last)
    ours.requires_grad_()
    theirs, weight = ours.detach().clone().requires_grad_(), conv.weight.clone().requires_grad_()
    y, expected = conv(ours), F.conv2d(theirs, weight, stride=(2, 1), padding=1)
    torch.testing.assert_close(y, expected)
    dy = torch.randn_like(expected)
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(conv.values.grad, weight.grad.flatten()[conv.layer.places], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trains", [("bias",), ("bias", "values", "x")])
@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_a_bias_is_added_and_has_its_gradient(kernels, kind, trains):
    shape, size = (
        (Shape(40, 19, 6, 4, (3, 3), (1, 1), (1, 1)), (33, 40, 6, 4))
        if kind == "convolution"
        else (
            Shape(300, 19),
            (33, 300),
        )
    )
    x, bias = torch.randn(size), torch.randn(19)
    layer = Conv(kernels, Tiles(), shape, bias=bias.clone().requires_grad_())
    layer.values.requires_grad_("values" in trains)
    x.requires_grad_("x" in trains)
    weight, bias = layer.weight, bias.requires_grad_()
    expected = F.conv2d(x, weight, bias, padding=1) if kind == "convolution" else F.linear(x, weight.flatten(1), bias)
    y, dy = layer(x), torch.randn(expected.shape)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().amax()))
    y.backward(dy)
    expected.backward(dy)
    torch.testing.assert_close(layer.bias.grad, bias.grad, rtol=1e-5, atol=1e-4)
    assert (layer.values.grad is not None) == ("values" in trains)


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_the_dense_gradient_is_that_of_autograd_bit_by_bit(kernels, kind):
    found = []
    if kind == "linear":
        layer, x = linear(kernels, Tiles(), read=found.append), torch.randn(40, 20)
    else:
        layer = Conv(kernels, Tiles(), Shape(17, 20, 6, 5, (3, 3), (1, 1), (1, 1)), read=found.append)
        x = torch.randn(40, 17, 6, 5).to(memory_format=torch.channels_last)
    weight = layer.weight.flatten(1) if kind == "linear" else layer.weight.to(memory_format=torch.channels_last)
    weight = weight.clone().requires_grad_()
    expected = F.linear(x, weight) if kind == "linear" else F.conv2d(x, weight, padding=1)
    dy = torch.randn_like(expected)
    expected.backward(dy)
    layer(x).backward(dy)
    (gradient,) = found
    assert torch.equal(gradient, weight.grad)


def test_inputs_may_have_any_number_of_dimensions(kernels):
    layer = linear(kernels, Tiles())
    x = torch.randn(4, 9, 20)
    torch.testing.assert_close(layer(x), F.linear(x, layer.weight.flatten(1)))
    assert layer(x[0, 0]).shape == (12,)


def test_a_module_that_is_used_twice_keeps_both_inputs(kernels):
    square = Conv(kernels, Tiles(), Shape(16, 16))
    x = torch.randn(33, 16)
    weight = square.weight.flatten(1).clone().requires_grad_()
    F.linear(F.relu(F.linear(x, weight)), weight).square().sum().backward()
    square(F.relu(square(x))).square().sum().backward()
    torch.testing.assert_close(square.values.grad, weight.grad.flatten()[square.layer.places], rtol=1e-4, atol=1e-3)


def test_buffers_come_back(kernels):
    pool = Tiles()
    layer, x = linear(kernels, pool), torch.randn(33, 20)
    layer(x).sum().backward()
    size = pool.size
    for _ in range(3):
        layer(x).sum().backward()
        with torch.no_grad():
            layer(x)
    assert pool.size == size
    kept = layer(x)
    assert pool.size < size
    kept.sum().backward()
    assert pool.size == size


def test_activation_checkpointing(kernels):
    layer, x = linear(kernels, Tiles()), torch.randn(33, 20, requires_grad=True)
    layer(x).square().sum().backward()
    expected, x.grad = (x.grad, layer.values.grad), None
    layer.values.grad = None
    checkpoint(layer, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, expected[0])
    assert torch.equal(layer.values.grad, expected[1])


def test_second_passes_are_refused(kernels):
    layer, x = linear(kernels, Tiles()), torch.randn(33, 20, requires_grad=True)
    loss = layer(x).square().sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a second backward pass through the same forward pass"):
        loss.backward()
    with pytest.raises(RuntimeError, match="packed layers have no second derivatives: take these of the network as"):
        torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
