"""A sparse product in autograd: activations wait for the backward pass in tiles, which come from a pool."""

import ctypes
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dst.kernels.blocks import Blocks, Groups
from dst.kernels.derivatives import dense_gradient, refuse_second
from dst.kernels.shape import Shape, tiles_of
from dst.kernels.tiled import Tiled
from dst.kernels.unstructured import Unstructured


class Tiles:
    """Buffers for tiles, by shape. Their borders are zero and stay so, since only what is inside is written."""

    def __init__(self) -> None:
        self._free: defaultdict[tuple[int, ...], list[Tensor]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """Return a buffer that nobody else has; its inside holds whatever it held."""
        free = self._free[shape]
        return free.pop() if free else torch.zeros(shape, dtype=torch.float32)

    def give(self, tiles: Tensor) -> None:
        """Take a buffer back."""
        self._free[tuple(tiles.shape)].append(tiles)

    @property
    def size(self) -> int:
        """The bytes of all buffers that are free."""
        return sum(tiles.nbytes for free in self._free.values() for tiles in free)


def products(library: ctypes.CDLL, shape: Shape, mask: Tensor, groups: Groups | None) -> Tiled:
    """Return the products of a layer with the weights of a mask; ``groups``: its rows that are alike, if they are."""
    return Unstructured(library, shape, mask) if groups is None else Blocks(library, shape, mask, groups)


Read = Callable[[Tensor], None]
"""Is given the dense gradient of a layer's weight."""


def product(
    x: Tensor,
    values: Tensor,
    layer: Tiled,
    pool: Tiles,
    read: Read | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return the outputs of a layer; float32 on a CPU.

    ``x``: [samples, channels, height, width], or [..., channels] for a linear layer; outputs alike. ``values``: the
    weights, in the order of ``layer.places``. ``read``: wants the dense gradient of the weight, as autograd would give
    it, at the backward pass. A buffer from the pool holds the inputs between the passes; without gradients nothing
    does. ``bias``: [outs].
    """
    learned = [tensor for tensor in (x, values, bias) if tensor is not None and tensor.requires_grad]
    is_kept = torch.is_grad_enabled() and len(learned) > 0  # within forward it is off
    y: Tensor = _Product.apply(x, values, bias, layer, pool, read, is_kept)
    return y


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        layer: Tiled,
        pool: Tiles,
        read: Read | None,
        is_kept: bool,
    ) -> Tensor:
        shape = layer.shape
        lying = _channels_last(x)
        tiles = tiles_of(len(lying))
        tiled = pool.take((tiles, *shape.input_tile))
        layer.tile_inputs(lying, tiled)
        y = torch.empty(len(lying), *shape.out, shape.outs, dtype=torch.float32)
        layer.forward(values, None if bias is None else bias.contiguous(), tiled, y)
        if is_kept:
            ctx.save_for_backward(values)
            ctx.tiled, ctx.layer, ctx.pool, ctx.read, ctx.inputs = tiled, layer, pool, read, x.shape
        else:
            pool.give(tiled)
        return _as_before(y, x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second("packed layers have")
        if ctx.tiled is None:
            raise RuntimeError(
                "a second backward pass through the same forward pass of a packed layer: its inputs are not kept any "
                "more. Pass forward again, or compute with masks"
            )
        (values,) = ctx.saved_tensors
        layer, pool, tiled = ctx.layer, ctx.pool, ctx.tiled
        shape, lying = layer.shape, _channels_last(dy)
        tiled_dy = pool.take((len(tiled), *shape.gradient_tile))
        layer.tile_gradients(lying, tiled_dy)
        dvalues = layer.weight_gradient(tiled, tiled_dy) if ctx.needs_input_grad[1] else None
        dx = None
        if ctx.needs_input_grad[0]:
            dx = torch.empty(len(lying), shape.height, shape.width, shape.channels, dtype=torch.float32)
            layer.input_gradient(values, tiled_dy, dx)
            dx = _as_before(dx, ctx.inputs)
        pool.give(tiled_dy)
        if ctx.read is not None:
            ctx.read(_dense_gradient(layer, tiled, dy))
        pool.give(tiled)
        ctx.tiled = None
        dbias = lying.sum((0, 1, 2)) if ctx.needs_input_grad[2] else None
        return dx, dvalues, dbias, None, None, None, None


def _channels_last(x: Tensor) -> Tensor:
    """Return activations as [samples, height, width, channels], contiguous."""
    lying = x.permute(0, 2, 3, 1) if x.dim() == 4 else x.reshape(-1, 1, 1, x.shape[-1])
    return lying.contiguous()


def _as_before(lying: Tensor, before: torch.Size) -> Tensor:
    """Return activations in the order of those before, with their own number of channels."""
    return lying.permute(0, 3, 1, 2) if len(before) == 4 else lying.reshape(*before[:-1], lying.shape[-1])


def _dense_gradient(layer: Tiled, tiled: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of all weights, from tiled inputs (``dense_gradient``)."""
    shape = layer.shape
    samples = dy.shape[0] if dy.dim() == 4 else dy.numel() // dy.shape[-1]
    x = torch.empty(samples, shape.height, shape.width, shape.channels, dtype=torch.float32)
    layer.untile(tiled, x, *shape.padding)
    if dy.dim() != 4:
        return dense_gradient(shape, x.view(-1, shape.channels), dy.reshape(-1, shape.outs))
    return dense_gradient(shape, x.permute(0, 3, 1, 2), dy)
