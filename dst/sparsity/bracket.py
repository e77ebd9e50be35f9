"""Exact selection on a CPU, without a full sort: a sample brackets the k-th value."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 8_192
_WORTH_SAMPLING = 8 * _SAMPLE
_SPARSE, _FEW = 0.1, 0.1
"""Where a smaller share of all positions is eligible, or wanted, listing these is cheaper than another pass."""


def selected(scores: Sequence[Tensor], k: int, among: Sequence[Tensor], largest: bool) -> list[Tensor]:
    """Return masks of the k largest (or smallest) scores of all flat tensors together, ties by the lowest position.

    Takes all scores beyond a bracket of the k-th value, then the best of the few within it. ValueError if there are not
    as many.
    """
    near, far = _bracket(scores, k, among, largest)
    chosen, taken, eligible = [torch.zeros_like(where) for where in among], 0, list(among)
    if math.isfinite(far):
        beyond = torch.gt if largest else torch.lt
        sure = [beyond(values, far).logical_and_(where) for values, where in zip(scores, among, strict=True)]
        if (count := sum(counted(sure))) <= k:  # else the sample misled
            chosen, taken = sure, count
            eligible = [where ^ above for where, above in zip(among, sure, strict=True)]
    index: list[Tensor] = []
    if math.isfinite(near):
        reaches = torch.ge if largest else torch.le
        parts = zip(scores, eligible, strict=True)
        index = [_places(reaches(values, near).logical_and_(where)) for values, where in parts]
    if taken + sum(map(len, index)) < k:  # there is no such bound, it misled, or there are not as many
        index = [_places(where) for where in eligible]
        if (found := taken + sum(map(len, index))) < k:
            raise ValueError(f"cannot select {k} of {found} positions")
    if taken < k:
        undecided = torch.cat([values[where] for values, where in zip(scores, index, strict=True)])
        best = torch.split(_first(undecided, k - taken, largest), [len(where) for where in index])
        for mask, where, picked in zip(chosen, index, best, strict=True):
            mask[where[picked]] = True
    return chosen


def counted(masks: Sequence[Tensor]) -> list[int]:
    """Return the number of true values of each boolean mask, three times as fast as torch does."""
    return [int(np.count_nonzero(mask.numpy())) for mask in masks]


def _bracket(scores: Sequence[Tensor], k: int, among: Sequence[Tensor], largest: bool) -> tuple[float, float]:
    """Return two values, the far one last, that most probably bracket the k-th of the eligible scores closely.

    Both are infinite if a sample cannot tell, or if it is cheaper to look at each of few eligible scores.
    """
    everything, nothing = (-math.inf, math.inf) if largest else (math.inf, -math.inf)
    total = sum(values.numel() for values in scores)
    if total < _WORTH_SAMPLING:
        return everything, nothing
    stride = total // _SAMPLE
    stride += {0: 1, 2: 3, 3: 2, 4: 1}.get(stride % 6, 0)  # no period in common with kernels of 2, 3, 4, ... places
    pairs = [(values[::stride], where[::stride]) for values, where in zip(scores, among, strict=True)]
    sample = torch.cat([values[where] for values, where in pairs])
    if len(sample) <= _SPARSE * _SAMPLE:
        return everything, nothing
    rank = k / stride  # of the k-th value within the sample, give or take
    margin = 4 * math.sqrt(rank) + 8
    near, far = math.ceil(rank + margin), min(math.floor(rank - margin), len(sample) - 1)
    near_value = _ranked(sample, near, largest) if near < len(sample) else everything
    return near_value, _ranked(sample, far, largest) if far >= 0 and k > _FEW * total else nothing


def _first(values: Tensor, k: int, largest: bool) -> Tensor:
    """Return a mask of the k largest (or smallest) values, ties by lowest index."""
    kth = _ranked(values, k - 1, largest)
    chosen = values > kth if largest else values < kth
    (taken,) = counted([chosen])
    chosen[_places(values == kth)[: k - taken]] = True
    return chosen


def _ranked(values: Tensor, rank: int, largest: bool) -> float:
    """Return the value of a rank, counted from 0; several times as fast as ``Tensor.topk`` and ``kthvalue``."""
    place = len(values) - 1 - rank if largest else rank
    known = values.to(torch.promote_types(values.dtype, torch.float32))  # numpy has no bfloat16
    return float(np.partition(known.numpy(), place)[place])


def _places(mask: Tensor) -> Tensor:
    """Return the true positions in ascending order, twice as fast as ``Tensor.nonzero``."""
    return torch.from_numpy(np.flatnonzero(mask.numpy()))
