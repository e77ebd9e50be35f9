"""Optimizers, always fused: one pass over all parameters, and a flag on the device can veto a step."""

from typing import Annotated, Any

import torch
from torch.optim import Optimizer

from dst.options import Needs, Range, checked
from dst.sparsity.marks import marked

WeightDecay = Annotated[float, Range(0), "the coefficient of weight decay"]


@marked("coupled")
@checked
def sgd(
    groups: list[dict[str, Any]],
    lr: float,
    *,
    momentum: Annotated[float, Range(0, 1, "[)"), "the share of the last step that goes into the next"] = 0.9,
    nesterov: Annotated[bool, Needs("momentum"), "Nesterov's momentum"] = True,
    weight_decay: WeightDecay = 0.0,
) -> Optimizer:
    """Return SGD with (Nesterov) momentum and L2 weight decay."""
    return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True)


@marked("ages", "decoupled")
@checked
def adamw(
    groups: list[dict[str, Any]],
    lr: float,
    *,
    beta1: Annotated[float, Range(0, 1, "[)"), "decay rate of the average of gradients"] = 0.9,
    beta2: Annotated[float, Range(0, 1, "[)"), "decay rate of the average of squared gradients"] = 0.999,
    weight_decay: WeightDecay = 0.0,
) -> Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(groups, lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
