"""Which layers are packed."""

import ctypes
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from dst.kernels import choice
from dst.kernels.blocks import alike
from dst.kernels.build import UnavailableError, load
from dst.kernels.choice import Timing
from dst.kernels.product import Tiles
from dst.kernels.shape import Shape
from dst.kernels.unit_blocks import load as load_units
from dst.kernels.units import BLOCKS, UNIT, units_of
from dst.options import refuse, shown, suggest
from dst.sparsity.scope import Layer
from dst.sparsity.weights.packed_layer import PACKED, PackedLayer, shape_of, smallest
from dst.sparsity.weights.packed_units import PackedUnits

LIMIT: Final = 0.3
"""Above this density masks are as fast, whatever the layer."""

BLOCK_LIMIT: Final = 0.5
"""The same of masks of which rows are alike, eight at least."""

TIMED_LIMIT: Final = 0.5
"""Layers that are denser need not be timed: masks are faster."""

LEAST_CHANNELS: Final = 16
"""Of inputs and of outputs; with fewer, tiling takes longer than is gained."""


_NO_UNITS: Final = f"without units of {UNIT} adjacent inputs that groups of {min(BLOCKS)} outputs share"


@dataclass(frozen=True)
class Decision(Timing):
    """Whether a layer is packed, by the times that its forward and backward pass took both ways at its density."""

    layer: str

    @property
    def row(self) -> dict[str, Any]:
        """The decision as it goes on record."""
        return {"layer": self.layer, **vars(self), "choice": self.choice}


class Packing(ABC):
    """How layers are packed. ``library``: the kernels, on a CPU."""

    otherwise: str
    """Why a layer is not packed that could be."""

    device = "cpu"
    """The type of device that it is for."""

    def __init__(self, library: ctypes.CDLL | None) -> None:
        self.library = library
        self.decisions: dict[str, Decision] = {}
        """The last decision about each layer, by name, where layers are timed."""
        self.fresh: list[Decision] = []
        """Decisions that nobody has taken note of yet."""
        self.has_seen_more = False
        """Whether layers without a decision have been met since the last choices."""

    @abstractmethod
    def choose(self, layer: Layer, active: int, mask: Tensor) -> bool:
        """Say whether a layer with this mask, of so many active weights, is packed."""

    def layer(self, weight: Tensor, pool: Tiles, restore: Callable[[], None]) -> PackedLayer:
        """Return what multiplies by the active weights of a layer (``PackedLayer``)."""
        assert self.library is not None
        return PackedLayer(weight, self.library, pool, restore)

    def watch(self, layers: Sequence[Layer]) -> None:  # noqa: B027 - most need not
        """Look at what the layers that may be packed are given."""


class FixedRule(Packing):
    """Packs all layers that have a density from which on it pays, whatever the machine: the same on all of them."""

    otherwise = f"denser than {LIMIT}, or {BLOCK_LIMIT} in blocks of rows"

    def choose(self, layer: Layer, active: int, mask: Tensor) -> bool:
        """Say whether the layer is sparse enough, of its kind."""
        if not is_sparse_enough(layer, active, BLOCK_LIMIT):
            return False
        return is_sparse_enough(layer, active) or limit_of(mask) == BLOCK_LIMIT


class _OnGPU(Packing):
    """Packs, on a GPU, layers whose masks have units that groups of rows share."""

    device = "cuda"

    def layer(self, weight: Tensor, pool: Tiles, restore: Callable[[], None]) -> PackedLayer:
        """Return what multiplies by the active weights of a layer on a GPU."""
        return PackedUnits(weight, restore)


class UnitsRule(_OnGPU):
    """Packs, on a GPU, the layers that are sparse enough and whose masks have units that groups of rows share."""

    otherwise = f"denser than {BLOCK_LIMIT}, or {_NO_UNITS}"

    def __init__(self) -> None:
        super().__init__(None)

    def choose(self, layer: Layer, active: int, mask: Tensor) -> bool:
        """Say whether the layer is sparse enough, and its mask of such units."""
        return is_sparse_enough(layer, active, BLOCK_LIMIT) and has_units(mask)


@dataclass(frozen=True)
class Met:
    """What a layer was given in training. ``shape``: of the inputs; ``is_first``: these need no gradient."""

    module: nn.Linear | nn.Conv2d
    shape: torch.Size
    is_first: bool

    @property
    def product(self) -> tuple[Shape, int]:
        """The shape of the product, and the number of samples."""
        if isinstance(self.module, nn.Conv2d):
            return shape_of(self.module, self.shape[-2], self.shape[-1]), self.shape[0] if len(self.shape) == 4 else 1
        return smallest(self.module), self.shape[:-1].numel()


Time = Callable[[Met, Tensor], Timing]
"""Times a layer with a mask, masked and packed."""


class _Hook:
    """What a module calls, but no copy of it."""

    def __init__(self, call: Callable[..., None]) -> None:
        self._call = call

    def __call__(self, *given: Any) -> None:
        self._call(*given)

    def __reduce__(self) -> Any:
        return _Idle, ()


class _Idle:
    """A hook that does nothing."""

    def __call__(self, *given: Any) -> None:
        pass


class Timed(Packing):
    """Packs the layers that are faster so, of what they are given in training, on this machine, at this moment.

    A layer is timed after the first step, and again whenever its density has halved. ``agree``: overwrites a tensor by
    that of the main process, so that several processes pack the same layers.
    """

    otherwise = "not faster, or not timed yet"

    def __init__(self, library: ctypes.CDLL | None, time: Time, agree: Callable[[Sequence[Tensor]], None]) -> None:
        super().__init__(library)
        self._time, self._agree = time, agree
        self._met: dict[str, Met] = {}

    def choose(self, layer: Layer, active: int, mask: Tensor) -> bool:
        """Say whether the layer is faster packed; False before anything was met."""
        density, known = active / layer.size, self.decisions.get(layer.name)
        is_due = known is None or density <= known.density / 2
        if is_due and is_sparse_enough(layer, active, TIMED_LIMIT) and layer.name in self._met:
            timing = self._time(self._met[layer.name], mask)
            times = torch.tensor([timing.masked_ms, timing.packed_ms], dtype=torch.float64)
            self._agree([times])
            masked_ms, packed_ms = times.tolist()
            known = Decision(density, masked_ms, packed_ms, layer.name)
            self.decisions[layer.name] = known
            self.fresh.append(known)
        self.has_seen_more = False
        return known is not None and known.choice == "packed"

    def watch(self, layers: Sequence[Layer]) -> None:
        """Remember what each layer is given first in training."""
        for layer in layers:
            self._watch(layer.name, layer.places[0].module)

    def _watch(self, name: str, module: nn.Module) -> None:
        def met(module: nn.Module, given: tuple[Any, ...]) -> None:
            assert isinstance(module, nn.Linear | nn.Conv2d)
            if module.training and torch.is_grad_enabled():
                self._met[name] = Met(module, given[0].shape, not given[0].requires_grad)
                self.has_seen_more |= name not in self.decisions
                handle.remove()

        handle = module.register_forward_pre_hook(_Hook(met))


class TimedUnits(_OnGPU, Timed):
    """Packs, on a GPU, the layers that are faster so (``Timed``), of those whose masks have units that groups share."""

    otherwise = f"{Timed.otherwise}, or {_NO_UNITS}"

    def choose(self, layer: Layer, active: int, mask: Tensor) -> bool:
        """Say whether the layer is faster packed; False before anything was met, and without units."""
        self.has_seen_more = False
        return has_units(mask) and super().choose(layer, active, mask)


def packed(folder: Path | None = None) -> Packing:
    """Return the packing by a fixed rule of shape and density (``is_sparse_enough``).

    ``folder``: where kernels are built; the user's cache if not given. UnavailableError says why there are none here.
    """
    return FixedRule(load(folder or _cache()))


def timed(
    folder: Path | None = None,
    *,
    autocast: torch.dtype | None = None,
    agree: Callable[[Sequence[Tensor]], None] = lambda _: None,
) -> Packing:
    """Return the packing by times of real layers (``Timed``); ``folder`` and errors as with ``packed``.

    ``autocast``: the type that training casts to.
    """
    library = load(folder or _cache())

    def time(met: Met, mask: Tensor) -> Timing:
        shape, samples = met.product
        return choice.timed(library, shape, samples, mask, autocast=autocast, input_gradient=not met.is_first)

    return Timed(library, time, agree)


def packed_units(folder: Path | None = None) -> Packing:
    """Return the packing by a fixed rule on a GPU (``UnitsRule``).

    ``folder``: where kernels are compiled; Triton's cache if not given. UnavailableError says why there are none here.
    """
    load_units(folder)
    return UnitsRule()


def timed_units(
    folder: Path | None = None,
    *,
    autocast: torch.dtype | None = None,
    agree: Callable[[Sequence[Tensor]], None] = lambda _: None,
) -> Packing:
    """Return the packing by times of real layers on a GPU (``TimedUnits``); as ``timed``, ``folder`` apart."""
    load_units(folder)

    def time(met: Met, mask: Tensor) -> Timing:
        shape, samples = met.product
        return choice.timed_units(shape, samples, mask, autocast=autocast, input_gradient=not met.is_first)

    return TimedUnits(None, time, agree)


def packing_of(compute: str | Packing, layers: Sequence[Layer]) -> Packing:
    """Return how layers are packed where they are; ValueError for a name that is none of a packing."""
    if isinstance(compute, Packing):
        return compute
    is_on_gpu = any(layer.weight.is_cuda for layer in layers)
    how = {"packed": packed_units, "auto": timed_units} if is_on_gpu else {"packed": packed, "auto": timed}
    if compute not in how:
        refuse([f"compute={shown(compute)}: {suggest(compute, ['masked', *how])}"])
    return how[compute]()


def _cache() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dst-kernels"
    except RuntimeError as error:  # of Path.home
        raise UnavailableError(f"there is no folder for kernels ({error}): set HOME, or give one") from error


def is_sparse_enough(layer: Layer, active: int, limit: float = LIMIT) -> bool:
    """Say whether a layer has a density from which on packing pays, or may pay; counts are rounded."""
    return 0 < active <= math.ceil(limit * layer.size)


def limit_of(mask: Tensor) -> float:
    """Return the density up to which a layer with this mask is packed."""
    return LIMIT if alike(mask) is None else BLOCK_LIMIT


def has_units(mask: Tensor) -> bool:
    """Say whether a mask is of units that groups of rows share (``units_of``)."""
    try:
        units_of(mask)
    except ValueError:
        return False
    return True


def unpackable(model: nn.Module, layers: Sequence[Layer], device: str = "cpu") -> dict[str, str]:
    """Return why layers stay masked whatever their density is, by name; ``device``: where they are to be packed."""
    users: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            users.setdefault(id(parameter), []).append((module, name))
        if isinstance(module, nn.TransformerEncoderLayer):  # in evaluation it takes the weights past their modules
            for name, parameter in module.named_parameters():
                users.setdefault(id(parameter), []).append((module, name))
    found = {layer.name: _problem(layer, users[id(layer.weight)], device) for layer in layers}
    return {name: problem for name, problem in found.items() if problem is not None}


def _problem(layer: Layer, users: Sequence[tuple[nn.Module, str]], device: str) -> str | None:
    if layer.weight.dtype != torch.float32 or layer.weight.device.type not in ("cpu", "meta", device):
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
    if device == "cuda" and (layer.shape[0] % min(BLOCKS) or layer.shape[1] % UNIT):
        return f"outputs not divisible by {min(BLOCKS)}, or inputs by {UNIT}"
    return None


def told(stay: Mapping[str, str]) -> str:
    """Return one line about the layers that stay masked; empty if there are none."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in stay.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
