"""Products with units of 16 channels on a GPU: the checks of the interpreter at real sizes, and what only it shows."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import block_product
from tests.kernels.interpreted_blocks import DTYPES, SHAPES, Case, error

REAL = {
    **SHAPES,
    "linear 1024": (Shape(1024, 1024), 512),
    "conv 256": (Shape(256, 256, 16, 16, (3, 3), (1, 1), (1, 1)), 33),
    "conv 128-256/2": (Shape(128, 256, 17, 15, (3, 3), (2, 2), (1, 1)), 16),
}


@pytest.fixture(autouse=True)
def _deterministic():
    """Nothing that torch knows to differ from one time to the next may be used; TF32 is off."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def of(name, block, dtype, **options):
    return Case(name, block, dtype, device="cuda", shapes=REAL, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [32, 64, 128])
@pytest.mark.parametrize("name", REAL)
def test_products_are_those_of_the_masked_weight(name, block, dtype):
    case = of(name, block, dtype)
    bound = 1e-5 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    found, expected = case.ours(bias=case.bias), case.expected(case.bias)
    assert error(found[0], expected[0]) < bound
    assert error(found[1], expected[1]) < bound
    assert error(found[2], expected[2]) < 1e-5
    assert error(found[3], expected[3]) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["linear 1024", "conv 256", "conv 128-256/2"])
def test_bits_are_equal_on_repetition(name, dtype):
    case = of(name, 64, dtype)
    first = case.ours()
    for _ in range(5):
        assert all(map(torch.equal, first, case.ours()))


def test_tf32_is_used_where_torch_allows_it():
    case = of("conv 256", 64, torch.float32)
    exact, expected = case.ours(), case.expected()
    torch.backends.cuda.matmul.allow_tf32 = True
    for found, plain, wanted in zip(case.ours(), exact, expected, strict=True):
        assert error(plain, wanted) < 1e-5 < error(found, wanted) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dense_gradient_is_that_of_torch(dtype):
    case, read = of("conv 256", 64, dtype), []
    case.ours(read.append)
    weight = case.weight.to(dtype).to(memory_format=torch.channels_last).requires_grad_()
    F.conv2d(case.x, weight, padding=1).backward(case.dy)
    assert torch.equal(read[0], weight.grad.float())


@pytest.mark.parametrize("name", ["linear 1024", "conv 256"])
def test_passes_never_wait_for_the_device(name):
    case = of(name, 64, torch.bfloat16)
    x, values = case.x.requires_grad_(), case.values.requires_grad_()
    for step in range(3):
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first one compiles
        try:
            block_product(x, values, case.layer).backward(case.dy)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_passes_can_be_captured_in_a_graph():
    case = of("conv 256", 64, torch.bfloat16)
    x, values = case.x.requires_grad_(), case.values.requires_grad_()
    expected = case.ours()

    def passes():
        y = block_product(x, values, case.layer)
        return y, *torch.autograd.grad(y, (x, values), case.dy)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        passes()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = passes()
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, found, expected))
