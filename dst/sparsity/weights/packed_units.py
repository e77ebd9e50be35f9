"""Layers that multiply by units of 16 input channels on a GPU, in the type that autocast says."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dst.kernels.product import Tiles
from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import DTYPES, UnitBlocks, block_product
from dst.kernels.units import Units, units_of
from dst.sparsity.weights.packed_layer import PackedLayer


class PackedUnits(PackedLayer):
    """The active weights of a layer whose masks have units that groups of rows share (``dst.kernels.units``)."""

    def __init__(self, weight: Tensor, restore: Callable[[], None]) -> None:
        super().__init__(weight, None, Tiles(), restore)
        self._units: Units | None = None
        self._blocks: dict[Shape, UnitBlocks] = {}

    def set_mask(self, mask: Tensor, module: nn.Linear | nn.Conv2d) -> None:
        """Have the weights of a mask from now on; ValueError unless it has such units."""
        if mask is not self.mask:
            self._units = units_of(mask)
            self.mask, self.places = mask, self._units.places.to(mask.device)
            self._order = self._in_memory(self.places).long()
            self._blocks, self._dense = {}, None

    def spread(self, values: Tensor) -> Tensor:
        """Return values as a dense tensor in the shape and the memory layout of the weight."""
        dense = torch.zeros_like(self._like, device=values.device, dtype=values.dtype)
        _in_a_row(dense).index_copy_(0, self._order.to(values.device), values)
        return dense

    def gathered(self, dense: Tensor) -> Tensor:
        """Return the values of a dense tensor, of whatever memory layout."""
        if dense.stride() == self._like.stride():
            return _in_a_row(dense)[self._order.to(dense.device)]
        return torch.take(dense, self.places.to(dense.device))

    def casting(self) -> AbstractContextManager[Any]:
        """Return the context of products: what is around."""
        return nullcontext()

    def cast(self, x: Tensor) -> Tensor:
        """Return inputs as they are."""
        return x

    def _product(self, x: Tensor, module: nn.Linear | nn.Conv2d, shape: Shape) -> Tensor:
        assert self._units is not None
        if shape not in self._blocks:
            self._blocks[shape] = UnitBlocks(self._units, shape, x.device)
        read = self._reader(module.weight) if self.reads_dense_gradient else None
        return block_product(x, module.weight, self._blocks[shape], module.bias, read)

    def _check(self, x: Tensor, module: nn.Linear | nn.Conv2d) -> None:
        """Raise RuntimeError for numbers that kernels do not take."""
        own = [module.weight] if module.bias is None else [module.weight, module.bias]
        if x.dtype not in DTYPES or any(t.dtype != torch.float32 or t.device != x.device for t in own):
            raise RuntimeError(
                f"a packed layer on a GPU has weights in float32, not in {module.weight.dtype} on "
                f"{module.weight.device} for inputs of {x.dtype} on {x.device}: compute with masks instead"
            )
        self._check_weight(module)


def _in_a_row(dense: Tensor) -> Tensor:
    """Return the numbers of a tensor without gaps as they lie in memory."""
    return dense.as_strided((dense.numel(),), (1,))
