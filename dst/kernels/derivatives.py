"""Derivatives that are not those of kernels: of the whole dense weight, and second ones, which they do not have."""

import torch
from torch import Tensor

from dst.kernels.shape import Shape


def refuse_second(what: str) -> None:
    """Raise RuntimeError, within a backward pass, if its own graph is wanted; ``what``: has no second derivatives."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} no second derivatives: take these of the network as torch computes it, before it is given kernels"
        )


def dense_gradient(shape: Shape, x: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of all weights of a layer, those outside a mask too: that of autograd, bit by bit.

    ``x``: [samples, channels, height, width], channels-last, or [samples, channels] of a linear layer; ``dy``: the
    gradients of outputs, alike.
    """
    if dy.dim() == 2:
        return dy.t() @ x
    weight = dy.new_empty(shape.outs, shape.channels, *shape.kernel).to(memory_format=torch.channels_last)
    geometry = None, shape.stride, shape.padding, (1, 1), False, (0, 0), 1
    found: Tensor = torch.ops.aten.convolution_backward(dy, x, weight, *geometry, (False, True, False))[1]
    return found
