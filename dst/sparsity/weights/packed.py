"""Weights held as their active values alone, wherever kernels multiply by these faster than torch by a dense matrix."""

import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.kernels.product import Tiles
from dst.sparsity.scope import Layer
from dst.sparsity.weights import held
from dst.sparsity.weights.masked_dense import MaskedDense
from dst.sparsity.weights.packed_layer import pack, unpack
from dst.sparsity.weights.packing import Decision, Packing, told, unpackable

_BY_SHAPE = {"Adafactor": "keeps averages of the rows and columns of a weight"}
"""Optimizers of torch that go by the shape of a weight, and how."""


class Packed(MaskedDense):
    """The weights of all sparse layers: of those that are packed the active ones alone, in a vector.

    The parameter of a packed layer stays the same object, but its data is that vector, and so are its gradient and the
    optimizer's state. Whatever changes masks meets dense weights (``unpacked``), as ``MaskedDense`` holds them; layers
    are packed again at its end. The states of model and optimizer, and deep copies of the model, are dense too: a state
    that is loaded leaves all layers dense until masks are set, or a step is taken.

    ``stay_masked``: why layers are never packed, by name.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        masks: Sequence[Tensor],
        active: Sequence[int],
        packing: Packing,
    ) -> None:
        self._packing = packing
        self.stay_masked = unpackable(model, layers, packing.device)
        pool, me = Tiles(), weakref.ref(self)

        def restore() -> None:
            if (alive := me()) is None:
                raise RuntimeError("the Sparsifier that packed this layer is gone: keep it as long as the model")
            alive._unpack()

        self._able = {
            i: packing.layer(layer.weight, pool, restore)
            for i, layer in enumerate(layers)
            if layer.name not in self.stay_masked
        }
        """The layers that may be packed, by index."""
        self._packed: set[int] = set()
        """Those that are."""
        self._by_parameter = {id(layers[i].weight): i for i in self._able}
        self._is_dense = True
        """Whether all layers are unpacked, and those that are chosen still have to be packed."""
        self._left: dict[int, Tensor] = {}
        """Gradients of values, of layers that are unpacked for a while."""
        self._depth = 1
        """How many blocks want dense weights."""
        super().__init__(layers, masks, active)
        self._hooks: list[Any] = [
            layers[i].weight.register_post_accumulate_grad_hook(own.summed)  # type: ignore[no-untyped-call]
            for i, own in self._able.items()
        ]
        packing.watch([layers[i] for i in self._able])
        self._depth = 0
        self._pack()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Packed":
        raise TypeError(
            "weights that are packed are not copied: copy the model, which gets plain weights, and make a Sparsifier "
            "of it with init='magnitude' or masks of a file"
        )

    @property
    def packed(self) -> list[str]:
        """The names of the layers that are packed now."""
        return [self._layers[i].name for i in sorted(self._packed)]

    @property
    def told(self) -> str:
        """Which layers are packed, and why others are not, in one line."""
        denser = {self._layers[i].name: self._packing.otherwise for i in self._able if i not in self._packed}
        masked = {**denser, **self.stay_masked}
        rest = f"; masked: {told(masked)}" if masked else ""
        return f"{len(self._packed)} of {len(self._layers)} layers are packed{rest}"

    @property
    def decisions(self) -> list[Decision]:
        """What was found out since the last time."""
        found, self._packing.fresh = self._packing.fresh, []
        return found

    @property
    def chosen(self) -> dict[str, dict[str, Any]]:
        """All decisions that hold, by the names of layers, as plain data."""
        return {name: vars(decision) for name, decision in self._packing.decisions.items()}

    @chosen.setter
    def chosen(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        self._packing.decisions = {name: Decision(**decision) for name, decision in found.items()}

    # -- forms ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def unpacked(self) -> Iterator[None]:
        """Hold every layer by its dense weight for a while, which anything may read and change in place."""
        self._depth += 1
        self._unpack()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._pack()

    @torch.no_grad()
    def _unpack(self) -> None:
        """Give all layers their dense weights, and the optimizer's state of them."""
        self._is_dense = True
        for i in self._packed:
            layer, own = self._layers[i], self._able[i]
            if layer.weight.grad is not None:
                self._left[i] = layer.weight.grad
            for place in layer.places:
                unpack(place.module)
            self._reform(layer.weight, own.spread)
        self._follow(dict.fromkeys(self._packed))
        self._packed = set()
        if self._depth == 0:  # backward passes may follow
            self._refill(anew=False)

    @torch.no_grad()
    def _pack(self) -> None:
        """Pack all layers that the packing chooses."""
        self._is_dense, self._left = False, {}
        for i, own in self._able.items():
            layer, mask = self._layers[i], self.masks[i]
            if i in self._packed or not self._packing.choose(layer, self._active[i], mask):
                continue
            module = layer.places[0].module
            assert isinstance(module, nn.Linear | nn.Conv2d)
            own.set_mask(mask, module)
            self._reform(layer.weight, own.gathered)
            for place in layer.places:
                pack(place.module, own)
            self._packed.add(i)
        self._follow({i: self._able[i].places for i in self._packed})
        self._refill(anew=False)

    def _reform(self, parameter: nn.Parameter, form: Any) -> None:
        """Bring a parameter, and the optimizer's state of it, into another form; its gradient is given up."""
        state = self._optimizer.state.get(parameter, {}) if self._optimizer else {}
        for name, value in state.items():
            if _is_of(value, parameter):
                state[name] = form(value)
        data = form(parameter.detach())
        parameter.grad = None
        # By way of another type, since torch forgets only then of which shape gradients used to be.
        parameter.data = torch.empty(0, dtype=torch.float64)
        parameter.zero_()  # a change in place, so that no earlier forward pass is passed back with these values
        parameter.data = data

    def _follow(self, places: Mapping[int, Tensor | None]) -> None:
        if self._ages is not None and places:
            self._ages.hold(places)

    @property
    def _masked(self) -> dict[int, nn.Parameter]:
        """The weights whose gradients are masked: those of layers that are neither full nor packed."""
        return {i: weight for i, weight in super()._masked.items() if i not in self._packed}

    def spread(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return a tensor of a parameter's form in the shape of the weight that it stands for."""
        i = self._by_parameter.get(id(parameter))
        return self._able[i].spread(tensor) if i in self._packed and i is not None else tensor

    def gathered(self, parameter: nn.Parameter, tensor: Tensor) -> Tensor:
        """Return what the form of a parameter holds of a tensor that has the shape of the weight it stands for."""
        i = self._by_parameter.get(id(parameter))
        return self._able[i].gathered(tensor) if i in self._packed and i is not None else tensor

    # -- what is held --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def weight(self, i: int) -> Tensor:
        """Return a layer's weight: dense, zero off the mask, without history."""
        return self.spread(self._layers[i].weight, self._layers[i].weight.detach())

    def gradient(self, i: int) -> Tensor | None:
        """Return the gradient of a layer's weight: dense if that was expected and it is not masked, else masked."""
        found, own = self._layers[i].weight.grad, self._able.get(i)
        if own is not None and own.dense_gradient is not None:
            return own.dense_gradient
        if i not in self._packed:
            if found is not None or i not in self._left:
                return found
            found = self._left[i]
        return None if found is None else self._able[i].spread(found)

    def expect(self, *, dense_gradient: bool) -> None:
        """Let the coming backward passes compute the gradients of inactive weights, or spare them."""
        for own in self._able.values():
            own.reads_dense_gradient = dense_gradient

    @property
    def captured(self) -> list[Tensor]:
        """The dense gradients of packed layers."""
        found = [self._able[i].dense_gradient for i in sorted(self._packed)]
        return [gradient for gradient in found if gradient is not None]

    def _forget_captured(self) -> None:
        for own in self._able.values():
            own.dense_gradient = None

    # -- the optimizer -------------------------------------------------------------------------------------------------

    def attach(self, optimizer: Optimizer) -> None:
        """Let an optimizer train the weights; ValueError unless it trains all of them, each by itself."""
        with self.unpacked():
            super().attach(optimizer)
        me = weakref.ref(self)

        def saved(of: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            alive = me()
            return state if alive is None or alive._optimizer is not of else alive._plain(state)

        def loading(of: Optimizer, _: dict[str, Any]) -> None:
            if (alive := me()) is not None and alive._optimizer is of:
                alive._unpack()

        self._hooks.append(optimizer.register_state_dict_post_hook(saved))
        self._hooks.append(optimizer.register_load_state_dict_pre_hook(loading))

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        super()._check_optimizer(optimizer)
        if told := held.kind_among(optimizer, _BY_SHAPE):
            raise ValueError(
                f"{told}, which packed weights do not have: it would take other steps. Compute with masks instead, or "
                "train by another optimizer (SGD, Adam, AdamW, ...)"
            )

    @torch.no_grad()
    def _plain(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of the optimizer with that of dense weights."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        own = dict(state["state"])
        for number, parameter in enumerate(parameters):
            if number in own and self._by_parameter.get(id(parameter)) in self._packed:
                own[number] = {
                    name: self.spread(parameter, value) if _is_of(value, parameter) else value
                    for name, value in own[number].items()
                }
        return {**state, "state": own}

    @torch.no_grad()
    def begin_state(self) -> None:
        """Bring the optimizer's state in line with the masks: after it was attached, or has got another state."""
        with self.unpacked():
            super().begin_state()

    # -- a step --------------------------------------------------------------------------------------------------------

    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights of layers that are not packed; packed ones have none."""
        super().mask_gradients()
        self._forget_captured()

    @property
    def obstacle(self) -> str:
        """Why a step cannot be captured."""
        return "packed layers get new tensors at every update"

    def stepped(self) -> None:
        """Pack layers that a loaded state has left dense, or that have been met for the first time."""
        for own in self._able.values():
            own.forget_dense()
        if self._depth == 0 and (self._is_dense or self._packing.has_seen_more):
            self._pack()
        super().stepped()

    def release(self) -> None:
        """Leave plain weights, which something else may hold."""
        self._unpack()
        for handle in self._hooks:
            handle.remove()
        super().release()

    # -- masks ---------------------------------------------------------------------------------------------------------

    def clear(self, masks: Mapping[int, Tensor]) -> None:
        """Zero value and state of all weights of some layers that are outside these masks, by the layer's index."""
        with self.unpacked():
            super().clear(masks)

    def set_masks(
        self, masks: Sequence[Tensor], active: Sequence[int], *, values: Sequence[Tensor] = (), are_born: bool = True
    ) -> None:
        """Hold the weights by these masks: all others, and their optimizer state, become zero."""
        with self.unpacked():
            super().set_masks(masks, active, values=values, are_born=are_born)
            self._forget_captured()

    # -- checks --------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def all_finite(self, *, gradients: bool = False, weights: bool = False) -> bool:
        """Say whether all gradients, weights or both are finite."""
        parameters = self.parameters
        found = [p.grad for p in parameters] + [*self.captured, *self._left.values()] if gradients else []
        return bool(held.all_finite([*found, *(parameters if weights else [])]))


def _is_of(value: Any, parameter: nn.Parameter) -> bool:
    """Say whether what an optimizer keeps has a number for each weight."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
