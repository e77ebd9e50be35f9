"""Weights in blocks of rows as plain tensors, which ``torch.load(..., weights_only=True)`` reads."""

import torch
from torch import Tensor

from dst.kernels.blocks import alike

Exported = dict[str, Tensor]
"""Blocks of a weight: ``shape``: its own; ``rows``: int32, all of them, group by group; ``sizes``: int64, rows of each
group; ``starts``: int64, [groups + 1]: where the columns of a group begin; ``columns``: int32, those with weights of
each group, flat positions in a row; ``values``: those of a group as [columns, rows], one group after the other."""


def blocks_of(weight: Tensor, mask: Tensor) -> Exported | None:
    """Return the blocks of a weight, dense, with this mask; None if its rows are not alike, eight at least."""
    groups = alike(mask.cpu())
    if groups is None:
        return None
    flat, active = weight.detach().cpu().reshape(len(weight), -1), mask.cpu().reshape(len(weight), -1)
    rows = torch.split(groups.rows.long(), groups.sizes.tolist())
    columns = [active[group[0]].nonzero()[:, 0] for group in rows]
    starts = torch.tensor([0, *map(len, columns)]).cumsum(0)
    values = [flat[group][:, own].t().flatten() for group, own in zip(rows, columns, strict=True)]
    return {
        "shape": torch.tensor(weight.shape),
        "rows": groups.rows,
        "sizes": groups.sizes,
        "starts": starts,
        "columns": torch.cat(columns).int(),
        "values": torch.cat(values),
    }


def dense_of(blocks: Exported) -> Tensor:
    """Return the dense weight of blocks."""
    shape = blocks["shape"].tolist()
    dense = blocks["values"].new_zeros(shape).reshape(shape[0], -1)
    begin = 0
    columns = torch.split(blocks["columns"].long(), blocks["starts"].diff().tolist())
    for rows, own in zip(torch.split(blocks["rows"].long(), blocks["sizes"].tolist()), columns, strict=True):
        end = begin + len(rows) * len(own)
        dense[rows[:, None], own] = blocks["values"][begin:end].view(len(own), len(rows)).t()
        begin = end
    return dense.reshape(shape)
