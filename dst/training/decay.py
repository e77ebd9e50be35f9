"""The parameters that weight decay acts on."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dst.options import checked
from dst.training.options import Decay

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@checked
def parameter_groups(model: nn.Module, decay: Decay) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: one that decays and, if needed, one with a decay of zero.

    ``decay``: ``all`` parameters decay; all except those of normalisation layers (``not_norms``), recognised by the
    type of their module; or only the ``weights`` of convolutions and linear layers, no biases.
    """
    if decay == "all":
        return [{"params": list(model.parameters())}]
    chosen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_weight = isinstance(module, nn.Linear | _ConvNd) and name == "weight"
            if is_weight or (decay == "not_norms" and not isinstance(module, _NORMS)):
                chosen[id(parameter)] = parameter
    rest = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    return [{"params": list(chosen.values())}, {"params": rest, "weight_decay": 0.0}]
