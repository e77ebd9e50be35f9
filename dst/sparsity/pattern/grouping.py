"""Groups of rows that have something in common, all of the same size."""

import math
from typing import Final

import torch
from torch import Tensor

from dst.kernels.blocks import first_equal

_FAR: Final = 24
_MOST: Final = 120  # 2 to the power of it is a float32


def regrouped(values: Tensor, rows: Tensor) -> Tensor:
    """Return the rows [groups, size] in groups of rows with similar values, starting from those that they are in.

    ``values``: [rows, columns]. A row's affinity to a group is its mean cosine with the group's other rows, for all of
    them one matrix product. Every row goes to the group that it has most affinity to among those that have room for it:
    where too many want to be, the most similar stay, and the others try the next one.
    """
    groups, size = rows.shape
    if groups == 1:
        return rows
    length = torch.linalg.vector_norm(values, dim=1)
    inverse = torch.where(length > 0, 1 / length, 0)
    own = group_of(rows.to(values.device)).unsqueeze(1)
    at_home = (own == torch.arange(groups, device=values.device)).to(values.dtype)  # as ``one_hot``, which waits
    # Scaled to length one in the products, which spares a copy of all values.
    affinity = inverse.unsqueeze(1) * (values @ ((at_home * inverse.unsqueeze(1)).t() @ values).t())
    itself = (length > 0).to(values.dtype).unsqueeze(1)
    affinity = torch.where(at_home > 0, (affinity - itself) / (size - 1), affinity / size)
    # Rows that have nothing in common with any group stay where they are.
    return in_order(placed(affinity + at_home * torch.finfo(values.dtype).eps, size), groups)


def placed(affinity: Tensor, size: int) -> Tensor:
    """Return the group of each row, ``size`` rows in each: a stable matching of rows and groups.

    ``affinity``: [rows, groups]. No row and group would both rather be together than with those that they have.
    """
    affinity = affinity.clone()
    choice = affinity.argmax(1)
    while True:
        met = affinity.gather(1, choice.unsqueeze(1)).squeeze(1)
        order = met.argsort(descending=True, stable=True)
        order = order[choice[order].argsort(stable=True)]  # by group, the most similar first
        sorted_choice = choice[order]
        first = torch.searchsorted(sorted_choice, torch.arange(affinity.shape[1], device=choice.device))
        rank = torch.arange(len(order), device=choice.device) - first[sorted_choice]
        refused = order[rank >= size]
        if len(refused) == 0:
            return choice
        affinity[refused, choice[refused]] = -torch.inf
        choice[refused] = affinity[refused].argmax(1)


def group_of(rows: Tensor) -> Tensor:
    """Return the group of each row; ``rows``: those of each group [groups, size]."""
    found = torch.empty(rows.numel(), dtype=torch.long, device=rows.device)
    found[rows.flatten()] = torch.arange(len(rows), device=rows.device).repeat_interleave(rows.shape[1])
    return found


def in_order(group: Tensor, groups: int) -> Tensor:
    """Return the rows of each group [groups, size], ascending, and the groups by their first row.

    ``group``: of each row, a number; groups of the same number follow one another.
    """
    rows = group.argsort(stable=True).view(groups, -1)
    by_first: Tensor = rows[rows[:, 0].argsort()]
    return by_first


def squarable(scores: Tensor) -> Tensor:
    """Return scores of which squares are neither zero nor infinite; the largest, if it is far from one, near it.

    They are multiplied by a power of two, which rounds nothing. Products of weights and gradients are as small, and
    those of all weights of a path (SynFlow) as large.
    """
    largest = float(torch.maximum(scores.amax(), -scores.amin()))  # many times as fast as the norm
    if largest == 0 or not math.isfinite(largest) or 2**-_FAR <= largest <= 2**_FAR:
        return scores
    return scores * 2.0 ** -max(-_MOST, min(math.frexp(largest)[1], _MOST))


def alike(mask: Tensor, size: int) -> Tensor:
    """Return rows of a mask [rows, columns] that are equal, in groups [groups, size]; ValueError if they are not so."""
    kinds = first_equal(mask).to(mask.device)
    if bool((kinds.bincount() % size != 0).any()):
        raise ValueError("a mask that is not in blocks")
    return in_order(kinds, len(mask) // size)
