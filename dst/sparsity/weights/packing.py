"""Which layers are packed."""

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from dst.kernels.build import load
from dst.sparsity.scope import Layer
from dst.sparsity.weights.packed_layer import PACKED

LIMIT: Final = 0.3
"""Above this density masks are as fast, whatever the layer."""

LEAST_CHANNELS: Final = 16
"""Of inputs and of outputs; with fewer, tiling takes longer than is gained."""


@dataclass(frozen=True)
class Packing:
    """How layers are packed.

    ``library``: the kernels; ``choose``: says of a layer with so many active weights whether it is, and ``otherwise``
    why it is not.
    """

    library: ctypes.CDLL
    choose: Callable[[Layer, int], bool]
    otherwise: str


def packed(folder: Path | None = None) -> Packing:
    """Return the packing by a fixed rule of shape and density (``is_sparse_enough``).

    ``folder``: where kernels are built; the user's cache if not given. UnavailableError says why there are none here.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Packing(load(folder or cache / "dst-kernels"), is_sparse_enough, f"denser than {LIMIT}")


def is_sparse_enough(layer: Layer, active: int) -> bool:
    """Say whether a layer has a density from which on packing pays."""
    return 0 < active <= LIMIT * layer.size


def unpackable(model: nn.Module, layers: Sequence[Layer]) -> dict[str, str]:
    """Return why layers stay masked whatever their density is, by name."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            users.setdefault(id(parameter), []).append((module, name))
    found = {layer.name: _problem(layer, users[id(layer.weight)]) for layer in layers}
    return {name: problem for name, problem in found.items() if problem is not None}


def _problem(layer: Layer, users: Sequence[tuple[nn.Module, str]]) -> str | None:
    if layer.weight.dtype != torch.float32 or layer.weight.device.type not in ("cpu", "meta"):
        return f"{layer.weight.dtype} on {layer.weight.device.type}"
    for module, name in users:
        if type(module) not in PACKED or name != "weight":
            return f"used by {type(module).__name__}"
        if isinstance(module, nn.Conv2d):
            if module.groups != 1 or max(module.dilation) > 1:
                return "groups or dilation"
            if module.padding_mode != "zeros" or isinstance(module.padding, str):
                return f"padding {module.padding_mode} {module.padding}"
    if min(layer.shape[:2]) < LEAST_CHANNELS:
        return f"fewer than {LEAST_CHANNELS} inputs or outputs"
    return None


def told(stay: Mapping[str, str]) -> str:
    """Return one line about the layers that stay masked; empty if there are none."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in stay.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
