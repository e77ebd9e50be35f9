"""Which positions first: the masks of all layers before the first step.

Most choose within the counts of the distribution. Those marked ``own_counts`` decide the counts themselves: they read
the masks of another run, or prune given (for instance trained) weights at a rate, as GraNet does to probe pruning
plasticity (Liu et al. 2021).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor

from dst import registry
from dst.fractions import exact
from dst.options import ASIDE, PATH, SHA256, Range, check_part, checked
from dst.registry import MemberOf
from dst.sparsity.initial_masks import Start
from dst.sparsity.marks import marked
from dst.sparsity.masks_file import read_masks
from dst.sparsity.saliency import gradient
from dst.sparsity.select import pooled_top_k, top_k

Rate = Annotated[float, Range(0, 1, "()"), "the share of the weights that is removed"]
Batches = Annotated[int, Range(1), "training batches over which the gradient is averaged"]


def random(start: Start) -> list[Tensor]:
    """Choose uniformly at random, an exact count a layer."""
    return start.choose(lambda layer: layer.uniform())


@marked("free_form")
def bernoulli(start: Start) -> list[Tensor]:
    """Draw every weight by itself with the density of its layer, as the published codes do: counts are not exact.

    For comparison with them; no layer is left empty.
    """
    masks = []
    for i, (layer, count) in enumerate(zip(start.layers, start.counts, strict=True)):
        numbers = start.view(i).uniform()
        mask = numbers < count / layer.size
        mask.view(-1)[numbers.argmin()] = True
        masks.append(mask)
    return masks


def magnitude(start: Start) -> list[Tensor]:
    """Keep the largest weights of each layer; with the distribution ``magnitude``, of the network (lottery tickets)."""
    return start.choose(lambda layer: layer.weight.abs())


@marked("data")
@checked
def saliency(
    start: Start, *, criterion: Annotated[str, MemberOf("criterion"), "what the weights are ranked by"], **options: Any
) -> list[Tensor]:
    """Keep the most salient weights of each layer by a criterion of ``dst.sparsity.saliency`` and its options."""
    given = {name: value for name, value in options.items() if value is not None}
    ranking = partial(registry.find("criterion", criterion).load(), **given)
    check_part(ranking, criterion)
    return start.choose_by(start.rank(ranking, start.counts))


@marked("own_counts")
@checked
def file(
    start: Start,
    *,
    path: Annotated[str, ASIDE, PATH, "the folder of the run whose masks are taken"],
    digest: Annotated[str | None, SHA256, "identifies the checkpoint; null: the newest in the folder"] = None,
) -> list[Tensor]:
    """Take the masks of another run: of its checkpoint, or of what ``Sparsifier.state_dict`` returned, in a torch file.

    Raises ValueError if it has other layers, or another ``digest`` (SHA-256 in hex).
    """
    masks = read_masks(path, digest, {layer.name: layer.weight.shape for layer in start.layers})
    return [masks[layer.name].to(layer.weight.device) for layer in start.layers]


@marked("own_counts", "free_form")
@checked
def prune_uniform(start: Start, *, rate: Rate) -> list[Tensor]:
    """Remove the share ``rate`` of the nonzero weights of every layer, the smallest."""
    return _prune_uniform(start, rate)


@marked("own_counts", "free_form")
@checked
def prune_global(start: Start, *, rate: Rate) -> list[Tensor]:
    """Remove the share ``rate`` of all nonzero weights, the smallest of all layers together; one a layer stays."""
    return _prune_global(start, rate)


@marked("own_counts", "units")
@checked
def prune_structured(start: Start, *, rate: Rate) -> list[Tensor]:
    """Remove the share ``rate`` of the nonzero output units of every layer, those of smallest L1 norm.

    The network's last layer keeps its units, which are the outputs. Raises ValueError if no other layer is in scope.
    """
    return _prune_structured(start, rate)


@marked("own_counts", "data", "free_form")
@checked
def prune_and_grow_uniform(start: Start, *, rate: Rate, batches: Batches = 1) -> list[Tensor]:
    """Prune as ``prune_uniform``, then grow as many in each layer by gradient, starting from zero."""
    return _regrown(start, rate, batches, _prune_uniform)


@marked("own_counts", "data", "free_form")
@checked
def prune_and_grow_global(start: Start, *, rate: Rate, batches: Batches = 1) -> list[Tensor]:
    """Prune as ``prune_global``, then grow each layer to its former number of weights by gradient, from zero."""
    return _regrown(start, rate, batches, _prune_global)


@marked("own_counts", "data", "units")
@checked
def prune_and_grow_structured(start: Start, *, rate: Rate, batches: Batches = 1) -> list[Tensor]:
    """Prune as ``prune_structured``, then grow as many units by the L1 norm of their gradients, from zero."""
    before = _nonzero(start)
    slopes = _gradients(start, batches)
    masks = _prune_structured(start, rate)
    for i, (kept, old, slope) in enumerate(zip(masks, before, slopes, strict=True)):
        lost = int((old.flatten(1).any(1) & ~kept.flatten(1).any(1)).sum())
        norms = (slope * ~kept).flatten(1).sum(1)
        units = top_k(norms, lost, among=~kept.flatten(1).any(1))
        _clear(start, i, kept)
        masks[i] = kept | units.view(-1, *[1] * (kept.dim() - 1))
    return masks


# -- what the prune inits share ----------------------------------------------------------------------------------------


def _nonzero(start: Start) -> list[Tensor]:
    """Return where the given weights are not zero; pruning counts these only."""
    masks = [layer.weight.detach() != 0 for layer in start.layers]
    for layer, mask in zip(start.layers, masks, strict=True):
        if not mask.any():
            raise ValueError(f"layer {layer.name} has only zeros: there is nothing to prune")
    return masks


def _magnitudes(start: Start) -> list[Tensor]:
    return [layer.weight.detach().abs() for layer in start.layers]


def _prune_uniform(start: Start, rate: float) -> list[Tensor]:
    before = _nonzero(start)
    counts = [int(mask.sum()) for mask in before]
    return [
        top_k(score, max(1, n - math.ceil(exact(rate) * n)), among=mask)
        for score, n, mask in zip(_magnitudes(start), counts, before, strict=True)
    ]


def _prune_global(start: Start, rate: float) -> list[Tensor]:
    before = _nonzero(start)
    total = sum(int(mask.sum()) for mask in before)
    return pooled_top_k(_magnitudes(start), max(len(before), math.floor(total * (1 - exact(rate)))), before)


def _prune_structured(start: Start, rate: float) -> list[Tensor]:
    masks = _nonzero(start)
    inner = [i for i, layer in enumerate(start.layers) if not layer.is_output]
    if not inner:
        raise ValueError("only the network's last layer is in scope, and its units, the outputs, all stay: add layers")
    magnitudes = _magnitudes(start)
    for i in inner:
        mask, norms = masks[i], magnitudes[i].flatten(1).sum(1)
        alive = norms > 0
        living = int(alive.sum())
        units = top_k(norms, max(1, living - math.floor(exact(rate) * living)), among=alive)
        masks[i] = mask & units.view(-1, *[1] * (mask.dim() - 1))
    return masks


def _regrown(start: Start, rate: float, batches: int, prune: Callable[[Start, float], list[Tensor]]) -> list[Tensor]:
    """Prune, set pruned weights to zero, and grow every layer to its former count by the gradients before pruning."""
    before = _nonzero(start)
    slopes = _gradients(start, batches)
    masks = prune(start, rate)
    for i, (kept, old, slope) in enumerate(zip(masks, before, slopes, strict=True)):
        _clear(start, i, kept)
        masks[i] = kept | top_k(slope, int(old.sum()) - int(kept.sum()), among=~kept)
    return masks


def _clear(start: Start, i: int, kept: Tensor) -> None:
    with torch.no_grad():
        start.layers[i].weight.mul_(kept)


def _gradients(start: Start, batches: int) -> Sequence[Tensor]:
    """Return the magnitudes of the mean gradient of some batches at the given weights."""
    return start.rank(partial(gradient, batches=batches), 0)
