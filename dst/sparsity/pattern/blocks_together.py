"""Shuffled blocks of all layers at once, on a GPU: kernels for the network and a dozen a layer, and few reads.

What each step computes is what ``ShuffledBlock.update`` does for one layer, which is the one to read first. Rows
(output units) and groups are numbered through all layers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import torch
from torch import Size, Tensor

from dst.sparsity.pattern import Asked, Moved
from dst.sparsity.pattern.grouping import FAR, MOST
from dst.sparsity.segments import Segments, segments_of
from dst.sparsity.select import dtype_of, row_top_k

_ROUNDS: Final = 4
"""Rounds of the matching of rows and groups before the host asks whether it is done; further ones change nothing."""


@dataclass(frozen=True)
class Kind:
    """What layers have in common that are moved together: rows of a group, columns of a unit, units of a group."""

    block: int
    width: int
    least: int
    regroups: bool = False
    regrow: bool = True


@lru_cache(maxsize=16)
def tables_of(shapes: tuple[Size, ...], block: int, width: int, device: torch.device) -> "Tables":
    """Return where layers of these shapes have what; an update needs the same as that before it."""
    return Tables(shapes, block, width, device)


class Tables:
    """Where layers have their weights, rows, groups and units, if those of all layers are in one row."""

    def __init__(self, shapes: Sequence[Size], block: int, width: int, device: torch.device) -> None:
        self.shapes, self.block, self.width = shapes, block, width
        sizes = [math.prod(shape) for shape in shapes]
        self.weights: Segments = segments_of(tuple(sizes), device)
        self.units: Segments = segments_of(tuple(size // (block * width) for size in sizes), device)
        """Units of one layer lie by group, then by column."""
        self.outputs = [shape[0] for shape in shapes]
        self.groups = [n // block for n in self.outputs]
        rows, groups = ([0, *np.cumsum(numbers[:-1])] for numbers in (self.outputs, self.groups))
        sent = self.weights.sent
        self.first_row = sent(np.repeat(rows, self.groups)).unsqueeze(1)
        """Of the layer of each group [groups, 1]."""
        self.first_group = sent(np.repeat(groups, self.outputs))
        """Of the layer of each row [rows]."""
        self.numbers = torch.arange(max(self.groups), device=device)
        self.beyond = sent(np.repeat(self.groups, self.outputs)).unsqueeze(1) <= self.numbers
        """Where a table [rows, most groups] tells of groups that the layer does not have."""
        self.columns = [size // (block * width * n) for size, n in zip(sizes, self.groups, strict=True)]
        layers = zip(self.units.starts, self.columns, self.groups, strict=True)
        first = np.concatenate([start + number * np.arange(n) for start, number, n in layers])
        self.first_unit, self.last_unit = sent(first), sent(first + np.repeat(self.columns, self.groups) - 1)
        """Of each group [groups], among all units."""

    # -- rows and groups -----------------------------------------------------------------------------------------------

    def rows_of(self, patterns: Sequence[Any]) -> Tensor:
        """Return the rows of each group of all layers [groups, block]."""
        device = self.first_row.device
        return torch.cat([pattern.rows.to(device) for pattern in patterns]) + self.first_row

    def own_rows(self, rows: Tensor) -> list[Tensor]:
        """Return the rows of the groups of each layer, in memory of their own."""
        parts = torch.split(rows - self.first_row, self.groups)
        made = [torch.empty_like(part) for part in parts]
        torch._foreach_copy_(made, [*parts])
        return made

    def group_of(self, rows: Tensor) -> Tensor:
        """Return the group of each row, counted within its layer."""
        return rows.flatten().argsort().div_(self.block, rounding_mode="floor") - self.first_group

    # -- weights and units ---------------------------------------------------------------------------------------------

    def of_layers(self, matrix: Tensor) -> list[Tensor]:
        """Return views of the weights of each layer [outputs, columns]."""
        return [flat.view(n, -1) for flat, n in zip(self.weights.parts(matrix), self.outputs, strict=True)]

    def sums(self, matrix: Tensor, rows: Tensor) -> Tensor:
        """Return the sums of numbers in each unit."""
        is_in = torch.zeros(len(rows), max(self.outputs), dtype=matrix.dtype, device=matrix.device)
        is_in = is_in.scatter_(1, rows - self.first_row, 1)
        found = []
        for own, numbers, shape in zip(
            torch.split(is_in, self.groups), self.of_layers(matrix), self.shapes, strict=True
        ):
            sums = own[:, : shape[0]] @ numbers
            found.append(sums if self.width == 1 else sums.view(len(own), -1, self.width, math.prod(shape[2:])).sum(2))
        return self.units.gathered(found, matrix.dtype)

    def first_units(self, mask: Tensor, rows: Tensor) -> Tensor:
        """Return which units have their first weight in a mask."""
        firsts = torch.split(rows[:, 0] - self.first_row.squeeze(1), self.groups)
        found = []
        for own, layer, shape in zip(firsts, self.of_layers(mask), self.shapes, strict=True):
            units = layer.index_select(0, own).view(len(own), -1, self.width, math.prod(shape[2:]))
            found.append(units[:, :, 0])
        return self.units.gathered(found, torch.bool)

    def spread(self, units: Tensor, group: Tensor) -> list[Tensor]:
        """Return units as a mask of the weights of each layer; ``group``: that of each row."""
        found = []
        parts = zip(self.units.parts(units), torch.split(group, self.outputs), self.groups, self.shapes, strict=True)
        for flat, own, groups, shape in parts:
            columns = flat.view(groups, -1)
            if self.width > 1:
                wide = columns.view(groups, -1, 1, math.prod(shape[2:])).expand(-1, -1, self.width, -1)
                columns = wide.flatten(1)
            found.append(columns.index_select(0, own).view(shape))
        return found

    def counts(self, units: Tensor) -> Tensor:
        """Return how many of the units each group has [groups]."""
        flat = units.view(-1)
        summed = flat.cumsum(0, dtype=torch.int32)
        first = self.first_unit
        return summed[self.last_unit] - summed[first] + flat[first]

    def best_of_groups(self, values: Tensor, numbers: Tensor, among: Tensor, most: int) -> Tensor:
        """Return a mask of the units of largest value of each group, so many, at most ``most``."""
        columns = torch.arange(max(self.columns), device=values.device)
        place = self.first_unit.unsqueeze(1) + columns
        place = torch.where(place <= self.last_unit.unsqueeze(1), place, among.numel() - 1)  # which is padding
        found = row_top_k(values.view(-1)[place], numbers, among.view(-1)[place], most=most)
        return torch.zeros_like(among).view(-1).scatter_(0, place.view(-1), found.view(-1)).view(among.shape)

    def wrong(self, mask: Tensor, units: Tensor, group: Tensor) -> Tensor:
        """Return how many weights of each layer are not as whole units would have them [layers]."""
        whole = self.weights.gathered(self.spread(units, group), torch.bool)
        return self.weights.counts(whole ^ mask)


def keep_groups(patterns: Sequence[Any], masks: Sequence[Tensor], kind: Kind) -> list[bool]:
    """Say of each layer whether its mask is of whole units of its last groups, enough of them in each."""
    tables = tables_of(tuple(mask.shape for mask in masks), kind.block, kind.width, masks[0].device)
    rows, mask = tables.rows_of(patterns), tables.weights.gathered(masks, torch.bool)
    units = tables.first_units(mask, rows)
    told = torch.cat([tables.wrong(mask, units, tables.group_of(rows)), tables.counts(units)]).tolist()
    wrong, counts = told[: len(masks)], told[len(masks) :]
    return [not off and min(own) >= kind.least for off, own in zip(wrong, _split(counts, tables.groups), strict=True)]


def moved_together(layers: Sequence[Asked], kind: Kind) -> list[Moved | None]:
    """Return the next masks of all layers, and set their groups; None for layers to be looked at by themselves.

    All have groups, a number of active weights that is known, and something to drop.
    """
    patterns, losing, gaining, masks, budgets = zip(*layers, strict=True)
    tables = tables_of(tuple(mask.shape for mask in masks), kind.block, kind.width, masks[0].device)
    unit = kind.block * kind.width
    active: list[int] = [budget.active for budget in budgets]
    units = [number // unit for number in active]
    drops = [min(math.ceil(budget.drop / unit), number) for budget, number in zip(budgets, units, strict=True)]
    stay = [number - drop for number, drop in zip(units, drops, strict=True)]

    mask, rows = tables.weights.gathered(masks, torch.bool), tables.rows_of(patterns)
    has = tables.weights.gathered(losing, dtype_of(losing)).masked_fill_(~mask, 0)
    has, new = (
        _squarable(found, tables.weights) for found in (has, tables.weights.gathered(gaining, dtype_of(gaining)))
    )
    before, group = tables.first_units(mask, rows), tables.group_of(rows)
    wrong = tables.wrong(mask, before, group)
    if kind.regroups:
        grows = [min(budget.grow, own.numel() - n) for budget, own, n in zip(budgets, masks, active, strict=True)]
        rows = _regrouped(_wanted(has, new, mask, active, grows, tables), group, tables)
        group = tables.group_of(rows)
        before = tables.sums(mask.to(has.dtype), rows) > 0
    worth, desire = (tables.sums(found.abs().mul_(found), rows) for found in (has, new))
    kept = tables.units.best(worth.clone(), stay, before, largest=True)
    free = tables.units.everywhere() & ~(kept if kind.regrow else before)
    entered = tables.units.best(desire.clone(), drops, free, largest=True)

    told = torch.cat([wrong, tables.units.counts(free), tables.counts(kept)]).tolist()
    off, room, counts = told[: len(masks)], told[len(masks) : 2 * len(masks)], told[2 * len(masks) :]
    lacking = [sum(max(0, kind.least - n) for n in own) for own in _split(counts, tables.groups)]
    if any(lacking) or any(number < drop for number, drop in zip(room, drops, strict=True)):
        beyond = [number > drop for number, drop in zip(lacking, drops, strict=True)]
        kept = _with_floor(kept, beyond, stay, before, worth, kind, tables)
        entered = _entered(desire, kept, kept if kind.regrow else before, drops, kind, tables)

    left = tables.weights.gathered(tables.spread(kept, group), torch.bool) & mask
    pairs = zip(tables.weights.spread(left, masks), tables.spread(kept | entered, group), strict=True)
    moved: list[Moved | None] = [Moved(*pair) for pair in pairs]
    for i, own in enumerate(tables.own_rows(rows)):
        if off[i]:
            moved[i] = None
        else:
            patterns[i].rows = own
    return moved


def _with_floor(
    kept: Tensor, beyond: Sequence[bool], count: Sequence[int], among: Tensor, worth: Tensor, kind: Kind, tables: Tables
) -> Tensor:
    """Return the units that stay; in layers that lack more than can grow (``beyond``) the floor of each group does."""
    all_ = tables.units
    least = torch.full_like(tables.first_unit, kind.least)
    sure = tables.best_of_groups(worth, least, among, kind.least)
    total = all_.sent(count)
    rest = total - all_.counts(sure)
    short = all_.of_rows(rest < 0).unsqueeze(1)
    places = torch.where(short, sure, among & ~sure)
    found = all_.best(worth.clone(), torch.where(rest < 0, total, rest), places, largest=True)
    return torch.where(all_.of_rows(all_.sent(beyond)).bool().unsqueeze(1), found | (sure & ~short), kept)


def _entered(desire: Tensor, kept: Tensor, taken: Tensor, count: Sequence[int], kind: Kind, tables: Tables) -> Tensor:
    """Return the units that are grown: first those of groups that lack some; ``taken``: those that come last."""
    all_ = tables.units
    everywhere, total = all_.everywhere(), all_.sent(count)
    entered = torch.zeros_like(kept)
    for out in (taken, kept):
        lacking = (kind.least - tables.counts(kept | entered)).clamp(min=0)
        entered |= tables.best_of_groups(desire, lacking, everywhere & ~(out | entered), kind.least)
    for out in (taken, kept):
        rest = (total - all_.counts(entered)).clamp(min=0)
        entered |= all_.best(desire.clone(), rest, everywhere & ~(out | entered), largest=True)
    return entered


def _split(numbers: list[int], lengths: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(lengths)
    return [numbers[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def _squarable(values: Tensor, all_: Segments) -> Tensor:
    """Scale the scores of each layer as ``grouping.squarable`` does; overwrites them."""
    largest = all_.largest(values.abs()).double()
    as_it_is = (largest == 0) | ~largest.isfinite() | ((largest >= 2**-FAR) & (largest <= 2**FAR))
    exponent = torch.frexp(largest).exponent.clamp_(-MOST, MOST).masked_fill_(as_it_is, 0)
    powers = _powers(values.device)  # exact, as a device's own power of two need not be
    return values.mul_(all_.of_rows(powers[MOST - exponent.long()].to(values.dtype)).unsqueeze(1))


@lru_cache(maxsize=4)
def _powers(device: torch.device) -> Tensor:
    return torch.from_numpy(np.ldexp(1.0, np.arange(-MOST, MOST + 1))).to(device)


def _wanted(
    has: Tensor, new: Tensor, mask: Tensor, active: Sequence[int], grows: Sequence[int], tables: Tables
) -> Tensor:
    """Return what each row has, and would grow by itself with the mean of what its layer has."""
    all_ = tables.weights
    entering = all_.best(new.clone(), grows, all_.everywhere() & ~mask, largest=True)
    found = has.abs()
    total = torch.stack([own.sum() for own in tables.of_layers(found)])
    mean = (total.double() / all_.sent(active)).to(found.dtype)
    return torch.where(entering, all_.of_rows(mean).unsqueeze(1), found)


def _regrouped(values: Tensor, group: Tensor, tables: Tables) -> Tensor:
    """Return new groups of rows, as ``grouping.regrouped`` finds them for each layer."""
    own_values = tables.of_layers(values)
    length = torch.cat([torch.linalg.vector_norm(own, dim=1) for own in own_values])
    inverse = torch.where(length > 0, 1 / length, 0)
    at_home = (group.unsqueeze(1) == tables.numbers).to(values.dtype)
    affinity = torch.zeros_like(at_home)
    to, products = [], []
    scaled = torch.split(at_home * inverse.unsqueeze(1), tables.outputs)
    for own, numbers, part, groups in zip(
        scaled, own_values, torch.split(affinity, tables.outputs), tables.groups, strict=True
    ):
        to.append(part[:, :groups])
        products.append(numbers @ (own[:, :groups].t() @ numbers).t())
    torch._foreach_copy_(to, products)
    affinity = inverse.unsqueeze(1) * affinity
    itself = (length > 0).to(values.dtype).unsqueeze(1)
    others = torch.where(at_home > 0, (affinity - itself) / (tables.block - 1), affinity / tables.block)
    affinity = (others + at_home * torch.finfo(values.dtype).eps).masked_fill_(tables.beyond, -torch.inf)
    by_group = (_placed(affinity, tables) + tables.first_group).argsort(stable=True).view(-1, tables.block)
    return by_group[by_group[:, 0].argsort()]


def _placed(affinity: Tensor, tables: Tables) -> Tensor:
    """Return the group of each row within its layer, as ``grouping.placed`` finds it; overwrites the affinity."""
    choice = affinity.argmax(1)
    groups = torch.arange(sum(tables.groups), device=choice.device)
    while True:
        for _ in range(_ROUNDS):
            met = affinity.gather(1, choice.unsqueeze(1)).squeeze(1)
            order = met.argsort(descending=True, stable=True)
            wanted = choice + tables.first_group
            sorted_choice, by_group = wanted[order].sort(stable=True)
            place = order[by_group].argsort()  # of each row: by group, the most similar first
            first = torch.searchsorted(sorted_choice, groups)
            refused = place - first[wanted] >= tables.block
            affinity.masked_fill_(refused.unsqueeze(1) & (choice.unsqueeze(1) == tables.numbers), -torch.inf)
            choice = torch.where(refused, affinity.argmax(1), choice)
        if not bool(refused.any()):
            return choice
