"""Which weights lie on a path of active weights from the input of a network to its output.

The network itself is followed, whatever its graph: sums, pooling, flattening, reshaped maps, shared weights, attention.
In a copy of it, for an input of ones, values only say whether something has come from the input (1) or not (0), and
gradients whether something goes on to the output. So the gradient of a weight, whether it is active or not, says
whether it joins what the input reaches to what reaches the output, and nothing can vanish or overflow on the way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import signature
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dst.sparsity.probe import BACKWARD, FORWARD, Probe, gradients_of, input_of_ones, named_layers, twin, twin_weights
from dst.sparsity.scope import Layer


class Paths:
    """A copy of a network, as ``followed`` makes it. ``passes``: what it has cost, in forward passes of one sample."""

    def __init__(self, model: nn.Module, weights: Sequence[Tensor], ones: Tensor, layers: Sequence[Layer]) -> None:
        self._model, self._weights, self._layers = model, weights, layers
        self._ones = ones
        self.passes = 0

    def through(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """Return, for each weight of each layer, on how many ways it joins the input to the output; 0: on none.

        A convolution's weight has one at each place of the map. ``masks``: boolean, the active weights.
        """
        for weight, mask in zip(self._weights, masks, strict=True):
            weight.data.copy_(mask)
        self.passes += FORWARD + BACKWARD
        with _Flow(self._model, self._weights):
            outputs = self._model(self._ones)
            found = gradients_of(outputs.sum(), self._weights, self._layers)
        return [gradient.round() for gradient in found]

    def everywhere(self) -> list[Tensor]:
        """Return what ``through`` does if all weights are active.

        Raises ValueError for layers that no way leads through even then: the network does something that this module
        cannot follow.
        """
        found = self.through([torch.ones_like(weight, dtype=torch.bool) for weight in self._weights])
        blocked = [layer.name for layer, ways in zip(self._layers, found, strict=True) if not ways.any()]
        if blocked:
            raise ValueError(
                f"no way from input to output can be found through {named_layers(blocked)}: the model computes "
                "something there that cannot be followed; leave flow as it is (none), or exclude them from the scope"
            )
        return found


@contextmanager
def followed(probe: Probe, layers: Sequence[Layer]) -> Iterator[Paths]:
    """Give the copy of a network in which paths are followed; the network and random states stay as they are."""
    with twin(probe) as model:
        ones = input_of_ones(probe, layers[0].weight.device).to(torch.float32)
        model.eval().to(torch.float32)
        for tensor in chain(model.parameters(), model.buffers()):
            if tensor.is_floating_point():
                tensor.data = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        yield Paths(model, twin_weights(probe, model, layers), ones, layers)


# -- what operations do to signals -------------------------------------------------------------------------------------


class _Signal(torch.autograd.Function):
    """Values above ``low`` become 1 and all others 0, and so do gradients above ``back``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, back: float) -> Tensor:
        ctx.back = back
        return (values > low).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return (gradient > ctx.back).to(gradient.dtype), None, None


def _entering(values: Tensor) -> Tensor:
    """Return a layer's input. Its gradient is a sum of ones: above a half, though the sum may be rounded, or none."""
    found: Tensor = _Signal.apply(values, 0.0, 0.5)
    return found


def _leaving(values: Tensor) -> Tensor:
    """Return a layer's output, which is a sum of ones."""
    found: Tensor = _Signal.apply(values, 0.5, 0.0)
    return found


class _Flow(TorchFunctionMode):
    """Computes with signals: what could stop one in a layer, or be one without an input, is put out of action.

    Weights of ``weights`` are 0 or 1, those of other layers 1, and all other parameters and buffers of the model 0, or
    1 where something is multiplied or divided by them.
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor]) -> None:
        super().__init__()
        masks = {id(weight) for weight in weights}
        self._constants = {id(tensor) for tensor in chain(model.parameters(), model.buffers())} - masks

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", "").strip("_"), dict(kwargs or {})
        if name in _PASSING:
            return _first(args, kwargs)
        if name in _OPENING:
            return torch.relu(1 + _first(args, kwargs))  # of -inf, where something is masked: nothing
        if name in _LAYERS:
            return _layer(func, args, kwargs)
        if name in _SCALING:
            return func(*map(self._open, args), **{key: self._open(value) for key, value in kwargs.items()})
        if name in _SUBTRACTING:
            return torch.add(*args, **kwargs)
        if name in _POOLING:
            return _pooled(func, name, args, kwargs)
        if name == "scaled_dot_product_attention":
            return _attention(*args[:3], **{k: v for k, v in kwargs.items() if k in ("query", "key", "value")})
        if name == "multi_head_attention_forward":
            return _heads(**signature(func).bind(*args, **kwargs).arguments)
        return func(*args, **kwargs)

    def _open(self, value: Any) -> Any:
        """Return ones instead of a parameter or buffer of the model that is no mask."""
        return torch.ones_like(value) if id(value) in self._constants else value


def _layer(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the output of a linear layer or a convolution, without its bias."""
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
    rest = {key: value for key, value in given.items() if key not in ("input", "weight", "bias")}
    weight = given["weight"]
    if not weight.requires_grad:  # it is no mask
        weight = torch.ones_like(weight)
    return _leaving(func(_entering(given["input"]), weight, None, *args[3:], **rest))


def _heads(**given: Any) -> tuple[Tensor, None]:
    """Return the output of ``nn.MultiheadAttention``; sequences are [length, samples, width] or [length, width]."""
    if given.get("use_separate_proj_weight", False):
        weights = [given[f"{name}_proj_weight"] for name in "qkv"]
    else:
        weights = given["in_proj_weight"].chunk(3)
    sequences = zip((given[name] for name in ("query", "key", "value")), weights, strict=True)
    projected = [_layer(F.linear, pair, {}) for pair in sequences]
    split = [x.reshape(*x.shape[:-1], given["num_heads"], -1).movedim(0, -2) for x in projected]
    mixed = _attention(*split).movedim(-2, 0).flatten(-2)
    return _layer(F.linear, (mixed, given["out_proj_weight"]), {}), None


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return args[0] if args else kwargs["input"]


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return what attention lets through: all values, at every place, and more where a query meets its key."""
    return (1 + query @ key.transpose(-2, -1)) @ value


def _pooled(func: Callable[..., Any], name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Return sums in the place of maxima, since any value of a window may be the largest for some input."""
    if name == "amax":
        return torch.sum(*args, **kwargs)
    names = ("input", "output_size", "return_indices") if name.startswith("adaptive") else _WINDOW
    given = dict(zip(names, args, strict=False)) | kwargs
    dilation, returns_indices = given.pop("dilation", 1), given.pop("return_indices", False)
    if returns_indices or any(step != 1 for step in (dilation if isinstance(dilation, Sequence) else [dilation])):
        return func(*args, **kwargs)
    return getattr(F, name.replace("max", "avg"))(**given)


_WINDOW = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_POOLING = {f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)} | {"amax"}
_LAYERS = {"linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}
_PASSING = {
    *("relu", "relu6", "leaky_relu", "prelu", "rrelu", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus"),
    *("tanh", "hardtanh", "hardswish", "softsign", "logsigmoid", "log_softmax", "clamp", "clamp_min", "neg"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "local_response_norm", "normalize"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
}
"""Activations and norms: what goes in comes out."""

_OPENING = {"sigmoid", "hardsigmoid", "softmax"}
"""What multiplies other values and is never zero: a gate, or the weights of an attention."""

_SCALING = {"mul", "rmul", "imul", "div", "truediv", "itruediv", "matmul", "rmatmul", "mm", "bmm"}
_SUBTRACTING = {"sub", "rsub", "isub"}
