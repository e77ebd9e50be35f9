"""Products with units of 16 channels, in Triton's interpreter.

``tests/kernels/test_triton_blocks.py`` starts them in a process of their own, since Triton reads ``TRITON_INTERPRET``
once, when it is imported.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import UnitBlocks, block_product, kernels
from dst.kernels.units import UNIT, units_of

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = {
    "linear": (Shape(48, 64), 37),
    "tall": (Shape(160, 64), 130),
    "1x1": (Shape(32, 64, 5, 3, (1, 1)), 3),
    "3x3": (Shape(32, 64, 5, 4, (3, 3), (1, 1), (1, 1)), 3),
    "3x3 without padding": (Shape(32, 64, 5, 4, (3, 3)), 2),
    "3x3/2": (Shape(32, 64, 7, 6, (3, 3), (2, 2), (1, 1)), 3),
    "1x1/2": (Shape(32, 64, 5, 6, (1, 1), (2, 2)), 3),
    "5x3/(2, 1)": (Shape(16, 64, 6, 5, (5, 3), (2, 1), (2, 0)), 2),
    "1x1 with padding": (Shape(16, 64, 3, 3, (1, 1), (2, 2), (1, 1)), 2),
}


def drawn(shape, block, counts=None, seed=0):
    """Return a mask: random rows to each group, of which the first has one unit, or as many as are said."""
    generator = torch.Generator().manual_seed(seed)
    columns = shape.channels // UNIT * shape.taps
    has_unit = torch.zeros(shape.outs // block, columns, dtype=torch.bool)
    for group, own in enumerate(has_unit):
        share = 1 if group == 0 else max(1, columns // 2) + group % 2
        count = min(columns, counts[group] if counts else share)
        own[torch.randperm(columns, generator=generator)[:count]] = True
    rows = torch.randperm(shape.outs, generator=generator)
    mask = torch.zeros(shape.outs, columns, dtype=torch.bool)
    mask[rows] = has_unit.repeat_interleave(block, 0)
    mask = mask.view(shape.outs, -1, 1, *shape.kernel).expand(-1, -1, UNIT, -1, -1)
    return mask.reshape(shape.outs, shape.channels, *shape.kernel)


class Case:
    """A layer, its dense weight, and what is to be computed, rounded to a type."""

    def __init__(self, name, block, dtype, counts=None, is_last=True, device="cpu", shapes=SHAPES):
        self.shape, samples = shapes[name]
        if self.shape.outs < block:
            self.shape = Shape(**{**vars(self.shape), "outs": 128})
        torch.manual_seed(0)
        shape, self.is_linear = self.shape, self.shape.height == 1
        mask = drawn(shape, block, counts)
        mask = mask.flatten(1) if self.is_linear else mask
        self.units = units_of(mask, block)
        self.layer = UnitBlocks(self.units, shape, device)
        self.weight = (torch.randn(mask.shape) * mask).to(dtype).float()
        size = (samples, shape.channels) if self.is_linear else (samples, shape.channels, shape.height, shape.width)
        out = (samples, shape.outs) if self.is_linear else (samples, shape.outs, *shape.out)
        self.x, self.dy = torch.randn(size).to(dtype), torch.randn(out).to(dtype)
        self.bias = torch.randn(shape.outs)
        if is_last and not self.is_linear:
            self.x, self.dy = (t.to(memory_format=torch.channels_last) for t in (self.x, self.dy))
        self.x, self.dy, self.bias, self.weight = (t.to(device) for t in (self.x, self.dy, self.bias, self.weight))
        self.places = self.units.places.to(device)

    @property
    def values(self):
        return self.weight.flatten()[self.places]

    def ours(self, read=None, bias=None):
        """Return outputs and all gradients, those of the bias last."""
        x, values = self.x.clone().requires_grad_(), self.values.requires_grad_()
        bias = None if bias is None else bias.clone().requires_grad_()
        y = block_product(x, values, self.layer, bias, read)
        y.backward(self.dy)
        return [y.detach(), x.grad, values.grad, *([] if bias is None else [bias.grad])]

    def expected(self, bias=None):
        """Return those of the dense weight, in double precision."""
        x, weight = self.x.double().requires_grad_(), self.weight.double().requires_grad_()
        bias = None if bias is None else bias.double().requires_grad_()
        shape = self.shape
        y = (
            F.linear(x, weight, bias)
            if self.is_linear
            else F.conv2d(x, weight, bias, stride=shape.stride, padding=shape.padding)
        )
        y.backward(self.dy.double())
        gradient = weight.grad.flatten()[self.places]
        return [y.detach(), x.grad, gradient, *([] if bias is None else [bias.grad])]


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@cache
def of(name, block, dtype):
    return Case(name, block, dtype)


def test_kernels_are_interpreted():
    assert kernels().IS_INTERPRETED.value


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("block", [32, 64, 128])
def test_products_are_those_of_the_masked_weight(name, block):
    case = of(name, block, torch.float32)
    for found, expected in zip(case.ours(), case.expected(), strict=True):
        assert found.shape == expected.shape
        assert found.dtype == torch.float32
        assert error(found, expected) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("name", ["tall", "3x3/2"])
@pytest.mark.parametrize("block", [32, 128])
def test_sums_of_half_precision_are_rounded_once(name, block, dtype):
    """Inputs and weights have that precision from the beginning, so that outputs alone are rounded."""
    case, half = of(name, block, dtype), torch.finfo(dtype).eps / 2
    y, dx, dvalues = case.ours()
    expected = case.expected()
    assert (y.dtype, dx.dtype, dvalues.dtype) == (dtype, dtype, torch.float32)
    assert error(y, expected[0]) < half
    assert error(dx, expected[1]) < half
    assert error(dvalues, expected[2]) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_are_equal_on_repetition(dtype):
    case = of("3x3/2", 32, dtype)
    assert all(map(torch.equal, case.ours(), case.ours()))


def test_gradients_of_weights_are_added_up_in_parts(monkeypatch):
    """A fixed number of them, each of many positions; also where the last is shorter."""
    case = of("tall", 32, torch.float32)
    expected = case.expected()[2]
    monkeypatch.setattr("dst.kernels.unit_blocks._LEAST_SHARE", 40)
    parts = []
    monkeypatch.setattr(torch.Tensor, "sum", _noting(parts, torch.Tensor.sum))
    found = case.ours()[2]
    assert [len(part) for part in parts] == [3]
    assert error(found, expected) < 1e-6


def _noting(parts, plain):
    def noted(tensor, *given, **named):
        parts.append(tensor)
        return plain(tensor, *given, **named)

    return noted


@pytest.mark.parametrize("counts", [(0, 3), (6, 18), (1, 5)])
def test_groups_may_have_few_units_or_all(counts):
    case = Case("3x3", 32, torch.float32, counts)
    assert case.units.starts.diff().sort().values.tolist() == sorted(counts)
    for found, expected in zip(case.ours(), case.expected(), strict=True):
        assert error(found, expected) < 1e-6


def test_rows_in_order_need_no_table():
    mask = torch.zeros(64, 32, dtype=torch.bool)
    mask[:32, :16] = mask[32:, 16:] = True
    layer = UnitBlocks(units_of(mask, 32), Shape(32, 64), "cpu")
    weight, x = torch.randn(64, 32) * mask, torch.randn(20, 32)
    y = block_product(x, weight.flatten()[units_of(mask, 32).places], layer)
    torch.testing.assert_close(y, F.linear(x, weight))


@pytest.mark.parametrize("name", ["linear", "3x3"])
def test_biases_are_added_and_images_may_lie_channels_first(name):
    case = Case(name, 32, torch.float32, is_last=False)
    for found, expected in zip(case.ours(bias=case.bias), case.expected(case.bias), strict=True):
        assert error(found, expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear", "3x3/2"])
def test_the_dense_gradient_is_that_of_torch_bit_by_bit(name, dtype):
    case, read = of(name, 32, dtype), []
    case.ours(read.append)
    x, weight = case.x.clone(), case.weight.to(dtype, copy=True)
    if not case.is_linear:
        weight = weight.to(memory_format=torch.channels_last)
    weight.requires_grad_()
    shape = case.shape
    y = F.linear(x, weight) if case.is_linear else F.conv2d(x, weight, stride=shape.stride, padding=shape.padding)
    y.backward(case.dy)
    assert read[0].dtype == torch.float32
    assert torch.equal(read[0], weight.grad.float())


def test_autocast_says_in_which_type():
    case = of("tall", 32, torch.bfloat16)
    x, values = case.x.float().requires_grad_(), case.values.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block_product(x, values, case.layer)
    y.backward(case.dy)
    plain = case.ours()
    assert y.dtype == torch.bfloat16
    assert (x.grad.dtype, values.grad.dtype) == (torch.float32, torch.float32)
    assert torch.equal(y, plain[0])
    assert torch.equal(x.grad, plain[1].float())
    assert torch.equal(values.grad, plain[2])


def test_only_what_is_asked_for_is_computed(monkeypatch):
    case = of("linear", 32, torch.float32)
    for name in ("input_gradient", "weight_gradient"):
        with monkeypatch.context() as patch:
            patch.setattr(UnitBlocks, name, lambda *_: pytest.fail("nobody asked for it"))
            x, values = case.x.clone(), case.values.clone()
            learned = values if name == "input_gradient" else x
            learned.requires_grad_()
            block_product(x, values, case.layer).backward(case.dy)
            assert learned.grad is not None


def test_shapes_before_the_features_are_kept():
    case = of("linear", 32, torch.float32)
    x = case.x[:36].view(2, 3, 6, -1)
    y = block_product(x, case.values, case.layer)
    assert torch.equal(y, block_product(case.x[:36], case.values, case.layer).view(2, 3, 6, -1))


def test_second_derivatives_are_refused():
    case = of("linear", 32, torch.float32)
    x = case.x.clone().requires_grad_()
    y = block_product(x, case.values, case.layer)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_double_precision_is_refused():
    case = of("linear", 32, torch.float32)
    with pytest.raises(ValueError, match=r"products in torch\.float64"):
        block_product(case.x.double(), case.values, case.layer)


def test_there_may_be_no_samples_and_no_units():
    case = of("linear", 32, torch.float32)
    x, values = case.x[:0].requires_grad_(), case.values.requires_grad_()
    y = block_product(x, values, case.layer)
    y.sum().backward()
    assert y.shape == (0, case.shape.outs)
    assert x.grad.shape == x.shape
    assert not values.grad.any()
    empty = UnitBlocks(units_of(torch.zeros(32, 16, dtype=torch.bool)), Shape(16, 32), "cpu")
    x, values = torch.ones(3, 16, requires_grad=True), torch.ones(0, requires_grad=True)
    y = block_product(x, values, empty, torch.arange(32.0))
    y.sum().backward()
    assert torch.equal(y, torch.arange(32.0).expand(3, -1))
    assert torch.equal(x.grad, torch.zeros(3, 16))


def test_offsets_of_more_than_32_bits_are_refused():
    shape = Shape(32, 64, 4096, 4096, (1, 1))
    layer = UnitBlocks(units_of(torch.ones(64, 32, 1, 1, dtype=torch.bool), 32), shape, "cpu")
    x = torch.empty(2, 32, 4096, 4096, device="meta")
    with pytest.raises(ValueError, match="take fewer samples"):
        layer.check(x)
