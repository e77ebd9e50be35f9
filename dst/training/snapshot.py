"""A snapshot of the weights: its gradients on any batch, and their mean over an epoch, correct those of the model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dst.network.copies import without_hooks
from dst.sparsity import Sparsifier
from dst.training.gradients import Gradients


class Snapshot:
    """Earlier weights of the model and the masks that they had, in a network of their own.

    In sparse layers its gradients, and their mean, count where it is active only.
    """

    def __init__(self, gradients: Gradients, sparsifier: Sparsifier) -> None:
        self._model, self._sparsifier = gradients.network, sparsifier
        self.network = _copy(self._model)
        self.gradients = Gradients(self.network, gradients.passes)
        self.epoch: int | None = None
        """The epoch before which it was taken; None if it was not."""
        self.active: dict[str, int] = {}
        """The active weights of each layer."""
        own = dict(zip(map(id, self._model.parameters()), self.network.parameters(), strict=True))
        self._weights = [own[id(parameter)] for parameter in sparsifier.weights.parameters]
        self._mean = self.zeros()
        self._masks = list(sparsifier.weights.masks)
        self._factors: list[Tensor] = []
        """The masks as they multiply gradients, from the first time that they are needed; they stay where they are."""
        self._filled_by: list[Tensor] = []
        """The masks that the factors were filled by."""

    def zeros(self) -> list[Tensor]:
        """Return zeros in the shapes of all parameters, for a sum of gradients."""
        return [torch.zeros_like(parameter, requires_grad=False) for parameter in self.network.parameters()]

    @torch.no_grad()
    def take(self, epoch: int, mean: list[Tensor]) -> None:
        """Take the present weights and masks of the model; ``mean``: of the gradients there, over the epoch."""
        with self._sparsifier.unpacked():
            for theirs, ours in zip(_tensors(self.network), _tensors(self._model), strict=True):
                theirs.copy_(ours)
        torch._foreach_copy_(self._mean, mean)
        self.epoch = epoch
        self.active = self._sparsifier.topology.active_by_layer
        self._masks = list(self._sparsifier.weights.masks)
        where = {id(parameter): i for i, parameter in enumerate(self.network.parameters())}
        _multiply([self._mean[where[id(weight)]] for weight in self._weights], self._as_factors(self._masks))

    def forget(self) -> None:
        """Be no snapshot any more."""
        self.epoch = None

    @torch.no_grad()
    def correct(self, coefficient: float) -> None:
        """Change the model's gradients ``g`` in place to ``(g - c q) + c u``; leave all bits of them alone if c is 0.

        ``q``: the snapshot's present gradients, of the same batch; ``u``: their mean; ``c``: the coefficient.
        """
        if coefficient == 0:
            return
        if self.has_moved:
            self.prepare()
            self.mask(self._factors)
        parameters = zip(self._model.parameters(), self.network.parameters(), self._mean, strict=True)
        held = self._sparsifier.weights
        found = [
            (ours.grad, held.gathered(ours, theirs.grad), held.gathered(ours, mean))
            for ours, theirs, mean in parameters
            if ours.grad is not None and theirs.grad is not None
        ]
        changed, subtracted, added = (list(tensors) for tensors in zip(*found, strict=True))
        torch._foreach_add_(changed, subtracted, alpha=-coefficient)
        torch._foreach_add_(changed, added, alpha=coefficient)

    def gradients_of_model(self) -> list[Tensor | None]:
        """Return the model's gradients in the shapes of the snapshot's parameters, in their order."""
        held = self._sparsifier.weights
        return [None if (g := p.grad) is None else held.spread(p, g) for p in self._model.parameters()]

    # -- masks ---------------------------------------------------------------------------------------------------------

    def common(self) -> list[Tensor]:
        """Return what to multiply gradients by, so that they count where both the snapshot and the model are active."""
        pairs = zip(self._masks, self._sparsifier.weights.masks, strict=True)
        return self._as_factors([then & now for then, now in pairs])

    @torch.no_grad()
    def mask(self, factors: Sequence[Tensor]) -> None:
        """Multiply the snapshot's gradients of the layers in scope."""
        _multiply([weight.grad for weight in self._weights], factors)

    @property
    def has_moved(self) -> bool:
        """Say whether the model has other masks by now; while it has not, its own do all that is needed."""
        return _differ(self._masks, self._sparsifier.weights.masks)

    @torch.no_grad()
    def prepare(self) -> None:
        """Bring up to date what ``correct`` multiplies by, if it does: before a step is captured, not in it."""
        if not self.has_moved or (self._factors and not _differ(self._filled_by, self._masks)):
            return
        self._factors = self._factors or [torch.empty_like(weight) for weight in self._weights]
        torch._foreach_copy_(self._factors, self._masks)
        self._filled_by = self._masks

    @torch.no_grad()
    def _as_factors(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return 0 and 1 in the dtype and the memory layout of the weights."""
        factors = [torch.empty_like(weight) for weight in self._weights]
        torch._foreach_copy_(factors, list(masks))
        return factors

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes beside gradients: the network, the mean, and what gradients are multiplied by.

        If a step is about to be captured, ``prepare`` first.
        """
        return [*_tensors(self.network), *self._mean, *self._factors]

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return weights, masks and mean by name, and when they were taken."""
        names = [name for name, _ in self.network.named_parameters()]
        layers = [layer.name for layer in self._sparsifier.topology.layers]
        return {
            "network": self.network.state_dict(),
            "mean": dict(zip(names, self._mean, strict=True)),
            "masks": dict(zip(layers, self._masks, strict=True)),
            "active": self.active,
            "epoch": self.epoch,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; load the model and the sparsifier first."""
        self.network.load_state_dict(state["network"])
        for mean, stored in zip(self._mean, state["mean"].values(), strict=True):
            mean.copy_(stored)
        pairs = zip(state["masks"].values(), self._sparsifier.weights.masks, strict=True)
        self._masks = [now if torch.equal(then.to(now.device), now) else then.to(now.device) for then, now in pairs]
        self.active, self.epoch = dict(state["active"]), state["epoch"]


def _differ(then: Sequence[Tensor], now: Sequence[Tensor]) -> bool:
    """Say whether masks are others, which are replaced where they change."""
    return any(one is not other for one, other in zip(then, now, strict=True))


def _tensors(network: nn.Module) -> list[Tensor]:
    """Return all tensors of a network that training changes."""
    return [*network.parameters(), *network.buffers()]


def _copy(model: nn.Module) -> nn.Module:
    """Return a deep copy without hooks, compiled if the model is; the only mode that goes with that is the default."""
    twin = copy.deepcopy(model, without_hooks(model))
    if model._compiled_call_impl is not None:
        twin.compile()
    return twin


@torch.no_grad()
def _multiply(tensors: Sequence[Tensor | None], factors: Sequence[Tensor]) -> None:
    """Multiply in place, in one fused pass, the tensors that there are."""
    pairs = [(tensor, factor) for tensor, factor in zip(tensors, factors, strict=True) if tensor is not None]
    if pairs:
        torch._foreach_mul_([tensor for tensor, _ in pairs], [factor for _, factor in pairs])


@contextmanager
def kept_buffers(*networks: nn.Module) -> Iterator[None]:
    """Give networks back the buffers that they have now, such as running statistics, at the end, whatever happens."""
    buffers = [buffer for network in networks for buffer in network.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
