"""Bring the weights that masks leave nearer to an isometry, which random masks take them far from."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dst.sparsity.scope import Layer

_STEPS, _BLOCK = 200, 10
_ENOUGH, _GAIN = 1e-4, 0.99
"""It ends where the mean squared error of a row is below the one, or a block of steps leaves more than the other."""


@dataclass(frozen=True)
class LayerIsometry:
    """The distance of a layer's masked weights from an isometry, ``before`` and ``after``: see ``mend_orthogonal``."""

    layer: str
    before: float
    after: float


@torch.no_grad()
def mend_orthogonal(layers: Sequence[Layer], masks: Sequence[Tensor]) -> list[LayerIsometry]:
    """Change the active weights of each layer, in place, so that the layer becomes as near to an isometry as it can.

    The error of a layer is the Frobenius norm of ``A A' - I``, where ``A`` is the matrix of its masked weights, first
    dimension by all others (``A' A - I`` if it has more rows than columns); each group of a convolution has a matrix of
    its own. So all singular values are to be 1: their scale counts too, and what masks take from it comes back. Steps
    are L-BFGS's. Inactive weights stay as they are, and so does a layer whose error would not fall.
    """
    return [_mend(layer, mask) for layer, mask in zip(layers, masks, strict=True)]


def _mend(layer: Layer, mask: Tensor) -> LayerIsometry:
    weight = layer.weight.detach()
    old, active = _matrices(layer, weight * mask), _matrices(layer, mask)
    before = _error(old)
    new = torch.stack([_nearer(*group) for group in zip(old.float(), active.bool(), strict=True)])
    mended = torch.where(mask, new.view(weight.shape).to(weight.dtype), weight)
    after = _error(_matrices(layer, mended * mask))
    if not after < before:  # nor if it is not a number
        return LayerIsometry(layer.name, before, before)
    weight.copy_(mended)
    return LayerIsometry(layer.name, before, after)


def _matrices(layer: Layer, tensor: Tensor) -> Tensor:
    """Return a tensor of the weight's shape as one matrix a group: [group, rows, columns]."""
    return tensor.contiguous().view(layer.groups, len(tensor) // layer.groups, -1)


def _error(matrices: Tensor) -> float:
    found = [_excess(matrix if _is_wide(matrix) else matrix.T) for matrix in matrices.to(torch.float32)]
    return float(torch.stack([excess.square().sum() for excess in found]).sum().sqrt())


def _is_wide(matrix: Tensor) -> bool:
    return matrix.shape[0] <= matrix.shape[1]


def _excess(matrix: Tensor) -> Tensor:
    """Return ``A A' - I``."""
    gram = matrix @ matrix.T
    gram.diagonal().sub_(1)
    return gram


def _nearer(matrix: Tensor, active: Tensor) -> Tensor:
    """Return a matrix with the same zeros that is nearer to an isometry."""
    if not _is_wide(matrix):
        return _nearer(matrix.T, active.T).T
    rows, columns = active.any(1), active.any(0)  # the others, often most, can be left out
    where = active[rows][:, columns]
    values = matrix[active]
    if len(values):
        _minimise(values, where.flatten().nonzero().squeeze(1), where.shape)
    nearer = matrix.clone()
    nearer[active] = values
    return nearer


def _minimise(values: Tensor, places: Tensor, shape: torch.Size) -> None:
    """Move ``values``, in place, so that a matrix that has them at these flat places gets near to an isometry."""
    optimizer = torch.optim.LBFGS([values], max_iter=_BLOCK, line_search_fn="strong_wolfe")

    def squared_error() -> Tensor:
        full = values.new_zeros(shape)
        full.view(-1)[places] = values
        excess = _excess(full)
        values.grad = 4 * (excess @ full).view(-1)[places]  # anew each time: gradients do not add up
        return excess.square().sum()

    last = math.inf
    for _ in range(_STEPS // _BLOCK):
        error = float(optimizer.step(squared_error))  # type: ignore[no-untyped-call]
        if error <= _ENOUGH * shape[0] or not error < _GAIN * last:
            break
        last = error
