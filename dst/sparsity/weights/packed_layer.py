"""Layers that multiply by their active weights alone: the modules, and what all places of a weight share."""

import copy
import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dst.kernels.blocks import Groups, alike
from dst.kernels.product import Tiles, product, products
from dst.kernels.shape import Shape
from dst.kernels.tiled import Tiled
from dst.kernels.unstructured import gathered, spread

LEAST_SAMPLES: Final = 16
"""With fewer samples most of a tile would be computed for nothing."""


class PackedLayer:
    """The active weights of a layer as a vector of values, and its products by them.

    ``places``: int64, which of the weights the values are, in their order; it depends on the mask alone. Products are
    prepared at the first inputs of a shape. ``library``: the kernels of a CPU. ``restore``: lets the
    layer's modules be plain ones again.
    """

    def __init__(self, weight: Tensor, library: ctypes.CDLL | None, pool: Tiles, restore: Callable[[], None]) -> None:
        self.restore = restore
        self.places = torch.zeros(0, dtype=torch.int64)
        self.mask: Tensor | None = None
        self._groups: Groups | None = None
        self.reads_dense_gradient = False
        """Whether backward passes compute the gradients of inactive weights too."""
        self.dense_gradient: Tensor | None = None
        """That of all weights, since ``parameter.grad`` was None the last time; None if it was not asked for."""
        self._library: Any = library
        self._pool = pool
        self._like = torch.empty_like(weight, device="meta")
        self._order = self.places.int()
        """The places in the order of the weight in memory."""
        self._products: dict[Shape, Tiled] = {}
        self._dense: tuple[int, Tensor] | None = None
        self._task = -1
        self._summed: tuple[int, int] | None = None
        """Which gradient of the values the last backward pass has left, and its version."""

    def set_mask(self, mask: Tensor, module: nn.Linear | nn.Conv2d) -> None:
        """Have the weights of a mask from now on, not none. ``module``: a place of the weight."""
        if mask is not self.mask:
            known = next(iter(self._products), None)
            first = known or smallest(module)
            self._groups = alike(mask)
            made = products(self._library, first, mask, self._groups)
            self.mask, self.places, self._order = mask, made.places, self._in_memory(made.places)
            self._products = {first: made} if known or isinstance(module, nn.Linear) else {}
            self._dense = None

    # -- forms ---------------------------------------------------------------------------------------------------------

    def spread(self, values: Tensor) -> Tensor:
        """Return values as a dense tensor in the shape and the memory layout of the weight."""
        dense = torch.zeros_like(self._like, device="cpu", dtype=values.dtype)
        if values.dtype == torch.float32:
            spread(self._library, values.contiguous(), self._order, dense)
        else:
            dense.put_(self.places, values)
        return dense

    def gathered(self, dense: Tensor) -> Tensor:
        """Return the values of a dense tensor, of whatever memory layout."""
        if dense.dtype == torch.float32 and dense.stride() == self._like.stride():
            return gathered(self._library, dense, self._order)
        return torch.take(dense, self.places)

    def _in_memory(self, places: Tensor) -> Tensor:
        """Return where flat positions of the weight lie in memory, int32."""
        rest, found = places.int(), torch.zeros_like(places, dtype=torch.int32)
        if self._like.is_contiguous():
            return rest
        for size, stride in reversed([*zip(self._like.shape, self._like.stride(), strict=True)]):
            found += rest % size * stride
            rest = rest // size
        return found

    def dense(self, values: Tensor) -> Tensor:
        """Return the weight, made once for each change of its values."""
        if self._dense is None or self._dense[0] != values._version:
            with torch.inference_mode(False):  # whose tensors training may not meet later
                self._dense = values._version, self.spread(values.detach())
        return self._dense[1]

    def forget_dense(self) -> None:
        """Make the dense weight anew: optimizers may change ``data``, of which no version tells."""
        self._dense = None

    # -- products ------------------------------------------------------------------------------------------------------

    def casting(self) -> AbstractContextManager[Any]:
        """Return the context of products."""
        return torch.autocast("cpu", enabled=False)

    def cast(self, x: Tensor) -> Tensor:
        """Return what autocast has made of inputs in single precision."""
        return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x

    def linear(self, x: Tensor, module: nn.Linear) -> Tensor:
        """Return what the linear layer makes of inputs."""
        self._check(x, module)
        if x.dim() == 0 or x.shape[-1] != module.in_features:
            raise RuntimeError(f"inputs of shape {tuple(x.shape)} for {module.in_features} input features")
        if x.numel() // x.shape[-1] < LEAST_SAMPLES:
            return F.linear(x, _Spread.apply(module.weight, self), module.bias)
        y = self._product(x.flatten(0, -2), module, Shape(module.in_features, module.out_features))
        return y.view(*x.shape[:-1], module.out_features)

    def convolution(self, x: Tensor, module: nn.Conv2d) -> Tensor:
        """Return what the convolution makes of inputs."""
        self._check(x, module)
        if x.dim() != 4 or len(x) < LEAST_SAMPLES:
            weight = _Spread.apply(module.weight, self)
            return F.conv2d(x, weight, module.bias, module.stride, module.padding)
        if x.shape[1] != module.in_channels:
            raise RuntimeError(f"inputs of shape {tuple(x.shape)} for {module.in_channels} input channels")
        shape = shape_of(module, *x.shape[2:])
        if min(shape.out) < 1:
            raise RuntimeError(f"inputs of shape {tuple(x.shape)} are smaller than the kernel {module.kernel_size}")
        return self._product(x, module, shape)

    def _product(self, x: Tensor, module: nn.Linear | nn.Conv2d, shape: Shape) -> Tensor:
        assert self.mask is not None
        if shape not in self._products:
            self._products[shape] = products(self._library, shape, self.mask, self._groups)
        read = self._reader(module.weight) if self.reads_dense_gradient else None
        return product(x, module.weight, self._products[shape], self._pool, read, module.bias)

    def _check(self, x: Tensor, module: nn.Linear | nn.Conv2d) -> None:
        """Raise RuntimeError for numbers that kernels would take for others."""
        own = [module.weight] if module.bias is None else [module.weight, module.bias]
        if x.device.type != "cpu" or any(tensor.dtype != torch.float32 for tensor in (x, *own)):
            raise RuntimeError(
                f"a packed layer multiplies float32 on a CPU, not inputs of {x.dtype} on {x.device} by weights of "
                f"{module.weight.dtype}: compute with masks instead"
            )
        self._check_weight(module)

    def _check_weight(self, module: nn.Linear | nn.Conv2d) -> None:
        """Raise RuntimeError if a module has another weight by now."""
        if module.weight.shape != self.places.shape:
            raise RuntimeError(
                "a packed layer has got another weight than the one that is held sparse: make a new Sparsifier and a "
                "new optimizer after such changes"
            )

    def _reader(self, values: Tensor) -> Callable[[Tensor], None]:
        return lambda gradient: self.read(values, gradient)

    def read(self, values: Tensor, gradient: Tensor) -> None:
        """Take a dense gradient, within a backward pass; it adds up as ``values.grad`` does."""
        task = torch._C._current_graph_task_id()
        adds = task == self._task or (  # else it was zeroed, of which a version tells if all of it is zero
            values.grad is not None and (self._summed == _state_of(values.grad) or bool(values.grad.any()))
        )
        if self.dense_gradient is not None and adds:
            self.dense_gradient = self.dense_gradient + gradient
        else:
            self.dense_gradient = gradient
        self._task = task

    def summed(self, values: Tensor) -> None:
        """Know the gradient that a backward pass has left."""
        if self.reads_dense_gradient and values.grad is not None:
            self._summed = _state_of(values.grad)


def _state_of(gradient: Tensor) -> tuple[int, int]:
    return gradient.data_ptr(), gradient._version


class _Spread(torch.autograd.Function):
    """The dense weight of values, for few samples."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, layer: PackedLayer) -> Tensor:
        ctx.layer, ctx.places, ctx.values = layer, layer.places, values
        ctx.reads = layer.reads_dense_gradient
        return layer.dense(values).detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.reads:
            ctx.layer.read(ctx.values, gradient)
        return torch.take(gradient, ctx.places), None


def shape_of(module: nn.Conv2d, height: int, width: int) -> Shape:
    """Return the shape of a convolution of images of this size."""
    kernel, stride, padding = module.kernel_size, module.stride, module.padding
    assert not isinstance(padding, str)
    return Shape(
        module.in_channels,
        module.out_channels,
        height,
        width,
        (kernel[0], kernel[1]),
        (stride[0], stride[1]),
        (padding[0], padding[1]),
    )


def smallest(module: nn.Linear | nn.Conv2d) -> Shape:
    """Return a layer's shape for the smallest inputs that it takes."""
    if isinstance(module, nn.Linear):
        return Shape(module.in_features, module.out_features)
    assert not isinstance(module.padding, str)
    sizes = zip(module.kernel_size, module.padding, strict=True)
    height, width = (max(1, kernel - 2 * padding) for kernel, padding in sizes)
    return shape_of(module, height, width)


# ---------------------------------------------------------------------------------------------------------------------
# Modules


class _Plain:
    """Lets the state of a module, and copies of it, be those of a plain one, with a dense weight."""

    _packed: PackedLayer

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        key = f"{prefix}weight"
        destination[key] = self._packed.spread(destination[key].detach())

    def _load_from_state_dict(self, *given: Any) -> None:
        self._packed.restore()
        self._load_from_state_dict(*given)  # that of a plain module, which this is by now

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        weight: nn.Parameter = self.weight  # type: ignore[attr-defined]
        if id(weight) not in memo:
            memo[id(weight)] = nn.Parameter(self._packed.spread(weight.detach()), weight.requires_grad)
        twin: nn.Module = object.__new__(_plain_class(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy({k: v for k, v in vars(self).items() if k != "_packed"}, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a network with packed layers is not written to files as an object: save model.state_dict(), or "
            "copy.deepcopy(model), whose layers are plain"
        )

    def extra_repr(self) -> str:
        """Add how many weights there are."""
        return f"{super().extra_repr()}, {len(self._packed.places):,} weights"  # type: ignore[misc]


class PackedLinear(_Plain, nn.Linear):
    """A linear layer that multiplies by its active weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs; on a CPU in float32."""
        with self._packed.casting():
            return self._packed.linear(self._packed.cast(x), self)


class PackedConv2d(_Plain, nn.Conv2d):
    """A convolution that multiplies by its active weights."""

    def forward(self, x: Tensor) -> Tensor:
        """Return outputs; on a CPU in float32."""
        with self._packed.casting():
            return self._packed.convolution(self._packed.cast(x), self)


def _plain_class(module: Any) -> type[nn.Module]:
    return next(plain for plain, own in PACKED.items() if own is type(module))


PACKED: Final[dict[type[nn.Module], type[nn.Module]]] = {nn.Linear: PackedLinear, nn.Conv2d: PackedConv2d}
"""Plain module -> the one that it is while it is packed. Subclasses may use the weight in other ways."""


def pack(module: nn.Module, layer: PackedLayer) -> None:
    """Let a plain module multiply by values, which its weight holds by now."""
    module.__dict__["_packed"] = layer
    module.__class__ = PACKED[type(module)]


def unpack(module: nn.Module) -> None:
    """Let a module be plain again."""
    del module.__dict__["_packed"]
    module.__class__ = _plain_class(module)
