"""Which parameters may be sparse, in a stable order, with a handle for each."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.parameter import UninitializedParameter

from dst.network.places import Place, places
from dst.options import require, suggest
from dst.sparsity import options


@dataclass(frozen=True, eq=False)
class Layer:
    """A handle on one maskable weight; ``name`` is its layer's (``dst.network.places``).

    ``is_output``: it is the last layer of the model, so its output units are the network's. ``places``: wherever the
    weight is used. ``shape``: that of the weight, in whatever form its parameter holds it.
    """

    name: str
    weight: nn.Parameter
    is_output: bool = False
    places: tuple[Place, ...] = ()
    shape: torch.Size = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.weight.shape)

    @property
    def is_transposed(self) -> bool:
        """Say whether the first dimension is that of the inputs, not of the output units."""
        return any(isinstance(place.module, _ConvTransposeNd) for place in self.places)

    @property
    def groups(self) -> int:
        """Into how many groups a convolution divides its channels; 1 for all other layers."""
        return max([getattr(place.module, "groups", 1) for place in self.places], default=1)

    @property
    def size(self) -> int:
        """Number of weights."""
        return prod(self.shape)


@dataclass
class Scope(options.Scope):
    """Which layers are maskable; see ``dst.sparsity.options``. Raises ValueError for what cannot be."""

    def __post_init__(self) -> None:
        require(self)

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the layers in scope in the order of ``model.named_modules()``; a shared weight appears once.

        Raises ValueError if a pattern matches no layer, if no layer is left, or if a weight cannot be held: because it
        is computed anew at each forward pass, does not consist of real numbers, or shares memory with another.
        """
        found = _candidates(model)
        names = [candidate.name for candidate in found]
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"scope pattern '{pattern}' matches no layer: {suggest(pattern, names)}")
        inside = [
            candidate
            for candidate in found
            if any(fnmatchcase(candidate.name, pattern) for pattern in self.include)
            and not any(fnmatchcase(candidate.name, pattern) for pattern in self.exclude)
        ]
        inside = inside[int(self.dense_first) : len(inside) - int(self.dense_last)]
        if not inside:
            raise ValueError(f"no layer may be sparse under {self}: the model's layers are {', '.join(names)}")
        layers = [candidate.layer() for candidate in inside]
        _check_memory(model, layers)
        return layers


def outside(model: nn.Module, layers: Sequence[Layer]) -> dict[str, int]:
    """Return the weights outside the scope, which are trained dense: parameter name -> number of weights.

    Biases, norms and other vectors are left out; no density counts them.
    """
    inside = {id(layer.weight) for layer in layers}
    return {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if id(parameter) not in inside and not isinstance(parameter, UninitializedParameter) and parameter.dim() > 1
    }


def never_sparse(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names of parameters that no scope can make sparse, since no layer multiplies by them."""
    of_layers = set()
    for place in places(model):
        own = dict(place.module.named_parameters())
        sources = [] if place.parameter is not None else [own[name] for name in _sources(place) if name in own]
        of_layers |= {id(parameter) for parameter in (place.parameter, *sources)}
    return [name for name in names if id(model.get_parameter(name)) not in of_layers]


@dataclass
class _Candidate:
    """A layer that may be in scope, with all places of its weight."""

    name: str
    places: list[Place]
    is_output: bool = False

    def layer(self) -> Layer:
        """Return the handle; ValueError if the weight cannot be held."""
        first = self.places[0]
        weight = first.parameter
        problem = _problem(first, weight)
        if problem is not None or weight is None:
            leave_out = f"leave it out of the scope (exclude={[self.name]})" if self.name else "take another model"
            raise ValueError(f"layer {self.name!r} {problem}, or {leave_out}")
        return Layer(self.name, weight, self.is_output, tuple(self.places))


def _candidates(model: nn.Module) -> list[_Candidate]:
    found: dict[int, _Candidate] = {}
    last = None
    for place in places(model):
        weight = place.parameter
        last = found.setdefault(id(place if weight is None else weight), _Candidate(place.name, []))
        last.places.append(place)
    if last is not None:
        last.is_output = True
    return list(found.values())


def _problem(place: Place, weight: nn.Parameter | None) -> str | None:
    """Return why a weight cannot be held, and how to mend it."""
    if weight is None:
        return (
            f"computes its weight anew from {', '.join(_sources(place)) or 'something else'} at each forward pass "
            "(weight_norm, spectral_norm, torch.nn.utils.prune and other parametrisations do this): masks would not "
            "hold; remove it (torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, "
            "remove_spectral_norm, prune.remove)"
        )
    if isinstance(weight, UninitializedParameter):
        return "has no shape yet: pass a batch through the model first"
    if not weight.is_floating_point():
        return f"has weights of {weight.dtype}: only real floating-point numbers can be trained sparse"
    return None


def _sources(place: Place) -> list[str]:
    """Return the names of the parameters and buffers that a weight is computed from."""
    tensors = [*place.module.named_parameters(), *place.module.named_buffers()]
    parametrized = f"parametrizations.{place.attribute}."
    hidden = [name for name, _ in tensors if name.startswith((parametrized, f"{place.attribute}_"))]
    return hidden or [name for name, _ in tensors if "." not in name and "bias" not in name]


def _check_memory(model: nn.Module, layers: Sequence[Layer]) -> None:
    """Raise ValueError if the weight of a layer shares its memory with another parameter."""
    inside = {id(layer.weight) for layer in layers}
    spans = sorted(
        (p.data_ptr(), p.data_ptr() + p.numel() * p.element_size(), id(p) in inside, name)
        for name, p in model.named_parameters()
        if not isinstance(p, UninitializedParameter) and not p.is_meta and _fills_its_memory(p)
    )
    for (_, end, is_inside, name), (start, _, is_next_inside, next_name) in pairwise(spans):
        if start < end and (is_inside or is_next_inside):
            raise ValueError(
                f"{name} and {next_name} are two parameters in the same memory, and the mask of one would not hold in "
                "the other: make them one parameter (a.weight = b.weight), give one a copy, or leave both out of the "
                "scope"
            )


def _fills_its_memory(tensor: Tensor) -> bool:
    """Say whether a tensor fills all memory between its first and its last element."""
    stretch = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return 0 < tensor.numel() == stretch
