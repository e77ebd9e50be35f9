"""Constant fan-in: every output unit has the same number of incoming weights, or none (SRigL, Lasby et al. 2023)."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Size, Tensor

from dst.options import Range, checked
from dst.sparsity.marks import marked
from dst.sparsity.pattern.rows import Rowed, Rows
from dst.sparsity.select import count_true, each_top_k


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

    @classmethod
    def _set_quotas(cls, layers: Sequence[Rowed]) -> None:
        """Ablate units, then share the weights among the others; the host has to know how many these are."""
        alive = [torch.ones(len(layer.kept), dtype=torch.bool, device=layer.kept.device) for layer in layers]
        living = [len(layer.kept) for layer in layers]
        ablated = [i for i, layer in enumerate(layers) if layer.pattern.ablation > 0 and not layer.budget.is_output]
        salient = _salient([layers[i] for i in ablated])
        for i, worth in zip(ablated, salient, strict=True):
            alive[i] = worth >= max(1.0, layers[i].pattern.ablation * layers[i].budget.count / living[i])
        counts = count_true([alive[i] for i in ablated])
        for i, worth, count in zip(ablated, salient, counts, strict=True):
            fewest = math.ceil(layers[i].budget.count / layers[i].kept.shape[1])
            living[i] = max(count, fewest)
            if count < fewest:  # so few units have no room for the layer's weights
                best = worth.argsort(descending=True, stable=True)[:fewest]
                alive[i] = torch.zeros_like(alive[i]).index_fill_(0, best, 1)
        for layer, units, number in zip(layers, alive, living, strict=True):
            layer.most = min(max(round(layer.budget.count / number), 1), layer.kept.shape[1])
            layer.quotas = units * layer.most

    def _allows(self, counts: Tensor) -> Tensor:
        return ((counts == counts.max()) | (counts == 0)).all()


def _salient(layers: Sequence[Rowed]) -> list[Tensor]:
    """Return how many salient weights each unit of each layer has."""
    drops = [layer.budget.drop for layer in layers]
    best = each_top_k([layer.grow for layer in layers], drops, [layer.free for layer in layers])
    return [(layer.kept | own).sum(1) for layer, own in zip(layers, best, strict=True)]


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
