"""Superposing: averages of networks whose weights are active in different places, and pruning them back.

Pure functions of tensors. Nothing here knows how the networks were trained.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dst.sparsity.allocation import level_counts
from dst.sparsity.options import Pool

_Average = Callable[[str, Tensor, Tensor], Tensor]
"""From a name, what was, and what is new, to their average."""


@dataclass(frozen=True)
class Superposed:
    """A network that is the average of others; a single one is the average of itself.

    ``tensors``: all parameters and buffers of the model, by name; inactive weights are zero. ``masks``: boolean, of the
    weights that may be sparse, by the same names. ``networks``: how many it is the average of. ``counts``: int32, of
    how many, weight by weight, by the names of the masks; empty if all tensors are averages over all networks.
    """

    tensors: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    networks: int
    counts: Mapping[str, Tensor]


def as_superposed(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor], *, average_over: str) -> Superposed:
    """Return one network, ready to be superposed with others.

    ``average_over``: each weight is to be averaged over all ``networks``, or over those where it is ``active``.
    """
    counts = {name: mask.int() for name, mask in masks.items()} if average_over == "active" else {}
    return Superposed(tensors, masks, 1, counts)


@torch.no_grad()
def caa(before: Superposed, ticket: Superposed) -> Superposed:
    """Return the cumulative average: ``(1 - 1 / n) before + ticket / n``, ``n`` networks with the ticket.

    With ``counts``, ``n`` is that of the weight, and a weight that is not active in the ticket stays what it is.
    Numbers that are counted (of batches seen) are those of the ticket. On a CPU the bits are those of
    ``torch.optim.swa_utils.AveragedModel``.
    """
    networks = before.networks + ticket.networks
    counts = {name: count + ticket.counts[name] for name, count in before.counts.items()}

    def average(name: str, was: Tensor, new: Tensor) -> Tensor:
        if name not in counts:
            return was + (new - was) / networks
        return torch.where(ticket.masks[name], was + (new - was) / counts[name].clamp(min=1), was)

    return Superposed(_averaged(before, ticket, average), _union(before, ticket), networks, counts)


@torch.no_grad()
def cima(before: Superposed, ticket: Superposed, *, factor: float) -> Superposed:
    """Return the moving average ``factor ticket + (1 - factor) before``; counted numbers are those of the ticket."""
    tensors = _averaged(before, ticket, lambda _, was, new: factor * new + (1 - factor) * was)
    return Superposed(tensors, _union(before, ticket), before.networks + ticket.networks, {})


def _averaged(before: Superposed, ticket: Superposed, average: _Average) -> dict[str, Tensor]:
    pairs = {name: (before.tensors[name], new) for name, new in ticket.tensors.items()}
    return {
        name: average(name, was, new) if new.is_floating_point() else new.clone() for name, (was, new) in pairs.items()
    }


def _union(before: Superposed, ticket: Superposed) -> dict[str, Tensor]:
    return {name: mask | ticket.masks[name] for name, mask in before.masks.items()}


def counts_to_keep(target: int, union: Sequence[int], ticket: Sequence[int], pool: Pool) -> int | list[int]:
    """Return how many weights are kept of all layers together (``global``), or of each (``layer``).

    ``union``: how many weights of each layer are active in any of the networks, which is all that can be kept.
    ``ticket``: how many are in the last ticket. A layer has its share of ``target`` in that proportion: exactly its own
    number if ``target`` is the ticket's.
    """
    target = min(target, sum(union))
    return target if pool == "global" else level_counts(target, ticket, union)


@torch.no_grad()
def within(network: Superposed, masks: Mapping[str, Tensor]) -> Superposed:
    """Return a network without the weights outside of masks, which forgets what these weights were averages of."""

    def inside(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: tensor.masked_fill(~masks[name], 0) if name in masks else tensor for name, tensor in tensors.items()
        }

    return replace(network, tensors=inside(network.tensors), masks=masks, counts=inside(network.counts))
