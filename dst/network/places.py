"""Where the weights of a network are: those of its convolutions, its linear layers and the projections of attention.

Whatever goes by weights (FLOPs, scopes of sparsity, weight decay) finds them here, under the same names. A layer has
the name of its module. The projections that ``nn.MultiheadAttention`` holds itself are layers of their own: the fused
one of queries, keys and values is ``<name>.in_proj``, or there are ``<name>.q_proj``, ``<name>.k_proj`` and
``<name>.v_proj``. Its output is a linear layer, ``<name>.out_proj``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import ParametrizationList


@dataclass(frozen=True, eq=False)
class Place:
    """A weight's place in a network: layer ``name`` multiplies by the tensor ``attribute`` of ``module``."""

    name: str
    module: nn.Module
    attribute: str = "weight"

    @property
    def parameter(self) -> nn.Parameter | None:
        """The weight; None if it is no parameter, since it is computed anew at each forward pass."""
        return self.module._parameters.get(self.attribute)


def places(model: nn.Module) -> Iterator[Place]:
    """Yield the places of all weights in the order of ``model.named_modules()``; a shared weight has several."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd):
            yield Place(name, module)
        elif isinstance(module, nn.MultiheadAttention):
            fused = module._qkv_same_embed_dim
            for part in ("in_proj",) if fused else ("q_proj", "k_proj", "v_proj"):
                yield Place(f"{name}.{part}" if name else part, module, f"{part}_weight")


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters of a network, without those that only compute some of its weights."""
    computing = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, ParametrizationList)
        for parametrization in module
        for parameter in parametrization.parameters()
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in computing)
