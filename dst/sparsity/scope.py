"""Which parameters may be sparse, in a stable order, with a handle for each."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from dst.registry import suggest


@dataclass(frozen=True, eq=False)
class Layer:
    """A handle on one maskable weight; ``name`` is its module's qualified name.

    ``is_output``: the last convolution or linear layer of the model, whose output units are the network's.
    """

    name: str
    weight: nn.Parameter
    is_output: bool = False

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    def optimizer_state(self, optimizer: Optimizer) -> list[Tensor]:
        """Return the optimizer's tensors that hold one value a weight (momentum, Adam's moments)."""
        state = optimizer.state.get(self.weight, {})
        return [v for v in state.values() if isinstance(v, Tensor) and v.shape == self.weight.shape and v.dim() > 0]


@dataclass(frozen=True)
class Scope:
    """Which layers are maskable: convolutions and linear layers whose name matches glob patterns.

    A layer is in scope if it matches any of ``include`` and none of ``exclude``. ``dense_first`` and ``dense_last``
    take the first and last remaining layer out: it stays dense and does not count in the density.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    dense_first: bool = False
    dense_last: bool = False

    def layers(self, model: nn.Module) -> list[Layer]:
        """Return the layers in scope in the order of ``model.named_modules()``; a shared weight appears once.

        Raises ValueError if a pattern matches no layer, or if no layer is left.
        """
        found = _weights(model)
        for pattern in (*self.include, *self.exclude):
            if not any(fnmatchcase(layer.name, pattern) for layer in found):
                raise ValueError(f"scope pattern '{pattern}' matches no layer: {suggest(pattern, _names(found))}")
        inside = [
            layer
            for layer in found
            if any(fnmatchcase(layer.name, pattern) for pattern in self.include)
            and not any(fnmatchcase(layer.name, pattern) for pattern in self.exclude)
        ]
        inside = inside[int(self.dense_first) : len(inside) - int(self.dense_last)]
        if not inside:
            raise ValueError(f"no layer may be sparse under {self}: the model's layers are {', '.join(_names(found))}")
        return inside


def _weights(model: nn.Module) -> list[Layer]:
    found: dict[int, Layer] = {}
    last = 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            last = id(module.weight)
            found.setdefault(last, Layer(name, cast(nn.Parameter, module.weight)))
    return [replace(layer, is_output=weight == last) for weight, layer in found.items()]


def _names(layers: Sequence[Layer]) -> list[str]:
    return [layer.name for layer in layers]
