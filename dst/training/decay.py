"""The parameters that weight decay acts on, and what it alone makes of one."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dst.network.places import places
from dst.options import checked
from dst.training.options import Decay

_NORMS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)


@checked
def parameter_groups(
    model: nn.Module, decay: Decay, held: Iterable[nn.Parameter] = (), own: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """Return the optimizer's parameter groups: one that decays and, if needed, one with a decay of zero.

    ``decay``: ``all`` parameters decay; all except those of normalisation layers (``not_norms``), recognised by the
    type of their module; or only the ``weights`` of layers (``dst.network.places``), no biases. ``held``: what is
    trained of sparse layers, which are weights however they are held. ``own``: groups with options of their own, which
    are added. What is frozen is left out.
    """
    apart = {id(parameter) for group in own for parameter in group["params"]}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in apart]
    if decay == "all":
        return [{"params": trained}, *own]
    weights = {id(parameter) for parameter in (*(place.parameter for place in places(model)), *held)}
    chosen: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) in weights or (decay == "not_norms" and not isinstance(module, _NORMS)):
                chosen[id(parameter)] = parameter
    among = {id(parameter) for parameter in trained}
    decaying = [parameter for key, parameter in chosen.items() if key in among]
    rest = [parameter for parameter in trained if id(parameter) not in chosen]
    return [{"params": decaying}, {"params": rest, "weight_decay": 0.0}, *own]


def left_by_decay(
    optimizer: Iterable[str], rates: Sequence[float], momentum: float = 0.0
) -> Callable[[float], float] | None:
    """Return the share of a parameter that weight decay alone leaves over a training, as a function of the decay.

    ``optimizer``: its marks, which say how it decays; None is returned for one of unknown ways. ``rates``: the learning
    rate of each step. ``momentum``: it carries a coupled decay on, Nesterov's too, for ``1 / (1 - momentum)`` steps in
    all. The share is exact where rates change slowly against that, and where a step takes little of the parameter.
    """
    marks = frozenset(optimizer)
    steps = torch.tensor(rates, dtype=torch.float64)
    if "coupled" in marks:
        reach = float(steps.sum()) / (1 - momentum)
        return lambda decay: math.exp(-decay * reach)
    if "decoupled" in marks:
        return lambda decay: float((1 - steps * decay).clamp(min=0).log().sum().exp())
    return None
