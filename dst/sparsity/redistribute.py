"""Who gets the freed weights: one number a layer, by whose share of the sum the layer grows."""

from collections.abc import Callable

import torch
from torch import Tensor

from dst.sparsity.marks import marked
from dst.sparsity.view import LayerView

Statistic = Callable[[LayerView], Tensor]
"""A function from a layer to a scalar tensor on its device."""


def magnitude(layer: LayerView) -> Tensor:
    """Mean magnitude of the active weights."""
    return _mean_over_active(layer.weight, layer.mask)


@marked("momentum")
def momentum(layer: LayerView) -> Tensor:
    """Mean magnitude of the gradients' moving average over the active weights (SNFS, Dettmers & Zettlemoyer 2019)."""
    return _mean_over_active(layer.gradient_average(), layer.mask)


def nonzeros(layer: LayerView) -> Tensor:
    """Number of active weights that are not zero."""
    return torch.count_nonzero(layer.weight * layer.mask)


def _mean_over_active(values: Tensor, mask: Tensor) -> Tensor:
    return (values.abs() * mask).sum() / torch.count_nonzero(mask).clamp(min=1)
