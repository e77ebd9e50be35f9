"""Who leaves: scores whose smallest values among the active weights are dropped."""

from torch import Tensor

from dst.sparsity.view import LayerView


def magnitude(layer: LayerView) -> Tensor:
    """Drop the weights nearest to zero: ``|w|`` (SET, RigL, ITOP)."""
    return layer.weight.abs()


def random(layer: LayerView) -> Tensor:
    """Drop uniformly at random."""
    return layer.uniform()
