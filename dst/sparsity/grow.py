"""Who enters: scores whose largest values among the inactive weights are grown."""

import torch
from torch import Tensor

from dst.sparsity.marks import marked
from dst.sparsity.view import LayerView


@marked("dense_gradient")
def gradient(layer: LayerView) -> Tensor:
    """Grow where the loss is steepest: ``|dL/dw|`` of the last batch (RigL, Evci et al. 2020)."""
    return layer.dense_gradient().abs()


@marked("momentum")
def momentum(layer: LayerView) -> Tensor:
    """Grow where the moving average of dense gradients is largest (SNFS, Dettmers & Zettlemoyer 2019)."""
    return layer.gradient_average().abs()


def random(layer: LayerView) -> Tensor:
    """Grow uniformly at random (SET, Mocanu et al. 2018)."""
    return layer.uniform()


def random_unexplored(layer: LayerView) -> Tensor:
    """Grow at random, positions that never were active before all others."""
    return layer.uniform() - layer.explored.to(layer.weight.dtype)


@marked("momentum", "after_drop", "units")
def momentum_neuron(layer: LayerView) -> Tensor:
    """Share the growth among output units by their mean average gradient, within a unit where it is largest.

    The r-th best free place (from 0) of a unit whose mean magnitude is v scores ``v / (r + 1/2)``: the k largest of
    these are the Sainte-Lague apportionment of k places among the units, so the count is exact and full units give way.
    """
    average = layer.gradient_average().abs().flatten(1)
    order = average.argsort(dim=1, descending=True, stable=True)
    free = (~layer.mask).flatten(1).gather(1, order)
    rank = torch.empty_like(average).scatter_(1, order, (free.cumsum(1) - free.long()).to(average.dtype))
    return (average.mean(1, keepdim=True) / (rank + 0.5)).view(layer.weight.shape)
