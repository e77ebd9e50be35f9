"""Who leaves: scores whose smallest values among the active weights are dropped."""

import math
from typing import Annotated

import torch
from torch import Tensor

from dst.fractions import exact
from dst.options import Range, exactly_one
from dst.sparsity.marks import marked
from dst.sparsity.select import on_host
from dst.sparsity.view import LayerView


def magnitude(layer: LayerView) -> Tensor:
    """Drop the weights nearest to zero: ``|w|`` (RigL, ITOP, GraNet)."""
    return layer.weight.abs()


def set(layer: LayerView) -> Tensor:
    """Drop the same fraction of the positive and of the negative weights, those nearest to zero (SET, Mocanu 2018).

    The score of a weight is its rank by magnitude among the active weights of its sign, as a fraction of their number.
    """
    places = layer.active()
    weights = layer.weight.flatten().index_select(0, places)
    order = weights.abs().argsort(stable=True)
    weights, places = (found.index_select(0, order) for found in (weights, places))
    shares = torch.zeros_like(weights)
    for of_sign in (weights >= 0, weights < 0):
        rank = of_sign.cumsum(0)
        shares = torch.where(of_sign, _share(rank, rank[-1:], weights.dtype), shares)
    scores = torch.zeros_like(layer.weight, memory_format=torch.contiguous_format)
    scores.view(-1)[places] = shares
    return scores


def _share(rank: Tensor, number: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ranks as shares of a number, rounded as where the host knows that: a GPU multiplies by its reciprocal."""
    if on_host([rank]):
        return rank.to(dtype) / number.to(dtype)
    return rank.to(dtype) * number.to(dtype).reciprocal()


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
    active = magnitudes.flatten().index_select(0, layer.active())
    leaving = min(math.floor(exact(quantile) * active.numel()), active.numel() - 1)
    return magnitudes - active.kthvalue(leaving + 1).values
