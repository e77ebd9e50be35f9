"""FLOPs of dense and sparse networks: 2 per multiply-add of convolutions, linear layers and attention, exact integers.

The conventions are those of the sparse-training papers (RigL, Evci et al., 2020): padding counts as if it were data,
biases, norms and activations do not count, and a backward pass costs two forward passes.
"""

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dst.network.copies import without_hooks
from dst.network.places import places

_ATTENTION = "scores+values"  # no attribute of a module is called so
_BACKWARD = 2  # one pass for the gradients of the weights, one for those of the inputs


def forward_flops(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Count the dense FLOPs of one forward pass of one sample, per layer.

    ``shape``: that of a sample, without the batch. Returns ``{layer name: FLOPs}`` of all ``dst.network.places`` in
    their order; then, for each ``nn.MultiheadAttention``, those of its scores and of the sums of its values, which no
    weight takes part in, as ``<name>.scores+values``. A layer that the pass does not reach has 0, and one that it uses
    twice has the sum of both uses. A weight that several layers share counts for the first of them, as in the scope of
    a sparsity method. A product counts for the layer whose weight it multiplies by, wherever it takes place; one with
    a weight that is computed anew, for the layer (or the attention) in whose forward it takes place.
    The pass runs on a copy on the meta device: it takes neither time nor memory and changes neither the model (weights,
    buffers, hooks, training flags) nor the random numbers. Raises ``ValueError`` if FLOPs are spent elsewhere (in
    products of activations, for example), since these have no density.
    """
    from torch.utils.flop_counter import FlopCounterMode, flop_registry  # imported here since it takes time

    twin = _on_meta(model).eval()  # eval: batch norm takes a batch of one, dropout no random numbers
    meter = _Meter(twin)
    counter = FlopCounterMode(display=False, custom_mapping={op: meter.of(flop_registry[op]) for op in flop_registry})
    dtypes = [tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()]
    sample = torch.empty((1, *shape), device="meta", dtype=dtypes[0] if dtypes else None)
    with torch.no_grad(), counter:
        twin(sample)
    elsewhere = counter.get_total_flops() - sum(meter.counts.values())
    if elsewhere:
        raise ValueError(
            f"{elsewhere} of {counter.get_total_flops()} FLOPs of {type(model).__name__} are spent outside its "
            "convolutions, linear layers and attention, where no density is known for them"
        )
    return meter.counts


class _Meter:
    """Puts every product that a model on the meta device computes down to a layer, while the model runs.

    ``counts``: FLOPs by layer so far.
    """

    def __init__(self, model: nn.Module) -> None:
        self.counts: dict[str, int] = {}
        self._of_storage: dict[int, str] = {}
        self._running: list[str] = []  # the layers whose forward runs, the innermost last
        for place in places(model):
            weight = place.parameter  # None if it is computed anew: then its module stands for it
            owner = place.name if weight is None else self._of_storage.setdefault(_storage(weight), place.name)
            self.counts[owner] = 0
            if not isinstance(place.module, nn.MultiheadAttention):
                self._follow(place.module, owner)
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                owner = f"{name}.{_ATTENTION}" if name else _ATTENTION
                self.counts[owner] = 0
                self._follow(module, owner)

    def of(self, formula: Any) -> Any:
        """Return a formula of ``torch.utils.flop_counter`` that also puts down what it returns."""

        def count(*args: Any, **kwargs: Any) -> int:
            flops: int = formula(*args, **kwargs)
            owners = [name for name in map(self._owner, args) if name is not None] or self._running[-1:]
            if owners:
                self.counts[owners[0]] += flops
            return flops

        count._get_raw = True  # type: ignore[attr-defined]  # it takes tensors, not their shapes
        return count

    def _owner(self, operand: Any) -> str | None:
        """Return the layer whose weight an operand is, or a part of which."""
        return self._of_storage.get(_storage(operand)) if isinstance(operand, Tensor) else None

    def _follow(self, module: nn.Module, owner: str) -> None:
        def end(*_: Any) -> None:
            self._running.pop()

        module.register_forward_pre_hook(lambda *_: self._running.append(owner))
        module.register_forward_hook(end)


def _storage(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor, which its views share, from that of others; no address on meta."""
    identity: int = tensor.untyped_storage()._cdata
    return identity


def _on_meta(model: nn.Module) -> nn.Module:
    """Return a deep copy on the meta device, without hooks; no weight is copied on the way.

    ``deepcopy`` takes what is in its memo for copied already: here also tensors without data.
    """
    memo = without_hooks(model)
    for module in model.modules():
        for value in (*module._parameters.values(), *module._buffers.values(), *vars(module).values()):
            if isinstance(value, Tensor):
                memo[id(value)] = torch.empty_like(value, device="meta", requires_grad=False)
    return copy.deepcopy(model, memo)


class Flops:
    """The cost of passes through a network, given the number of active weights of each sparse layer.

    ``dense``: FLOPs of one forward of one sample per layer, from ``forward_flops``; ``sizes``: number of weights of
    each maskable layer, by the same names (all other layers stay dense); ``trained``: those of each maskable layer that
    every backward pass computes a gradient for, if that is not the active ones alone. All results are exact integers.
    Raises ``ValueError`` for a maskable layer that ``dense`` lacks, or whose FLOPs are not a multiple of its size.
    """

    def __init__(
        self, dense: Mapping[str, int], sizes: Mapping[str, int], trained: Mapping[str, int] | None = None
    ) -> None:
        self._sizes = dict(sizes)
        self._per_weight = {name: _per_weight(name, dense, size) for name, size in sizes.items()}
        self._dense = sum(dense.values())
        self._never_sparse = sum(flops for name, flops in dense.items() if name not in sizes)
        self._last: tuple[dict[str, int], int] | None = None
        self.set_trained(trained)

    def set_trained(self, trained: Mapping[str, int] | None) -> None:
        """Say of how many weights every backward pass computes gradients from now on; None: of the active ones."""
        self._of_weights = None if trained is None else self._sparse(self._checked(trained))

    @property
    def dense(self) -> int:
        """FLOPs of one forward of one sample through the dense network."""
        return self._dense

    def of_layer(self, name: str) -> int:
        """Return the FLOPs of one forward of one sample through a maskable layer, dense."""
        return self._per_weight[name] * self._sizes[name]

    @property
    def maskable(self) -> int:
        """Number of weights of all maskable layers."""
        return sum(self._sizes.values())

    def test(self, active: Mapping[str, int]) -> int:
        """Return the FLOPs of one forward of one sample; ``active``: active weights of each maskable layer.

        Raises ``ValueError`` unless ``active`` names exactly the maskable layers, each with at most its size.
        """
        # Called at every step, while the counts change at updates only.
        if self._last is None or self._last[0] != active:
            counts = self._checked(active)
            self._last = counts, self._sparse(counts)
        return self._last[1]

    def dense_training(self, samples: int) -> int:
        """Return the FLOPs of training the dense network on a number of samples, all epochs together."""
        return samples * (1 + _BACKWARD) * self._dense

    def backward(self, active: Mapping[str, int]) -> int:
        """Return the FLOPs of one backward pass of one sample: as sparse as the forward pass, but for ``trained``."""
        forward = self.test(active)
        return _BACKWARD * forward if self._of_weights is None else forward + self._of_weights

    def dense_gradient(self, active: Mapping[str, int]) -> int:
        """Return what a backward pass of one sample costs more if inactive weights need gradients too (RigL)."""
        return self._dense - self.test(active)

    def _sparse(self, counts: Mapping[str, int]) -> int:
        return self._never_sparse + sum(count * self._per_weight[name] for name, count in counts.items())

    def _checked(self, active: Mapping[str, int]) -> dict[str, int]:
        if active.keys() != self._sizes.keys():
            differ = ", ".join(sorted(active.keys() ^ self._sizes.keys()))
            raise ValueError(f"active counts must name exactly the maskable layers; these differ: {differ}")
        # index: converts the integers of other libraries, whose arithmetic overflows, and refuses fractions
        counts = {name: operator.index(count) for name, count in active.items()}
        for name, count in counts.items():
            if not 0 <= count <= self._sizes[name]:
                raise ValueError(f"layer '{name}' cannot have {count} active weights: it has {self._sizes[name]}")
        return counts


class Account:
    """FLOPs for one purpose so far; whoever makes a pass books it. ``active``: active weights of each sparse layer."""

    def __init__(self, flops: Flops) -> None:
        self._flops = flops
        self.total = 0

    def forward(self, active: Mapping[str, int], samples: int) -> None:
        """Book a forward pass of so many samples."""
        self.total += samples * self._flops.test(active)

    def dense_forward(self, samples: int) -> None:
        """Book a forward pass through the dense network; a backward pass counts as two."""
        self.total += samples * self._flops.dense

    def backward(self, active: Mapping[str, int], samples: int) -> None:
        """Book a backward pass."""
        self.total += samples * self._flops.backward(active)

    def dense_gradient(self, active: Mapping[str, int], samples: int) -> None:
        """Book what a backward pass costs more since inactive weights need gradients too."""
        self.total += samples * self._flops.dense_gradient(active)


class Ledger:
    """What a run has computed, in FLOPs, by purpose.

    ``training``: what the method itself needs; ``correction``: the extra passes of a gradient correction;
    ``batch_norm``: those for statistics of networks that were not trained; ``measuring``: those that nothing depends
    on, which are no part of the ``total``.
    """

    def __init__(self, flops: Flops) -> None:
        self.flops = flops
        self.training = Account(flops)
        self.correction = Account(flops)
        self.batch_norm = Account(flops)
        self.measuring = Account(flops)

    @property
    def total(self) -> int:
        """FLOPs of training, all that it needs included."""
        return self.training.total + self.correction.total + self.batch_norm.total

    def state_dict(self) -> dict[str, int]:
        """Return the total of every account."""
        return {name: account.total for name, account in self._accounts().items()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Restore what ``state_dict`` returned."""
        for name, account in self._accounts().items():
            account.total = state[name]

    def _accounts(self) -> dict[str, Account]:
        return {name: account for name, account in vars(self).items() if isinstance(account, Account)}


def _per_weight(name: str, dense: Mapping[str, int], size: int) -> int:
    if name not in dense:
        raise ValueError(f"maskable layer '{name}' has no dense FLOPs; there are those of {', '.join(dense) or 'none'}")
    per_weight, rest = divmod(dense[name], size)
    if rest:
        raise ValueError(f"layer '{name}': {dense[name]} FLOPs are not a multiple of its {size} weights")
    return per_weight
