"""Who leaves: scores whose smallest values among the active weights are dropped."""

import math
from typing import Annotated

import torch
from torch import Tensor

from dst.fractions import exact
from dst.options import Range, exactly_one
from dst.sparsity.marks import marked
from dst.sparsity.view import LayerView


def magnitude(layer: LayerView) -> Tensor:
    """Drop the weights nearest to zero: ``|w|`` (RigL, ITOP, GraNet)."""
    return layer.weight.abs()


def set(layer: LayerView) -> Tensor:
    """Drop the same fraction of the positive and of the negative weights, those nearest to zero (SET, Mocanu 2018).

    The score of a weight is its rank by magnitude among the active weights of its sign, as a fraction of their number.
    """
    scores = torch.zeros_like(layer.weight)
    for of_sign in (layer.weight >= 0, layer.weight < 0):
        where = (layer.mask & of_sign).flatten().nonzero().squeeze(1)
        order = where[layer.weight.flatten()[where].abs().argsort(stable=True)]
        ranks = torch.arange(1, len(order) + 1, device=order.device, dtype=scores.dtype)
        scores.view(-1)[order] = ranks / max(len(order), 1)
    return scores


def taylor(layer: LayerView) -> Tensor:
    """Drop the weights that change the loss least to first order: ``(w g)^2`` (Molchanov et al. 2019)."""
    return (layer.weight * layer.dense_gradient()).square()


def random(layer: LayerView) -> Tensor:
    """Drop uniformly at random."""
    return layer.uniform()


@marked("cuts")
@exactly_one("value", "quantile")
def threshold(
    layer: LayerView,
    *,
    value: Annotated[float | None, Range(0, ends="(]"), "weights of a smaller magnitude leave"] = None,
    quantile: Annotated[float | None, Range(0, 1, "()"), "this share of each layer's active weights leaves"] = None,
) -> Tensor:
    """Drop all active weights of magnitude below ``value``, or the share ``quantile`` of smallest ones of each layer.

    The score is the distance to the threshold: whatever is negative leaves. With ties at a quantile fewer leave.
    """
    magnitudes = layer.weight.abs()
    if value is not None:
        return magnitudes - value
    assert quantile is not None
    active = magnitudes[layer.mask]
    leaving = min(math.floor(exact(quantile) * active.numel()), active.numel() - 1)
    return magnitudes - active.kthvalue(leaving + 1).values
