"""Weights that are computed from others at each forward pass, so that which of them are active is learned."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim import Optimizer

from dst.sparsity.scope import Layer
from dst.sparsity.weights.held import begin_state, check_trained, hold
from dst.sparsity.weights.holder import Holder

LEARNED = "the masks are learned: nothing else can set them"
"""Why masks cannot be set."""

_OUTCOME = "the density of these masks is an outcome of training: nothing else can set it"


@dataclass(frozen=True)
class Edges:
    """What active weights are chosen from: the first ``masks`` (boolean) of the layers; ``seed``: of what is drawn."""

    layers: Sequence[Layer]
    masks: Sequence[Tensor]
    seed: int


class Reparametrization(ABC):
    """How the weights of all layers are computed, and what of it is trained."""

    freezes_rest: bool = False
    """Whether nothing of the model is trained but ``parameters`` and ``groups``."""
    trains_inactive: bool = False
    """Whether every backward pass computes gradients for inactive weights too, within the first masks."""

    @property
    @abstractmethod
    def parametrizations(self) -> Sequence[nn.Module]:
        """What computes the weights of each layer from the tensor that the layer had before."""

    @property
    @abstractmethod
    def parameters(self) -> list[nn.Parameter]:
        """What is trained in the place of the weights, one tensor a layer, of the weight's shape."""

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What is trained besides, as groups of an optimizer with options of their own."""
        return []

    def refresh(self) -> None:  # noqa: B027 - most have nothing to do
        """Bring what follows from the trained tensors up to date, after they have changed."""

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """What ``refresh`` goes by and may be set; a step that was captured is of the same."""
        return ()

    def counts_at(self, density: float) -> dict[str, int]:
        """Return how many weights of each layer would be active at a density, by name; RuntimeError if it is fixed."""
        raise RuntimeError(_OUTCOME)

    def set_density(self, density: float) -> None:
        """Let another share of the weights be active, of the trained tensors as they are; errors as ``counts_at``."""
        raise RuntimeError(_OUTCOME)

    @abstractmethod
    def active(self) -> list[Tensor]:
        """Return the boolean masks of the weights that are active now."""

    @property
    def thresholds(self) -> list[float] | None:
        """The magnitude that a weight of each layer has to exceed; None where that is not the rule."""
        return None

    def warning(self, left: Callable[[float], float]) -> str | None:
        """Return why training will hardly change what is active, and what would; None if it may.

        ``left``: from a weight decay to the share of a parameter that it leaves over the training, if nothing else
        moves the parameter. Looks at the weights as they are now; waits for the device.
        """
        return None

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Return all that is trained or set, but ``parameters`` that the layers had before."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; the layers have their tensors already."""


class Reparametrised(Holder):
    """The weights of all sparse layers, computed anew at each forward pass (``torch.nn.utils.parametrize``).

    The tensors that they are computed from are zero off the edges. ``model.state_dict()`` still holds the plain weights
    that the network computes with, under their own names, zero where they are not active; what they are computed from
    is in ``state_dict`` here. A state that is loaded into the model gives the tensors that weights are computed from.
    Raises ValueError if a weight is held already.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, edges: Edges, how: Reparametrization) -> None:
        super().__init__(edges.layers, edges.masks)
        self.how = how
        self._let_go = hold(self._layers, self)
        self._frozen = [p for p in model.parameters() if p.requires_grad] if how.freezes_rest else []
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        self._mask()
        self._hooks = []
        self._orders = {id(place.module): [*place.module._parameters] for la in self._layers for place in la.places}
        """The names of a module's own parameters, in order, by its id."""
        for layer, mask, computes in zip(self._layers, self.masks, how.parametrizations, strict=True):
            for place in layer.places:
                parametrize.register_parametrization(place.module, place.attribute, computes)
                self._hooks += _plain_state(place.module, place.attribute, mask, self._orders[id(place.module)])

    # -- what is held --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer trains in the place of the weights, layer by layer."""
        return self.how.parameters

    @property
    def groups(self) -> list[dict[str, Any]]:
        """What the optimizer trains besides, with options of its own."""
        return self.how.groups

    @torch.no_grad()
    def weight(self, i: int) -> Tensor:
        """Return a layer's weight: dense, zero where it is not active, without history."""
        place = self._layers[i].places[0]
        found: Tensor = getattr(place.module, place.attribute)
        return found.detach()

    def active(self) -> list[Tensor]:
        """Return the boolean masks of the weights that are active now."""
        return self.how.active()

    # -- the optimizer -------------------------------------------------------------------------------------------------

    def _check_optimizer(self, optimizer: Optimizer) -> None:
        trained = {layer.name: [parameter] for layer, parameter in zip(self._layers, self.parameters, strict=True)}
        besides = [parameter for group in self.groups for parameter in group["params"]]
        check_trained(optimizer, {**trained, **({"thresholds": besides} if besides else {})})
        for group in self.groups:
            _check_options(optimizer, group)

    def begin_state(self) -> None:
        """Bring the optimizer's state in line: after it was attached, or has got another state."""
        begin_state(self.optimizer)

    # -- a step --------------------------------------------------------------------------------------------------------

    def mask_gradients(self) -> None:
        """Do nothing: there are no gradients off the edges."""

    def check_masked(self) -> None:
        """Do nothing, for the same reason."""

    def check_trainable(self) -> None:
        """Raise RuntimeError if what is trained has been frozen since."""
        frozen = [
            layer.name
            for layer, parameter in zip(self._layers, self.parameters, strict=True)
            if not parameter.requires_grad
        ]
        if frozen:
            raise RuntimeError(f"layers {', '.join(frozen)} have been frozen (requires_grad=False): let them train")

    @property
    def step_tensors(self) -> list[Tensor]:
        """The edges, within which active weights may be chosen; all else is the model's."""
        return list(self.masks)

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """What the reparametrisation goes by and may be set."""
        return self.how.state_of_step

    def stepped(self) -> None:
        """Bring what follows from the trained tensors up to date, after the optimizer has stepped."""
        self.how.refresh()

    # -- masks ---------------------------------------------------------------------------------------------------------

    def clear(self, masks: Mapping[int, Tensor]) -> None:
        """Raise RuntimeError: masks are learned."""
        raise RuntimeError(LEARNED)

    def set_masks(
        self, masks: Sequence[Tensor], active: Sequence[int], *, values: Sequence[Tensor] = (), are_born: bool = True
    ) -> None:
        """Raise RuntimeError: masks are learned."""
        raise RuntimeError(LEARNED)

    @torch.no_grad()
    def check_zeros(self, masks: Sequence[Tensor]) -> None:
        """Raise RuntimeError, naming layers, if the model computes with weights that are not active now."""
        for layer, computes in zip(self._layers, self.how.parametrizations, strict=True):
            for place in layer.places:
                if not _computes(place.module, place.attribute, computes):
                    raise RuntimeError(
                        f"layer {layer.name} computes its weight in another way than it was told to: it has been "
                        "replaced or parametrised since. Make a new Sparsifier and a new optimizer after such changes"
                    )
        edges = self.masks
        if told := self._moved([active & mask for active, mask in zip(self.active(), edges, strict=True)]):
            raise RuntimeError(f"inactive weights are not zero in layers {told}: the density is not as reported")

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return edges, the tensors that weights are computed from, and the state of the reparametrisation."""
        names = [layer.name for layer in self._layers]
        return {
            "edges": dict(zip(names, self.masks, strict=True)),
            "original": {layer.name: layer.weight.detach() for layer in self._layers},
            **self.how.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; ValueError if it is of other edges' layers."""
        names = [layer.name for layer in self._layers]
        if [*state["edges"]] != names:
            raise ValueError(f"the stored state is of layers {', '.join(state['edges'])}, not of {', '.join(names)}")
        for layer, mask in zip(self._layers, self.masks, strict=True):
            mask.copy_(state["edges"][layer.name])
            layer.weight.copy_(state["original"][layer.name])
        self.how.load_state_dict(state)
        self.how.refresh()

    def release(self) -> None:
        """Leave plain weights, zero where they are not active, which something else may hold or train."""
        for hook in self._hooks:
            hook.remove()
        plain = self.weights  # all of them first: a layer may compute its weight in several places
        for layer, weight in zip(self._layers, plain, strict=True):
            for place in layer.places:
                _remove(place.module, place.attribute, self._orders[id(place.module)])
            with torch.no_grad():
                layer.weight.copy_(weight)
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self._let_go()

    def _mask(self) -> None:
        for layer, mask in zip(self._layers, self.masks, strict=True):
            layer.weight.mul_(mask)


def _check_options(optimizer: Optimizer, own: Mapping[str, Any]) -> None:
    """Raise ValueError if what is in a group of its ``own`` is trained with other options than the group's."""
    within = {id(parameter) for parameter in own["params"]}
    for group in optimizer.param_groups:
        if within.isdisjoint(map(id, group["params"])):
            continue
        for option, value in own.items():
            if option != "params" and group[option] != value:
                raise ValueError(
                    f"thresholds would be trained with {option}={group[option]:g}, not with {value:g} of their own: "
                    "give the optimizer sparsifier.weights.groups, beside the group of all other parameters"
                )


def _computes(module: nn.Module, attribute: str, computes: nn.Module) -> bool:
    """Say whether a module computes an attribute by this parametrisation, and by nothing else."""
    found = [*module.parametrizations[attribute]] if parametrize.is_parametrized(module, attribute) else []  # type: ignore[index]
    return len(found) == 1 and found[0] is computes


def _remove(module: nn.Module, attribute: str, order: Sequence[str]) -> None:
    """Let a module have as a parameter again what its weight is computed from, at its place in the ``order``."""
    # Copies of the module are of the same class, from which torch would remove the weight.
    own = type(module)
    module.__class__ = type(own.__name__, own.__bases__, dict(vars(own)))
    parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
    there = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: there[name] for name in order if name in there} | there)


def _plain_state(module: nn.Module, attribute: str, mask: Tensor, order: Sequence[str]) -> list[Any]:
    """Let the state of a module hold the weight that is computed, under its own name; return the hooks that do.

    ``order``: the names of the module's parameters as they were.
    """
    inside = f"parametrizations.{attribute}."
    before = {*order[: order.index(attribute) + 1]}

    def save(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for key in [key for key in state if key.startswith(prefix + inside)]:
            del state[key]
        with torch.no_grad():
            state[prefix + attribute] = getattr(module, attribute).detach()
        for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) not in before]:
            state[key] = state.pop(key)  # in the order of a plain state

    def load(
        module: nn.Module,
        state: dict[str, Any],
        prefix: str,
        _: Any,
        __: bool,
        missing: list[str],
        ___: list[str],
        errors: list[str],
    ) -> None:
        key, original = prefix + attribute, f"{prefix}{inside}original"
        plain = state.pop(key, None)
        if plain is None and original not in state:
            missing.append(key)
        elif plain is not None and plain.shape != mask.shape:
            errors.append(f"size mismatch for {key}: it is {tuple(plain.shape)} there, and {tuple(mask.shape)} here")
        elif plain is not None:
            state[original] = plain * mask.to(plain.device)
        # What it is computed from beside is no part of a plain state, and stays.
        own = module.parametrizations[attribute].state_dict()  # type: ignore[index, union-attr]
        for name, value in own.items():
            state.setdefault(f"{prefix}{inside}{name}", value)

    return [
        module.register_state_dict_post_hook(save),  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(load),  # type: ignore[no-untyped-call]
    ]
