"""Shuffled blocks: groups of output units whose weights lie in the same columns (DSB and SSB, Jiang et al. 2022)."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Size, Tensor

from dst.options import Clash, Excludes, Needs, OneOf, Range, ZeroOr, checked
from dst.sparsity.marks import marked
from dst.sparsity.pattern import Budget, Moved, Pattern
from dst.sparsity.pattern.grouping import alike, group_of, regrouped, squarable
from dst.sparsity.pattern.published_block import PublishedBlock
from dst.sparsity.pattern.unstructured import Unstructured
from dst.sparsity.select import row_top_k, top_k


class ShuffledBlock(Pattern):
    """Any ``block`` rows (output units) are a group, and each group has units of columns of its own, all active.

    A column is an input channel at one kernel position; a unit is ``width`` adjacent channels at one position. A layer
    drops and grows its weakest and strongest units, by the norms of the scores of their weights, wherever they are;
    each group has ``least`` units afterwards. Before every ``regroup_every``-th update (0: never) rows are grouped
    anew by what they have in common, and then the same selection applies to units that may have been active in part.

    ``rows``: int64, [groups, block], the rows of each group in ascending order; None before there are masks.
    """

    in_blocks = True

    def __init__(self, block: int, width: int, least: int, indivisible: str, regroup_every: int) -> None:
        self.block, self.width, self.least = block, width, least
        self.indivisible, self.regroup_every = indivisible, regroup_every
        self.rows: Tensor | None = None
        self.updates = 0

    # -- what fits -----------------------------------------------------------------------------------------------------

    def misfit(self, shape: Size) -> str | None:
        """Return why a layer of this shape cannot be in blocks; None if it can."""
        if shape[0] % self.block:
            return f"{shape[0]} outputs are no multiple of {self.block}"
        if shape[1] % self.width:
            return f"{shape[1]} input channels are no multiple of {self.width}"
        return None

    def exception(self, shape: Size) -> str | None:
        """Return what a layer is instead that cannot be in blocks, and why; None if it can."""
        found = self.misfit(shape)
        return None if found is None else f"{self.indivisible}: {found}"

    def admissible(self, shape: Size, count: int) -> int:
        """Return the nearest multiple of a unit's size; ValueError if that leaves a group too few units."""
        size = math.prod(shape)
        if (problem := self.misfit(shape)) is not None:
            if self.indivisible == "error":
                raise ValueError(
                    f"shuffled_block: {problem}: choose another block_size or column_unit, leave the layer out of the "
                    "scope, or let it be unstructured or dense (indivisible)"
                )
            return count if self.indivisible == "unstructured" else size
        unit, groups = self.block * self.width, shape[0] // self.block
        units, least = min(round(count / unit), size // unit), groups * self.least
        if least > units:
            fewer = "a smaller min_units, " if self.least > 1 else ""
            raise ValueError(
                f"shuffled_block: {count:,} weights are {units:,} units of {self.block} x {self.width}, too few for "
                f"{self.least} (min_units) in each of {groups} groups: choose smaller blocks or units, {fewer}or a "
                "larger density"
            )
        return units * unit

    # -- selection -----------------------------------------------------------------------------------------------------
    #
    # All in rows [outputs, columns] and in units [groups, units].

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return a mask of ``count`` weights: rows with similar scores are grouped, and their strongest units kept."""
        if self.misfit(scores.shape) is not None:
            return Unstructured().initial(scores, count)
        shape, found = scores.shape, squarable(scores).flatten(1)
        rows = regrouped(found, torch.arange(len(found), device=found.device).view(-1, self.block))
        strengths = self._strengths(found, rows, shape)
        self.rows = rows
        everywhere = torch.ones_like(strengths, dtype=torch.bool)
        return self._spread(self._strongest(strengths, count // self._unit, everywhere), rows, shape)

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Moved:
        """Drop the weakest units of the layer and grow the strongest free ones; a unit counts as a whole."""
        if self.misfit(mask.shape) is not None:
            return Unstructured().update(drop_scores, grow_scores, mask, budget)
        self.updates += 1
        if budget.drop == 0:
            return Moved(mask, mask)
        shape, now, entering = mask.shape, mask.flatten(1), squarable(grow_scores).flatten(1)
        staying = squarable(drop_scores.flatten(1).masked_fill(~now, 0))
        rows, before = self._found(now, shape)
        units = int(before.sum()) if budget.active is None else budget.active // self._unit
        if self.regroup_every and self.updates % self.regroup_every == 0:
            rows = regrouped(_wanted(staying, entering, now, units * self._unit, budget.grow), rows)
            before = self._in_units(now, rows, shape).amax((1, 3)).flatten(1) > 0
        drop = min(math.ceil(budget.drop / self._unit), units)
        kept, lacking = self._kept(self._strengths(staying, rows, shape), units - drop, before, drop)
        free = ~kept if budget.regrow else ~before
        room = free.numel() - (units - drop) if budget.regrow else int(free.sum())
        wanted = self._strengths(entering, rows, shape)
        entered = self._entered(wanted, kept, free, drop) if lacking or room < drop else top_k(wanted, drop, free)
        self.rows = rows
        return Moved(self._spread(kept, rows, shape) & mask, self._spread(kept | entered, rows, shape))

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Keep as many units as ``like`` has, the strongest of those that lie within ``among`` as a whole."""
        if self.misfit(like.shape) is not None:
            return Unstructured().prune(scores, among, like)
        shape = like.shape
        rows, units = self._found(like.flatten(1), shape)
        whole = self._in_units(among.flatten(1), rows, shape).amin((1, 3)).flatten(1) > 0
        strengths = self._strengths(squarable(scores).flatten(1), rows, shape)
        return self._spread(self._strongest(strengths, int(units.sum()), whole), rows, shape)

    def allows(self, mask: Tensor) -> bool:
        """Say whether rows lie in groups of which each has its units; these groups may be others than the last ones."""
        if self.misfit(mask.shape) is not None:
            return True
        try:
            _, units = self._found(mask.flatten(1), mask.shape)
        except ValueError:
            return False
        return bool((units.sum(1) >= self.least).all())

    @classmethod
    def allow_all(cls, patterns: Sequence[Any], masks: Sequence[Tensor]) -> list[bool]:
        """Say of each layer what ``allows`` does; for those whose groups are the last ones a GPU is waited for once."""
        told = [pattern._keeps_groups(mask) for pattern, mask in zip(patterns, masks, strict=True)]
        known = torch.stack(told).tolist() if told else []
        return [sure or own.allows(mask) for sure, own, mask in zip(known, patterns, masks, strict=True)]

    def _keeps_groups(self, mask: Tensor) -> Tensor:
        """Say, on its device, whether a mask is of whole units of the last groups, enough of them in each."""
        if self.rows is None or self.misfit(mask.shape) is not None:
            return torch.zeros((), dtype=torch.bool, device=mask.device)
        units = self._first_units(mask.flatten(1), self.rows, mask.shape)
        return (self._spread(units, self.rows, mask.shape) == mask).all() & (units.sum(1) >= self.least).all()

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the rows of each group, and how many updates there were; the mask tells the units of a group."""
        return {} if self.rows is None else {"rows": self.rows, "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; ValueError for groups of another size, as another method has."""
        rows = state.get("rows")
        if rows is not None and rows.shape[1] != self.block:
            raise ValueError(f"stored groups have {rows.shape[1]} rows, not {self.block}: they are of another method")
        self.rows = None if rows is None else rows.clone()
        self.updates = int(state.get("updates", 0))

    # -- units ---------------------------------------------------------------------------------------------------------

    @property
    def _unit(self) -> int:
        """Weights of a unit."""
        return self.block * self.width

    def _sums(self, numbers: Tensor, rows: Tensor, shape: Size) -> Tensor:
        """Return the sum of the numbers in each unit, by one matrix product."""
        is_in = torch.zeros(len(rows), len(numbers), dtype=numbers.dtype, device=numbers.device)
        sums = is_in.scatter_(1, rows.to(numbers.device), 1) @ numbers
        return sums.view(len(rows), shape[1] // self.width, self.width, -1).sum(2).flatten(1)

    def _strengths(self, scores: Tensor, rows: Tensor, shape: Size) -> Tensor:
        """Return the squared norm of each unit; scores below zero count against it."""
        return self._sums(scores.abs().mul_(scores), rows, shape)

    def _found(self, mask: Tensor, shape: Size) -> tuple[Tensor, Tensor]:
        """Return the rows of the groups of a mask, the last ones if it lies in these, and its units.

        ValueError for a mask that is not in blocks.
        """
        if self.rows is not None and (units := self._units(mask, self.rows, shape)) is not None:
            return self.rows, units
        rows = alike(mask, self.block)
        if (units := self._units(mask, rows, shape)) is None:
            raise ValueError("a mask whose columns are not in units")
        return rows, units

    def _units(self, mask: Tensor, rows: Tensor, shape: Size) -> Tensor | None:
        """Return the units of a mask; None if it does not consist of whole ones."""
        units = self._first_units(mask, rows, shape)
        return units if torch.equal(self._spread(units, rows, shape).flatten(1), mask) else None

    def _first_units(self, mask: Tensor, rows: Tensor, shape: Size) -> Tensor:
        """Return which units have their first weight in a mask."""
        return mask[rows[:, 0]].view(len(rows), -1, self.width, math.prod(shape[2:]))[:, :, 0].flatten(1)

    def _in_units(self, mask: Tensor, rows: Tensor, shape: Size) -> Tensor:
        """Return a mask as bytes, [groups, block, channels / width, width, positions]."""
        sizes = len(rows), self.block, shape[1] // self.width, self.width, math.prod(shape[2:])
        return mask.view(torch.uint8)[rows.flatten()].view(sizes)

    def _strongest(self, strengths: Tensor, count: int, among: Tensor) -> Tensor:
        """Return a mask of the strongest units of the layer, the least number in every group."""
        least = torch.full((len(strengths),), self.least, device=strengths.device)
        sure = row_top_k(strengths, least, among, most=self.least)
        rest = count - int(sure.sum())
        return top_k(strengths, count, sure) if rest < 0 else sure | top_k(strengths, rest, among & ~sure)

    def _lacking(self, units: Tensor) -> Tensor:
        """Return how many units each group lacks."""
        return (self.least - units.sum(1)).clamp(min=0)

    def _kept(self, strengths: Tensor, count: int, among: Tensor, drop: int) -> tuple[Tensor, int]:
        """Return the units that stay, and how many units groups would lack: the strongest, if these are grown again."""
        kept = top_k(strengths, count, among)
        lacking = int(self._lacking(kept).sum()) if self.least else 0
        return kept if lacking <= drop else self._strongest(strengths, count, among), lacking

    def _entered(self, strengths: Tensor, kept: Tensor, free: Tensor, count: int) -> Tensor:
        """Return the units that are grown: first the strongest of groups that lack some, then of the layer.

        Units that have just left come last if they are not ``free``.
        """
        entered = torch.zeros_like(kept)
        for among in (free, ~kept):
            entered |= row_top_k(strengths, self._lacking(kept | entered), among & ~entered, most=self.least)
        for among in (free, ~kept):
            rest = among & ~entered
            entered |= top_k(strengths, min(count - int(entered.sum()), int(rest.sum())), rest)
        return entered

    def _spread(self, units: Tensor, rows: Tensor, shape: Size) -> Tensor:
        """Return units as a mask of weights."""
        columns = units.view(len(units), shape[1] // self.width, 1, -1).expand(-1, -1, self.width, -1).flatten(1)
        return columns[group_of(rows.to(units.device))].view(shape)


def _wanted(has: Tensor, scores: Tensor, mask: Tensor, active: int, grow: int) -> Tensor:
    """Return what each row has, and would grow by itself with the mean of what there is; [outputs, columns].

    ``active``: the number of weights within the mask.
    """
    entering = top_k(scores, min(grow, mask.numel() - active), ~mask)
    found = has.abs()
    return found.masked_fill_(entering, float(found.sum()) / active)


@marked("structured", "units")
@checked
def shuffled_block(
    *,
    block_size: Annotated[
        int, ZeroOr(2), "rows (output units) of a group, which have their weights in the same columns; 0: no structure"
    ],
    column_unit: Annotated[
        int,
        OneOf(1, 16),
        Needs("block_size"),
        Excludes("published"),
        "columns that come together: any single ones, or 16 adjacent input channels of a kernel position",
    ] = 1,
    min_units: Annotated[
        int,
        Range(0),
        Needs("block_size"),
        Clash(0, "published", False, "groups without columns are rows that compute nothing; keep 1"),
        "units of columns that every group keeps",
    ] = 1,
    indivisible: Annotated[
        str,
        OneOf("unstructured", "dense", "error"),
        Needs("block_size"),
        Excludes("published"),
        "a layer whose rows or columns do not divide is unstructured, dense, or refused",
    ] = "unstructured",
    regroup_every_updates: Annotated[
        int,
        Range(0),
        Needs("block_size"),
        Excludes("published"),
        "updates from one grouping of the rows to the next; 0: never",
    ] = 1,
    published: Annotated[
        bool,
        Needs("block_size"),
        Clash(True, "min_units", Range(1), "the published code keeps no floor: set it to 0"),
        "square blocks, extracted as the published code does it",
    ] = False,
) -> Pattern:
    """Return the pattern of shuffled blocks; without blocks (0) the unstructured one.

    ``published``: see ``PublishedBlock``.
    """
    if block_size == 0:
        return Unstructured()
    if published:
        return PublishedBlock(block_size)
    return ShuffledBlock(block_size, column_unit, min_units, indivisible, regroup_every_updates)
