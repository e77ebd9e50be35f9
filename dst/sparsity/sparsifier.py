"""The one stateful class that a training loop meets: it composes the parts of a method and applies them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst import registry
from dst.seeding import derive_seed
from dst.sparsity.allocation import allocate
from dst.sparsity.distribution import Distribution
from dst.sparsity.pattern import Budget, Pattern
from dst.sparsity.plan import UpdatePlan
from dst.sparsity.schedule import Curve, constant
from dst.sparsity.scope import Scope
from dst.sparsity.topology import LayerReport, Topology
from dst.sparsity.view import LayerView, Score


class Sparsifier:
    """Keep a model sparse while ``optimizer`` trains it, and update its topology as planned.

    Args:
        model: its convolution and linear weights (those in ``scope``) are masked in place.
        optimizer: its state of inactive weights is kept at exactly zero.
        density: active fraction of all weights in scope; None for the ``dense`` distribution.
        distribution, init, pattern, drop, grow: names, or functions as in the modules of those names.
        plan: when to update; None for a static topology.
        drop_fraction: of a layer's active weights, per update: a number or a curve over steps.
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
        drop: str | Score = "magnitude",
        grow: str | Score = "gradient",
        plan: UpdatePlan | None = None,
        drop_fraction: float | Curve = 0.3,
        scope: Scope | None = None,
        seed: int = 0,
    ) -> None:
        self.optimizer = optimizer
        self.plan = plan
        self.seed = seed
        self.steps = 0
        """Steps taken so far, topology updates that replaced a step included."""
        self.updates = 0
        """Topology updates so far."""
        self._pattern: Pattern = _part("pattern", pattern)()
        self._drop: Score = _part("drop", drop)
        self._grow: Score = _part("grow", grow)
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
        self.topology = Topology(layers, masks)
        self._enforce()

    # -- what a training loop calls ------------------------------------------------------------------------------------

    def step(self, apply: Callable[[], Any] | None = None) -> bool:
        """Take one step after ``loss.backward()``, in place of ``optimizer.step()``; say whether the topology changed.

        ``apply`` takes the optimizer step where more than that is needed (gradient clipping, GradScaler). It sees
        masked gradients.
        """
        due = self.update_due()
        self.steps += 1
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
        return self.update_due() and getattr(self._grow, "needs_dense_gradient", False)

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
        """Return the layers that have both active and inactive weights."""
        return [i for i, report in enumerate(self.topology.reports) if report.active < report.size]

    def _view(self, i: int, purpose: str) -> LayerView:
        weight, topology = self.topology.layers[i].weight, self.topology
        seed = derive_seed(self.seed, purpose, self.updates, i)
        return LayerView(weight.detach(), topology.masks[i], topology.explored[i], weight.grad, seed)

    @torch.no_grad()
    def _grow_scores(self) -> list[Tensor]:
        return [self._grow(self._view(i, "grow")) for i in self._movable()]

    @torch.no_grad()
    def _update(self, grow_scores: list[Tensor]) -> None:
        """Drop and grow in every layer that is not full; weights and optimizer state off the new mask become zero."""
        assert self.plan is not None
        fraction = self._drop_fraction(self.steps)
        before: dict[int, Tensor] = {}
        expected = [report.active for report in self.topology.reports]
        for i, grow_score in zip(self._movable(), grow_scores, strict=True):
            report, view = self.topology.reports[i], self._view(i, "drop")
            moved = math.ceil(fraction * report.active)
            if not self.plan.regrow:
                moved = min(moved, report.size - report.active)
            before[i] = view.mask
            budget = Budget(drop=moved, grow=moved, regrow=self.plan.regrow)
            self.topology.replace(i, self._pattern.update(self._drop(view), grow_score, view.mask, budget))
        self.topology.refresh(before)
        for report, count in zip(self.topology.reports, expected, strict=True):
            if report.active != count:
                raise RuntimeError(f"layer {report.layer} has {report.active} active weights instead of {count}")
        self.updates += 1
        self._enforce()

    @torch.no_grad()
    def _enforce(self) -> None:
        """Zero inactive weights and their optimizer state, in one fused pass.

        What was inactive before was exactly zero in both, so weights that are new in the mask start from zero. For
        these passes a mask holds 0 and 1 in the weight's dtype: five times as fast as a boolean one.
        """
        movable = self._movable()
        layers = [self.topology.layers[i] for i in movable]
        # empty_like: the weight's dtype and memory layout
        masks = [torch.empty_like(self.topology.layers[i].weight).copy_(self.topology.masks[i]) for i in movable]
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
    return registry.find(kind, value).load() if isinstance(value, str) else value
