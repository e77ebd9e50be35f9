"""Comparing what is saved, to the last bit."""

import re
from typing import Any


def same(one: Any, other: Any) -> bool:
    """Say whether two states, or parts of them, differ in nothing but times and attempt numbers."""
    return bool(plain(one) == plain(other))


def plain(value: Any) -> Any:
    """Return a value without times and attempt numbers; tensors as their exact bytes."""
    import torch  # here: who looks at records alone needs none

    if isinstance(value, torch.Tensor):
        raw = value.cpu().contiguous().view(-1).view(torch.uint8)
        return (str(value.dtype), tuple(value.shape), raw.numpy().tobytes())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not re.search("time/|seconds|attempt", str(key))}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def states_of(optimizer: Any, weight: Any) -> list[Any]:
    """Return the tensors of an optimizer that hold a number for each element of a weight."""
    state = optimizer.state.get(weight, {})
    return [value for value in state.values() if getattr(value, "shape", None) == weight.shape]
