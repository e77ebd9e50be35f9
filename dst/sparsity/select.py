"""The one exact selection: the k largest, ties by lowest index.

``torch.topk`` alone breaks ties arbitrarily, and ties are real: dead inputs give all-zero gradients.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_SAMPLE = 8_192
_WORTH_SAMPLING = 8 * _SAMPLE
_SPARSE = 0.25
"""Below this share of positions, listing all of them is cheaper than estimating a threshold."""


def top_k(scores: Tensor, k: int, among: Tensor) -> Tensor:
    """Return a boolean mask of the ``k`` largest ``scores`` within the boolean mask ``among`` (same shape).

    Everything strictly above the k-th value is taken, then those equal to it by lowest flat index. No full sort: on a
    CPU a threshold estimated from a sample leaves few candidates, among which the selection is exact; on a GPU a radix
    select needs no host synchronisation, so there the caller answers for ``k <= among.sum()``.
    """
    chosen = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    if k > 0:
        select = _on_cpu if scores.device.type == "cpu" else _on_device
        select(scores.flatten(), k, among.flatten(), chosen)
    return chosen.view(scores.shape)


def pooled_top_k(scores: Sequence[Tensor], k: int, among: Sequence[Tensor]) -> list[Tensor]:
    """Return boolean masks of the ``k`` largest scores of all layers together, at least one in every layer.

    Raises ValueError if ``k`` is less than the number of layers.
    """
    if k < len(scores):
        raise ValueError(f"cannot keep {k} weights in {len(scores)} layers: every layer keeps at least one")
    pool = torch.cat([layer.flatten() for layer in scores])
    eligible = torch.cat([layer.flatten() for layer in among])
    sizes = [layer.numel() for layer in scores]
    for values, where in zip(torch.split(pool, sizes), torch.split(eligible, sizes), strict=True):
        values[values.masked_fill(~where, -torch.inf).argmax()] = torch.inf  # the best of its layer stays in any case
    chosen = torch.split(top_k(pool, k, eligible), sizes)
    return [mask.view(layer.shape) for mask, layer in zip(chosen, scores, strict=True)]


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


def _on_cpu(scores: Tensor, k: int, among: Tensor, chosen: Tensor) -> None:
    index = _candidates(scores, k, among)
    if index.numel() < k:
        raise ValueError(f"cannot select {k} of {index.numel()} positions")
    values = scores[index]
    best = _first_k(values, k)
    chosen[index[best]] = True


def _on_device(scores: Tensor, k: int, among: Tensor, chosen: Tensor) -> None:
    chosen |= _first_k(scores.masked_fill(~among, -torch.inf), k)


def _first_k(values: Tensor, k: int) -> Tensor:
    """Return a mask of the k largest values, ties by lowest index."""
    kth = values.topk(k, sorted=False).values.min()
    above, equal = values > kth, values == kth
    return above | (equal & (equal.cumsum(0) <= k - above.sum()))


def _candidates(scores: Tensor, k: int, among: Tensor) -> Tensor:
    """Return, in ascending order, indices that surely include the k largest and usually few more."""
    if scores.numel() >= _WORTH_SAMPLING:
        count = int(torch.count_nonzero(among))
        floor = _floor_from_sample(scores, k, among, count) if count > _SPARSE * scores.numel() else None
        if floor is not None:
            index = (scores >= floor).logical_and_(among).nonzero().squeeze(1)
            if index.numel() >= k:
                return index
    return among.nonzero().squeeze(1)


def _floor_from_sample(scores: Tensor, k: int, among: Tensor, count: int) -> Tensor | None:
    """Estimate a value that slightly more than k of the ``count`` scores reach; None if a sample cannot tell."""
    generator = torch.Generator().manual_seed(0)  # which positions are sampled changes the speed, never the result
    where = torch.randint(scores.numel(), (_SAMPLE,), generator=generator)
    sample = scores[where[among[where]]]
    rank = k / count * sample.numel()
    generous = int(rank + 4 * rank**0.5 + 8)
    if generous >= sample.numel():
        return None
    return sample.topk(generous, sorted=False).values.min()
