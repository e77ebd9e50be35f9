"""Which weights matter before training: criteria that rank all maskable weights of a network at initialisation.

Each is a function ``(probe, layers, keep, *, options) -> Saliency``. It works on a copy of the model without its hooks,
which costs the memory of one more set of parameters and buffers (twice that for ``synflow``, which is in float64), and
leaves the model and torch's global random states as they were, bit by bit. Scores are in the precision of the weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dst.options import Range, checked
from dst.seeding import derive_seed
from dst.sparsity.marks import marked
from dst.sparsity.probe import (
    BACKWARD,
    FORWARD,
    Probe,
    gpus,
    gradients_of,
    input_of_ones,
    named_layers,
    twin,
    twin_weights,
)
from dst.sparsity.scope import Layer
from dst.sparsity.select import each_top_k, pooled_top_k

_DOUBLE_BACKWARD = 2 * (FORWARD + BACKWARD)
"""A backward pass costs twice the graph that it differentiates; that of a gradient is a forward and a backward pass."""


@dataclass(frozen=True)
class Saliency:
    """A ranking of all weights: ``scores``, one tensor a layer of the weight's shape, of which the largest are kept.

    ``forward_passes``: what it cost, in dense forward passes of one sample (a backward counts two).
    """

    scores: list[Tensor]
    forward_passes: int


Batches = Annotated[int, Range(1), "training batches to look at"]

Criterion = Callable[..., Saliency]
"""A function ``(probe, layers, keep, *, options)``; ``keep``: how many weights stay, of all layers or of each."""


@marked("ranks")
def magnitude(probe: Probe | None, layers: Sequence[Layer], keep: int | Sequence[int]) -> Saliency:
    """Keep the largest weights, ``|w|``: of the whole network, as lottery tickets are drawn (Frankle & Carbin 2019)."""
    return Saliency([layer.weight.detach().abs() for layer in layers], forward_passes=0)


@marked("ranks", "data")
@checked
def gradient(probe: Probe, layers: Sequence[Layer], keep: int | Sequence[int], *, batches: Batches = 1) -> Saliency:
    """Keep the weights where the loss is steepest: ``|dL/dw|``, with ``L`` and the cost as for ``snip``."""
    with twin(probe) as model:
        weights = twin_weights(probe, model, layers)
        gradients, samples = _mean(probe, model, batches, lambda loss: gradients_of(loss, weights, layers))
        scores = [slope.abs() for slope in gradients]
    return Saliency(_informative("gradient", scores, layers), (FORWARD + BACKWARD) * samples)


@marked("ranks", "data")
@checked
def snip(probe: Probe, layers: Sequence[Layer], keep: int | Sequence[int], *, batches: Batches = 1) -> Saliency:
    """Keep the weights whose removal changes the loss most: ``|w dL/dw|`` (SNIP, Lee et al. 2019).

    ``L`` is the mean loss over the first ``batches`` training batches, every sample alike, at the model's own
    initialisation and in training mode. One batch is in memory at a time. Costs a forward and a backward pass a sample.
    Raises ValueError for too few batches, layers without gradient and scores that are not finite or all zero.
    """
    with twin(probe) as model:
        weights = twin_weights(probe, model, layers)
        gradients, samples = _mean(probe, model, batches, lambda loss: gradients_of(loss, weights, layers))
        scores = [(weight.detach() * gradient).abs() for weight, gradient in zip(weights, gradients, strict=True)]
    return Saliency(_informative("snip", scores, layers, is_trained=probe.is_trained), (FORWARD + BACKWARD) * samples)


@marked("ranks", "data")
@checked
def grasp(
    probe: Probe,
    layers: Sequence[Layer],
    keep: int | Sequence[int],
    *,
    batches: Batches = 1,
    temperature: Annotated[float, Range(0, ends="(]"), "logits are divided by it before the loss"] = 200.0,
) -> Saliency:
    """Keep the weights whose removal reduces the gradient flow ``g.g`` most: ``w (H g)`` (GraSP, Wang et al. 2020).

    The negative of the published score, whose largest are removed. ``g`` and ``H`` are the gradient and the Hessian, in
    the weights of ``layers``, of the mean loss as for ``snip`` but of ``logits / temperature``; ``H g`` is the
    derivative of ``g.v`` for a constant ``v = g``. Costs 9 forward passes a sample: 1 forward, 2 backward, and 6 for
    the second derivative, since each of the 3 products of a layer that it differentiates costs two. With several
    batches ``v`` must be known before the first second derivative: 3 more, and the batches are read twice. Raises
    ValueError as ``snip``.
    """
    # Attention by its formula: its fused kernels have no second derivative.
    with twin(probe) as model, sdpa_kernel(SDPBackend.MATH):
        weights = twin_weights(probe, model, layers)
        flow: Sequence[Tensor] = ()
        passes = FORWARD + BACKWARD + _DOUBLE_BACKWARD
        if batches != 1:
            flow, first = _mean(probe, model, batches, lambda loss: gradients_of(loss, weights, layers), temperature)
            passes += FORWARD + BACKWARD

        def hessian_times_gradient(loss: Tensor) -> Sequence[Tensor]:
            gradients = gradients_of(loss, weights, layers, create_graph=True)
            constants = flow or [gradient.detach() for gradient in gradients]
            curved = [pair for pair in zip(gradients, constants, strict=True) if pair[0].requires_grad]
            if not curved:  # a loss that is linear in the weights has no second derivative
                return [torch.zeros_like(weight) for weight in weights]
            outputs, vectors = zip(*curved, strict=True)
            return torch.autograd.grad(outputs, weights, vectors, materialize_grads=True)

        products, samples = _mean(probe, model, batches, hessian_times_gradient, temperature)
        scores = [weight.detach() * product for weight, product in zip(weights, products, strict=True)]
    if flow and first != samples:
        raise ValueError(f"the first {batches} batches had {first} samples, then {samples}: always give the same ones")
    return Saliency(_informative("grasp", scores, layers), passes * samples)


@marked("ranks", "data")
@checked
def synflow(
    probe: Probe,
    layers: Sequence[Layer],
    keep: int | Sequence[int],
    *,
    rounds: Annotated[int, Range(1), "rounds of pruning"] = 100,
) -> Saliency:
    """Keep the strongest paths, without data: ``|w dR/dw|``, in ``rounds`` of pruning (SynFlow, Tanaka et al. 2020).

    ``R`` is the sum of the outputs for one input of ones, for which the data gives only the shape, with the absolute
    values of all parameters and buffers, in evaluation mode and in float64 (float32 where the device has no more).
    Round ``r = 1..rounds`` leaves a density of ``d^(r / rounds)``, at least one weight in every layer; ``d`` is
    that of ``keep`` weights in all layers together, or in each layer by itself if ``keep`` has a count a layer. What
    was pruned stays pruned.

    The scores are ranks: weights pruned in a later round are above those pruned earlier, those kept are above all, and
    among themselves they are ordered by the scores of that round (equal ones have equal ranks). So the largest ``keep``
    are exactly the last round's. It was made for networks without attention: there, ones and weights of one sign make
    all tokens alike, so that queries and keys have next to no score. Costs a forward and a backward pass of one sample
    a round. Raises ValueError for impossible ``keep`` and ``rounds``, no batch, layers without gradient, and scores
    that overflow or are all zero.
    """
    paths = _paths([layer.size for layer in layers], keep, rounds)
    with twin(probe) as model:
        ones = input_of_ones(probe, layers[0].weight.device)
        _make_positive(model, ones.dtype)
        weights = twin_weights(probe, model, layers)
        active = [torch.arange(weight.numel(), device=weight.device) for weight in weights]  # flat indices
        ranks = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
        last, scores = 0, []
        for r in range(rounds):
            gradients = gradients_of(model(ones).sum(), weights, layers)
            scores = [_effects(*layer) for layer in zip(weights, gradients, active, strict=True)]
            _informative("synflow", scores, layers, all_layers=r == 0, is_trained=probe.is_trained)
            kept = _select(scores, [path[r] for path in paths], pooled=isinstance(keep, int))
            pruned = [where[~stays] for where, stays in zip(active, kept, strict=True)]
            last = _append(ranks, pruned, [score[~stays] for score, stays in zip(scores, kept, strict=True)], last)
            for weight, where in zip(weights, pruned, strict=True):
                weight.detach().view(-1)[where] = 0
            active = [where[stays] for where, stays in zip(active, kept, strict=True)]
        _append(ranks, active, [score[stays] for score, stays in zip(scores, kept, strict=True)], last)
    return Saliency(ranks, (FORWARD + BACKWARD) * rounds)


# -- derivatives -------------------------------------------------------------------------------------------------------


def _seed(model: nn.Module, seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed GPUs that are not in use
    for device in gpus(model):
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def _mean(
    probe: Probe,
    model: nn.Module,
    count: int,
    derive: Callable[[Tensor], Sequence[Tensor]],
    temperature: float = 1.0,
) -> tuple[list[Tensor], int]:
    """Return the mean of ``derive(loss)`` over the first ``count`` batches, every sample alike, and their samples."""
    mean: list[Tensor] = []
    given, samples = 0, 0
    for inputs, labels in islice(probe.batches(count), count):
        _seed(probe.model, derive_seed(probe.seed, "saliency", given))  # a batch has the same dropout at every call
        values = derive(probe.loss(model(inputs) / temperature, labels))
        given, samples = given + 1, samples + len(inputs)
        share = len(inputs) / samples
        mean = [torch.lerp(*pair, share) for pair in zip(mean, values, strict=True)] if mean else list(values)
    if given < count:
        raise ValueError(
            f"batches={count}, but the training data gives {given}: this criterion ranks weights by data; "
            + (f"ask for at most {given}" if given else "give the probe training batches, or take synflow")
        )
    return mean, samples


def _informative(
    criterion: str,
    scores: list[Tensor],
    layers: Sequence[Layer],
    *,
    all_layers: bool = True,
    is_trained: bool = False,
) -> list[Tensor]:
    """Return the scores; ValueError if any is not finite, or if all of a layer are zero (unless not ``all_layers``).

    ``is_trained``: of a trained sparse network, where one that is cut off has no score; ValueError if none has any.
    """
    tests = [torch.stack([score.isfinite().all(), score.any()]) for score in scores]
    finite, nonzero = zip(*torch.stack(tests).tolist(), strict=True)
    if not all(finite):
        names = [layer.name for layer, ok in zip(layers, finite, strict=True) if not ok]
        raise ValueError(
            f"{criterion}: scores are not finite in {named_layers(names)}: look for infinite weights or inputs, or an "
            "initialisation that lets the outputs of the network grow beyond all bounds"
        )
    if is_trained and all_layers:
        if not any(nonzero):
            raise ValueError(
                f"{criterion}: all scores are zero, so there is nothing to rank by: no signal passes the trained "
                "network any more; begin denser, prune less at once, do not rewind, or rank by magnitude"
            )
    elif all_layers and not all(nonzero):
        names = [layer.name for layer, ok in zip(layers, nonzero, strict=True) if not ok]
        empty = [layer.name for layer in layers if not layer.weight.any()]
        zero = f"those of {named_layers(empty)}" if empty else "a norm's scale, say"
        raise ValueError(
            f"{criterion}: all scores are zero in {named_layers(names)}, so there is nothing to rank by: weights or "
            f"what multiplies them ({zero}) start at zero; exclude from the scope, or initialise otherwise"
        )
    return scores


# -- rounds of pruning -------------------------------------------------------------------------------------------------


def _make_positive(model: nn.Module, dtype: torch.dtype) -> None:
    """Put a model into evaluation mode and ``dtype``, with the absolute values of all its parameters and buffers."""
    model.eval().to(dtype)
    for tensor in chain(model.parameters(), model.buffers()):
        if tensor.is_floating_point():
            tensor.data = tensor.detach().abs().contiguous()


def _paths(sizes: Sequence[int], keep: int | Sequence[int], rounds: int) -> list[list[int]]:
    """Return how many weights each round leaves, of all layers together or a list a layer."""
    if isinstance(keep, int):
        if not max(len(sizes), 1) <= keep <= sum(sizes):
            raise ValueError(
                f"cannot keep {keep} of {sum(sizes)} weights in {len(sizes)} layers: every layer keeps at least one"
            )
        return [_path(sum(sizes), keep, rounds)]
    if len(keep) != len(sizes) or not all(1 <= kept <= size for kept, size in zip(keep, sizes, strict=True)):
        raise ValueError(f"keep={list(keep)}: give one count a layer, from 1 to its size {list(sizes)}")
    return [_path(size, kept, rounds) for size, kept in zip(sizes, keep, strict=True)]


def _path(size: int, keep: int, rounds: int) -> list[int]:
    return [round(size * (keep / size) ** (r / rounds)) for r in range(1, rounds)] + [keep]


def _select(scores: Sequence[Tensor], counts: Sequence[int], *, pooled: bool) -> list[Tensor]:
    """Return masks of the largest scores: of all layers together, at least one in each, or a count a layer."""
    eligible = [torch.ones_like(score, dtype=torch.bool) for score in scores]
    if pooled:
        return pooled_top_k(scores, counts[0], eligible)
    return each_top_k(scores, counts, eligible)


def _append(ranks: Sequence[Tensor], where: Sequence[Tensor], scores: Sequence[Tensor], last: int) -> int:
    """Rank the weights at the flat indices ``where`` above ``last``, by their scores; return the new highest rank."""
    distinct, order = torch.unique(torch.cat(list(scores)), return_inverse=True)
    for rank, index, part in zip(ranks, where, order.split([len(index) for index in where]), strict=True):
        rank.view(-1)[index] = (part + (last + 1)).to(rank.dtype)
    return last + len(distinct)


def _effects(weight: Tensor, gradient: Tensor, where: Tensor) -> Tensor:
    """Return ``|w g|`` at the flat indices ``where``."""
    return (weight.detach().flatten()[where] * gradient.flatten()[where]).abs()
