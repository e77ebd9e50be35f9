"""Taking back what a step of Adam did to grown weights, and doing it as to weights of their own age.

An ordinary step of training goes through all this, so that it is made to cost little: batches of layers, each corrected
by a few operations, over the grown weights of a host or over all of a GPU.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.sparsity.weights.births import Births


class AgedLayer(Births):
    """A layer and the births of its grown weights, in the order in which its parameter holds them."""

    def __init__(self, name: str, weight: nn.Parameter, size: int) -> None:
        super().__init__(size, weight.device)
        self.name, self.weight = name, weight

    def hold(self, places: Tensor | None) -> None:
        """Follow a parameter that holds other weights of the layer from now on, or all of them (None)."""
        births = self.dense()
        self.places = places
        self.remember(births)


class Batch:
    """Layers whose grown weights one pass corrects: of one parameter group, with one count of steps.

    A step of a small network takes a millisecond, of which every operation costs some microseconds. So there are as few
    as can be, they write to memory that stays, and what depends on an age is looked up. ``part``: of which weights. One
    for a device (``stays``) reads nothing on the host in a step, so that a step may be captured and replayed.
    """

    def __init__(self, layers: Sequence[AgedLayer], group: int, part: "type[GrownWeights | AllWeights]") -> None:
        self.layers, self.group = layers, group
        self._forms = _forms(layers)
        weight = layers[0].weight
        self._device, dtype = (device := weight.device), torch.promote_types(weight.dtype, torch.float32)
        self._own = torch.zeros(1, dtype=torch.int32, device=device)
        self._newest = torch.cat([*map(part.births, layers), self._own])
        """The columns of the curve at step 0: of each weight, and last that of their tensors."""
        self._columns = torch.empty_like(self._newest)
        self._last = self._newest.max()
        """The last step at which a weight was born."""
        self._lives = torch.ones((), dtype=dtype, device=device)
        """Whether the optimizer has come to that step, else it has begun anew, and all weights with it."""
        self._curve = torch.ones(2, 1, dtype=dtype, device=device)
        self._curve_of: Any = None
        self._corrections = torch.empty(2, len(self._newest), dtype=dtype, device=device)
        self._below, self._move = self._corrections[:, :-1]
        self._own_root, self._own_factor = self._corrections[:, -1]
        self._part = part(layers, self._move)

    def suits(self, layers: Sequence[AgedLayer], group: int, part: "type[GrownWeights | AllWeights]") -> bool:
        """Say whether it is of these layers as they are held now, so that nothing but births may differ."""
        is_same = part.stays and isinstance(self._part, part) and group == self.group and self.layers == layers
        return is_same and self._forms == _forms(layers)

    def refill(self) -> None:
        """Take the births of now, to where those before were; only if it ``suits``."""
        torch.cat([*map(self._part.births, self.layers), self._own], out=self._newest)
        torch.amax(self._newest, 0, out=self._last)
        self._newest += self._curve.shape[1] - 1

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes, and is no layer's."""
        own = [self._newest, self._columns, self._last, self._lives, self._curve, self._corrections]
        return [*own, *self._part.step_tensors]

    def correct(self, optimizer: Optimizer) -> None:
        """Add to each grown weight what its move was short of, or had too much of."""
        group, state = optimizer.param_groups[self.group], optimizer.state
        found_inf = getattr(optimizer, "found_inf", None)
        vetoed = 0 if found_inf is None else self._at_hand(found_inf)
        if isinstance(vetoed, int) and vetoed:
            return
        self.follow(group)
        step = self._at_hand(state[self.layers[0].weight]["step"])
        lives = self._has_come_to(step)
        if lives is False:
            return
        torch.sub(self._newest, step if isinstance(step, int) else step.to(torch.int32), out=self._columns)
        torch.index_select(self._curve, 1, self._columns.clamp_(0, self._curve.shape[1] - 1), out=self._corrections)
        # A move is factor first / (sqrt(second) + eps root): by the weight's age, less what it was by the tensor's. For
        # a weight of the tensor's age both are rounded alike, so that exactly nothing is left.
        roots = self._part.gather(state, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq").sqrt_()
        self._move.div_(self._below.add_(roots)).addcdiv_(self._own_factor, roots.add_(self._own_root), value=-1)
        self._move.mul_(group["lr"] * ((vetoed - 1) * lives))
        self._part.add(state)

    def _at_hand(self, number: Tensor) -> int | Tensor:
        """Return a whole number that an optimizer keeps without waiting: on the device, unless the host has it."""
        if number.device.type != "cpu":
            return number.to(self._device, non_blocking=True)
        return number if self._device.type == "cpu" and self._part.stays else int(number)

    def _has_come_to(self, step: int | Tensor) -> bool | Tensor:
        """Say whether a step is later than the birth of all weights: to the host if that has the step."""
        if isinstance(step, int) and self._device.type == "cpu":
            return step > int(self._last)
        if isinstance(step, Tensor):
            return torch.gt(step, self._last, out=self._lives)
        return torch.lt(self._last, step, out=self._lives)

    def follow(self, group: Mapping[str, Any]) -> None:
        """Correct by a parameter group's betas and eps from now on; where they are others, a device is waited for."""
        if (tuple(group["betas"]), group["eps"]) == self._curve_of:
            return
        self._curve_of = tuple(group["betas"]), group["eps"]
        curve = _curve(tuple(group["betas"]), self._curve.dtype).to(self._curve.device, copy=True)
        curve[0].mul_(group["eps"])
        self._newest += curve.shape[1] - self._curve.shape[1]
        self._curve = curve


@lru_cache(maxsize=4)
def _curve(betas: tuple[Any, Any], dtype: torch.dtype) -> Tensor:
    """Return the bias corrections by age, the oldest first and 0 last: of the roots of second moments, and of all.

    From the first column on, which is of ages that make no difference any more, both are 1. In float64 at first, since
    ``1 - beta2 ** age`` cancels, and one by one, so that the bits do not depend on how many there are. 2 x (ages + 1).
    """
    beta1, beta2 = (float(beta) for beta in betas)
    oldest = max(horizon(betas, dtype), 1)
    powers = torch.tensor([[beta1], [beta2]], dtype=torch.float64).expand(2, oldest).cumprod(1)
    first, second = 1 - powers
    roots = second.sqrt()
    corrections = torch.stack([roots, roots / first]).to(dtype)
    return torch.cat([corrections.flip(1), torch.ones(2, 1, dtype=dtype)], 1)


def horizon(betas: tuple[Any, Any], dtype: torch.dtype) -> int:
    """Return the age at which the corrections of both moments have become 1 in ``dtype``."""
    beta = max(map(float, betas))
    return math.ceil(math.log(torch.finfo(dtype).eps / 4) / math.log(beta)) if beta > 0 else 0


class GrownWeights:
    """The grown weights of layers, in a row: three operations a layer and step, for a host.

    ``move``: what their first moments are multiplied by. With it and the ages, 40 bytes a grown weight are held.
    """

    births = staticmethod(attrgetter("births"))
    stays = False
    """Whether its tensors are the same whatever weights have grown, and a step is left to the device."""

    def __init__(self, layers: Sequence[AgedLayer], move: Tensor) -> None:
        self._move, self._first, self._second = move, torch.empty_like(move), torch.empty_like(move)
        sizes = [len(layer.positions) for layer in layers]
        parts = [torch.split(flat, sizes) for flat in (self._first, self._second)]
        self._places = [_Place(*place) for place in zip(layers, *parts, strict=True)]

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes."""
        return [self._first, self._second, *(tensor for place in self._places for tensor in place.positions)]

    def gather(self, state: Mapping[Tensor, Mapping[str, Tensor]], second: str) -> Tensor:
        """Return the second moments, in memory that may be written to."""
        for place in self._places:
            place.gather(state[place.weight], second)
        return self._second

    def add(self, state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Add to the weights their first moments times ``move``."""
        self._first.mul_(self._move)
        with _distinct(self._move):
            for place in self._places:
                place.add()


class AllWeights:
    """All weights of layers with grown ones, in a row: four operations a step for all layers, for a GPU.

    Others than grown ones are of their tensor's age, so that nothing is added to them (a zero may lose its sign).
    ``move``: what their first moments are multiplied by. With it and the ages, 20 bytes a weight are held.
    """

    stays = True
    """Whether its tensors are the same whatever weights have grown, and a step is left to the device."""

    @staticmethod
    def births(layer: AgedLayer) -> Tensor:
        """Return the steps at which the weights were born, int32, in their order in memory."""
        births = torch.empty(layer.weight.numel(), dtype=torch.int32, device=layer.weight.device)
        _shaped(births, layer.weight).copy_(layer.held().view(layer.weight.shape))
        return births

    def __init__(self, layers: Sequence[AgedLayer], move: Tensor) -> None:
        self._weights: list[Tensor] = [layer.weight for layer in layers]
        self._second = torch.empty_like(move)
        sizes = [weight.numel() for weight in self._weights]
        self._moves, self._seconds = (
            [_shaped(part, weight) for part, weight in zip(torch.split(flat, sizes), self._weights, strict=True)]
            for flat in (move, self._second)
        )

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step writes."""
        return [self._second]

    def gather(self, state: Mapping[Tensor, Mapping[str, Tensor]], second: str) -> Tensor:
        """Return the second moments, in memory that may be written to."""
        torch._foreach_copy_(self._seconds, [state[weight][second] for weight in self._weights])
        return self._second

    @torch.no_grad()
    def add(self, state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Add to the weights their first moments times ``move``, which is overwritten."""
        # Not fused: products are rounded before they are added, as on a host, so that both ways give the same bits.
        torch._foreach_mul_(self._moves, [state[weight]["exp_avg"] for weight in self._weights])
        torch._foreach_add_(self._weights, self._moves)


def part_for(device: torch.device, size: int) -> type[GrownWeights | AllWeights]:
    """Return which of so many weights to pass over: all on a GPU, where launches are dear, unless memory is dearer."""
    return AllWeights if device.type != "cpu" and size <= 2**26 else GrownWeights


def _forms(layers: Sequence[AgedLayer]) -> list[Any]:
    """Return what tensors of the weights of layers have to be like."""
    return [(weight.shape, weight.stride(), weight.dtype, weight.device) for weight in (la.weight for la in layers)]


def _shaped(flat: Tensor, weight: Tensor) -> Tensor:
    """Return a view of as many elements in a row, in the shape of a weight and its order in memory."""
    return flat.as_strided(weight.shape, torch.empty_like(weight, device="meta").stride())


class _Place:
    """A layer's part in a batch: its grown weights, and where in the flat tensors of the batch they are dealt with."""

    def __init__(self, layer: AgedLayer, first: Tensor, second: Tensor) -> None:
        self.weight, self._positions = layer.weight, layer.positions
        self._narrow = layer.positions.to(torch.int32 if layer.weight.numel() < 2**31 else torch.int64)
        """The positions again, for operations that take any index: a host gathers faster by half the bytes."""
        self._first, self._second = first, second
        self._pointers: tuple[int, int, int] | None = None
        self._flat: tuple[Tensor, Tensor, Tensor] = (first, first, second)

    @property
    def positions(self) -> tuple[Tensor, Tensor]:
        """Where the grown weights are, as each operation takes it."""
        return self._positions, self._narrow

    def gather(self, state: Mapping[str, Tensor], second: str) -> None:
        """Gather the moments of the grown weights."""
        found = self.weight, state["exp_avg"], state[second]
        pointers = found[0].data_ptr(), found[1].data_ptr(), found[2].data_ptr()
        if pointers != self._pointers:  # views of them are kept, since making them takes as long as using them
            weight, first, other = (_flat(tensor.detach()) for tensor in found)
            self._pointers, self._flat = pointers, (weight, first, other)
        _gather(self._flat[1], self._narrow, self._first)
        _gather(self._flat[2], self._narrow, self._second)

    def add(self) -> None:
        """Add to the grown weights what is where their first moments were."""
        weight, move = self._flat[0], self._first.to(self.weight.dtype)
        if weight.dim() == 1:
            weight.scatter_add_(0, self._positions, move)
        else:
            weight.put_(self._positions, move, accumulate=True)


def _flat(tensor: Tensor) -> Tensor:
    """Return a tensor flat if it can be without copying, else as it is."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor


def _gather(tensor: Tensor, positions: Tensor, out: Tensor) -> None:
    """Copy the elements at flat positions."""
    if tensor.dim() == 1 and tensor.dtype == out.dtype:
        torch.index_select(tensor, 0, positions, out=out)
    else:
        out.copy_(torch.take(tensor, positions.long()))


def _distinct(tensor: Tensor) -> AbstractContextManager[Any]:
    """Let distinct positions be added to in any order, whatever is asked of algorithms: the sums are the same."""
    is_asked = tensor.is_cuda and torch.are_deterministic_algorithms_enabled()
    return _any_order() if is_asked else nullcontext()


@contextmanager
def _any_order() -> Iterator[None]:
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=only_warns)
