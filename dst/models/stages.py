"""Stages of residual networks: rows of blocks; the first block of a row changes width and size."""

from collections.abc import Callable, Iterator, Sequence

from torch import nn


def stages(
    block: Callable[[int, int, int], nn.Module], inputs: int, plan: Sequence[tuple[int, int]]
) -> Iterator[nn.Sequential]:
    """Yield a network's stages, each given in ``plan`` by its output channels and number of blocks.

    ``block(inputs, outputs, stride)`` builds one block; in all stages but the first, the first block halves the maps.
    """
    for number, (outputs, blocks) in enumerate(plan):
        first = block(inputs, outputs, 2 if number else 1)
        yield nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(blocks - 1)))
        inputs = outputs
