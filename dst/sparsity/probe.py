"""What may be looked at before training, and the copy of a network in which it is done.

The copy is without hooks; the model and torch's global random states stay as they were, bit by bit.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dst.network.copies import without_hooks
from dst.sparsity.scope import Layer

FORWARD, BACKWARD = 1, 2
"""What a pass costs, in forward passes."""


@dataclass(frozen=True)
class Probe:
    """What a criterion may look at besides the weights: the model, training batches and the loss.

    ``batches(n)`` gives the first n training batches (inputs, labels) on the model's device, the same at every call;
    ``loss(logits, labels)`` is a scalar, the mean over the batch. ``seed``: seeds dropout.
    ``is_trained``: the model is a trained sparse one, of which layers may be cut off from the others for good reason.
    """

    model: nn.Module
    batches: Callable[[int], Iterable[tuple[Tensor, Tensor]]]
    loss: Callable[[Tensor, Tensor], Tensor]
    seed: int = 0
    is_trained: bool = False


@contextmanager
def twin(probe: Probe) -> Iterator[nn.Module]:
    """Give a copy of the model in training mode, without hooks and gradients; random states come back at the end."""
    memo = without_hooks(probe.model)
    for module in probe.model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()  # such as features kept from the last pass
    # In one thread: where a GPU's own creates the graph of a gradient, the order in which its second derivative is
    # summed depends on what that thread has done before, and the last bits with it.
    with (
        torch.autograd.set_multithreading_enabled(False),
        torch.random.fork_rng(gpus(probe.model)),
        torch.enable_grad(),
    ):
        yield copy.deepcopy(probe.model, memo).train().requires_grad_(False)


def gpus(model: nn.Module) -> list[torch.device]:
    """Return the GPUs that a model lies on."""
    return [device for device in dict.fromkeys(p.device for p in model.parameters()) if device.type == "cuda"]


def twin_weights(probe: Probe, copied: nn.Module, layers: Sequence[Layer]) -> list[Tensor]:
    """Return the copy's weights of the layers, the only ones that get gradients."""
    if not layers:
        raise ValueError("there are no layers to rank: give those of Scope().layers(model)")
    copies = dict(zip(map(id, probe.model.parameters()), copied.parameters(), strict=True))
    strangers = [layer.name for layer in layers if id(layer.weight) not in copies]
    if strangers:
        raise ValueError(f"no parameters of this model: layers {', '.join(strangers)}; take Scope().layers(model)")
    return [copies[id(layer.weight)].requires_grad_() for layer in layers]


def input_of_ones(probe: Probe, device: torch.device) -> Tensor:
    """Return ones of the shape of a sample, a batch of one, in the highest precision that the device has."""
    first = next(iter(probe.batches(1)), None)
    if first is None:
        raise ValueError(
            "a pass of ones takes the shape of its input from the first training batch: give the probe one"
        )
    return torch.ones_like(first[0][:1], dtype=torch.float32 if device.type == "mps" else torch.float64)


def gradients_of(
    loss: Tensor, weights: Sequence[Tensor], layers: Sequence[Layer], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Return the gradients of a loss in the weights of the layers; ValueError if there is none for one of them."""
    if loss.dim():
        raise ValueError(f"the loss has shape {tuple(loss.shape)}: it must be one number, the mean over the batch")
    found: Sequence[Tensor | None] = [None] * len(weights)
    if loss.requires_grad:
        found = torch.autograd.grad(loss, weights, create_graph=create_graph, allow_unused=True)
    gradients = tuple(gradient for gradient in found if gradient is not None)
    if len(gradients) < len(weights):
        unused = [layer.name for layer, gradient in zip(layers, found, strict=True) if gradient is None]
        raise ValueError(
            f"no gradient for {named_layers(unused)}, which the model does not use: exclude from the scope"
        )
    return gradients


def named_layers(names: Sequence[str]) -> str:
    """Return the names of layers, for people."""
    return f"layer{'s' * (len(names) > 1)} {', '.join(names[:8])}{', ...' * (len(names) > 8)}"
