"""Any single weight may be active."""

import torch
from torch import Size, Tensor

from dst.sparsity.pattern import Budget, Moved, Pattern
from dst.sparsity.select import bottom_k, top_k


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
        kept = mask ^ bottom_k(drop_scores, budget.drop, among=mask)
        free = ~kept if budget.regrow else ~mask
        return Moved(kept, kept | top_k(grow_scores, budget.grow, among=free))

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Return the mask of the highest scores within ``among``, as many as in ``like``."""
        return top_k(scores, int(like.sum()), among)

    def allows(self, mask: Tensor) -> bool:
        """Every mask is allowed."""
        return True


def unstructured() -> Unstructured:
    """Return the pattern without structure."""
    return Unstructured()
