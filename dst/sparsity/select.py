"""The one exact selection: the k largest, ties by lowest index.

``torch.topk`` alone breaks ties arbitrarily, and ties are real: dead inputs give all-zero gradients.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

from dst.sparsity.bracket import counted, selected
from dst.sparsity.segments import Segments, batches, segments_of

T = TypeVar("T")

_HOST = "cpu"
_FEW = 4
"""So few layers are fewest kernels on a device if each is selected from by itself."""


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


def each_top_k(scores: Sequence[Tensor], ks: Sequence[int], among: Sequence[Tensor]) -> list[Tensor]:
    """Return what ``top_k`` would for each layer: on a GPU by as many kernels for all layers as for one."""
    return _each(scores, ks, among, largest=True)


def each_bottom_k(
    scores: Sequence[Tensor], ks: Sequence[int], among: Sequence[Tensor], *, held: Sequence[int] | None = None
) -> list[Tensor]:
    """Return what ``bottom_k`` would for each layer: on a GPU by as many kernels for all layers as for one.

    ``held``: the number of true values of each of ``among``, if it is known, which takes a GPU less time.
    """
    return _each(scores, ks, among, largest=False, held=held)


def exchanged(
    leaving: tuple[Sequence[Tensor], Sequence[int]],
    entering: tuple[Sequence[Tensor], Sequence[int]],
    masks: Sequence[Tensor],
    *,
    regrow: bool,
    held: Sequence[int] | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Return each mask without those of lowest score, and this with those of highest score at free places.

    ``leaving``, ``entering``: the scores, and how many. ``regrow``: what has just left may enter. ``held``: see
    ``each_bottom_k``.
    """
    if _one_by_one(masks):
        return [_exchanged(*layer, regrow) for layer in zip(*leaving, *entering, masks, strict=True)]

    def together(all_: Segments, part: slice) -> list[tuple[Tensor, Tensor]]:
        (losing, drops), (gaining, grows) = ((scores[part], numbers[part]) for scores, numbers in (leaving, entering))
        mask = all_.gathered(masks[part], torch.bool)
        worth = all_.gathered(losing, _dtype_of(losing))
        kept = mask ^ all_.best(worth, drops, mask, largest=False, held=_part_of(held, part))
        free = all_.everywhere() & ~(kept if regrow else mask)
        grown = all_.best(all_.gathered(gaining, _dtype_of(gaining)), grows, free, largest=True)
        pairs = (all_.spread(found, masks[part]) for found in (kept, kept | grown))
        return [*zip(*pairs, strict=True)]

    return _in_batches(together, masks)


def pooled_top_k(scores: Sequence[Tensor], k: int, among: Sequence[Tensor]) -> list[Tensor]:
    """Return boolean masks of the ``k`` largest scores of all layers together, at least one in every layer.

    Raises ValueError if ``k`` is less than the number of layers.
    """
    if k < len(scores):
        raise ValueError(f"cannot keep {k} weights in {len(scores)} layers: every layer keeps at least one")
    if not on_host(scores):
        return _pooled_on_device(scores, k, among)
    chosen = _select(scores, k, among)
    if all(bool(mask.any()) for mask in chosen):
        return chosen
    sure = [score.clone(memory_format=torch.contiguous_format) for score in scores]
    for values, where in zip(sure, among, strict=True):
        best = values.masked_fill(~where, -torch.inf).argmax()
        values.view(-1)[best] = torch.inf  # the best of its layer stays in any case
    return _select(sure, k, among)


def count_true(masks: Sequence[Tensor]) -> list[int]:
    """Return the number of true values of each boolean mask, in one host synchronisation."""
    if not masks or on_host(masks):
        return counted(masks)
    counts = _in_batches(lambda all_, part: [all_.counts(all_.gathered(masks[part], torch.bool))], masks)
    found: list[int] = torch.cat(counts).tolist()
    return found


def row_top_k(scores: Tensor, k: Tensor, among: Tensor, *, most: int | None = None) -> Tensor:
    """Return a boolean mask of the ``k[r]`` largest scores of each row within ``among``, ties by lowest index.

    ``scores`` and ``among``: [rows, columns]; ``k``: [rows], integers, none of them above ``most``: without it a device
    is waited for. A row with fewer candidates gives all it has.
    """
    widest = int(k.max()) if most is None or on_host([k]) else most
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
    flat, places = [values.flatten() for values in scores], [where.flatten() for where in among]
    chosen = selected(flat, k, places, largest) if on_host(scores) else [_on_device(flat[0], k, places[0], largest)]
    return [mask.view(where.shape) for mask, where in zip(chosen, among, strict=True)]


# -- on a device -------------------------------------------------------------------------------------------------------


def on_host(tensors: Sequence[Tensor]) -> bool:
    """Say whether tensors are the host's, which need not wait for them, and takes a kernel for nothing."""
    return tensors[0].device.type == _HOST


def _one_by_one(layers: Sequence[Tensor]) -> bool:
    """Say whether each layer is selected from by itself."""
    return len(layers) <= _FEW or on_host(layers)


def _dtype_of(scores: Sequence[Tensor]) -> torch.dtype:
    return reduce(torch.promote_types, (values.dtype for values in scores), torch.float32)


def _in_batches(action: Callable[[Segments, slice], list[T]], like: Sequence[Tensor]) -> list[T]:
    """Return what an action returns of all layers, done with as many at a time as go into one matrix."""
    sizes = [tensor.numel() for tensor in like]
    return [found for part in batches(sizes) for found in action(segments_of(tuple(sizes[part]), like[0].device), part)]


def _part_of(held: Sequence[int] | None, part: slice) -> Sequence[int] | None:
    return None if held is None else held[part]


def _each(
    scores: Sequence[Tensor],
    ks: Sequence[int],
    among: Sequence[Tensor],
    *,
    largest: bool,
    held: Sequence[int] | None = None,
) -> list[Tensor]:
    if _one_by_one(scores):
        layers = zip(scores, ks, among, strict=True)
        return [_select([values], k, [where], largest=largest)[0] for values, k, where in layers]

    def together(all_: Segments, part: slice) -> list[Tensor]:
        where = all_.gathered(among[part], torch.bool)
        values = all_.gathered(scores[part], _dtype_of(scores))
        found = all_.best(values, ks[part], where, largest=largest, held=_part_of(held, part))
        return all_.spread(found, among[part])

    return _in_batches(together, scores)


def _on_device(values: Tensor, k: int, eligible: Tensor, largest: bool = True) -> Tensor:
    """Select from one flat tensor, where a radix select over all of it takes fewest kernels."""
    values = values.masked_fill(~eligible, -torch.inf) if largest else -values.masked_fill(~eligible, torch.inf)
    kth = values.topk(k, sorted=False).values.min()
    above, equal = values > kth, (values == kth).logical_and_(eligible)
    return above | (equal & (equal.cumsum(0) <= k - above.sum()))


def _pooled_on_device(scores: Sequence[Tensor], k: int, among: Sequence[Tensor]) -> list[Tensor]:
    """Let the best of every layer stay in any case: where layers are full enough, that changes nothing."""
    all_ = segments_of(tuple(values.numel() for values in scores), scores[0].device)
    where = all_.gathered(among, torch.bool)
    values = all_.gathered(scores, _dtype_of(scores)).masked_fill_(~where, -torch.inf)
    values.masked_fill_(all_.single_best(values, where), torch.inf)
    return all_.spread(_on_device(values.view(-1), k, where.view(-1)).view(where.shape), among)


def _exchanged(
    losing: Tensor, drop: int, gaining: Tensor, grow: int, mask: Tensor, regrow: bool
) -> tuple[Tensor, Tensor]:
    kept = mask ^ bottom_k(losing, drop, among=mask)
    return kept, kept | top_k(gaining, grow, among=~kept if regrow else ~mask)
