"""Patterns with a quota of active weights in every row of a matrix view of the weight."""

from abc import ABC, abstractmethod

import torch
from torch import Size, Tensor

from dst.sparsity.pattern import Budget, Moved, Pattern
from dst.sparsity.select import bottom_k, row_top_k


class Rows(Pattern, ABC):
    """A layer as rows [groups, places]; each row drops and grows until it has its quota."""

    @abstractmethod
    def _rows(self, tensor: Tensor) -> Tensor:
        """Return a weight-shaped tensor as [groups, places]."""

    @abstractmethod
    def _unrows(self, rows: Tensor, shape: Size) -> Tensor:
        """Return the inverse of ``_rows``."""

    @abstractmethod
    def _quotas(self, kept: Tensor, grow_scores: Tensor, free: Tensor, budget: Budget) -> Tensor:
        """Return the quota of each row [groups].

        ``kept``: the weights that the drop leaves, ``free``: where weights may enter; all [groups, places].
        """

    @abstractmethod
    def admissible(self, shape: Size, count: int) -> int:
        """Return the number of weights nearest to ``count`` that the pattern allows; ValueError if there is none."""

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return a mask of ``count`` weights, the same number in each row, those of largest score."""
        rows = self._rows(scores)
        quotas = torch.full((len(rows),), count // len(rows), device=rows.device)
        return self._unrows(row_top_k(rows, quotas, torch.ones_like(rows, dtype=torch.bool)), scores.shape)

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Moved:
        """Drop the lowest of the layer, then fill every row to its quota by grow score.

        Without ``budget.regrow``, weights that were just dropped return only to rows that have no other place.
        """
        if budget.drop == 0:
            return Moved(mask, mask)
        drop, grow, before = self._rows(drop_scores), self._rows(grow_scores), self._rows(mask)
        kept = before ^ bottom_k(drop, budget.drop, among=before)
        free = ~kept if budget.regrow else ~before
        quotas, held = self._quotas(kept, grow, free, budget), kept.sum(1)
        if bool((held > quotas).any()):
            kept = row_top_k(drop, torch.minimum(quotas, held), among=kept)
        rows = kept | row_top_k(grow, torch.minimum(quotas - kept.sum(1), free.sum(1)), among=free)
        if not budget.regrow:
            rows = rows | row_top_k(grow, quotas - rows.sum(1), among=~rows)
        return Moved(self._unrows(kept, mask.shape), self._unrows(rows, mask.shape))

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Keep as many rows as ``like`` has, each with its quota of the highest scores within ``among``.

        The rows whose best weights have the largest sum of scores stay; all rows of ``like`` that are not empty have
        the same number of weights.
        """
        rows, free, counts = self._rows(scores), self._rows(among), self._rows(like).sum(1)
        quota, living = int(counts.max()), int((counts > 0).sum())
        best = row_top_k(rows, torch.full_like(counts, quota), free)
        worth = (rows.double() * best).sum(1).masked_fill(free.sum(1) < quota, -torch.inf)
        stays = torch.zeros_like(counts, dtype=torch.bool)
        stays[worth.argsort(descending=True, stable=True)[:living]] = True
        return self._unrows(best & stays.unsqueeze(1), like.shape)

    def allows(self, mask: Tensor) -> bool:
        """Say whether every row has its quota."""
        return self._allows(self._rows(mask).sum(1))

    @abstractmethod
    def _allows(self, counts: Tensor) -> bool:
        """Say whether these numbers of active weights [groups] are allowed together."""
