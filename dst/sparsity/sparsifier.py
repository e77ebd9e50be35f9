"""The one stateful class that a training loop meets: it composes the parts of a method and applies them."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst import registry
from dst.fractions import Curve, exact
from dst.options import OptionError, Range, check_part, checked, refuse
from dst.seeding import derive_seed
from dst.sparsity.allocation import level_counts, share
from dst.sparsity.distribution import Distribution
from dst.sparsity.drop_fraction import constant
from dst.sparsity.held import (
    all_finite,
    begin_state,
    check_free,
    check_optimizer,
    check_trainable,
    check_zeros,
    hold,
)
from dst.sparsity.initial_masks import FirstParts, Init, Start, check_layout, check_room, check_sharing, first_masks
from dst.sparsity.marks import Mark, marks_of
from dst.sparsity.options import FirstDensity, Part, Pool, drop_problems, pattern_problems, scope_problems
from dst.sparsity.pattern import Budget, Pattern
from dst.sparsity.plan import UpdatePlan
from dst.sparsity.redistribute import Statistic
from dst.sparsity.saliency import Criterion, Probe
from dst.sparsity.scope import Layer, Scope, never_sparse, outside
from dst.sparsity.select import bottom_k, count_true, pooled_top_k, top_k
from dst.sparsity.topology import LayerReport, Topology
from dst.sparsity.view import LayerView, Score

DEFAULT: Final = "default"
"""Stands for a drop by magnitude and growth by gradient where there is a plan, and for neither where there is none."""


class Sparsifier:
    """Keep a model sparse while ``optimizer`` trains it, and update its topology as planned.

    An update first prunes to the scheduled density, if there is a schedule (GMP, GraNet). Then it drops weights, shares
    the freed places among the layers, and grows as many weights.

    Args:
        model: its convolution and linear weights (those in ``scope``) are masked in place.
        optimizer: trains all layers in scope, each weight by itself; its state of inactive weights is kept at exactly
            zero.
        density: active fraction of all weights in scope at the start; None for the ``dense`` distribution, and for an
            init or a pattern with counts of its own.
        distribution, init, pattern, drop, grow, redistribute: names, or functions as in the modules of those names;
            without ``drop`` and ``grow`` an update only prunes. Options of a part: a ``functools.partial`` of it.
        plan: when to update, by magnitude and gradient if nothing else is given; None for a static topology, which has
            neither ``drop`` nor ``grow``.
        drop_fraction: of a layer's active weights, per update: a number or a curve over steps; 0.3 if not given.
        drop_pool: drop that fraction in each ``layer``, or of all layers together (``global``).
        density_curve: the density over steps, never increasing; None keeps it.
        prune_pool: prune to it by the magnitude in each ``layer``, to the same density, or of all layers together
            (``global``).
        scope: which layers.
        probe: the training data and the loss, for a distribution or an init that looks at them.
        seed: all random choices are derived from it.
        verify_every: call ``verify`` after every n-th update, to find out where a loop goes wrong.

    Raises ValueError for unknown names, options that are not allowed, impossible densities, parts that do not go
    together, and for layers that cannot be held sparse. Warns of weights that no scope can make sparse.

    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        density: FirstDensity | None,
        distribution: str | Distribution | Criterion | None = "erk",
        init: str | Init = "random",
        pattern: str | Callable[[], Pattern] = "unstructured",
        drop: str | Score | None = DEFAULT,
        grow: str | Score | None = DEFAULT,
        redistribute: str | Statistic | None = None,
        plan: UpdatePlan | None = None,
        drop_fraction: float | Curve | None = None,
        drop_pool: Pool = "layer",
        density_curve: Curve | None = None,
        prune_pool: Pool = "global",
        scope: Scope | None = None,
        probe: Probe | None = None,
        seed: int = 0,
        verify_every: Annotated[int | None, Range(1)] = None,
    ) -> None:
        self.optimizer = optimizer
        self.plan = plan
        self.seed = seed
        self.steps = 0
        """Steps taken so far, topology updates that replaced a step included."""
        self.updates = 0
        """Topology updates so far."""
        self.postponed = False
        """Whether an update is due but has to wait, since the gradients have not been finite."""
        self.verify_every = verify_every
        moves = plan is not None
        self._drop: Score | None = _part("drop", _default(drop, "magnitude", moves))
        self._grow: Score | None = _part("grow", _default(grow, "gradient", moves))
        self._redistribute: Statistic | None = _part("redistribute", redistribute)
        self._drop_pool, self._prune_pool = drop_pool, prune_pool
        self._density_curve = density_curve
        parts = FirstParts(_part("distribution", distribution), _part("init", init), _part("pattern", pattern))
        self._check_parts(parts, drop_fraction)
        self._drop_fraction = _curve(0.3 if drop_fraction is None else drop_fraction, plan)
        scope = scope or Scope()
        own = getattr(parts.distribution, "keywords", {}).get("classifier")
        refuse(scope_problems(scope, Part("this distribution", marks_of(parts.distribution)), own), "scope")
        layers = self._layers_of(model, scope, parts)
        self.outside = outside(model, layers)
        """What is trained dense and not counted in any density: name of the parameter -> number of weights."""
        _warn_of(never_sparse(model, [*self.outside]), self.outside)
        start = Start(layers, parts.pattern(), seed, probe)
        self.topology = self._first_topology(start, parts, density)
        self.forward_passes = start.forward_passes
        """What the first masks have cost, in dense forward passes of one sample."""
        self._pattern = start.pattern
        self._structured = "structured" in marks_of(parts.pattern)
        self._counts = [report.active for report in self.topology.reports]
        """The active weights of each layer: exactly, or those that its pattern derives its quotas from."""
        if self._drop is not None and density_curve is None:
            check_room(layers, self._counts)
        # Unless a part changes the number of weights of a layer, a full layer has nothing to drop or grow.
        self._may_leave_full = density_curve is not None or self._redistribute is not None
        begin_state(optimizer)
        self._enforce()
        self._proven = False
        """Whether the optimizer has been seen to leave inactive weights at zero."""
        self._masked = False
        """Whether the gradients are still masked: no backward pass has come since."""
        self._release = hold(layers, self, Sparsifier._on_gradient)

    def _check_parts(self, first: FirstParts, drop_fraction: float | Curve | None) -> None:
        """Raise ValueError for parts that do not go together."""
        if self.plan is not None and (self._drop is None) != (self._grow is None):
            raise ValueError("drop and grow go together: give both, or neither to prune only")
        self._check_ignored(drop_fraction)
        pool = [] if self._drop_pool == "layer" else [f"drop_pool={self._drop_pool}"]
        fraction = [] if drop_fraction is None else ["drop_fraction"]
        refuse(drop_problems(Part("this drop", marks_of(self._drop)), fraction + pool))
        late = [self._redistribute, *([self._grow] if "after_drop" in marks_of(self._grow) else [])]
        if any("dense_gradient" in marks_of(part) for part in late):
            raise ValueError("a part that sees layers after the drop finds no dense gradients there to read")
        if self.plan is not None and self._drop is None and self._density_curve is None:
            raise ValueError("plan would be ignored: with neither drop and grow nor a density_curve nothing changes")
        pattern, init = Part("this pattern", marks_of(first.pattern)), Part("this init", marks_of(first.init))
        changing = {"redistribute": self._redistribute, "density_curve": self._density_curve}
        refuse(pattern_problems(pattern, init, [name for name, part in changing.items() if part is not None]))

    def _check_ignored(self, drop_fraction: float | Curve | None) -> None:
        """Raise ValueError for arguments that would have no effect."""
        of_moves = {
            "redistribute": self._redistribute,
            "drop_fraction": drop_fraction,
            "drop_pool": None if self._drop_pool == "layer" else self._drop_pool,
        }
        unused: Mapping[str, Any] = {}
        why = ""
        if self.plan is None:
            unused = {"drop": self._drop, "grow": self._grow, **of_moves, "density_curve": self._density_curve}
            unused = {**unused, "verify_every": self.verify_every}
            why = "without a plan there are no updates. Give plan=UpdatePlan(every=..., total_steps=...)"
        elif self._drop is None:
            unused, why = of_moves, "without drop and grow no weight is freed. Give both"
        for name, value in unused.items():
            if value is not None:
                raise ValueError(f"{name} would be ignored: {why}, or leave {name} out")
        if self._density_curve is None and self._prune_pool != "global":
            raise ValueError(
                f"prune_pool={self._prune_pool!r} would be ignored: without a density_curve nothing is pruned"
            )

    def _layers_of(self, model: nn.Module, scope: Scope, first: FirstParts) -> list[Layer]:
        """Return the layers in scope; ValueError if one of them cannot be held, or does not go with a part."""
        layers = scope.layers(model)
        check_free(layers)
        check_optimizer(self.optimizer, layers)
        if self._redistribute is not None:
            check_sharing(layers, "redistribute")
        check_layout(layers, pattern=first.pattern, init=first.init, grow=self._grow)
        return layers

    def _first_topology(self, start: Start, first: FirstParts, density: float | None) -> Topology:
        """Return the first masks, with what else the updates need to remember of each layer."""
        plan = self.plan
        return Topology(
            start.layers,
            first_masks(start, first, density),
            with_momentum=plan is not None and "momentum" in self._needs(),
            with_initial=plan is not None and self._grow is not None and plan.grown_weights == "initial",
        )

    # -- what a training loop calls ------------------------------------------------------------------------------------

    def step(self, apply: Callable[[], Any] | None = None, *, gradients_are_finite: bool = False) -> bool:
        """Take one step after ``loss.backward()``, in place of ``optimizer.step()``; say whether the topology changed.

        ``apply`` takes the optimizer step where ``optimizer.step()`` is not enough (gradient clipping, GradScaler). It
        sees masked gradients; after a backward pass of its own it has to call ``mask_gradients`` before it goes on.

        If gradients are not finite (a scaled loss has overflowed), an update is postponed to the first step at which
        they are. This step goes to ``apply`` like any other, and a GradScaler leaves it out. If there is an ``apply``,
        averages of gradients leave such steps out too. ``gradients_are_finite``: the caller has looked already, so that
        an update need not wait for the device again.

        Raises RuntimeError if non-finite gradients reach the weights at an update, or if inactive weights move.
        """
        due = self.update_due()
        self.steps += 1
        # The optimizer's own step would carry an overflow into the weights, so there is no need to look for one.
        self.topology.track_momentum(may_overflow=apply is not None)
        overflowed = due and not self._may_update(gradients_are_finite)
        if overflowed:
            self.postponed, due = True, False
        # Growth must see the dense gradients of this batch, which masking destroys.
        grow_scores = self._grow_scores() if due else []
        if not due or (self.plan and self.plan.order == "after_step"):
            self.mask_gradients()
            (apply or self.optimizer.step)()
            self._check_step(overflowed)
        if due:
            self._update(grow_scores)
        return due

    def _may_update(self, gradients_are_finite: bool) -> bool:
        """Return whether the gradients are finite; waits for the device unless that is known."""
        check_trainable(self.topology.layers)
        return gradients_are_finite or bool(all_finite(layer.weight.grad for layer in self.topology.layers))

    def _check_step(self, overflowed: bool) -> None:
        """Raise RuntimeError if the optimizer step has moved inactive weights; looks at weights where it has to."""
        if not self._masked:
            raise RuntimeError(
                "a backward pass within the step (in apply, or by a closure of the optimizer) has made gradients that "
                "are not masked, so that inactive weights may have moved: let it call sparsifier.mask_gradients() "
                "after its backward pass, or do it before the step"
            )
        layers = self.topology.layers
        if overflowed and not all_finite(layer.weight.detach() for layer in layers):
            raise RuntimeError(
                f"gradients of step {self.steps} were not finite and have reached the weights: training has diverged, "
                "or the step went past a GradScaler. Let it take the step: sparsifier.step(step), where step() calls "
                "scaler.step(optimizer) and then scaler.update()"
            )
        # The first step shows whether the optimizer leaves inactive weights at zero, unless a GradScaler has left this
        # step out or training has diverged in it.
        seen = [tensor for layer in layers for tensor in (layer.weight.grad, layer.weight.detach())]
        if not self._proven and all_finite(seen):
            self.verify()
            self._proven = True

    def _on_gradient(self) -> None:
        self._masked = False

    def update_due(self) -> bool:
        """Say whether the next step updates the topology, if its gradients are finite."""
        return self.plan is not None and (self.postponed or self.plan.due(self.steps + 1))

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights, in one fused pass over the layers that are not full."""
        self._masked = True
        pairs = [(w.grad, mask) for w, mask in self._sparse if w.grad is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])

    def release(self) -> None:
        """Release the layers, so that another Sparsifier may hold them; do not step this one any more."""
        self._release()

    # -- what it reports -----------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Active / maskable weights."""
        return self.topology.active / self.topology.size

    @torch.no_grad()
    def verify(self) -> None:
        """Raise RuntimeError, naming layers, unless inactive weights are zero: the real density is the reported one.

        One pass over the weights of the model as it computes now; waits for the device.
        """
        blame = (
            f"{type(self.optimizer).__name__} may treat the weights of a layer together, or something else than "
            "sparsifier.step() has changed them"
        )
        check_zeros(self.topology.layers, self.topology.masks, blame)

    def scheduled_density(self, step: int) -> float:
        """Return the scheduled density at a step; the present density if there is no schedule."""
        return self._density_curve(step) if self._density_curve else self.density

    @property
    def density_is_final(self) -> bool:
        """Say whether the density has reached the end of its schedule; always true without a schedule."""
        curve, plan = self._density_curve, self.plan
        if curve is None or plan is None:
            return True
        return sum(self._counts) <= round(curve(plan.total_steps) * self.topology.size)

    @property
    def rs(self) -> float:
        """In-time over-parameterisation rate (ITOP, Liu et al. 2021): ever active / maskable weights."""
        return self.topology.explored_count / self.topology.size

    @property
    def drop_fraction(self) -> float:
        """The drop fraction at the current step; 0 for a static topology."""
        return self._drop_fraction(self.steps) if self.plan else 0.0

    @property
    def layers(self) -> list[LayerReport]:
        """Counts of every layer after the last update, in model order."""
        return self.topology.reports

    def needs_dense_gradient(self) -> bool:
        """Say whether the next step needs the dense weight gradient (which training FLOPs count)."""
        needs = self._needs()
        return self.plan is not None and ("momentum" in needs or (self.update_due() and "dense_gradient" in needs))

    def _needs(self) -> frozenset[Mark]:
        return marks_of(self._grow) | marks_of(self._redistribute)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters, counts, masks and explored masks."""
        counters = {"steps": self.steps, "updates": self.updates, "counts": list(self._counts)}
        return {**counters, "postponed": self.postponed, **self.topology.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; load the model and the optimizer first. ValueError if layers differ."""
        self.topology.load_state_dict(state)
        self.steps, self.updates, self._counts = state["steps"], state["updates"], list(state["counts"])
        self.postponed = bool(state.get("postponed", False))
        begin_state(self.optimizer)
        self._enforce()

    # -- the update ----------------------------------------------------------------------------------------------------

    def _movable(self) -> list[int]:
        """Return the layers whose weights may be dropped or grown."""
        reports = self.topology.reports
        return [i for i, report in enumerate(reports) if self._may_leave_full or report.active < report.size]

    def _view(self, i: int, purpose: str) -> LayerView:
        topology, weight = self.topology, self.topology.layers[i].weight
        average = topology.momentum[i] if topology.momentum else None
        seed = derive_seed(self.seed, purpose, self.updates, i)
        withheld = purpose == "grow" and "dense_gradient" not in marks_of(self._grow)
        gradient = None if withheld else weight.grad
        return LayerView(weight.detach(), topology.masks[i], topology.explored[i], gradient, seed, average, withheld)

    @torch.no_grad()
    def _grow_scores(self) -> list[Tensor]:
        if self._grow is None or "after_drop" in marks_of(self._grow):
            return []
        return [self._grow(self._view(i, "grow")) for i in self._movable()]

    def _grow_scores_after_drop(self, movable: list[int], scores: list[Tensor], drops: list[int]) -> list[Tensor]:
        """Return the scores of a growth that must know which positions are free."""
        assert self._grow is not None
        assert self.plan is not None
        found = []
        for i, score, drop in zip(movable, scores, drops, strict=True):
            view = self._view(i, "grow")
            if self.plan.regrow:
                view = replace(view, mask=view.mask ^ bottom_k(score, drop, among=view.mask))
            found.append(self._grow(view))
        return found

    @torch.no_grad()
    def _update(self, grow_scores: list[Tensor]) -> None:
        """Prune to the scheduled density, drop, redistribute, grow; weights outside the new masks become zero."""
        before = list(self.topology.masks)
        self._prune()
        pruned = list(self.topology.masks)
        kept = self._move(grow_scores) if self._drop is not None else {}
        self.topology.refresh(before)
        self._check_counts()
        self.updates += 1
        self.postponed = False
        self._start_entered(pruned, kept)
        self._enforce()
        if self.verify_every is not None and self.updates % self.verify_every == 0:
            self.verify()

    def _check_counts(self) -> None:
        """Raise RuntimeError if a layer breaks its budget or its pattern, which only a faulty part can cause."""
        topology = self.topology
        for report, count, mask in zip(topology.reports, self._counts, topology.masks, strict=True):
            if self._structured:
                if report.active < report.size and not self._pattern.allows(mask):
                    raise RuntimeError(f"layer {report.layer}: its mask breaks the pattern")
            elif report.active != count:
                raise RuntimeError(f"layer {report.layer} has {report.active} active weights instead of {count}")

    def _start_entered(self, before: Sequence[Tensor], kept: Mapping[int, Tensor]) -> None:
        """Give the weights that entered in this update their first value and optimizer state.

        Where a weight was inactive before, both are zero already. ``before``: the masks after pruning and before
        weights moved; ``kept``: the masks that the drop left, of the layers that moved.
        """
        assert self.plan is not None
        reset = self.plan.returning_weights == "reset"
        for i, left in kept.items():
            layer, old = self.topology.layers[i], left if reset else before[i]
            if reset:
                for tensor in (layer.weight, *layer.optimizer_state(self.optimizer)):
                    tensor.mul_(left)
            if self.topology.initial:
                layer.weight.copy_(torch.where(self.topology.masks[i] & ~old, self.topology.initial[i], layer.weight))

    def _prune(self) -> None:
        """Keep the largest weights, as many as the scheduled density allows.

        Pruned weights become zero at once, so those that grow again in the same update start from zero (GraNet, Liu et
        al. 2021).
        """
        topology, counts = self.topology, self._counts
        if self._density_curve is None:
            return
        target = round(self._density_curve(self.steps) * topology.size)
        if target >= sum(counts):
            return
        scores = [layer.weight.detach().abs() for layer in topology.layers]
        if self._prune_pool == "global":
            kept = pooled_top_k(scores, target, topology.masks)
        else:
            quotas = level_counts(target, [layer.size for layer in topology.layers], counts)
            kept = [top_k(*part) for part in zip(scores, quotas, topology.masks, strict=True)]
        topology.masks = kept
        self._counts = count_true(kept)
        if self._grow is not None:  # else nothing reads them before all inactive weights become zero
            self._zero_inactive([i for i, (now, was) in enumerate(zip(self._counts, counts, strict=True)) if now < was])

    def _move(self, grow_scores: list[Tensor]) -> dict[int, Tensor]:
        """Drop and grow in every movable layer; return what the drop left of each."""
        assert self.plan is not None
        assert self._drop is not None
        topology, movable, regrow = self.topology, self._movable(), self.plan.regrow
        views = [self._view(i, "drop") for i in movable]
        scores = [self._drop(view) for view in views]
        counts = count_true([view.mask for view in views]) if self._structured else [self._counts[i] for i in movable]
        drops = self._drop_counts(views, scores, counts)
        free = [topology.layers[i].size - count for i, count in zip(movable, counts, strict=True)]
        if not regrow:  # what leaves must find room elsewhere in its layer
            drops = [min(drop, room) for drop, room in zip(drops, free, strict=True)]
        grows = self._grow_counts(views, drops, free, counts)
        if "after_drop" in marks_of(self._grow):
            grow_scores = self._grow_scores_after_drop(movable, scores, drops)
        kept = {}
        for i, view, score, grow_score, drop, grow in zip(
            movable, views, scores, grow_scores, drops, grows, strict=True
        ):
            is_output = topology.layers[i].is_output
            budget = Budget(drop=drop, grow=grow, count=self._counts[i], regrow=regrow, is_output=is_output)
            kept[i], mask = self._pattern.update(score, grow_score, view.mask, budget)
            topology.replace(i, mask)
            self._counts[i] += grow - drop
        return kept

    def _drop_counts(self, views: list[LayerView], scores: list[Tensor], counts: list[int]) -> list[int]:
        """Return how many weights each layer drops."""
        masks = [view.mask for view in views]
        if "cuts" in marks_of(self._drop):
            return count_true([(score < 0) & mask for score, mask in zip(scores, masks, strict=True)])
        fraction = exact(self._drop_fraction(self.steps))
        drops = [math.ceil(fraction * count) for count in counts]
        if self._drop_pool == "layer":
            return drops
        kept = count_true(pooled_top_k(scores, max(sum(counts) - sum(drops), len(counts)), masks))
        return [count - left for count, left in zip(counts, kept, strict=True)]

    def _grow_counts(self, views: list[LayerView], drops: list[int], free: list[int], counts: list[int]) -> list[int]:
        """Return how many weights each layer grows: as many as it dropped, or its share of all that were dropped.

        A layer that dropped all its weights gets one back in any case.
        """
        assert self.plan is not None
        if self._redistribute is None:
            return drops
        caps = [room + (drop if self.plan.regrow else 0) for room, drop in zip(free, drops, strict=True)]
        # Gradients are masked by now, or dense ones that training FLOPs do not count: a statistic sees none.
        blind = [replace(view, gradient=None, is_withheld=True) for view in views]
        statistics = torch.stack([self._redistribute(view).double() for view in blind]).tolist()
        kept_alive = [int(drop == count) for drop, count in zip(drops, counts, strict=True)]
        caps = [cap - one for cap, one in zip(caps, kept_alive, strict=True)]
        shares = share(sum(drops) - sum(kept_alive), statistics, caps)
        return [part + one for part, one in zip(shares, kept_alive, strict=True)]

    @torch.no_grad()
    def _enforce(self) -> None:
        """Zero inactive weights and their optimizer state, and keep the masks to multiply gradients by.

        Weights that were inactive before had exact zeros in both, so weights that are new in the mask start from zero.
        """
        self._sparse = self._zero_inactive(
            [i for i, report in enumerate(self.topology.reports) if report.active < report.size]
        )

    def _zero_inactive(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Zero the inactive weights of some layers and their optimizer state in one fused pass; return weight and mask.

        For these passes a mask holds 0 and 1 in the weight's dtype: five times as fast as a boolean one.
        """
        layers = [self.topology.layers[i] for i in indices]
        # empty_like: the weight's dtype and memory layout
        masks = [torch.empty_like(self.topology.layers[i].weight).copy_(self.topology.masks[i]) for i in indices]
        found: list[tuple[Tensor, Tensor]] = [(layer.weight, mask) for layer, mask in zip(layers, masks, strict=True)]
        pairs = list(found)
        for layer, mask in zip(layers, masks, strict=True):
            pairs += [(state, mask) for state in layer.optimizer_state(self.optimizer)]
        if pairs:
            torch._foreach_mul_([tensor for tensor, _ in pairs], [mask for _, mask in pairs])
        return found


def _warn_of(names: Sequence[str], sizes: Mapping[str, int]) -> None:
    """Warn of weights that stay dense although no option says so."""
    if names:
        told = ", ".join(f"{name} ({sizes[name]:,} weights)" for name in names)
        warnings.warn(
            f"trained dense and not counted in the density, since only weights of convolution and linear layers can be "
            f"sparse: {told}",
            stacklevel=3,
        )


def _default(given: Any, default: str, moves: bool) -> Any:
    return given if given != DEFAULT else default if moves else None


def _curve(drop_fraction: float | Curve, plan: UpdatePlan | None) -> Curve:
    """Return a drop fraction as a curve."""
    if callable(drop_fraction):
        return drop_fraction
    if plan is None:
        return lambda step: 0.0
    try:
        return constant(plan, initial=drop_fraction)
    except OptionError as error:
        raise OptionError(f"drop_fraction={drop_fraction}: {error}") from error


def _part(kind: str, value: Any) -> Any:
    """Return a part given by name or as itself."""
    if value == registry.NONE:
        raise ValueError(f"{kind}='none': leave it out, or give {kind}=None")
    part = registry.find(kind, value).load() if isinstance(value, str) else value
    if part is not None:
        check_part(part, kind)
    return part
