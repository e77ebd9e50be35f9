"""Adam's bias corrections by the age of each weight, not of its tensor.

``torch.optim.Adam`` counts the steps of a tensor. A weight that was grown at a late one starts with moments of zero,
but they are corrected as if they were old, so that its first move is ``(1 - beta1) / sqrt(1 - beta2)`` learning rates:
3.16 of them for 0.9 and 0.999. Here torch takes its step as ever. What it did to grown weights is then taken back, and
done as to a weight of their own age: everything else keeps its bits.
"""

import copy
import inspect
import weakref
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.sparsity.weights.adam_correction import AgedLayer, Batch, horizon, part_for


def counts_steps(optimizer: Optimizer) -> bool:
    """Say whether an optimizer moves weights as torch's Adam and AdamW do, by one count of steps a tensor.

    NAdam, RAdam, Adamax and others have formulas of their own, and so has a class with a ``step`` of its own.
    """
    own = {inspect.unwrap(cls.step) for cls in (torch.optim.Adam, torch.optim.AdamW)}
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and inspect.unwrap(type(optimizer).step) in own


class AdamAge:
    """Correct what each step of ``optimizer`` (``counts_steps``) does to weights that were grown.

    ``weights``: those that are held sparse, by the names of their layers, dense yet. A weight is born at the step at
    which it was grown, so that its age is 1 at the next. Steps that are left out, by a GradScaler or by ``found_inf``,
    are no steps of its life. Without an effect on float arithmetic, an age is forgotten (17,000 steps for a ``beta2``
    of 0.999).
    """

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._layers = [AgedLayer(name, weight, weight.numel()) for name, weight in weights.items()]
        self._batches: list[Batch] = []
        me = weakref.ref(self)

        def stepped(*_: Any) -> None:
            if (ages := me()) is not None:
                ages._after_step()

        def replaced(_: Optimizer) -> None:
            if (ages := me()) is not None:
                ages._forget_unborn()

        handles = optimizer.register_step_post_hook(stepped), optimizer.register_load_state_dict_post_hook(replaced)

        def leave() -> None:
            for handle in handles:
                handle.remove()

        self._release = weakref.finalize(self, leave)
        self._release.atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "AdamAge":
        """Return a copy that watches the copy of the optimizer."""
        weights = {layer.name: copy.deepcopy(layer.weight, memo) for layer in self._layers}
        twin = AdamAge(copy.deepcopy(self._optimizer, memo), weights)
        for own, layer in zip(twin._layers, self._layers, strict=True):
            own.remember(layer.dense())
        twin._put(twin._clocks())
        return twin

    def release(self) -> None:
        """Leave the optimizer's steps as they are from now on."""
        self._release()

    # -- births ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def changed(self, masks: Sequence[Tensor], entered: Sequence[Tensor | None]) -> None:
        """Note a change of the topology, after it; waits for the device.

        ``masks``: which weights are active now, boolean, a tensor a layer. ``entered``: which of them start from
        moments of zero; None for a layer where none does.
        """
        if all(new is None for new in entered) and not any(len(layer.positions) for layer in self._layers):
            return
        clocks = self._clocks()
        for layer, mask, new, now in zip(self._layers, masks, entered, clocks, strict=True):
            layer.change(mask, new, now, now - self._horizon(layer))
        self._put(clocks)

    def hold(self, places: Mapping[int, Tensor | None]) -> None:
        """Follow parameters that hold other weights of their layers, by the layer's index, or all of them (None)."""
        for i, held in places.items():
            self._layers[i].hold(held)
        self._put(self._clocks())

    def _forget_unborn(self) -> None:
        """Forget weights that were born at a step which their tensor has not come to: it has another state now."""
        clocks = self._clocks()
        for layer, now in zip(self._layers, clocks, strict=True):
            births = layer.dense()
            layer.remember(births.masked_fill_(births > now, 0))
        self._put(clocks)

    def _clocks(self) -> list[int]:
        """Return the steps that the tensor of each layer has taken."""
        found: dict[int, int] = {}
        steps: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
        for i, layer in enumerate(self._layers):
            if (step := self._optimizer.state.get(layer.weight, {}).get("step")) is not None:
                steps[step.device][i] = step
        for there in steps.values():  # one synchronisation a device
            found |= zip(there, map(int, torch.stack(list(there.values())).tolist()), strict=True)
        return [found.get(i, 0) for i in range(len(self._layers))]

    def _group(self, layer: AgedLayer) -> int:
        """Return the index of the parameter group of a layer."""
        groups = self._optimizer.param_groups
        return next(i for i, group in enumerate(groups) if any(p is layer.weight for p in group["params"]))

    def _horizon(self, layer: AgedLayer) -> int:
        """Return the age from which on nothing is corrected."""
        return horizon(self._optimizer.param_groups[self._group(layer)]["betas"], layer.weight.dtype)

    def _put(self, clocks: Sequence[int]) -> None:
        """Put layers with grown weights together that one pass can correct, at these steps of their tensors."""
        alike: dict[Any, list[AgedLayer]] = defaultdict(list)
        for layer, now in zip(self._layers, clocks, strict=True):
            if len(layer.positions):
                alike[self._group(layer), layer.weight.device, layer.weight.dtype, now].append(layer)
        self._batches = [self._batch(layers, key[0]) for key, layers in alike.items()]

    def _batch(self, layers: Sequence[AgedLayer], group: int) -> Batch:
        """Return a batch that is ready for its next step, so that this one need not wait for the device.

        It is the one of these layers that there is, if any, so that its tensors stay where they are.
        """
        part = part_for(layers[0].weight.device, sum(layer.weight.numel() for layer in layers))
        batch = next((batch for batch in self._batches if batch.suits(layers, group, part)), None)
        if batch is None:
            batch = Batch(layers, group, part)
        else:
            batch.refill()
        batch.follow(self._optimizer.param_groups[group])
        return batch

    # -- a step ----------------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        for batch in list(self._batches):
            idle = [layer for layer in batch.layers if layer.weight.grad is None]
            if not idle:
                batch.correct(self._optimizer)
            elif len(idle) < len(batch.layers):  # their counts of steps are no longer the same
                busy = [layer for layer in batch.layers if layer.weight.grad is not None]
                self._batches.remove(batch)
                self._batches += [self._batch(layers, batch.group) for layers in (idle, busy)]
                self._batches[-1].correct(self._optimizer)

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes beside weights, gradients and the optimizer's state."""
        return [tensor for batch in self._batches for tensor in batch.step_tensors]

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return by the names of layers with grown weights the step of birth of each active weight, int32.

        0: since the start, or so old that it makes no difference. In the order of the weights.
        """
        return {
            layer.name: layer.of(mask) for layer, mask in zip(self._layers, masks, strict=True) if len(layer.positions)
        }

    def load_state_dict(self, state: Mapping[str, Tensor], masks: Sequence[Tensor]) -> None:
        """Restore what ``state_dict`` returned; the optimizer has its own state already. ValueError if it is of others.

        Layers without an entry have no grown weights: their ages are those of their tensors.
        """
        if unknown := sorted(set(state) - {layer.name for layer in self._layers}):
            raise ValueError(f"the stored ages are of another model: it has layers {', '.join(unknown)}")
        for layer, mask in zip(self._layers, masks, strict=True):
            layer.restore(state, layer.name, mask)
        self._put(self._clocks())
