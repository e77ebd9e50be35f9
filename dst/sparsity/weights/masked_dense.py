"""Dense weights with masks: what is inactive is exactly zero, in the weight as in the optimizer's state."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.sparsity.scope import Layer
from dst.sparsity.weights.adam_age import AdamAge, counts_steps
from dst.sparsity.weights.held import begin_state, check_optimizer, check_trainable, hold
from dst.sparsity.weights.holder import Holder


class MaskedDense(Holder):
    """The weights of all sparse layers as plain dense parameters of the model.

    Inactive weights are zero and stay so, because their *gradients* are masked before the optimizer steps. Their
    optimizer state is zero as well, so a weight that becomes active starts from zero in both; for Adam it is born then
    (``AdamAge``).

    ``masks``: boolean, of the weights' shapes; ``active``: how many weights each leaves. Raises ValueError if a weight
    is held already.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[Layer], masks: Sequence[Tensor], active: Sequence[int]) -> None:
        super().__init__(layers, masks)
        self._ages: AdamAge | None = None
        self._sparse: list[tuple[int, Tensor]] = []
        """The layers that are not full, and what their gradients are multiplied by: tensors that stay where they are,
        since a step that was captured goes on reading them there."""
        self._held = list(masks)
        """Where weights keep value and state: within the masks, less what has been cleared since they were set."""
        self._is_masked = False
        """Whether the gradients are still masked: no backward pass has come since."""
        self._let_go = hold(self._layers, self, MaskedDense._on_gradient)
        self._known: list[tuple[int, int]] = []
        """What ``_versions`` returned when weights and state were last known to be masked."""
        self._known_state: Any = None
        """The optimizer's state then, by which alone it is compared: one that is loaded is another object."""
        self.set_masks(masks, active)

    # -- what is held --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains, layer by layer."""
        return [layer.weight for layer in self._layers]

    def weight(self, i: int) -> Tensor:
        """Return a layer's weight: dense, zero off the mask, without history."""
        return self._layers[i].weight.detach()

    def state(self, i: int) -> list[Tensor]:
        """Return the optimizer's tensors that hold a value for each weight of a layer (momentum, Adam's moments)."""
        weight = self._layers[i].weight
        found = self._optimizer.state.get(weight, {}) if self._optimizer else {}
        return [v for v in found.values() if isinstance(v, Tensor) and v.shape == weight.shape and v.dim() > 0]

    # -- the optimizer -------------------------------------------------------------------------------------------------

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        check_optimizer(optimizer, self._layers)

    def _attached(self) -> None:
        if counts_steps(self.optimizer):
            self._ages = AdamAge(self.optimizer, {layer.name: layer.weight for layer in self._layers})

    @torch.no_grad()
    def begin_state(self) -> None:
        """Bring the optimizer's state in line with the masks: after it was attached, or has got another state."""
        begin_state(self.optimizer)
        self._mask()

    # -- a step --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def mask_again(self) -> None:
        """Zero inactive weights, and their state, if somebody else has changed weights or state since the last step.

        What is written through ``weight.data`` is not noticed, unless ``data`` itself is replaced.
        """
        if self._known_state is not self._state_now or self._known != self._versions:
            self._mask()

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes beside the model, its gradients and the optimizer's state."""
        return [*(factor for _, factor in self._sparse), *([] if self._ages is None else self._ages.step_tensors)]

    def stepped(self) -> None:
        """Know the weights as this step leaves them."""
        self._known, self._known_state = self._versions, self._state_now

    def _mask(self) -> None:
        self._zero([i for i, _ in self._sparse], [mask for _, mask in self._sparse])
        MaskedDense.stepped(self)

    @property
    def _versions(self) -> list[tuple[int, int]]:
        """How often the weights of sparse layers were changed in place, and where they are; looks at no weight."""
        weights = [self._layers[i].weight for i, _ in self._sparse]
        return [(weight._version, weight.data_ptr()) for weight in weights]

    @property
    def _state_now(self) -> Any:
        return None if self._optimizer is None else self._optimizer.state

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights, in one fused pass over the layers that are not full."""
        self._is_masked = True
        pairs = [(grad, mask) for i, mask in self._sparse if (grad := self._layers[i].weight.grad) is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])

    def check_masked(self) -> None:
        """Raise RuntimeError if a backward pass has come since gradients were masked."""
        if not self._is_masked:
            raise RuntimeError(
                "a backward pass within the step (in apply, or by a closure of the optimizer) has made gradients that "
                "are not masked, so that inactive weights may have moved: let it call sparsifier.mask_gradients() "
                "after its backward pass, or do it before the step"
            )

    def release(self) -> None:
        """Release the layers, so that something else may hold them, and the optimizer."""
        self._let_go()
        if self._ages is not None:
            self._ages.release()

    def check_trainable(self) -> None:
        """Raise RuntimeError if a layer has been frozen since it is held."""
        check_trainable(self._layers)

    def _on_gradient(self) -> None:
        self._is_masked = False

    # -- masks ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def clear(self, masks: Mapping[int, Tensor]) -> None:
        """Zero value and state of all weights of some layers that are outside these masks, by the layer's index.

        If the next masks have them, they are new there.
        """
        if not masks:
            return
        factors = [torch.empty_like(self._layers[i].weight) for i in masks]
        torch._foreach_copy_(factors, [*masks.values()])
        self._zero([*masks], factors)
        held = torch._foreach_mul([self._held[i] for i in masks], [*masks.values()])
        for i, left in zip(masks, held, strict=True):
            self._held[i] = left

    @torch.no_grad()
    def set_masks(
        self, masks: Sequence[Tensor], active: Sequence[int], *, values: Sequence[Tensor] = (), are_born: bool = True
    ) -> None:
        """Hold the weights by these masks: all others, and their optimizer state, become zero.

        ``active``: how many weights each leaves. Weights that are new start from ``values``, or else from zero, and
        ``are_born`` now, or else are of their tensor's age.
        """
        is_read = bool(values) or (self._ages is not None and are_born)
        new = self._entered(masks) if is_read else [None] * len(masks)
        for i, value in enumerate(values):
            if (entered := new[i]) is not None:
                weight = self._layers[i].weight
                weight.copy_(torch.where(entered, value, weight))
        self._held, self.masks, self._active = list(masks), list(masks), list(active)
        self._refill()
        self._mask()
        if self._ages is not None:
            self._ages.changed(masks, new if are_born else [None] * len(new))

    def _entered(self, masks: Sequence[Tensor]) -> list[Tensor | None]:
        """Return which weights of each layer are in these masks and are not held; None for a layer of the same mask."""
        return [None if mask is held else mask > held for mask, held in zip(masks, self._held, strict=True)]

    # -- ages ----------------------------------------------------------------------------------------------------------

    @property
    def births(self) -> dict[str, Tensor]:
        """The steps at which weights were grown, by the names of layers; empty where ages do not matter."""
        return {} if self._ages is None else self._ages.state_dict(self._held)

    def load_births(self, births: Mapping[str, Tensor]) -> None:
        """Restore what ``births`` was; the optimizer has its state already."""
        if self._ages is not None:
            self._ages.load_state_dict(births, self._held)

    # -- the passes ----------------------------------------------------------------------------------------------------

    def _refill(self, *, anew: bool = True) -> None:
        """Have a factor of the gradients of each layer that is masked, and of no other, each in its old place.

        It is the mask as 0 and 1 in the weight's dtype and layout: five times as fast as a boolean one. ``anew``: masks
        have changed, else only new factors are filled.
        """
        known, masked = dict(self._sparse), self._masked
        made = {i: torch.empty_like(w) for i, w in masked.items() if i not in known or not _alike(known[i], w)}
        self._sparse = [(i, made[i] if i in made else known[i]) for i in masked]
        filled = [(factor, self.masks[i]) for i, factor in self._sparse if anew or i in made]
        if filled:
            torch._foreach_copy_([factor for factor, _ in filled], [mask for _, mask in filled])

    @property
    def _masked(self) -> dict[int, nn.Parameter]:
        """The weights whose gradients are masked, by the layer's index: those of layers that are not full."""
        return {i: layer.weight for i, layer in enumerate(self._layers) if self._active[i] < layer.size}

    def _zero(self, indices: Sequence[int], factors: Sequence[Tensor]) -> None:
        """Multiply the weights of some layers, and their optimizer state, by these factors in one fused pass."""
        pairs = [
            (tensor, factor)
            for i, factor in zip(indices, factors, strict=True)
            for tensor in (self.weight(i), *self.state(i))
        ]
        if pairs:
            torch._foreach_mul_([tensor for tensor, _ in pairs], [factor for _, factor in pairs])

    # -- checks --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def check_zeros(self, masks: Sequence[Tensor]) -> None:
        """Raise RuntimeError, naming layers, if the model computes with weights outside the masks.

        One pass over the weights of the model as it computes now; waits for the device.
        """
        for layer in self._layers:
            if any(place.parameter is not layer.weight for place in layer.places):
                raise RuntimeError(
                    f"layer {layer.name} computes with another weight than the one that is held sparse: the weight has "
                    "been replaced or parametrised since. Make a new Sparsifier and a new optimizer after such changes"
                )
        if told := self._moved(masks):
            trainer = "an optimizer" if self._optimizer is None else type(self._optimizer).__name__
            raise RuntimeError(
                f"inactive weights are not zero in layers {told}: the density is not as reported; {trainer} may treat "
                "the weights of a layer together, or something else than sparsifier.step() has changed them"
            )


def _alike(one: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are of one type, layout and device."""
    return one.stride() == other.stride() and one.dtype == other.dtype and one.device == other.device
