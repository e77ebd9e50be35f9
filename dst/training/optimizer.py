"""Optimizers, always fused: one pass over all parameters, and a flag on the device can veto a step."""

from typing import Any

import torch
from torch.optim import Optimizer


def sgd(
    groups: list[dict[str, Any]],
    lr: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return SGD with (Nesterov) momentum and L2 weight decay."""
    return torch.optim.SGD(groups, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True)


def adamw(
    groups: list[dict[str, Any]],
    lr: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(groups, lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
