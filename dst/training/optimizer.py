"""Optimizers, always fused: one pass over all parameters, and a step that a device-side flag can veto."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer


def sgd(
    parameters: Iterable[nn.Parameter],
    lr: float,
    *,
    momentum: float = 0.9,
    nesterov: bool = True,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return SGD with (Nesterov) momentum and L2 weight decay on all parameters."""
    return torch.optim.SGD(parameters, lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True)


def adamw(
    parameters: Iterable[nn.Parameter],
    lr: float,
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Return Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(parameters, lr, betas=(beta1, beta2), weight_decay=weight_decay, fused=True)
