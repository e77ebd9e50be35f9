"""What training holds in memory, packed and with masks."""

import gc

import pytest
import torch
from torch import nn

from dst.sparsity import Sparsifier, UpdatePlan


def held(*roots):
    """Return the bytes of all tensors that objects hold, each memory once."""
    seen, found, todo = set(), {}, list(roots)
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, type) or (callable(item) and not isinstance(item, nn.Module)):
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            if item.device.type != "meta":
                found[item.untyped_storage().data_ptr()] = item.untyped_storage().nbytes()
            todo.append(item.grad)
        elif not isinstance(item, str | bytes | int | float | None.__class__):
            todo += gc.get_referents(item)
    return sum(found.values())


def perceptron(packing, width):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plan = UpdatePlan(every=2, total_steps=100)
    sparsifier = Sparsifier(model, optimizer, density=0.05, plan=plan, compute=packing)
    for step in range(5):
        optimizer.zero_grad()
        model(torch.randn(32, 784, generator=torch.Generator().manual_seed(step))).square().mean().backward()
        sparsifier.step()
    return model, optimizer, sparsifier


def test_a_perceptron_takes_a_quarter(packing):
    """Weights, gradients, momentum, masks and tables, between updates."""
    sizes = []
    for how in ("masked", packing):
        model, optimizer, sparsifier = perceptron(how, 1024)
        weights = sparsifier.weights
        sizes.append(held(list(model.parameters()), dict(optimizer.state), vars(weights), sparsifier.topology))
        del model, optimizer, sparsifier
    count = 784 * 1024 + 1024 * 1024 + 1024 * 10
    # Weight, gradient, momentum and factor of gradients in 4 bytes each; mask, and whether it was ever active.
    assert sizes[0] == pytest.approx(count * (4 * 4 + 2), rel=0.01)
    assert sizes[1] <= 0.25 * sizes[0]  # 0.231; of 4096 wide layers 0.226 (81 of 360 MB)
