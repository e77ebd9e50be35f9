"""Groups of rows that have something in common, all of the same size."""

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor


def regrouped(values: Tensor, rows: Tensor) -> Tensor:
    """Return the rows [groups, size] in groups of rows with similar values, starting from those that they are in.

    ``values``: [rows, columns]. A row's affinity to a group is its mean cosine with the group's other
    rows, for all of them one matrix product. Every row goes to the group that it has most affinity to among those that
    have room for it: where too many want to be, the most similar stay, and the others try the next one.
    """
    groups, size = rows.shape
    if groups == 1:
        return rows
    length = torch.linalg.vector_norm(values, dim=1)
    inverse = torch.where(length > 0, 1 / length, 0)
    own = torch.empty(len(values), dtype=torch.long, device=values.device)
    own[rows.flatten()] = torch.arange(groups, device=values.device).repeat_interleave(size)
    at_home = F.one_hot(own, groups).to(values.dtype)
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


def in_order(group: Tensor, groups: int) -> Tensor:
    """Return the rows of each group [groups, size], ascending, and the groups by their first row.

    ``group``: of each row, a number; groups of the same number follow one another.
    """
    rows = group.argsort(stable=True).view(groups, -1)
    by_first: Tensor = rows[rows[:, 0].argsort()]
    return by_first


def alike(mask: Tensor, size: int) -> Tensor:
    """Return rows of a mask [rows, columns] that are equal, in groups [groups, size]; ValueError if they are not so."""
    kinds, counts = torch.unique(mask, dim=0, return_inverse=True, return_counts=True)[1:]
    if bool((counts % size != 0).any()):
        raise ValueError("a mask that is not in blocks")
    return in_order(kinds, len(mask) // size)
