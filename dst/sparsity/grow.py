"""Who enters: scores whose largest values among the inactive weights are grown."""

from torch import Tensor

from dst.sparsity.view import LayerView, needs


@needs("dense_gradient")
def gradient(layer: LayerView) -> Tensor:
    """Grow where the loss is steepest: ``|dL/dw|`` of the last batch (RigL, Evci et al. 2020)."""
    return layer.dense_gradient().abs()


@needs("momentum")
def momentum(layer: LayerView) -> Tensor:
    """Grow where the moving average of dense gradients is largest (SNFS, Dettmers & Zettlemoyer 2019)."""
    return layer.gradient_average().abs()


def random(layer: LayerView) -> Tensor:
    """Grow uniformly at random (SET, Mocanu et al. 2018)."""
    return layer.uniform()


def random_unexplored(layer: LayerView) -> Tensor:
    """Grow at random, positions that never were active before all others."""
    return layer.uniform() - layer.explored.to(layer.weight.dtype)
