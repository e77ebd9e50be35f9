"""Products with groups of rows and units of 16 input channels on a GPU: tables, the three passes, and autograd.

All activations lie channels-last. Outputs are written where they belong, row by row of a group: neighbours in a group
are neighbours in memory no more, but its rows ascend and all groups of a position are written at about the same time,
so that the second-level cache fills its lines before it hands them on. Gradients of outputs are read again and again by
both backward passes, 16 bytes at a time: they are brought into the order of groups once.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from dst.kernels.build import UnavailableError
from dst.kernels.derivatives import dense_gradient, refuse_second
from dst.kernels.product import Read
from dst.kernels.shape import Shape, classes_of
from dst.kernels.units import BLOCKS, UNIT, Units

DTYPES: Final = (torch.float32, torch.bfloat16, torch.float16)
"""What is computed in; sums are taken in float32."""

_PROGRAMS: Final = 512
"""Programs that keep a large GPU busy. Numbers depend on it (sums of parts), so it is the same on every GPU."""

_LEAST_SHARE: Final = 512
"""Positions of a part of a gradient of weights, at least."""

_LEAST_CAPABILITY: Final = (8, 0)
"""Of GPUs: older ones have neither asynchronous copies nor bfloat16."""

_MOST: Final = 2**31


@dataclass(frozen=True)
class Plan:
    """How large the tiles of a pass are: rows, and units at once; threads and stages. Never decided by a timing."""

    rows: int
    together: int
    warps: int
    stages: int = 3

    @property
    def constants(self) -> dict[str, int]:
        """What the kernel is compiled for."""
        return {"ROWS": self.rows, "TOGETHER": self.together, "num_warps": self.warps, "num_stages": self.stages}


def forward_plan(block: int, dtype: torch.dtype) -> Plan:
    """Return the tiles of outputs: rows x ``block``."""
    warps = 8 if block == 128 else 4
    return Plan(64, 2, warps) if dtype == torch.float32 else Plan(128, 4, warps)


def input_plan(block: int, dtype: torch.dtype) -> Plan:
    """Return the tiles of gradients of inputs: rows x 16, of ``block`` outputs a unit."""
    return Plan(64, max(1, 64 // block), 4, 2) if dtype == torch.float32 else Plan(64, 128 // block, 4)


def weight_plan(block: int, dtype: torch.dtype, units: float) -> Plan:
    """Return the tiles of gradients of weights, 16 x ``block`` a unit; ``units``: of a group, on average."""
    if dtype == torch.float32:
        return Plan(32, 4, 8 if block == 128 else 4)
    together = 8 if units >= 6 else 4
    return Plan(64, together, 8 if together * block > 512 else 4)


@cache
def kernels() -> ModuleType:
    """Return the kernels; UnavailableError says why there are none here."""
    try:
        from dst.kernels import triton_blocks
    except ImportError as error:
        raise UnavailableError(
            f"products on a GPU need Triton, which comes with torch for CUDA on Linux ({error}): compute with masks"
        ) from error
    return triton_blocks


def load(folder: Path | None = None) -> ModuleType:
    """Return the kernels; UnavailableError says why there are none here, or why this GPU cannot run them.

    ``folder``: where Triton keeps what it compiles; its own cache if not given, or if ``TRITON_CACHE_DIR`` says where.
    """
    found = kernels()
    if folder is not None and "TRITON_CACHE_DIR" not in os.environ:
        found.triton.knobs.cache.dir = str(folder / "triton")
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < _LEAST_CAPABILITY:
        told, least = (".".join(map(str, two)) for two in (torch.cuda.get_device_capability(), _LEAST_CAPABILITY))
        raise UnavailableError(f"this GPU has compute capability {told}, and these kernels need {least}")
    return found


class UnitBlocks:
    """The products of one layer with the weights of groups, for samples of one shape.

    ``device``: where its tables lie. Values are [units x 16 x block], in the order of ``units.places``. Activations
    are [samples, height, width, channels], contiguous. Raises ValueError for groups of other sizes than ``BLOCKS``.
    """

    def __init__(self, units: Units, shape: Shape, device: torch.device | str) -> None:
        if units.block not in BLOCKS:
            raise ValueError(f"groups of {units.block} rows: only groups of {BLOCKS} are multiplied on a GPU")
        self.is_linear = len(units.shape) == 2
        self.shape, self.block, self.device = shape, units.block, torch.device(device)
        self.size = len(units.group) * UNIT * units.block
        self._rows = units.rows.int().to(device)
        self._is_in_order = torch.equal(units.rows, torch.arange(shape.outs))
        self._forward = self._outputs(units)
        self._backward = [self._inputs(units, y, x) for y, x in classes_of(shape)]
        self._per_group = len(units.group) / (len(units.starts) - 1)
        self._sets: dict[int, tuple[Tensor, Tensor]] = {}
        self._units = units

    # -- tables --------------------------------------------------------------------------------------------------------

    def _outputs(self, units: Units) -> "_Table":
        """Return what each group gathers of the inputs."""
        shape = self.shape
        down = units.tap // shape.kernel[1] - shape.padding[0]
        right = units.tap % shape.kernel[1] - shape.padding[1]
        offset = (down * shape.width + right) * (shape.channels // UNIT) + units.chunk
        grid = _Grid(shape.out, shape.stride, (shape.height, shape.width))
        unit = torch.arange(len(offset))
        return _Table.of(units.starts, offset, down, right, unit, grid, self.device)

    def _inputs(self, units: Units, y: int, x: int) -> "_Table":
        """Return what each chunk of 16 inputs gathers of the gradients of outputs, for a class of inputs."""
        shape, (high, wide) = self.shape, self.shape.out
        above = y + shape.padding[0] - units.tap // shape.kernel[1]
        before = x + shape.padding[1] - units.tap % shape.kernel[1]
        unit = ((above % shape.stride[0] == 0) & (before % shape.stride[1] == 0)).nonzero()[:, 0]
        unit = unit[units.chunk[unit].argsort(stable=True)]
        down, right = above[unit] // shape.stride[0], before[unit] // shape.stride[1]
        offset = (down * wide + right) * (shape.outs // UNIT) + units.group[unit] * (units.block // UNIT)
        counts = units.chunk[unit].bincount(minlength=shape.channels // UNIT)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        sizes = -(-(shape.height - y) // shape.stride[0]), -(-(shape.width - x) // shape.stride[1])
        return _Table.of(starts, offset, down, right, unit, _Grid(sizes, (1, 1), (high, wide)), self.device)

    def _sets_of(self, together: int) -> tuple[Tensor, Tensor]:
        """Return the first unit and the group of each set of units of one group."""
        if together not in self._sets:
            starts = self._units.starts
            numbers = -(-starts.diff() // together)
            group = torch.arange(len(numbers)).repeat_interleave(numbers)
            within = torch.arange(len(group)) - (numbers.cumsum(0) - numbers)[group]
            first = starts[group] + within * together
            self._sets[together] = first.int().to(self.device), group.int().to(self.device)
        return self._sets[together]

    # -- passes --------------------------------------------------------------------------------------------------------

    def forward(self, values: Tensor, bias: Tensor | None, x: Tensor, y: Tensor) -> None:
        """Write the outputs of inputs into ``y``; values, inputs and outputs are of one type."""
        shape = self.shape
        constants = forward_plan(self.block, x.dtype).constants | {
            **{"K": UNIT, "N": self.block, "W_K": self.block, "W_N": 1},
            **_target(shape.out, (0, 0), (1, 1)),
            **{"HAS_BIAS": bias is not None, "IS_SCATTERED": not self._is_in_order},
        }
        self._gather(self._forward, x, values, y, bias, constants)

    def input_gradient(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Write the gradients of inputs into ``dx``, from gradients of outputs in the order of groups."""
        shape, plan = self.shape, input_plan(self.block, dy.dtype)
        for (y, x), table in zip(classes_of(shape), self._backward, strict=True):
            constants = plan.constants | {
                **{"K": self.block, "N": UNIT, "W_K": 1, "W_N": self.block},
                **_target((shape.height, shape.width), (y, x), shape.stride),
                **{"HAS_BIAS": False, "IS_SCATTERED": False},
            }
            self._gather(table, dy, values, dx, None, constants)

    def weight_gradient(self, x: Tensor, dy: Tensor) -> Tensor:
        """Return the gradients of the values in float32, from gradients of outputs in the order of groups."""
        table, plan = self._forward, weight_plan(self.block, x.dtype, self._per_group)
        sets, of = self._sets_of(plan.together)
        positions = len(x) * table.grid.size
        parts = max(1, min(_PROGRAMS // max(1, len(sets)), positions // _LEAST_SHARE))
        share = max(1, -(-positions // (parts * plan.rows))) * plan.rows
        parts = max(1, -(-positions // share))
        found = torch.empty(parts, self.size, dtype=torch.float32, device=x.device)
        kernels().weight_gradient[(len(sets), parts)](
            *(x, dy, found, sets, of, table.starts, table.offsets, table.downs, table.rights),
            *(positions, share, self.size, x.shape[-1], dy.shape[-1]),
            **{"K": UNIT, "N": self.block, "PRECISION": _precision(x.dtype)},
            **table.grid.constants,
            **{"IS_BOUNDED": table.is_bounded, **plan.constants},
        )
        return found[0] if parts == 1 else found.sum(0)

    def _gather(
        self, table: "_Table", x: Tensor, values: Tensor, y: Tensor, bias: Tensor | None, constants: Mapping[str, Any]
    ) -> None:
        positions = len(x) * table.grid.size
        kernels().gathered_product[(table.lists * -(-positions // constants["ROWS"]),)](
            *(x, values, y, values if bias is None else bias, self._rows),
            *(table.starts, table.offsets, table.downs, table.rights, table.units),
            *(positions, x.shape[-1], y.shape[-1], table.lists),
            **table.grid.constants,
            **{"IS_BOUNDED": table.is_bounded, "PRECISION": _precision(x.dtype), **constants},
        )

    def in_order(self, dy: Tensor) -> Tensor:
        """Return gradients of outputs, channels-last, in the order of groups."""
        return dy if self._is_in_order else dy.index_select(-1, self._rows)

    def check(self, x: Tensor) -> None:
        """Raise ValueError for inputs that offsets of 32 bits cannot reach, or that lie where no kernels run."""
        positions = len(x) * max(self.shape.height * self.shape.width, self._forward.grid.size)
        if positions * max(self.shape.channels, self.shape.outs) >= _MOST or self.size >= _MOST:
            raise ValueError(
                f"inputs of shape {tuple(x.shape)} are too large for offsets of 32 bits: take fewer samples"
            )
        if x.device != self.device:
            raise ValueError(f"inputs on {x.device} for a layer on {self.device}")
        if x.device.type != "cuda" and not kernels().IS_INTERPRETED.value:
            raise ValueError(f"these kernels are for CUDA GPUs, not for inputs on {x.device}")


@dataclass(frozen=True)
class _Grid:
    """The positions of a pass: heights and widths of what is computed, its steps in the image, and the image's size."""

    sizes: tuple[int, int]
    steps: tuple[int, int]
    image: tuple[int, int]

    @property
    def size(self) -> int:
        return self.sizes[0] * self.sizes[1]

    @property
    def constants(self) -> dict[str, int]:
        names = ("HIGH", "WIDE", "DOWN", "RIGHT", "X_HIGH", "X_WIDE")
        return dict(zip(names, (*self.sizes, *self.steps, *self.image), strict=True))


@dataclass(frozen=True, eq=False)
class _Table:
    """What each list of units gathers, all int32 (see ``gathered_product``); ``is_bounded``: some lie outside."""

    starts: Tensor
    offsets: Tensor
    downs: Tensor
    rights: Tensor
    units: Tensor
    grid: _Grid
    is_bounded: bool

    @classmethod
    def of(
        cls,
        starts: Tensor,
        offsets: Tensor,
        downs: Tensor,
        rights: Tensor,
        units: Tensor,
        grid: _Grid,
        device: torch.device,
    ) -> "_Table":
        is_bounded = any(
            len(moves) > 0 and (int(moves.amin()) < 0 or int(moves.amax()) + (size - 1) * step >= image)
            for moves, size, step, image in zip((downs, rights), grid.sizes, grid.steps, grid.image, strict=True)
        )
        starts, offsets, downs, rights, units = (
            tensor.int().to(device) for tensor in (starts, offsets, downs, rights, units)
        )
        return cls(starts, offsets, downs, rights, units, grid, is_bounded)

    @property
    def lists(self) -> int:
        return len(self.starts) - 1


def _target(sizes: tuple[int, int], first: tuple[int, int], steps: tuple[int, int]) -> dict[str, int]:
    """Return where the positions of a pass lie in what is written."""
    names = ("Y_HIGH", "Y_WIDE", "Y_TOP", "Y_LEFT", "Y_DOWN", "Y_RIGHT")
    return dict(zip(names, (*sizes, *first, *steps), strict=True))


def _precision(dtype: torch.dtype) -> str:
    """Return how exact products of float32 are: as those of torch are now."""
    is_short = dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if is_short else "ieee"


# ---------------------------------------------------------------------------------------------------------------------
# Autograd


def block_product(
    x: Tensor, values: Tensor, layer: UnitBlocks, bias: Tensor | None = None, read: Read | None = None
) -> Tensor:
    """Return the outputs of a layer, on a GPU; within autocast in its type, else in that of the inputs.

    ``x``: [samples, channels, height, width], best channels-last, or [..., channels] for a linear layer; outputs alike.
    ``values``: float32 (``units.places``), cast once a pass. ``bias``: [outs]. ``read``: wants the dense gradient of
    the weight, as torch computes it, at the backward pass. Raises ValueError for inputs that the layer cannot take.
    """
    is_cast = torch.is_autocast_enabled(x.device.type)
    dtype = torch.get_autocast_dtype(x.device.type) if is_cast else x.dtype
    if dtype not in DTYPES:
        raise ValueError(f"products in {dtype}: only {', '.join(str(known) for known in DTYPES)} are there")
    y: Tensor = _BlockProduct.apply(x, values, bias, layer, read, dtype)
    return y


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        layer: UnitBlocks,
        read: Callable[[Tensor], None] | None,
        dtype: torch.dtype,
    ) -> Tensor:
        layer.check(x)
        lying, weights = _channels_last(x, layer.is_linear).to(dtype), values.detach().to(dtype)
        y = torch.empty(len(lying), *layer.shape.out, layer.shape.outs, dtype=dtype, device=x.device)
        with _on(x.device):
            layer.forward(weights, bias, lying, y)
        ctx.save_for_backward(lying, weights)
        ctx.layer, ctx.read, ctx.inputs, ctx.dtypes = layer, read, x.shape, (x.dtype, values.dtype)
        return _as_before(y, x.shape, layer.is_linear)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second("packed layers have")
        x, weights = ctx.saved_tensors
        layer = ctx.layer
        dy = _channels_last(gradient, layer.is_linear)
        dx = dvalues = dbias = None
        with _on(dy.device), torch.autocast(dy.device.type, enabled=False):
            ordered = layer.in_order(dy) if any(ctx.needs_input_grad[:2]) else dy
            if ctx.needs_input_grad[0]:
                dx = torch.empty_like(x)
                layer.input_gradient(weights, ordered, dx)
                dx = _as_before(dx, ctx.inputs, layer.is_linear).to(ctx.dtypes[0])
            if ctx.needs_input_grad[1]:
                dvalues = layer.weight_gradient(x, ordered).to(ctx.dtypes[1])
            if ctx.needs_input_grad[2]:
                dbias = dy.sum((0, 1, 2), dtype=torch.float32)
            if ctx.read is not None:
                ctx.read(_dense_gradient(layer, x, dy).to(ctx.dtypes[1]))
        return dx, dvalues, dbias, None, None, None


def _on(device: torch.device) -> Any:
    """Return the context in which kernels are started on a device."""
    return torch.cuda.device(device) if device.type == "cuda" else torch.autocast("cpu", enabled=False)


def _channels_last(x: Tensor, is_linear: bool) -> Tensor:
    """Return activations as [samples, height, width, channels], contiguous."""
    lying = x.reshape(-1, 1, 1, x.shape[-1]) if is_linear else x.permute(0, 2, 3, 1)
    return lying.contiguous()


def _as_before(lying: Tensor, before: torch.Size, is_linear: bool) -> Tensor:
    """Return activations in the order of those before, with their own number of channels."""
    return lying.reshape(*before[:-1], lying.shape[-1]) if is_linear else lying.permute(0, 3, 1, 2)


def _dense_gradient(layer: UnitBlocks, x: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of all weights, from activations that lie channels-last (``dense_gradient``)."""
    shape = layer.shape
    if layer.is_linear:
        return dense_gradient(shape, x.view(-1, shape.channels), dy.view(-1, shape.outs))
    return dense_gradient(shape, x.permute(0, 3, 1, 2), dy.permute(0, 3, 1, 2))
