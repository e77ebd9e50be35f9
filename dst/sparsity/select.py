"""The one exact selection: the k largest, ties by lowest index.

``torch.topk`` alone breaks ties arbitrarily, and ties are real: dead inputs give all-zero gradients.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SAMPLE = 8_192
_WORTH_SAMPLING = 8 * _SAMPLE
_SPARSE, _FEW = 0.1, 0.1
"""Where a smaller share of all positions is eligible, or wanted, listing these is cheaper than another pass."""


def top_k(scores: Tensor, k: int, among: Tensor) -> Tensor:
    """Return a boolean mask of the ``k`` largest ``scores`` within the boolean mask ``among`` (same shape).

    Everything strictly above the k-th value is taken, then those equal to it by lowest flat index. No full sort: on a
    CPU a sample brackets the k-th value, and only the few scores within the bracket are compared exactly. On a GPU a
    radix select needs no host synchronisation, so nothing checks there that ``k <= among.sum()``: the caller must.
    """
    (chosen,) = _select([scores], k, [among])
    return chosen


def bottom_k(scores: Tensor, k: int, among: Tensor) -> Tensor:
    """Return a boolean mask of the ``k`` smallest ``scores`` within ``among``, ties by lowest flat index."""
    (chosen,) = _select([scores], k, [among], largest=False)
    return chosen


def pooled_top_k(scores: Sequence[Tensor], k: int, among: Sequence[Tensor]) -> list[Tensor]:
    """Return boolean masks of the ``k`` largest scores of all layers together, at least one in every layer.

    Raises ValueError if ``k`` is less than the number of layers.
    """
    if k < len(scores):
        raise ValueError(f"cannot keep {k} weights in {len(scores)} layers: every layer keeps at least one")
    chosen = _select(scores, k, among)
    if bool(torch.stack([mask.any() for mask in chosen]).all()):
        return chosen
    sure = [score.clone(memory_format=torch.contiguous_format) for score in scores]
    for values, where in zip(sure, among, strict=True):
        best = values.masked_fill(~where, -torch.inf).argmax()
        values.view(-1)[best] = torch.inf  # the best of its layer stays in any case
    return _select(sure, k, among)


def count_true(masks: Sequence[Tensor]) -> list[int]:
    """Return the number of true values of each boolean mask, in one host synchronisation."""
    if not masks or masks[0].device.type == "cpu":
        return [int(np.count_nonzero(mask.numpy())) for mask in masks]  # three times as fast as torch's
    found: list[int] = torch.stack([torch.count_nonzero(mask) for mask in masks]).tolist()
    return found


def row_top_k(scores: Tensor, k: Tensor, among: Tensor) -> Tensor:
    """Return a boolean mask of the ``k[r]`` largest scores of each row within ``among``, ties by lowest index.

    ``scores`` and ``among``: [rows, columns]; ``k``: [rows], integers. A row with fewer candidates gives all it has.
    """
    widest = int(k.max())
    if widest <= 0:
        return torch.zeros_like(among)
    values = scores.masked_fill(~among, -torch.inf)
    best = values.topk(widest, dim=1).values  # in descending order
    kth = best.gather(1, (k - 1).clamp(min=0).unsqueeze(1))
    above, equal = values > kth, (values == kth) & among
    room = (k - above.sum(1)).unsqueeze(1)
    return (above | (equal & (equal.cumsum(1) <= room))) & (k > 0).unsqueeze(1)


def _select(scores: Sequence[Tensor], k: int, among: Sequence[Tensor], *, largest: bool = True) -> list[Tensor]:
    """Return the masks of the k largest scores of all tensors together, ties by tensor, then by lowest flat index."""
    if k <= 0:
        return [torch.zeros_like(where) for where in among]
    select = _on_cpu if scores[0].device.type == "cpu" else _on_device
    chosen = select([values.flatten() for values in scores], k, [where.flatten() for where in among], largest)
    return [mask.view(where.shape) for mask, where in zip(chosen, among, strict=True)]


def _on_device(scores: Sequence[Tensor], k: int, among: Sequence[Tensor], largest: bool) -> list[Tensor]:
    values, eligible = (scores[0], among[0]) if len(scores) == 1 else (torch.cat([*scores]), torch.cat([*among]))
    values = values.masked_fill(~eligible, -torch.inf) if largest else -values.masked_fill(~eligible, torch.inf)
    kth = values.topk(k, sorted=False).values.min()
    above, equal = values > kth, values == kth
    chosen = above | (equal & (equal.cumsum(0) <= k - above.sum()))
    return list(torch.split(chosen, [layer.numel() for layer in scores]))


def _on_cpu(scores: Sequence[Tensor], k: int, among: Sequence[Tensor], largest: bool) -> list[Tensor]:
    """Take all scores beyond a bracket of the k-th value, then the best of the few within it."""
    near, far = _bracket(scores, k, among, largest)
    chosen, taken, eligible = [torch.zeros_like(where) for where in among], 0, list(among)
    if math.isfinite(far):
        beyond = torch.gt if largest else torch.lt
        sure = [beyond(values, far).logical_and_(where) for values, where in zip(scores, among, strict=True)]
        if (count := sum(count_true(sure))) <= k:  # else the sample misled
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
    (taken,) = count_true([chosen])
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
