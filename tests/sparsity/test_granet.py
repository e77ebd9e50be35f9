"""GraNet against a plain transcription of its published masking (spec: prune globally, then regenerate)."""

import math

import pytest
import torch
from torch import nn

from dst.sparsity import Sparsifier, UpdatePlan
from dst.sparsity.density_schedule import cubic
from dst.sparsity.drop_fraction import cosine

PLAN = UpdatePlan(every=4, total_steps=104)
DENSITY = cubic(PLAN, 0.1, initial=0.5, end=0.75)
FRACTION = cosine(PLAN, initial=0.5, floor=0.005)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 3))


def gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    inputs, labels = torch.randn(16, 20, generator=generator), torch.randint(3, (16,), generator=generator)
    model.zero_grad()
    nn.functional.cross_entropy(model(inputs), labels).backward()


class Published:
    """One concept after another as the published code does it: full sorts, everything by layer name."""

    def __init__(self, model, optimizer, masks):
        self.optimizer = optimizer
        self.weights = [module.weight for module in model if isinstance(module, nn.Linear)]
        self.masks = masks
        self.apply()

    @torch.no_grad()
    def apply(self):
        for weight, mask in zip(self.weights, self.masks, strict=True):
            weight.mul_(mask)
            state = self.optimizer.state[weight]
            if "momentum_buffer" in state:
                state["momentum_buffer"].mul_(mask)

    @torch.no_grad()
    def step(self, step):
        self.optimizer.step()
        self.apply()
        if PLAN.due(step):
            self.prune(step)
            self.apply()
            self.regenerate(step)
            self.apply()

    def prune(self, step):
        pool = torch.cat([weight.abs().flatten() for weight in self.weights])
        active = sum(int(mask.sum()) for mask in self.masks)
        keep = round(DENSITY(step) * len(pool))
        if keep < active:
            threshold = pool.sort(descending=True).values[keep - 1]
            self.masks = [(weight.abs() >= threshold) & (weight != 0) for weight in self.weights]

    def regenerate(self, step):
        fraction, after = FRACTION(step), []
        for weight, mask in zip(self.weights, self.masks, strict=True):
            count = int(mask.sum())
            remove = math.ceil(fraction * count)
            smallest = weight.abs().flatten().sort().values[weight.numel() - count + remove - 1]
            kept = weight.abs() > smallest
            scores = (weight.grad.abs() * ~kept).flatten()
            grown = torch.zeros_like(kept).flatten()
            grown[scores.sort(descending=True).indices[: count - int(kept.sum())]] = True
            after.append(kept | grown.view_as(kept))
        self.masks = after


def test_no_position_differs_from_the_published_masking():
    ours, theirs = net(), net()
    optimizers = [torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True) for model in (ours, theirs)]
    sparsifier = Sparsifier(
        ours, optimizers[0], density=0.5, plan=PLAN, drop_fraction=FRACTION, density_curve=DENSITY, seed=3
    )
    published = Published(theirs, optimizers[1], [mask.clone() for mask in sparsifier.topology.masks])
    returned = 0
    for step in range(1, PLAN.total_steps + 1):
        before = [mask.clone() for mask in sparsifier.topology.masks]
        for model in (ours, theirs):
            gradients(model, step)
        sparsifier.step()
        published.step(step)
        topology = sparsifier.topology
        for layer, ours_now, mask, weight, old in zip(
            topology.layers, topology.masks, published.masks, published.weights, before, strict=True
        ):
            assert torch.equal(ours_now, mask)
            assert torch.equal(layer.weight, weight)
            if PLAN.due(step):  # what the ramp took and growth brought back starts from zero
                returned += int((mask & old & (weight == 0)).sum())
    assert sparsifier.updates == 25
    assert returned > 100
    assert sparsifier.density == pytest.approx(0.1, abs=1e-3)
