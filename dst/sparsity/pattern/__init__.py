"""What shapes a mask may take, and the selection inside that shape."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Budget:
    """How many units of a layer leave and enter in one update; ``regrow``: those that leave may enter again."""

    drop: int
    grow: int
    regrow: bool = True


class Pattern(Protocol):
    """A family of allowed masks. All tensors have the weight's shape; masks are boolean."""

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return a mask of exactly ``count`` weights, those of largest score."""
        ...

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Tensor:
        """Return the next mask: the lowest drop scores leave, the highest grow scores enter, exactly as budgeted."""
        ...
