"""Fused batch norm and dropout: against torch in float64, and bit by bit against themselves."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it

from dst.kernels.norm import batch_norm, dropout


def drawn(shape, seed, shift=0.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift).to(
        memory_format=torch.channels_last if len(shape) == 4 else torch.contiguous_format
    )


def norm(library, shape, *, rectifies, adds, dtype=None, shift=0.0):
    """Return outputs, statistics and all gradients: ours, or torch's in another dtype."""
    channels = shape[1]
    x, added, dy = (drawn(shape, seed, shift) for seed in (0, 1, 2))
    weight, bias = drawn((channels,), 3), drawn((channels,), 4)
    x, added, weight, bias = (t.to(dtype or t.dtype).requires_grad_() for t in (x, added, weight, bias))
    if dtype is None:
        y, mean, variance = batch_norm(
            library, x, weight, bias, 1e-5, rectifies=rectifies, added=added if adds else None
        )
    else:
        mean, variance = torch.zeros(channels, dtype=dtype), torch.zeros(channels, dtype=dtype)
        y = F.batch_norm(x, mean, variance, weight, bias, training=True, momentum=1.0, eps=1e-5)
        variance = variance * (1 - channels / x.numel())  # torch keeps the unbiased one
        y = y + added if adds else y
        y = torch.relu(y) if rectifies else y
    y.backward(dy.to(y.dtype))
    grads = [x.grad, weight.grad, bias.grad, *([added.grad] if adds else [])]
    return [t.detach().double() for t in (y, mean, variance, *grads)]


@pytest.mark.parametrize("shape", [(5, 3, 4, 7), (32, 16, 8, 8), (9, 37, 5, 5), (3, 64, 1, 1), (33, 20), (2, 8)])
@pytest.mark.parametrize("rectifies", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_norm_is_that_of_torch(kernels, shape, rectifies, adds):
    options = {"rectifies": rectifies, "adds": adds}
    ours, exact = norm(kernels, shape, **options), norm(kernels, shape, **options, dtype=torch.float64)
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(64, 32, 32, 32), (16, 64, 2, 2), (128, 512)])
@pytest.mark.parametrize("adds", [True, False])
def test_norm_is_more_exact_than_that_of_torch(kernels, shape, adds):
    """Outcomes, statistics and the gradients of inputs and of parameters; torch in the same layout."""
    options = {"rectifies": True, "adds": adds}
    ours, torchs, exact = (norm(kernels, shape, **options, dtype=d) for d in (None, torch.float32, torch.float64))
    errors = [[float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)] for found in (ours, torchs)]
    if shape[0] == 64:
        assert errors[0][0] < errors[1][0] / 2
    assert all(one <= 1.05 * other or one < 1e-7 for one, other in zip(*errors, strict=True)), errors


@pytest.mark.parametrize(("shift", "close"), [(10.0, 1e-6), (1000.0, 1e-4)])
def test_norm_of_data_far_from_zero(kernels, shift, close):
    options = {"rectifies": False, "adds": False, "shift": shift}
    ours, exact = (norm(kernels, (64, 16, 8, 8), **options, dtype=d) for d in (None, torch.float64))
    torch.testing.assert_close(ours[2], exact[2], rtol=close, atol=0)


def test_the_variance_does_not_lean_on_the_first_rows(kernels):
    x = drawn((64, 8, 4, 4), 0)
    x[0] = 100.0  # fifty standard deviations away from what follows
    one = torch.ones(8)
    _, mean, variance = batch_norm(kernels, x, one, one, 1e-5, rectifies=True)
    torch.testing.assert_close(variance.double(), x.double().var((0, 2, 3), correction=0), rtol=1e-6, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-6, atol=1e-7)


def test_bits_do_not_depend_on_threads_nor_on_the_width_of_vectors(kernels_of):
    found = []
    for library in kernels_of.values():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append([*norm(library, (40, 21, 16, 16), rectifies=True, adds=True), dropped(library)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def dropped(library, seed=7, p=0.3):
    return dropout(library, torch.ones(1000, 101), p, seed)


def test_dropout_drops_its_share_and_keeps_the_mean(kernels):
    found = dropped(kernels)
    assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.7))}
    assert abs(float((found == 0).double().mean()) - 0.3) < 0.005
    other = dropped(kernels, seed=8)
    both = float(((found == 0) & (other == 0)).double().mean())
    assert abs(both - 0.09) < 0.005  # seeds are independent
    rows = (found == 0).double().mean(1)
    assert rows.std() < 1.5 * (0.3 * 0.7 / 101) ** 0.5  # and so are neighbours


def test_dropout_passes_gradients_where_it_kept(kernels):
    x = torch.randn(33, 20, requires_grad=True)
    y = dropout(kernels, x, 0.5, 3)
    y.sum().backward()
    assert torch.equal(x.grad, (y != 0) * 2.0)
    assert torch.equal(dropout(kernels, x, 0.0, 3), x)
