"""Which positions first: scores whose largest values are active at the start."""

from torch import Tensor

from dst.sparsity.view import LayerView


def random(layer: LayerView) -> Tensor:
    """Choose uniformly at random, an exact count a layer."""
    return layer.uniform()
