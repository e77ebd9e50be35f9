"""N:M sparsity: N of every M consecutive input channels, for each output channel and kernel position."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Size, Tensor

from dst.options import OneOf, Range, checked
from dst.sparsity.marks import marked
from dst.sparsity.pattern.rows import Rowed, Rows


class NM(Rows):
    """Rows are M consecutive input channels at one output channel and kernel position, the quota is N."""

    def __init__(self, n: int, m: int, indivisible: str) -> None:
        self.n, self.m, self.indivisible = n, m, indivisible

    def admissible(self, shape: Size, count: int) -> int:
        """Return N/M of the weights whatever ``count``; all, or ValueError, if M does not divide the input channels."""
        size = math.prod(shape)
        if shape[1] % self.m == 0:
            return size // self.m * self.n
        if self.indivisible == "dense":
            return size
        raise ValueError(
            f"n_m: {shape[1]} input channels cannot be divided into groups of {self.m}: choose another m, keep such "
            "layers dense (indivisible=dense), or leave the layer out of the scope"
        )

    def exception(self, shape: Size) -> str | None:
        """Return that a layer whose input channels M does not divide is dense."""
        return None if shape[1] % self.m == 0 else f"dense: {shape[1]} input channels are no multiple of {self.m}"

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.movedim(1, -1).reshape(-1, self.m)

    def _unrows(self, rows: Tensor, shape: Size) -> Tensor:
        return rows.view(shape[0], *shape[2:], shape[1]).movedim(-1, 1).contiguous()

    @classmethod
    def _set_quotas(cls, layers: Sequence[Rowed]) -> None:
        for layer in layers:
            layer.most = layer.pattern.n
            layer.quotas = torch.full((len(layer.kept),), layer.most, device=layer.kept.device)

    def _allows(self, counts: Tensor) -> Tensor:
        return (counts == self.n).all()


@marked("structured", "units", "own_counts")
@checked
def n_m(
    *,
    n: Annotated[int, Range(1, "m", "[)"), "active weights in each group of m"],
    m: Annotated[int, Range(2), "consecutive input channels in a group"],
    indivisible: Annotated[
        str, OneOf("error", "dense"), "refuse a layer that m does not divide (error), or leave it dense"
    ] = "error",
) -> NM:
    """Return the N:M pattern (Zhou et al. 2021); ``indivisible`` layers are an ``error`` or stay ``dense``."""
    return NM(n, m, indivisible)
