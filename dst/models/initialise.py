"""The weights that a network starts from."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from dst.models.options import BiasScale, InitDensity
from dst.models.shape import ModelError
from dst.options import checked


@dataclass(frozen=True)
class Layer:
    """A linear map: ``weight`` is ``(outputs, inputs)``, then the kernel's dimensions; ``bias``: one for each output.

    Both are the tensors of the network itself, without their history.
    """

    weight: Tensor
    bias: Tensor | None

    @property
    def deviation(self) -> float:
        """The standard deviation of Kaiming's weights before a ReLU (He et al., 2015): sqrt(2 / fan-in)."""
        return math.sqrt(2 / self.weight[0].numel())


Init: TypeAlias = Callable[[Sequence[Layer], float | None], None]
"""Sets first weights in place, and biases to a scale; a scale of None leaves them as they are."""


@checked
def initialise(
    model: nn.Module, init: Init, *, bias_scale: BiasScale | None = None, init_density: InitDensity | None = None
) -> None:
    """Let a network start from other weights, drawn from torch's global random numbers.

    ``bias_scale``: the deviation of biases, in ``Layer.deviation``; None leaves them to ``init``. ``init_density``:
    weights, however they were drawn, are divided by its square root, so that what a mask of this density leaves of them
    passes signals on as all of them did; biases are not masked, and stay. Norms are left alone. Raises ModelError if
    there is no bias to scale, or nothing to draw.
    """
    layers = list(_layers(model))
    if bias_scale is not None and all(layer.bias is None for layer in layers):
        raise ModelError(
            f"bias_scale={bias_scale:g} would be ignored: this model's convolutions and linear layers have no biases. "
            "Use bias_scale=None"
        )
    init(layers, bias_scale)
    if init_density is not None:
        for layer in layers:
            layer.weight.div_(math.sqrt(init_density))


def _layers(model: nn.Module) -> Iterator[Layer]:
    """Yield convolutions and linear layers in the order of ``model.modules()``, those inside of attention as well."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            yield Layer(module.weight.detach(), None if module.bias is None else module.bias.detach())
        elif isinstance(module, nn.MultiheadAttention):
            yield from _projections(module)


def _projections(attention: nn.MultiheadAttention) -> Iterator[Layer]:
    """Yield what makes queries, keys and values of tokens: three maps, whether or not they share a tensor."""
    fused, offsets = attention.in_proj_weight, attention.in_proj_bias
    apart = (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
    weights = apart if fused is None else fused.detach().chunk(3)
    biases = (None,) * 3 if offsets is None else offsets.detach().chunk(3)
    for weight, bias in zip(weights, biases, strict=True):
        yield Layer(weight.detach(), bias)
