"""Fewer weights: the masks of the highest scores, within given masks."""

from collections.abc import Sequence

from torch import Tensor

from dst.sparsity.pattern import Pattern
from dst.sparsity.select import each_top_k, pooled_top_k


def prune_to(counts: int | Sequence[int], scores: Sequence[Tensor], among: Sequence[Tensor]) -> list[Tensor]:
    """Return the masks of the highest scores within the masks ``among``, one tensor a layer, of the weights' shape.

    ``counts``: how many stay of all layers together, at least one in each; or of each layer.
    """
    if isinstance(counts, int):
        return pooled_top_k(scores, counts, among)
    return each_top_k(scores, counts, among)


def prune_like(
    example: Sequence[Tensor], scores: Sequence[Tensor], among: Sequence[Tensor], patterns: Sequence[Pattern]
) -> list[Tensor]:
    """Return masks of the highest scores within ``among`` that have as many weights, and the structure, of an example.

    ``example``: masks that the patterns of the layers allow, each part of the mask in ``among``.
    """
    return [
        mask if like.all() else pattern.prune(score, mask, like)
        for like, score, mask, pattern in zip(example, scores, among, patterns, strict=True)
    ]
