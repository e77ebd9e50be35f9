"""Square blocks as the published code of DSB extracts them (Jiang et al. 2022), for comparison with its figures."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor

from dst.sparsity.pattern import Budget, Moved, Pattern
from dst.sparsity.pattern.grouping import squarable
from dst.sparsity.pattern.unstructured import Unstructured
from dst.sparsity.select import bottom_k, top_k


class PublishedBlock(Pattern):
    """A convolution is a union of blocks of ``block`` rows and as many columns, all active.

    An update drops only weights in rows or columns of a block of which half or more would leave, grows as many single
    weights, and then extracts all blocks anew: rows are clustered by their masks, and each group of rows keeps its
    columns of largest norm, a block at a time. So few weights move. Linear layers are unstructured, and convolutions
    that do not fit keep their first masks, as published. What differs: the number to drop is rounded up, and weights
    that fill up a block start from zero.

    ``rows``, ``columns``: int64, [blocks, block]; None before there are masks.
    """

    in_blocks = True

    def __init__(self, block: int) -> None:
        self.block = block
        self.rows: Tensor | None = None
        self.columns: Tensor | None = None

    def misfit(self, shape: Size) -> str | None:
        """Return why a layer of this shape cannot be in blocks; None if it can."""
        if len(shape) == 2:
            return "linear layers are never in blocks"
        for number, told in ((shape[0], "outputs"), (math.prod(shape[1:]), "columns")):
            if number % self.block:
                return f"{number} {told} are no multiple of {self.block}"
        return f"{shape[1]} input channels are fewer than {self.block}" if shape[1] < self.block else None

    def exception(self, shape: Size) -> str | None:
        """Return what a layer is instead that cannot be in blocks, and why; None if it can."""
        found = self.misfit(shape)
        return None if found is None else f"{'unstructured' if len(shape) == 2 else 'static'}: {found}"

    def admissible(self, shape: Size, count: int) -> int:
        """Return the size of the fewest blocks that have as many weights."""
        return count if self.misfit(shape) is not None else math.ceil(count / self.block**2) * self.block**2

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return the blocks that are extracted from the ``count`` weights of largest score."""
        mask = Unstructured().initial(scores, count)
        return mask if self.misfit(scores.shape) is not None else self._extract(scores.abs() * mask, mask, count)

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Moved:
        """Drop what is not isolated, grow as many, and extract the blocks anew."""
        if mask.dim() == 2:
            return Unstructured().update(drop_scores, grow_scores, mask, budget)
        if self.misfit(mask.shape) is not None:
            return Moved(mask, mask)
        dropped = self._together(bottom_k(drop_scores, budget.drop, among=mask))
        count = int(dropped.sum())
        if count == 0:
            return Moved(mask, mask)
        kept = mask & ~dropped
        grown = top_k(grow_scores, count, among=~kept if budget.regrow else ~mask)
        values = drop_scores.abs() * kept
        values[grown] = values[values > 0].mean()
        return Moved(kept, self._extract(values, kept | grown, int(mask.sum())))

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Return the blocks of ``like``: no others are known to lie within ``among`` as a whole."""
        return like if self.misfit(like.shape) is None else Unstructured().prune(scores, among, like)

    def allows(self, mask: Tensor) -> bool:
        """Say whether a mask is the union of the blocks."""
        if self.misfit(mask.shape) is not None:
            return True
        return self.rows is not None and bool((self._union(mask) == mask).all())

    def state_dict(self) -> dict[str, Any]:
        """Return rows and columns of the blocks."""
        return {} if self.rows is None else {"rows": self.rows, "columns": self.columns}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; ValueError for blocks of another kind, as another method has."""
        found = [state[name].clone() for name in ("rows", "columns") if name in state]
        if len(found) == 1 or any(table.shape[1] != self.block for table in found):
            raise ValueError(f"the stored blocks are no squares of {self.block}: they are of another method")
        self.rows, self.columns = found or (None, None)

    # -- blocks --------------------------------------------------------------------------------------------------------

    def _places(self, like: Tensor) -> Tensor:
        """Return the flat positions of the weights of each block [blocks, rows, columns]."""
        assert self.rows is not None
        assert self.columns is not None
        return (self.rows.unsqueeze(2) * math.prod(like.shape[1:]) + self.columns.unsqueeze(1)).to(like.device)

    def _union(self, like: Tensor) -> Tensor:
        return (
            torch.zeros_like(like, dtype=torch.bool)
            .view(-1)
            .index_fill_(0, self._places(like).view(-1), 1)
            .view(like.shape)
        )

    def _together(self, leaving: Tensor) -> Tensor:
        """Return which weights leave: half of their row or of their column of the block does."""
        places = self._places(leaving)
        found = leaving.reshape(-1)[places]
        rows, columns = found.sum(2, keepdim=True), found.sum(1, keepdim=True)
        really = found & ((2 * rows >= self.block) | (2 * columns >= self.block))
        return torch.zeros_like(leaving).view(-1).index_fill_(0, places[really], 1).view(leaving.shape)

    def _extract(self, values: Tensor, mask: Tensor, count: int) -> Tensor:
        """Find the best blocks of ``count`` weights; ``values``: magnitudes, zero off the mask."""
        found = squarable(values).flatten(1)
        groups = clustered(mask.flatten(1), self.block).to(found.device)
        norms = found[groups.flatten()].view(*groups.shape, -1).square().sum(1).sqrt()
        norms, order = norms.sort(dim=1, descending=True, stable=True)
        worth = norms.view(len(groups), -1, self.block).sum(2).flatten()
        best = worth.argsort(descending=True, stable=True)[: count // self.block**2]
        chunks = order.view(-1, self.block)
        self.rows, self.columns = groups[best // (len(chunks) // len(groups))], chunks[best]
        return self._union(mask)


def clustered(mask: Tensor, size: int) -> Tensor:
    """Return the rows of a mask in groups [groups, size]: clusters of similar rows, the largest first, cut to size.

    Complete linkage of one minus the cosine, as many clusters as there are groups; they need not have the same size.
    """
    from scipy.cluster.hierarchy import cut_tree, linkage  # which takes a while, and only this needs

    rows = len(mask)
    if rows == size:
        return torch.arange(rows).view(1, -1)
    ones = mask.double().cpu()
    lengths = ones.sum(1).sqrt().clamp(min=1)
    distance = (1 - (ones @ ones.t()) / (lengths * lengths.unsqueeze(1))).clamp(min=0)
    upper = torch.triu_indices(rows, rows, 1)
    tree = linkage(distance[upper[0], upper[1]].numpy(), method="complete")
    label = torch.from_numpy(cut_tree(tree, rows // size)[:, 0])
    numbers = torch.bincount(label)
    rank = torch.empty_like(numbers)
    rank[numbers.argsort(descending=True, stable=True)] = torch.arange(len(numbers))
    return rank[label].argsort(stable=True).view(-1, size)
