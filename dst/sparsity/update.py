"""What exists only where the topology is updated: when, by which parts, and how much moves.

An update first prunes to the scheduled density, if there is a schedule (GMP, GraNet). Then it drops weights, shares the
freed places among the layers, and grows as many weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from dst import registry
from dst.fractions import Curve, exact
from dst.options import OptionError, check_part, refuse
from dst.sparsity.allocation import level_counts, share
from dst.sparsity.drop_fraction import constant
from dst.sparsity.marks import Mark, marks_of
from dst.sparsity.options import Part, Pool, drop_problems
from dst.sparsity.pattern import Asked, Budget, updated
from dst.sparsity.plan import UpdatePlan
from dst.sparsity.prune import prune_to
from dst.sparsity.redistribute import Statistic
from dst.sparsity.select import count_true, each_bottom_k, pooled_top_k
from dst.sparsity.topology import Topology
from dst.sparsity.view import LayerView, Score

DEFAULT: Final = "default"
"""Stands for a drop by magnitude and growth by gradient where there is a plan, and for neither where there is none."""

WITHOUT_PLAN: Final = "without a plan there are no updates. Give plan=UpdatePlan(every=..., total_steps=...)"

View = Callable[[int, str], LayerView]
"""From the index of a layer and what it is looked at for (``drop``, ``grow``) to what a score may see of it."""


@dataclass(frozen=True)
class TopologyUpdate:
    """How the topology of a phase is updated. All steps are those of the phase.

    ``drop``, ``grow``: None to prune only. ``drop_fraction``: of a layer's active weights, over steps. ``drop_pool``:
    drop that fraction in each ``layer``, or of all layers together (``global``). ``density_curve``: the density over
    steps, never increasing; None keeps it. ``prune_pool``: prune to it by the magnitude in each ``layer``, to the same
    density, or of all layers together (``global``).

    Raises ValueError for parts that do not go together.
    """

    plan: UpdatePlan
    drop: Score | None
    grow: Score | None
    redistribute: Statistic | None
    drop_fraction: Curve
    drop_pool: Pool = "layer"
    density_curve: Curve | None = None
    prune_pool: Pool = "global"

    def __post_init__(self) -> None:
        if (self.drop is None) != (self.grow is None):
            raise ValueError("drop and grow go together: give both, or neither to prune only")
        late = [self.redistribute, *([self.grow] if self._grows_after_drop else [])]
        if any("dense_gradient" in marks_of(part) for part in late):
            raise ValueError("a part that sees layers after the drop finds no dense gradients there to read")
        if self.drop is None and self.density_curve is None:
            raise ValueError("plan would be ignored: with neither drop and grow nor a density_curve nothing changes")

    # -- when, and what it needs ---------------------------------------------------------------------------------------

    @cached_property
    def needs(self) -> frozenset[Mark]:
        """What growth and redistribution need, by their marks."""
        return marks_of(self.grow) | marks_of(self.redistribute)

    def reads_dense_gradient(self, *, due: bool) -> bool:
        """Say whether a step needs the gradients of inactive weights; ``due``: it updates the topology."""
        return "momentum" in self.needs or (due and "dense_gradient" in self.needs)

    @property
    def replaces_step(self) -> bool:
        """Say whether an update comes instead of the optimizer step."""
        return self.plan.order == "replaces_step"

    @property
    def _grows_after_drop(self) -> bool:
        return "after_drop" in marks_of(self.grow)

    # -- one update ----------------------------------------------------------------------------------------------------

    def movable(self, topology: Topology) -> list[int]:
        """Return the layers whose weights may be dropped or grown.

        Unless a part changes the number of weights of a layer, a full layer has nothing to drop or grow.
        """
        may_leave_full = self.density_curve is not None or self.redistribute is not None
        reports = topology.reports
        return [i for i, report in enumerate(reports) if may_leave_full or report.active < report.size]

    def grow_scores(self, topology: Topology, view: View) -> list[Tensor]:
        """Return the grow scores of all movable layers, from dense gradients; none if growth has to see the drop."""
        if self.grow is None or self._grows_after_drop:
            return []
        return [self.grow(view(i, "grow")) for i in self.movable(topology)]

    def prune(self, topology: Topology, weights: Sequence[Tensor], step: int) -> list[int]:
        """Keep the largest weights, as many as the scheduled density allows; return the layers that lost some."""
        before = topology.counts
        if self.density_curve is None:
            return []
        target = round(self.density_curve(step) * topology.size)
        if target >= sum(before):
            return []
        sizes = [layer.size for layer in topology.layers]
        counts = target if self.prune_pool == "global" else level_counts(target, sizes, before)
        topology.masks = prune_to(counts, torch._foreach_abs(list(weights)), topology.masks)
        topology.counts = count_true(topology.masks) if isinstance(counts, int) else counts
        return [i for i, (now, was) in enumerate(zip(topology.counts, before, strict=True)) if now < was]

    def move(self, topology: Topology, step: int, view: View, grow_scores: Sequence[Tensor]) -> dict[int, Tensor]:
        """Drop and grow in every movable layer; return, by layer, the mask that the drop left.

        ``grow_scores``: what ``grow_scores`` returned before gradients were masked.
        """
        if self.drop is None or self.grow is None:
            return {}
        active = topology.active_counts
        layers = [_Layer(i, seen := view(i, "drop"), self.drop(seen), active[i]) for i in self.movable(topology)]
        self._set_drops(layers, step)
        self._set_grows(layers)
        if self._grows_after_drop:
            grow_scores = self._late_grow_scores(layers, view)
        asked = [
            Asked(topology.patterns[layer.index], layer.scores, scores, layer.view.mask, self._budget(topology, layer))
            for layer, scores in zip(layers, grow_scores, strict=True)
        ]
        moved = updated(asked)
        topology.replace_all({layer.index: mask for layer, (_, mask) in zip(layers, moved, strict=True)})
        for layer in layers:
            topology.counts[layer.index] += layer.grow - layer.drop
        return {layer.index: kept for layer, (kept, _) in zip(layers, moved, strict=True)}

    def _budget(self, topology: Topology, layer: "_Layer") -> Budget:
        return Budget(
            drop=layer.drop,
            grow=layer.grow,
            count=topology.counts[layer.index],
            regrow=self.plan.regrow,
            is_output=topology.layers[layer.index].is_output,
            active=layer.count,
        )

    def _set_drops(self, layers: "list[_Layer]", step: int) -> None:
        """Decide how many weights each layer drops."""
        masks, scores = [layer.view.mask for layer in layers], [layer.scores for layer in layers]
        if "cuts" in marks_of(self.drop):
            drops = count_true([(score < 0) & mask for score, mask in zip(scores, masks, strict=True)])
        else:
            fraction = exact(self.drop_fraction(step))
            drops = [math.ceil(fraction * layer.count) for layer in layers]
            if self.drop_pool == "global":
                stay = max(sum(layer.count for layer in layers) - sum(drops), len(layers))
                left = count_true(pooled_top_k(scores, stay, masks))
                drops = [layer.count - now for layer, now in zip(layers, left, strict=True)]
        for layer, drop in zip(layers, drops, strict=True):
            # Unless it may return, what leaves must find room elsewhere in its layer.
            layer.drop = drop if self.plan.regrow else min(drop, layer.free)

    def _set_grows(self, layers: "list[_Layer]") -> None:
        """Decide how many weights each layer grows: as many as it dropped, or its share of all that were dropped.

        A layer that dropped all its weights gets one back in any case.
        """
        if self.redistribute is None:
            for layer in layers:
                layer.grow = layer.drop
            return
        # Gradients are masked by now, or dense ones that training FLOPs do not count: a statistic sees none.
        blind = [replace(layer.view, gradient=None, is_withheld=True) for layer in layers]
        statistics = torch.stack([self.redistribute(view).double() for view in blind]).tolist()
        kept_alive = [int(layer.drop == layer.count) for layer in layers]
        room = [layer.free + (layer.drop if self.plan.regrow else 0) for layer in layers]
        caps = [cap - one for cap, one in zip(room, kept_alive, strict=True)]
        shares = share(sum(layer.drop for layer in layers) - sum(kept_alive), statistics, caps)
        for layer, part, one in zip(layers, shares, kept_alive, strict=True):
            layer.grow = part + one

    def _late_grow_scores(self, layers: "list[_Layer]", view: View) -> list[Tensor]:
        """Return the grow scores of all layers, where growth must know which positions are free after the drop."""
        assert self.grow is not None
        seen = [view(layer.index, "grow") for layer in layers]
        if self.plan.regrow:
            masks = [own.mask for own in seen]
            drops, counts = [layer.drop for layer in layers], [layer.count for layer in layers]
            dropped = each_bottom_k([layer.scores for layer in layers], drops, masks, held=counts)
            seen = [replace(own, mask=own.mask ^ gone) for own, gone in zip(seen, dropped, strict=True)]
        return [self.grow(own) for own in seen]


@dataclass
class _Layer:
    """A layer in an update: what is seen of it, its drop scores, and how many weights it has, drops and grows."""

    index: int
    view: LayerView
    scores: Tensor
    count: int
    drop: int = 0
    grow: int = 0

    @property
    def free(self) -> int:
        """Number of weights that are not active."""
        return self.view.mask.numel() - self.count


def topology_update(
    plan: UpdatePlan | None,
    *,
    drop: str | Score | None = DEFAULT,
    grow: str | Score | None = DEFAULT,
    redistribute: str | Statistic | None = None,
    drop_fraction: float | Curve | None = None,
    drop_pool: Pool = "layer",
    density_curve: Curve | None = None,
    prune_pool: Pool = "global",
) -> TopologyUpdate | None:
    """Return how a topology is updated, its parts given by name or as functions; None without a plan.

    Without ``drop`` and ``grow`` an update only prunes; ``drop_fraction`` is 0.3 if not given. Raises ValueError for
    unknown names, parts that do not go together, and for what would be ignored.
    """
    moves = plan is not None
    leaves = find_part("drop", _default(drop, "magnitude", moves))
    enters = find_part("grow", _default(grow, "gradient", moves))
    statistic = find_part("redistribute", redistribute)
    of_moves = {
        "redistribute": statistic,
        "drop_fraction": drop_fraction,
        "drop_pool": None if drop_pool == "layer" else drop_pool,
    }
    if density_curve is None and prune_pool != "global":
        raise ValueError(f"prune_pool={prune_pool!r} would be ignored: without a density_curve nothing is pruned")
    if plan is None:
        refuse_unused({"drop": leaves, "grow": enters, **of_moves, "density_curve": density_curve}, WITHOUT_PLAN)
        return None
    if leaves is None and enters is None:
        refuse_unused(of_moves, "without drop and grow no weight is freed. Give both")
    given = ([] if drop_fraction is None else ["drop_fraction"]) + (
        [] if drop_pool == "layer" else [f"drop_pool={drop_pool}"]
    )
    refuse(drop_problems(Part("this drop", marks_of(leaves)), given))
    fraction = _curve(0.3 if drop_fraction is None else drop_fraction, plan)
    return TopologyUpdate(plan, leaves, enters, statistic, fraction, drop_pool, density_curve, prune_pool)


def refuse_unused(unused: Mapping[str, Any], why: str) -> None:
    """Raise ValueError for the first argument that was given although it would have no effect."""
    for name, value in unused.items():
        if value is not None:
            raise ValueError(f"{name} would be ignored: {why}, or leave {name} out")


def find_part(kind: str, value: Any) -> Any:
    """Return a part of a method given by name or as itself."""
    if value == registry.NONE:
        raise ValueError(f"{kind}='none': leave it out, or give {kind}=None")
    part = registry.find(kind, value).load() if isinstance(value, str) else value
    if part is not None:
        check_part(part, kind)
    return part


def _default(given: Any, default: str, moves: bool) -> Any:
    return given if given != DEFAULT else default if moves else None


def _curve(drop_fraction: float | Curve, plan: UpdatePlan) -> Curve:
    """Return a drop fraction as a curve."""
    if callable(drop_fraction):
        return drop_fraction
    try:
        return constant(plan, initial=drop_fraction)
    except OptionError as error:
        raise OptionError(f"drop_fraction={drop_fraction}: {error}") from error
