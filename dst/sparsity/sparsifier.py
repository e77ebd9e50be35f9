"""The one stateful class that a training loop meets: it composes the parts of a method and applies them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst import registry
from dst.seeding import derive_seed
from dst.sparsity.allocation import allocate, layer_counts, share
from dst.sparsity.distribution import Distribution
from dst.sparsity.pattern import Budget, Pattern
from dst.sparsity.plan import UpdatePlan
from dst.sparsity.redistribute import Statistic
from dst.sparsity.schedule import Curve, constant
from dst.sparsity.scope import Scope
from dst.sparsity.select import pooled_top_k, top_k
from dst.sparsity.topology import LayerReport, Topology
from dst.sparsity.view import LayerView, Score, need_of

POOLS = ("layer", "global")


class Sparsifier:
    """Keep a model sparse while ``optimizer`` trains it, and update its topology as planned.

    An update first prunes to the scheduled density, if there is a schedule (GMP, GraNet); then weights are dropped, the
    freed places are shared out among the layers, and as many weights are grown.

    Args:
        model: its convolution and linear weights (those in ``scope``) are masked in place.
        optimizer: its state of inactive weights is kept at exactly zero.
        density: active fraction of all weights in scope at the start; None for the ``dense`` distribution.
        distribution, init, pattern, drop, grow, redistribute: names, or functions as in the modules of those names;
            without ``drop`` and ``grow`` an update only prunes.
        plan: when to update; None for a static topology.
        drop_fraction: of a layer's active weights, per update: a number or a curve over steps.
        drop_pool: drop that fraction in each ``layer``, or of all layers together (``global``).
        density_curve: the density over steps, never increasing; None keeps it.
        prune_pool: prune to it by the magnitude in each ``layer`` alike, or of all layers together (``global``).
        scope: which layers.
        seed: from which all random choices are derived.

    Raises ValueError for unknown names and impossible densities.

    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        density: float | None,
        distribution: str | Distribution = "erk",
        init: str | Score = "random",
        pattern: str | Callable[[], Pattern] = "unstructured",
        drop: str | Score | None = "magnitude",
        grow: str | Score | None = "gradient",
        redistribute: str | Statistic | None = None,
        plan: UpdatePlan | None = None,
        drop_fraction: float | Curve = 0.3,
        drop_pool: str = "layer",
        density_curve: Curve | None = None,
        prune_pool: str = "global",
        scope: Scope | None = None,
        seed: int = 0,
    ) -> None:
        if (drop is None) != (grow is None):
            raise ValueError("drop and grow go together: give both, or neither to prune only")
        if isinstance(distribution, str) and (density is None) != (distribution == "dense"):
            raise ValueError(
                f"density={density} does not go with distribution={distribution!r}: dense keeps all weights and takes "
                "density=None, all others need a density"
            )
        for pool in (drop_pool, prune_pool):
            if pool not in POOLS:
                raise ValueError(f"pool {pool!r}: allowed are {', '.join(POOLS)}")
        self.optimizer = optimizer
        self.plan = plan
        self.seed = seed
        self.steps = 0
        """Steps taken so far, topology updates that replaced a step included."""
        self.updates = 0
        """Topology updates so far."""
        self._pattern: Pattern = _part("pattern", pattern)()
        self._drop: Score | None = _part("drop", drop)
        self._grow: Score | None = _part("grow", grow)
        self._redistribute: Statistic | None = _part("redistribute", redistribute)
        self._drop_pool, self._prune_pool = drop_pool, prune_pool
        self._density_curve = density_curve
        if not callable(drop_fraction):
            if not 0 < drop_fraction <= 1:
                raise ValueError(f"drop_fraction={drop_fraction}: must lie in (0, 1]")
            drop_fraction = constant(plan, initial=drop_fraction) if plan else lambda step: 0.0
        self._drop_fraction = drop_fraction
        layers = (scope or Scope()).layers(model)
        counts = allocate(_part("distribution", distribution), [layer.weight.shape for layer in layers], density)
        init_score: Score = _part("init", init)
        masks = []
        for i, (layer, count) in enumerate(zip(layers, counts, strict=True)):
            blank = torch.zeros_like(layer.weight, dtype=torch.bool)
            view = LayerView(layer.weight.detach(), blank, blank, layer.weight.grad, derive_seed(seed, "init", i))
            masks.append(self._pattern.initial(init_score(view), count) if count < layer.size else ~blank)
        tracks = plan is not None and "momentum" in self._needs()
        self.topology = Topology(layers, masks, with_momentum=tracks)
        # Where nothing changes the number of weights of a layer, one that is full has nothing to drop or grow.
        self._may_leave_full = density_curve is not None or self._redistribute is not None
        self._enforce()

    # -- what a training loop calls ------------------------------------------------------------------------------------

    def step(self, apply: Callable[[], Any] | None = None) -> bool:
        """Take one step after ``loss.backward()``, in place of ``optimizer.step()``; say whether the topology changed.

        ``apply`` takes the optimizer step where more than that is needed (gradient clipping, GradScaler). It sees
        masked gradients.
        """
        due = self.update_due()
        self.steps += 1
        self.topology.track_momentum()
        # Growth must see the dense gradients of this batch, which masking destroys.
        grow_scores = self._grow_scores() if due else []
        self.mask_gradients()
        if not due or (self.plan and self.plan.order == "after_step"):
            (apply or self.optimizer.step)()
        if due:
            self._update(grow_scores)
        return due

    def update_due(self) -> bool:
        """Say whether the next step updates the topology."""
        return self.plan is not None and self.plan.due(self.steps + 1)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights, in one fused pass over the layers that are not full."""
        pairs = [(w.grad, mask) for w, mask in self._sparse if w.grad is not None]
        if pairs:
            torch._foreach_mul_([grad for grad, _ in pairs], [mask for _, mask in pairs])

    # -- what it reports -----------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Active / maskable weights."""
        return self.topology.active / self.topology.size

    def scheduled_density(self, step: int) -> float:
        """Return the density that the schedule has at a step; the present one if there is no schedule."""
        return self._density_curve(step) if self._density_curve else self.density

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

    def _needs(self) -> set[str | None]:
        return {need_of(part) for part in (self._grow, self._redistribute)}

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters, masks and explored masks."""
        return {"steps": self.steps, "updates": self.updates, **self.topology.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; load the model and the optimizer first. ValueError if layers differ."""
        self.topology.load_state_dict(state)
        self.steps, self.updates = state["steps"], state["updates"]
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
        return LayerView(weight.detach(), topology.masks[i], topology.explored[i], weight.grad, seed, average)

    @torch.no_grad()
    def _grow_scores(self) -> list[Tensor]:
        if self._grow is None:
            return []
        return [self._grow(self._view(i, "grow")) for i in self._movable()]

    @torch.no_grad()
    def _update(self, grow_scores: list[Tensor]) -> None:
        """Prune to the scheduled density, drop, redistribute, grow; what is off the new masks becomes zero."""
        before = dict(enumerate(self.topology.masks))
        expected = self._prune()
        if self._drop is not None:
            self._move(grow_scores, expected)
        self.topology.refresh(before)
        for report, count in zip(self.topology.reports, expected, strict=True):
            if report.active != count:
                raise RuntimeError(f"layer {report.layer} has {report.active} active weights instead of {count}")
        self.updates += 1
        self._enforce()

    def _prune(self) -> list[int]:
        """Keep the largest weights, as many as the scheduled density allows; return the counts of all layers."""
        topology = self.topology
        counts = [report.active for report in topology.reports]
        if self._density_curve is None:
            return counts
        target = round(self._density_curve(self.steps) * topology.size)
        if target >= sum(counts):
            return counts
        scores = [layer.weight.detach().abs() for layer in topology.layers]
        if self._prune_pool == "global":
            kept = pooled_top_k(scores, target, topology.masks)
        else:
            quotas = layer_counts([target / sum(counts)] * len(counts), counts, target)
            kept = [top_k(*part) for part in zip(scores, quotas, topology.masks, strict=True)]
        topology.masks = kept
        return [int(count) for count in torch.stack([torch.count_nonzero(mask) for mask in kept]).tolist()]

    def _move(self, grow_scores: list[Tensor], counts: list[int]) -> None:
        """Drop and grow in every movable layer; ``counts`` become those after growing."""
        assert self.plan is not None
        assert self._drop is not None
        topology, movable = self.topology, self._movable()
        views = [self._view(i, "drop") for i in movable]
        scores = [self._drop(view) for view in views]
        drops = self._drop_counts(views, scores, [counts[i] for i in movable])
        free = [topology.layers[i].size - counts[i] for i in movable]
        if not self.plan.regrow:  # what leaves must find room elsewhere in its layer
            drops = [min(drop, room) for drop, room in zip(drops, free, strict=True)]
        grows = self._grow_counts(views, drops, free, [counts[i] for i in movable])
        for i, view, score, grow_score, drop, grow in zip(
            movable, views, scores, grow_scores, drops, grows, strict=True
        ):
            budget = Budget(drop=drop, grow=grow, regrow=self.plan.regrow)
            topology.replace(i, self._pattern.update(score, grow_score, view.mask, budget))
            counts[i] += grow - drop

    def _drop_counts(self, views: list[LayerView], scores: list[Tensor], counts: list[int]) -> list[int]:
        """Return how many weights each layer drops."""
        fraction = self._drop_fraction(self.steps)
        drops = [math.ceil(fraction * count) for count in counts]
        if self._drop_pool == "layer":
            return drops
        masks = [view.mask for view in views]
        kept = pooled_top_k(scores, max(sum(counts) - sum(drops), len(counts)), masks)
        left = torch.stack([torch.count_nonzero(mask) for mask in kept]).tolist()
        return [count - int(n) for count, n in zip(counts, left, strict=True)]

    def _grow_counts(self, views: list[LayerView], drops: list[int], free: list[int], counts: list[int]) -> list[int]:
        """Return how many weights each layer grows: as many as it dropped, or its share of all that were dropped.

        A layer that dropped all its weights gets one back in any case.
        """
        assert self.plan is not None
        if self._redistribute is None:
            return drops
        caps = [room + (drop if self.plan.regrow else 0) for room, drop in zip(free, drops, strict=True)]
        statistics = torch.stack([self._redistribute(view).double() for view in views]).tolist()
        kept_alive = [int(drop == count) for drop, count in zip(drops, counts, strict=True)]
        caps = [cap - one for cap, one in zip(caps, kept_alive, strict=True)]
        shares = share(sum(drops) - sum(kept_alive), statistics, caps)
        return [part + one for part, one in zip(shares, kept_alive, strict=True)]

    @torch.no_grad()
    def _enforce(self) -> None:
        """Zero inactive weights and their optimizer state, in one fused pass.

        What was inactive before was exactly zero in both, so weights that are new in the mask start from zero. For
        these passes a mask holds 0 and 1 in the weight's dtype: five times as fast as a boolean one.
        """
        sparse = [i for i, report in enumerate(self.topology.reports) if report.active < report.size]
        layers = [self.topology.layers[i] for i in sparse]
        # empty_like: the weight's dtype and memory layout
        masks = [torch.empty_like(self.topology.layers[i].weight).copy_(self.topology.masks[i]) for i in sparse]
        self._sparse = [(layer.weight, mask) for layer, mask in zip(layers, masks, strict=True)]
        tensors: list[Tensor] = [layer.weight for layer in layers]
        for layer, mask in zip(list(layers), list(masks), strict=True):
            for state in layer.optimizer_state(self.optimizer):
                tensors.append(state)
                masks.append(mask)
        if tensors:
            torch._foreach_mul_(tensors, masks)


def _part(kind: str, value: Any) -> Any:
    """Return a part given by name or as itself."""
    if value == registry.NONE:
        raise ValueError(f"{kind}='none': leave it out, or give {kind}=None")
    return registry.find(kind, value).load() if isinstance(value, str) else value
