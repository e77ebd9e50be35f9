"""Who enters: scores whose largest values among the inactive weights are grown."""

from torch import Tensor

from dst.sparsity.view import LayerView, needs_dense_gradient


@needs_dense_gradient
def gradient(layer: LayerView) -> Tensor:
    """Grow where the loss is steepest: ``|dL/dw|`` of the last batch (RigL, Evci et al. 2020)."""
    return layer.dense_gradient().abs()


def random(layer: LayerView) -> Tensor:
    """Grow uniformly at random (SET, Mocanu et al. 2018)."""
    return layer.uniform()
