"""Files of tensors that somebody names, which may be anything: errors say what was found."""

import io
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

_LISTED: Final = 6
"""At most this many names are listed."""

_PICKLED: Final = re.compile(r"GLOBAL ([a-zA-Z_][\w.]+)")
"""How torch names the class of an object that it does not make."""


def load(content: bytes, path: object) -> dict[str, Any]:
    """Return the mapping that ``torch.save`` wrote, on the CPU; ValueError, saying what was found, if it is no such."""
    try:
        found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever torch stumbles over, by the bytes
        raise ValueError(f"{path} is no file of tensors (torch.save): it {_kind(content, error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, and no mapping of names to tensors")
    return found


def tensors_in(state: Mapping[str, Any], name: str, path: object) -> dict[str, Tensor]:
    """Return the tensors by name that a state holds as ``name``; ValueError, saying what was found, if it has none."""
    found = state.get(name)
    if found is None:
        there = ", ".join(map(str, list(state)[:_LISTED])) or "nothing"
        told = "there are no masks" if name == "masks" else f"there is no {name}"
        raise ValueError(f"{told} in {path}, it has {there}: give the checkpoint of a run")
    if not isinstance(found, Mapping):
        raise ValueError(f"'{name}' in {path} is a {type(found).__name__}, and no mapping of names to tensors")
    for key, value in found.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"'{name}' in {path} has a {type(value).__name__} as {key}, and no tensor")
    return dict(found)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def differing(theirs: Mapping[str, Sequence[int]], ours: Mapping[str, Sequence[int]]) -> str:
    """Return how the first of two collections of shapes differ, or are on one side only; empty if all are alike."""
    there, here = ({name: tuple(shape) for name, shape in shapes.items()} for shapes in (theirs, ours))
    names = sorted({name for name, _ in there.items() ^ here.items()})
    told = [f"{name} is {_size(there.get(name))} there and {_size(here.get(name))} here" for name in names[:_LISTED]]
    return ", ".join([*told, *([f"{len(names) - _LISTED} more"] if len(names) > _LISTED else [])])


def _size(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else "x".join(map(str, shape)) or "a number"


def _kind(content: bytes, error: Exception) -> str:
    """Return what bytes are that torch could not read."""
    if not content:
        return "is empty"
    if isinstance(error, pickle.UnpicklingError) and (named := _PICKLED.search(str(error))):
        return f"holds an object of {named[1]}; save its state_dict() instead"
    if content.startswith(b"PK"):
        return "is a zip archive that is cut off or that torch has not written"
    if content.startswith((b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        return "is a pickle that torch has not written"
    head = content[:60]
    if all(32 <= byte < 127 or byte in b"\t\r\n" for byte in head):
        return f"is text that begins with {head.decode().splitlines()[0][:40]!r}"
    return f"has {len(content):,} bytes of something else"
