"""What all ways of holding the weights of sparse layers have in common."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.sparsity.scope import Layer
from dst.sparsity.select import count_true
from dst.sparsity.weights.exported import Exported, blocks_of
from dst.sparsity.weights.held import all_finite
from dst.sparsity.weights.packing import Decision


class Holder(ABC):
    """Holds the weights of all sparse layers: the only code that touches them, their gradients and optimizer state.

    ``masks``: boolean, of the weights' shapes: where weights, and gradients, may differ from zero. A holder may hold a
    layer's parameter, gradient and state in another form than that of its weight, of whose shape ``weight``,
    ``gradient`` and masks are.
    """

    def __init__(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> None:
        self._layers = list(layers)
        self._optimizer: Optimizer | None = None
        self.masks = list(masks)

    # -- what is held --------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains in the place of the weights, layer by layer."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains besides, with options of its own."""
        return []

    @abstractmethod
    def weight(self, i: int) -> Tensor:
        """Return a layer's weight: dense, zero where it is not active, without history."""

    @property
    def weights(self) -> list[Tensor]:
        """All weights, layer by layer."""
        return [self.weight(i) for i in range(len(self._layers))]

    def exported(self) -> dict[str, Exported]:
        """Return the weights of which rows are alike as blocks (``exported.Exported``), by the names of layers."""
        found = {layer.name: blocks_of(self.weight(i), self.masks[i]) for i, layer in enumerate(self._layers)}
        return {name: blocks for name, blocks in found.items() if blocks is not None}

    def gradient(self, i: int) -> Tensor | None:
        """Return the gradient of a layer's weight: dense until it is masked; None without a backward pass."""
        return self.parameters[i].grad

    @property
    def gradients(self) -> list[Tensor | None]:
        """All gradients, layer by layer."""
        return [self.gradient(i) for i in range(len(self._layers))]

    # -- the form of what is held --------------------------------------------------------------------------------------

    def spread(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return a tensor of a parameter's form (a gradient, a state) in the shape of the weight that it stands for."""
        return tensor

    def gathered(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return what the form of a parameter holds of a tensor that has the shape of the weight it stands for."""
        return tensor

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Hold every layer by its dense weight for a while, which anything may read and change in place."""
        yield

    def expect(self, *, dense_gradient: bool) -> None:  # noqa: B027 - most have them anyway
        """Know whether the gradients of inactive weights will be read after the coming backward passes."""

    @property
    def captured(self) -> list[Tensor]:
        """Dense gradients that are no parameter's, so that nobody else sums them over processes."""
        return []

    @property
    def told(self) -> str:
        """How layers are multiplied, in one line; empty if all are as torch multiplies them."""
        return ""

    @property
    def decisions(self) -> list[Decision]:
        """What was found out of how layers are multiplied fastest; given once."""
        return []

    # -- the optimizer -------------------------------------------------------------------------------------------------

    @property
    def optimizer(self) -> Optimizer:
        """What trains the weights; RuntimeError before ``attach``."""
        if self._optimizer is None:
            raise RuntimeError("nothing trains these weights yet: call attach(optimizer) first")
        return self._optimizer

    def attach(self, optimizer: Optimizer) -> None:
        """Let an optimizer train the weights; ValueError unless it trains all of them, each by itself."""
        self._check_optimizer(optimizer)
        if self._optimizer is not None:
            raise RuntimeError("an optimizer trains these weights already: make a new Sparsifier for another one")
        self._optimizer = optimizer
        self._attached()
        self.begin_state()

    @abstractmethod
    def _check_optimizer(self, optimizer: Optimizer) -> None:
        """Raise ValueError unless an optimizer trains all that is held, as it has to be."""

    def _attached(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what has to be done once there is an optimizer."""

    @abstractmethod
    def begin_state(self) -> None:
        """Bring the optimizer's state in line with the masks: after it was attached, or has got another state."""

    # -- a step --------------------------------------------------------------------------------------------------------

    def mask_again(self) -> None:  # noqa: B027 - most need not
        """Zero inactive weights that somebody else has changed since the last step."""

    @abstractmethod
    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights."""

    @abstractmethod
    def check_masked(self) -> None:
        """Raise RuntimeError if a backward pass has come since gradients were masked."""

    @abstractmethod
    def check_trainable(self) -> None:
        """Raise RuntimeError if what is trained has been frozen since."""

    def stepped(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what follows a step of the optimizer."""

    @abstractmethod
    def release(self) -> None:
        """Leave plain weights, zero where they are not active, which something else may hold or train."""

    # -- a step that is captured ---------------------------------------------------------------------------------------

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes beside the model, its gradients and the optimizer's state.

        A step that was captured is valid as long as these are where they were.
        """
        return []

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """What else a step depends on, and tensors do not tell: one that was captured is of the same."""
        return ()

    @property
    def obstacle(self) -> str:
        """Why a step cannot be captured; empty if it can."""
        return ""

    # -- masks ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def clear(self, masks: Mapping[int, Tensor]) -> None:
        """Zero value and state of all weights of some layers that are outside these masks, by the layer's index.

        If the next masks have them, they are new there.
        """

    @abstractmethod
    def set_masks(
        self, masks: Sequence[Tensor], active: Sequence[int], *, values: Sequence[Tensor] = (), are_born: bool = True
    ) -> None:
        """Hold the weights by these masks: all others, and their optimizer state, become zero.

        ``active``: how many weights each leaves. Weights that are new start from ``values``, or else from zero, and
        ``are_born`` now, or else are of their tensor's age.
        """

    @property
    def births(self) -> dict[str, Tensor]:
        """The steps at which weights were grown, by the names of layers; empty where ages do not matter."""
        return {}

    def load_births(self, births: Mapping[str, Tensor]) -> None:  # noqa: B027 - most have none
        """Restore what ``births`` was; the optimizer has its state already."""

    # -- checks --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def all_finite(self, *, gradients: bool = False, weights: bool = False) -> bool:
        """Say whether all gradients, weights or both are finite; waits for the device."""
        return bool(all_finite([*(self.gradients if gradients else []), *(self.weights if weights else [])]))

    @abstractmethod
    def check_zeros(self, masks: Sequence[Tensor]) -> None:
        """Raise RuntimeError, naming layers, if the model computes with weights outside the masks.

        One pass over the weights of the model as it computes now; waits for the device.
        """

    def _moved(self, masks: Sequence[Tensor]) -> str:
        """Name the layers with weights outside the masks, and how many there are; empty if there are none."""
        moved = count_true([(weight != 0) & ~mask for weight, mask in zip(self.weights, masks, strict=True)])
        return ", ".join(
            f"{layer.name} ({count:,} of {layer.size:,})"
            for layer, count in zip(self._layers, moved, strict=True)
            if count
        )
