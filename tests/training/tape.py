"""A stand-in for a CUDA graph on a CPU: it repeats operations of torch on the very tensors that they met.

What a graph would freeze, freezes here: numbers of the host, and the places of tensors. What a capture forbids, fails:
reading from a tensor, shapes that depend on data, numbers of the host that become a tensor.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

FORBIDDEN = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
READING = ("tolist", "numpy", "item", "__bool__", "__int__", "__float__", "__array__")
WRITING = ("as_tensor", "from_numpy")
"""A graph would copy the host's memory again at each replay, whatever it holds by then."""


class HostError(RuntimeError):
    """Something between the host and the device, which no graph can hold."""


class Tapes:
    """Makes tapes, and keeps them."""

    held = 0

    def __init__(self) -> None:
        self.made: list[Tape] = []

    def __call__(self) -> "Tape":
        self.made.append(Tape(self))
        return self.made[-1]

    def outside(self, tape: "Tape") -> dict[int, Tensor]:
        """Return what a tape reads or writes and no tape makes, by the address of the memory."""
        made = {key for other in self.made for key in other.inside}
        return {key: tensor for key, tensor in tape.met.items() if key not in made}


class Tape:
    """Operations in their order, each with the tensors that it took and gave."""

    def __init__(self, tapes: Tapes | None = None) -> None:
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.met: dict[int, Tensor] = {}
        """All memory that was met, by its address, which is kept."""
        self.inside: set[int] = set()
        """The memory that was made here."""
        self.replays = 0
        self._tapes = tapes or Tapes()

    def capture(self, work: Callable[[], None]) -> None:
        """Do the work, repeat nothing of it: all that was there before is as it was."""
        random, before = torch.default_generator.get_state(), _Before()
        try:
            with _host_forbidden(), _Recorder(self, before):
                work()
        finally:
            torch.default_generator.set_state(random)
            before.restore()

    @torch.no_grad()
    def replay(self) -> None:
        """Do all operations again."""
        self.replays += 1
        for function, args, kwargs, outputs in self.operations:
            found = [value for value in tree_flatten(function(*args, **kwargs))[0] if isinstance(value, Tensor)]
            for place, value in zip(outputs, found, strict=True):
                if place is not value and _address(place) != _address(value):
                    place.copy_(value)


class _Before:
    """Copies of memory as it was before something wrote to it for the first time."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[Any, Any]] = {}

    def keep(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._copies:
            self._copies[storage.data_ptr()] = storage, storage.clone()

    def restore(self) -> None:
        for storage, copy in self._copies.values():
            storage.copy_(copy)


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape, before: _Before) -> None:
        super().__init__()
        self._tape, self._before = tape, before

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, tape = kwargs or {}, self._tape
        if any(tag in function.tags for tag in FORBIDDEN) or function.name().startswith("aten::lift_fresh"):
            raise HostError(f"operation not permitted when stream is capturing: {function.name()}")
        if function.name().startswith("aten::index") and _by_mask(args):
            raise HostError(f"operation not permitted when stream is capturing: {function.name()} by a mask")
        taken = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        for tensor in taken:
            tape.met.setdefault(_address(tensor), tensor)
        # Its schema does not tell that it moves running statistics.
        writes = function._schema.is_mutable or "batch_norm" in function.name()
        if writes:
            for tensor in taken:
                if _address(tensor) not in tape.inside:
                    self._before.keep(tensor)
        result = function(*args, **kwargs)
        outputs = [value for value in tree_flatten(result)[0] if isinstance(value, Tensor)]
        known = {_address(tensor) for tensor in taken}
        is_view = not writes and outputs and all(_address(output) in known for output in outputs)
        for output in outputs:
            if _address(output) not in known:
                tape.inside.add(_address(output))
                tape.met.setdefault(_address(output), output)
        if (outputs and not is_view) or writes:
            tape.operations.append((function, *_kept((args, kwargs)), outputs))
        return result


def _kept(arguments: Any) -> Any:
    """Return the arguments without history, but in the same memory, so that nothing is freed as long as it is taped."""
    return tree_map(lambda value: value.detach() if isinstance(value, Tensor) else value, arguments)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _by_mask(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else []
    return any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)


@contextmanager
def _host_forbidden() -> Iterator[None]:
    """Let everything fail that reads from a tensor, or writes to one, past torch's operations."""

    def refuse(name: str) -> Callable[..., Any]:
        def refused(*_: Any, **__: Any) -> Any:
            raise HostError(f"operation not permitted when stream is capturing: {name}")

        return refused

    places = [*((Tensor, name) for name in READING), *((torch, name) for name in WRITING), (np, "partition")]
    before = [getattr(*place) for place in places]
    for place in places:
        setattr(*place, refuse(f"{place[0].__name__}.{place[1]}"))
    try:
        yield
    finally:
        for place, function in zip(places, before, strict=True):
            setattr(*place, function)
