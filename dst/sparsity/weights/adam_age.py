"""Adam's bias corrections by the age of each weight, not of its tensor.

``torch.optim.Adam`` counts the steps of a tensor. A weight that was grown at a late one starts with moments of zero,
but they are corrected as if they were old, so that its first move is ``(1 - beta1) / sqrt(1 - beta2)`` learning rates:
3.16 of them for 0.9 and 0.999. Here torch takes its step as ever. What it did to grown weights is then taken back, and
done as to a weight of their own age: everything else keeps its bits.
"""

import inspect
import math
import weakref
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def counts_steps(optimizer: Optimizer) -> bool:
    """Say whether an optimizer moves weights as torch's Adam and AdamW do, by one count of steps a tensor.

    NAdam, RAdam, Adamax and others have formulas of their own, and so has a class with a ``step`` of its own.
    """
    own = {inspect.unwrap(cls.step) for cls in (torch.optim.Adam, torch.optim.AdamW)}
    return isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW) and inspect.unwrap(type(optimizer).step) in own


class AdamAge:
    """Correct what each step of ``optimizer`` (``counts_steps``) does to weights that were grown.

    ``weights``: those that are held sparse, by the names of their layers. A weight is born at the step at which it was
    grown, so that its age is 1 at the next. Steps that are left out, by a GradScaler or by ``found_inf``, are no steps
    of its life. Without an effect on float arithmetic, an age is forgotten (17,000 steps for a ``beta2`` of 0.999).
    """

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._layers = [_Layer(name, weight) for name, weight in weights.items()]
        self._batches: list[_Batch] = []
        me = weakref.ref(self)

        def stepped(*_: Any) -> None:
            if (ages := me()) is not None:
                ages._after_step()

        handle = optimizer.register_step_post_hook(stepped)
        self._release = weakref.finalize(self, handle.remove)
        self._release.atexit = False

    def release(self) -> None:
        """Leave the optimizer's steps as they are from now on."""
        self._release()

    # -- births ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def changed(self, masks: Sequence[Tensor], entered: Sequence[Tensor | None]) -> None:
        """Note a change of the topology, after it; waits for the device.

        ``masks``: which weights are active now, boolean, a tensor a layer. ``entered``: which of them start from
        moments of zero; None for a layer where none does.
        """
        if all(new is None for new in entered) and not any(len(layer.positions) for layer in self._layers):
            return
        clocks = self._clocks()
        for layer, mask, new, now in zip(self._layers, masks, entered, clocks, strict=True):
            layer.change(mask, new, now, now - self._horizon(layer))
        self._put(clocks)

    def _clocks(self) -> list[int]:
        """Return the steps that the tensor of each layer has taken."""
        found: dict[int, int] = {}
        steps: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
        for i, layer in enumerate(self._layers):
            if (step := self._optimizer.state.get(layer.weight, {}).get("step")) is not None:
                steps[step.device][i] = step
        for there in steps.values():  # one synchronisation a device
            found |= zip(there, map(int, torch.stack(list(there.values())).tolist()), strict=True)
        return [found.get(i, 0) for i in range(len(self._layers))]

    def _group(self, layer: "_Layer") -> int:
        """Return the index of the parameter group of a layer."""
        groups = self._optimizer.param_groups
        return next(i for i, group in enumerate(groups) if any(p is layer.weight for p in group["params"]))

    def _horizon(self, layer: "_Layer") -> int:
        """Return the age from which on nothing is corrected."""
        return _horizon(self._optimizer.param_groups[self._group(layer)]["betas"], layer.weight.dtype)

    def _put(self, clocks: Sequence[int]) -> None:
        """Put layers with grown weights together that one pass can correct, at these steps of their tensors."""
        alike: dict[Any, list[_Layer]] = defaultdict(list)
        for layer, now in zip(self._layers, clocks, strict=True):
            if len(layer.positions):
                alike[self._group(layer), layer.weight.device, layer.weight.dtype, now].append(layer)
        self._batches = [self._batch(layers, key[0]) for key, layers in alike.items()]

    def _batch(self, layers: Sequence["_Layer"], group: int) -> "_Batch":
        """Return a batch that is ready for its first step, so that this one need not wait for the device."""
        part = _part(layers[0].weight.device, sum(layer.weight.numel() for layer in layers))
        batch = _Batch(layers, group, part)
        batch.follow(self._optimizer.param_groups[group])
        return batch

    # -- a step ----------------------------------------------------------------------------------------------------

    def _after_step(self) -> None:
        for batch in list(self._batches):
            idle = [layer for layer in batch.layers if layer.weight.grad is None]
            if not idle:
                batch.correct(self._optimizer)
            elif len(idle) < len(batch.layers):  # their counts of steps are no longer the same
                busy = [layer for layer in batch.layers if layer.weight.grad is not None]
                self._batches.remove(batch)
                self._batches += [self._batch(layers, batch.group) for layers in (idle, busy)]
                self._batches[-1].correct(self._optimizer)

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self, masks: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return by the names of layers with grown weights the step of birth of each active weight, int32.

        0: since the start, or so old that it makes no difference. In the order of the weights.
        """
        return {
            layer.name: layer.dense().view(mask.shape)[mask]
            for layer, mask in zip(self._layers, masks, strict=True)
            if len(layer.positions)
        }

    def load_state_dict(self, state: Mapping[str, Tensor], masks: Sequence[Tensor]) -> None:
        """Restore what ``state_dict`` returned; the optimizer has its own state already. ValueError if it is of others.

        Layers without an entry have no grown weights: their ages are those of their tensors.
        """
        if unknown := sorted(set(state) - {layer.name for layer in self._layers}):
            raise ValueError(f"the stored ages are of another model: it has layers {', '.join(unknown)}")
        for layer, mask in zip(self._layers, masks, strict=True):
            born = state.get(layer.name)
            if born is None:
                layer.forget()
                continue
            if len(born) != int(mask.sum()):
                raise ValueError(f"layer {layer.name}: {len(born)} ages are stored for {int(mask.sum())} weights")
            born = born.to(layer.weight.device)
            layer.remember(torch.zeros_like(mask, dtype=torch.int32).masked_scatter_(mask, born).reshape(-1))
        self._put(self._clocks())


@dataclass(eq=False)
class _Layer:
    """Where the grown weights of a layer are, in the order of its weights, and when they were born."""

    name: str
    weight: nn.Parameter
    positions: Tensor = field(init=False)
    births: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Have no grown weights."""
        self.remember(torch.zeros(0, dtype=torch.int32, device=self.weight.device))

    def remember(self, births: Tensor) -> None:
        """Take the births of all weights, flat; 0 where there was none."""
        self.positions = births.nonzero().view(-1)
        self.births = births[self.positions]

    def dense(self) -> Tensor:
        """Return the births of all weights, flat; 0 where there was none."""
        births = torch.zeros(self.weight.numel(), dtype=torch.int32, device=self.weight.device)
        return births.index_copy_(0, self.positions, self.births)

    def change(self, mask: Tensor, new: Tensor | None, now: int, forgotten: int) -> None:
        """Let ``new`` weights be born ``now``, and forget those that have left, or were born by ``forgotten``."""
        if new is None and not len(self.positions):
            return
        births = self.dense()
        if new is not None:
            births.masked_fill_(new.reshape(-1), now)
        births.masked_fill_(~mask.reshape(-1) | (births <= forgotten), 0)
        self.remember(births)


class _Batch:
    """Layers whose grown weights one pass corrects: of one parameter group, with one count of steps.

    A step of a small network takes a millisecond, of which every operation costs some microseconds. So there are as few
    as can be, they write to memory that stays, and what depends on an age is looked up. ``part``: of which weights.
    """

    def __init__(self, layers: Sequence[_Layer], group: int, part: "type[_GrownWeights | _AllWeights]") -> None:
        self.layers, self.group = layers, group
        weight = layers[0].weight
        device, dtype = weight.device, torch.promote_types(weight.dtype, torch.float32)
        own = torch.zeros(1, dtype=torch.int32, device=device)
        self._newest = torch.cat([*map(part.births, layers), own])
        """The columns of the curve at step 0: of each weight, and last that of their tensors."""
        self._columns = torch.empty_like(self._newest)
        self._curve = torch.ones(2, 1, dtype=dtype, device=device)
        self._curve_of: Any = None
        self._corrections = torch.empty(2, len(self._newest), dtype=dtype, device=device)
        self._below, self._move = self._corrections[:, :-1]
        self._own_root, self._own_factor = self._corrections[:, -1]
        self._part = part(layers, self._move)

    def correct(self, optimizer: Optimizer) -> None:
        """Add to each grown weight what its move was short of, or had too much of."""
        group, state, device = optimizer.param_groups[self.group], optimizer.state, self._curve.device
        found_inf = getattr(optimizer, "found_inf", None)
        vetoed = 0 if found_inf is None else _at_hand(found_inf, device)
        if isinstance(vetoed, int) and vetoed:
            return
        if (group["betas"], group["eps"]) != self._curve_of:
            self.follow(group)
        step = _at_hand(state[self.layers[0].weight]["step"], device)
        torch.sub(self._newest, step if isinstance(step, int) else step.to(torch.int32), out=self._columns)
        torch.index_select(self._curve, 1, self._columns.clamp_(min=0), out=self._corrections)
        # A move is factor first / (sqrt(second) + eps root): by the weight's age, less what it was by the tensor's. For
        # a weight of the tensor's age both are rounded alike, so that exactly nothing is left.
        roots = self._part.gather(state, "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq").sqrt_()
        self._move.div_(self._below.add_(roots)).addcdiv_(self._own_factor, roots.add_(self._own_root), value=-1)
        self._move.mul_(group["lr"] * (vetoed - 1))
        self._part.add(state)

    def follow(self, group: Mapping[str, Any]) -> None:
        """Correct by a parameter group's betas and eps from now on; a device is waited for."""
        self._curve_of = group["betas"], group["eps"]
        curve = _curve(group["betas"], self._curve.dtype).to(self._curve.device, copy=True)
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
    horizon = max(_horizon(betas, dtype), 1)
    powers = torch.tensor([[beta1], [beta2]], dtype=torch.float64).expand(2, horizon).cumprod(1)
    first, second = 1 - powers
    roots = second.sqrt()
    corrections = torch.stack([roots, roots / first]).to(dtype)
    return torch.cat([corrections.flip(1), torch.ones(2, 1, dtype=dtype)], 1)


def _horizon(betas: tuple[Any, Any], dtype: torch.dtype) -> int:
    """Return the age at which the corrections of both moments have become 1 in ``dtype``."""
    beta = max(map(float, betas))
    return math.ceil(math.log(torch.finfo(dtype).eps / 4) / math.log(beta)) if beta > 0 else 0


class _GrownWeights:
    """The grown weights of layers, in a row: three operations a layer and step, for a host.

    ``move``: what their first moments are multiplied by. With it and the ages, 40 bytes a grown weight are held.
    """

    births = staticmethod(attrgetter("births"))

    def __init__(self, layers: Sequence[_Layer], move: Tensor) -> None:
        self._move, self._first, self._second = move, torch.empty_like(move), torch.empty_like(move)
        sizes = [len(layer.positions) for layer in layers]
        parts = [torch.split(flat, sizes) for flat in (self._first, self._second)]
        self._places = [_Place(*place) for place in zip(layers, *parts, strict=True)]

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


class _AllWeights:
    """All weights of layers with grown ones, in a row: three operations a step for all layers, for a GPU.

    Others than grown ones are of their tensor's age, so that nothing is added to them (a zero may lose its sign).
    ``move``: what their first moments are multiplied by. With it and the ages, 20 bytes a weight are held.
    """

    @staticmethod
    def births(layer: _Layer) -> Tensor:
        """Return the steps at which the weights were born, int32, in their order in memory."""
        births = torch.empty(layer.weight.numel(), dtype=torch.int32, device=layer.weight.device)
        _shaped(births, layer.weight).copy_(layer.dense().view(layer.weight.shape))
        return births

    def __init__(self, layers: Sequence[_Layer], move: Tensor) -> None:
        self._weights: list[Tensor] = [layer.weight for layer in layers]
        self._second = torch.empty_like(move)
        sizes = [weight.numel() for weight in self._weights]
        self._moves, self._seconds = (
            [_shaped(part, weight) for part, weight in zip(torch.split(flat, sizes), self._weights, strict=True)]
            for flat in (move, self._second)
        )

    def gather(self, state: Mapping[Tensor, Mapping[str, Tensor]], second: str) -> Tensor:
        """Return the second moments, in memory that may be written to."""
        torch._foreach_copy_(self._seconds, [state[weight][second] for weight in self._weights])
        return self._second

    @torch.no_grad()
    def add(self, state: Mapping[Tensor, Mapping[str, Tensor]]) -> None:
        """Add to the weights their first moments times ``move``."""
        torch._foreach_addcmul_(self._weights, self._moves, [state[weight]["exp_avg"] for weight in self._weights])


def _part(device: torch.device, size: int) -> type[_GrownWeights | _AllWeights]:
    """Return which of so many weights to pass over: all on a GPU, where launches are dear, unless memory is dearer."""
    return _AllWeights if device.type != "cpu" and size <= 2**26 else _GrownWeights


def _shaped(flat: Tensor, weight: Tensor) -> Tensor:
    """Return a view of as many elements in a row, in the shape of a weight and its order in memory."""
    return flat.as_strided(weight.shape, torch.empty_like(weight, device="meta").stride())


class _Place:
    """A layer's part in a batch: its grown weights, and where in the flat tensors of the batch they are dealt with."""

    def __init__(self, layer: _Layer, first: Tensor, second: Tensor) -> None:
        self.weight, self._positions = layer.weight, layer.positions
        self._narrow = layer.positions.to(torch.int32 if layer.weight.numel() < 2**31 else torch.int64)
        """The positions again, for operations that take any index: a host gathers faster by half the bytes."""
        self._first, self._second = first, second
        self._pointers: tuple[int, int, int] | None = None
        self._flat: tuple[Tensor, Tensor, Tensor] = (first, first, second)

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


def _at_hand(number: Tensor, device: torch.device) -> int | Tensor:
    """Return a whole number that an optimizer keeps without waiting: where it is not the host's, on the device."""
    return int(number) if number.device.type == "cpu" else number.to(device, non_blocking=True)


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
