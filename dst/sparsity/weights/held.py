"""Check that any optimizer and loop can keep weights sparse, and do."""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

from dst.sparsity.scope import Layer

_MIXING = {
    "Muon": "orthogonalises the step of a whole layer",
    "LBFGS": "makes its step of all weights together, with backward passes of its own",
}
"""Optimizers of torch whose step moves a weight that has neither gradient nor state, and why."""

_HOLDERS: Any = WeakTensorKeyDictionary()
"""Weight -> a weak reference to the object that holds it sparse."""


def check_optimizer(optimizer: Optimizer, layers: Sequence[Layer]) -> None:
    """Raise ValueError unless the optimizer trains every layer in scope, each weight by itself."""
    check_trained(optimizer, {layer.name: [layer.weight] for layer in layers})


def check_trained(optimizer: Optimizer, parameters: Mapping[str, Sequence[nn.Parameter]]) -> None:
    """Raise ValueError unless the optimizer trains these parameters of layers, each number by itself."""
    if told := kind_among(optimizer, _MIXING):
        raise ValueError(
            f"{told}: inactive weights would move. Train the layers in scope by an optimizer that treats each weight "
            "by itself (SGD, Adam, AdamW, ...)"
        )
    frozen = [name for name, found in parameters.items() if not all(p.requires_grad for p in found)]
    if frozen:
        raise ValueError(
            f"layers {', '.join(frozen)} are frozen (requires_grad=False): nothing would train the weights that masks "
            "leave. Let them train, or leave them out of the scope (exclude)"
        )
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, found in parameters.items() if not all(id(p) in trained for p in found)]
    if missing:
        raise ValueError(
            f"the optimizer does not train layers {', '.join(missing)}: is it of another model, or was it made before "
            "their weights were replaced? Give it these weights, or leave the layers out of the scope (exclude)"
        )


def kind_among(optimizer: Optimizer, kinds: Mapping[str, str]) -> str:
    """Return name and trait of the kind that an optimizer is of, if it is one of these; empty if it is none."""
    return next(
        (f"{cls.__name__} {kinds[cls.__name__]}" for cls in type(optimizer).__mro__ if cls.__name__ in kinds), ""
    )


def check_trainable(layers: Iterable[Layer]) -> None:
    """Raise RuntimeError if a layer has been frozen since it was taken into scope."""
    frozen = [layer.name for layer in layers if not layer.weight.requires_grad]
    if frozen:
        raise RuntimeError(
            f"layers {', '.join(frozen)} have been frozen (requires_grad=False): an update would zero weights that are "
            "no longer trained. Leave these layers out of the scope from the start, or let them train"
        )


def begin_state(optimizer: Optimizer) -> None:
    """Give fused SGD a momentum of zeros; its first step would allocate one without filling it.

    If that step is vetoed (a scaled gradient overflowed), such a momentum keeps whatever lay in the memory. From zeros
    the first momentum is the gradient, as it is without them. With dampening it would be another, so nothing is done.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not group.get("fused") or group["momentum"] == 0 or group["dampening"] != 0:
            continue
        for parameter in group["params"]:
            if parameter.requires_grad and optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def check_free(layers: Iterable[Layer]) -> None:
    """Raise ValueError if the weight of a layer is held already."""
    held = [layer.name for layer in layers if _HOLDERS.get(layer.weight, lambda: None)() is not None]
    if held:
        raise ValueError(
            f"another Sparsifier holds layers {', '.join(held)} already, and each would undo the masks of the other: "
            "call its release() first, or give the two scopes that share no layer"
        )


def hold(layers: Sequence[Layer], holder: Any, on_gradient: Callable[[Any], None] | None = None) -> Callable[[], None]:
    """Register the holder of layers; return a function that releases them, which also runs when the holder is gone.

    Every backward pass that reaches the first or the last layer calls ``on_gradient(holder)``, if it is given. Other
    layers do not call it, since the device waits for the host meanwhile.
    """
    me = weakref.ref(holder)

    def reached(_: Tensor) -> None:
        if (alive := me()) is not None and on_gradient is not None:
            on_gradient(alive)

    weights = [layer.weight for layer in layers]
    for weight in weights:
        _HOLDERS[weight] = me
    ends = {id(weight): weight for weight in (weights[0], weights[-1])}.values() if on_gradient else ()
    handles = [weight.register_post_accumulate_grad_hook(reached) for weight in ends]  # type: ignore[no-untyped-call]

    def release() -> None:
        for weight in weights:
            if _HOLDERS.get(weight) is me:
                del _HOLDERS[weight]
        for handle in handles:
            handle.remove()

    finalizer = weakref.finalize(holder, release)
    finalizer.atexit = False
    return finalizer


def all_finite(tensors: Iterable[Tensor | None]) -> Tensor:
    """Return, on the device, whether all numbers in the tensors are finite (below about 1e18); None is passed over."""
    there = [tensor for tensor in tensors if tensor is not None]
    if not there:
        return torch.tensor(True)
    # Summing squares is the fastest pass over numbers; in half precision it would overflow at once.
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in there), torch.float32)
    return torch.isfinite(torch.stack(torch._foreach_norm(there, 2, dtype))).all()
