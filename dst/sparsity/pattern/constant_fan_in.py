"""Constant fan-in: every output unit has the same number of incoming weights, or none (SRigL, Lasby et al. 2023)."""

import math
from typing import Annotated

import torch
from torch import Size, Tensor

from dst.options import Range, checked
from dst.sparsity.marks import marked
from dst.sparsity.pattern import Budget
from dst.sparsity.pattern.rows import Rows
from dst.sparsity.select import top_k


class ConstantFanIn(Rows):
    """Rows are output units. Units with few salient weights are ablated and their weights go to the others.

    A weight is salient if the drop keeps it, or if it is among the best places to grow. Ablation has no memory: a unit
    comes back when its gradients are large enough.
    """

    def __init__(self, ablation: float) -> None:
        self.ablation = ablation

    def admissible(self, shape: Size, count: int) -> int:
        """Return the nearest multiple of the number of output units, at least one weight each."""
        units, fan_in = shape[0], math.prod(shape[1:])
        return units * min(max(round(count / units), 1), fan_in)

    def _rows(self, tensor: Tensor) -> Tensor:
        return tensor.flatten(1)

    def _unrows(self, rows: Tensor, shape: Size) -> Tensor:
        return rows.view(shape)

    def _quotas(self, kept: Tensor, grow_scores: Tensor, free: Tensor, budget: Budget) -> Tensor:
        units, fan_in = kept.shape
        alive = torch.ones(units, dtype=torch.bool, device=kept.device)
        if self.ablation > 0 and not budget.is_output:
            best = top_k(grow_scores, min(budget.drop, int(free.sum())), among=free)
            salient = (kept | best).sum(1)
            alive = salient >= max(1.0, self.ablation * budget.count / units)
            fewest = math.ceil(budget.count / fan_in)  # fewer units have no room for the layer's weights
            if int(alive.sum()) < fewest:
                alive = torch.zeros_like(alive).index_fill_(
                    0, salient.argsort(descending=True, stable=True)[:fewest], 1
                )
        living = int(alive.sum())
        return alive * min(max(round(budget.count / living), 1), fan_in)

    def _allows(self, counts: Tensor) -> bool:
        return bool(((counts == counts.max()) | (counts == 0)).all())


@marked("structured", "units")
@checked
def constant_fan_in(
    *,
    ablation: Annotated[
        float, Range(0, 1, "[)"), "units with fewer salient weights than this share of their fan-in lose all"
    ] = 0.0,
) -> ConstantFanIn:
    """Return the pattern; units with fewer salient weights than the share ``ablation`` of their fan-in are ablated.

    0 keeps all units. The network's last layer, whose units are its outputs, keeps them in any case.
    """
    return ConstantFanIn(ablation)
