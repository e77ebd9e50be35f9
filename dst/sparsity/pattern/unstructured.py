"""Any single weight may be active."""

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from dst.sparsity.pattern import Asked, Budget, Moved, Pattern, active_of
from dst.sparsity.select import exchanged, top_k


class Unstructured(Pattern):
    """Units are single weights, in one group a layer."""

    def admissible(self, shape: Size, count: int) -> int:
        """Return ``count``."""
        return count

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return a mask of the ``count`` largest scores."""
        return top_k(scores, count, torch.ones_like(scores, dtype=torch.bool))

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Moved:
        """Return the mask without the lowest drop scores, plus the highest grow scores at free positions."""
        (moved,) = self.update_all([Asked(self, drop_scores, grow_scores, mask, budget)])
        return moved

    @classmethod
    def update_all(cls, layers: Sequence[Asked]) -> list[Moved]:
        """Return the next masks of all layers; on a GPU by as many kernels as for one."""
        if not layers:
            return []
        _, losing, gaining, masks, budgets = zip(*layers, strict=True)
        drops, grows = [budget.drop for budget in budgets], [budget.grow for budget in budgets]
        pairs = exchanged((losing, drops), (gaining, grows), masks, regrow=budgets[0].regrow, held=active_of(budgets))
        return [Moved(*pair) for pair in pairs]

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Return the mask of the highest scores within ``among``, as many as in ``like``."""
        return top_k(scores, int(like.sum()), among)

    def allows(self, mask: Tensor) -> bool:
        """Every mask is allowed."""
        return True


def unstructured() -> Unstructured:
    """Return the pattern without structure."""
    return Unstructured()
