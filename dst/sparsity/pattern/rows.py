"""Patterns with a quota of active weights in every row of a matrix view of the weight."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Size, Tensor

from dst.sparsity.pattern import Asked, Budget, Moved, Pattern, active_of
from dst.sparsity.select import each_bottom_k, on_host, row_top_k


class Rows(Pattern, ABC):
    """A layer as rows [groups, places]; each row drops and grows until it has its quota."""

    @abstractmethod
    def _rows(self, tensor: Tensor) -> Tensor:
        """Return a weight-shaped tensor as [groups, places]."""

    @abstractmethod
    def _unrows(self, rows: Tensor, shape: Size) -> Tensor:
        """Return the inverse of ``_rows``."""

    @classmethod
    @abstractmethod
    def _set_quotas(cls, layers: "Sequence[Rowed]") -> None:
        """Set the quota of each row of each layer, and a bound of these."""

    @abstractmethod
    def admissible(self, shape: Size, count: int) -> int:
        """Return the number of weights nearest to ``count`` that the pattern allows; ValueError if there is none."""

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return a mask of ``count`` weights, the same number in each row, those of largest score."""
        rows = self._rows(scores)
        quotas = torch.full((len(rows),), count // len(rows), device=rows.device)
        everywhere = torch.ones_like(rows, dtype=torch.bool)
        return self._unrows(row_top_k(rows, quotas, everywhere, most=count // len(rows)), scores.shape)

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Moved:
        """Drop the lowest of the layer, then fill every row to its quota by grow score.

        Without ``budget.regrow``, weights that were just dropped return only to rows that have no other place.
        """
        (moved,) = self.update_all([Asked(self, drop_scores, grow_scores, mask, budget)])
        return moved

    @classmethod
    def update_all(cls, layers: Sequence[Asked]) -> list[Moved]:
        """Return the next masks of all layers; on a GPU by as many kernels as there are widths of rows."""
        moved = [Moved(asked.mask, asked.mask) for asked in layers]
        moving = [i for i, asked in enumerate(layers) if asked.budget.drop > 0]
        rowed = [Rowed.of(layers[i]) for i in moving]
        before, budgets = [own.kept for own in rowed], [own.budget for own in rowed]
        drops = [budget.drop for budget in budgets]
        leaving = each_bottom_k([own.drop for own in rowed], drops, before, held=active_of(budgets))
        for own, dropped in zip(rowed, leaving, strict=True):
            own.free = ~(own.kept ^ dropped) if own.budget.regrow else ~own.kept
            own.kept = own.kept ^ dropped
        cls._set_quotas(rowed)
        for alike in _together(rowed):
            _fill(alike)
        for i, own in zip(moving, rowed, strict=True):
            shape = layers[i].mask.shape
            moved[i] = Moved(own.pattern._unrows(own.kept, shape), own.pattern._unrows(own.rows, shape))
        return moved

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Keep as many rows as ``like`` has, each with its quota of the highest scores within ``among``.

        The rows whose best weights have the largest sum of scores stay; all rows of ``like`` that are not empty have
        the same number of weights.
        """
        rows, free, counts = self._rows(scores), self._rows(among), self._rows(like).sum(1)
        quota, living = int(counts.max()), int((counts > 0).sum())
        best = row_top_k(rows, torch.full_like(counts, quota), free, most=quota)
        worth = (rows.double() * best).sum(1).masked_fill(free.sum(1) < quota, -torch.inf)
        stays = torch.zeros_like(counts, dtype=torch.bool)
        stays[worth.argsort(descending=True, stable=True)[:living]] = True
        return self._unrows(best & stays.unsqueeze(1), like.shape)

    def allows(self, mask: Tensor) -> bool:
        """Say whether every row has its quota."""
        return bool(self._allows(self._rows(mask).sum(1)))

    @classmethod
    def allow_all(cls, patterns: Sequence[Any], masks: Sequence[Tensor]) -> list[bool]:
        """Say of each layer whether every row has its quota; a GPU is waited for once."""
        told = [own._allows(own._rows(mask).sum(1)) for own, mask in zip(patterns, masks, strict=True)]
        found: list[bool] = torch.stack(told).tolist()
        return found

    @abstractmethod
    def _allows(self, counts: Tensor) -> Tensor:
        """Say whether these numbers of active weights [groups] are allowed together; on their device."""


@dataclass
class Rowed:
    """A layer in an update; all tensors are [groups, places], the quotas [groups], none of them above ``most``."""

    pattern: Any
    budget: Budget
    drop: Tensor
    grow: Tensor
    kept: Tensor
    """The weights that the drop leaves, and in the end those of them for which there is a quota."""
    free: Tensor = field(init=False)
    """Where weights may enter."""
    quotas: Tensor = field(init=False)
    most: int = 0
    rows: Tensor = field(init=False)
    """The next mask."""

    @classmethod
    def of(cls, asked: Asked) -> "Rowed":
        """Return a layer as it is before its drop."""
        pattern: Any = asked.pattern
        drop, grow, mask = map(pattern._rows, (asked.drop_scores, asked.grow_scores, asked.mask))
        return cls(pattern, asked.budget, drop, grow, mask)


def _together(layers: Sequence[Rowed]) -> list[list[Rowed]]:
    """Return the layers whose rows go through the same kernels: on a CPU each for itself, which spares copies."""
    alike: dict[int, list[Rowed]] = defaultdict(list)
    for i, layer in enumerate(layers):
        alike[i if on_host([layer.kept]) else layer.kept.shape[1]].append(layer)
    return [*alike.values()]


def _fill(layers: Sequence[Rowed]) -> None:
    """Fill the rows of layers, which have the same width, up to their quotas."""
    drop, grow, kept, free, quotas = (
        _joined([getattr(layer, name) for layer in layers]) for name in ("drop", "grow", "kept", "free", "quotas")
    )
    most, regrow = max(layer.most for layer in layers), layers[0].budget.regrow
    held = kept.sum(1)
    if not on_host([kept]) or bool((held > quotas).any()):
        kept = row_top_k(drop, torch.minimum(quotas, held), kept, most=most)
    rows = kept | row_top_k(grow, torch.minimum(quotas - kept.sum(1), free.sum(1)), free, most=most)
    if not regrow:
        rows = rows | row_top_k(grow, quotas - rows.sum(1), ~rows, most=most)
    numbers = [len(layer.kept) for layer in layers]
    for layer, own_kept, own_rows in zip(layers, torch.split(kept, numbers), torch.split(rows, numbers), strict=True):
        layer.kept = own_kept
        layer.rows = own_rows if len(layers) == 1 else own_rows.clone()  # a checkpoint holds all memory of a tensor


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat([*tensors])
