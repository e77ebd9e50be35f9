"""The topology of all layers: which weights are active, which ever were, and which masks are allowed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dst.sparsity.pattern import Pattern, allowed
from dst.sparsity.scope import Layer
from dst.sparsity.select import count_true
from dst.sparsity.weights.held import all_finite

MOMENTUM = 0.9
"""Weight of the past in the moving average of gradients: that of SNFS, the momentum of its optimizer."""


@dataclass(frozen=True)
class LayerReport:
    """Exact counts of one layer after an update (or at the start, when nothing was dropped or grown).

    ``reliable``: how many of its weights have been active for so many steps in a row, where they are counted.
    ``threshold``: the magnitude that prunes its weights, where one is trained. ``churn``: after an update, the share of
    its active weights that were grown, where a pattern may move less than is dropped.
    """

    layer: str
    size: int
    active: int
    explored: int
    dropped: int = 0
    grown: int = 0
    reliable: int | None = None
    threshold: float | None = None
    churn: float | None = None

    @property
    def row(self) -> dict[str, str | int | float]:
        """The report as it goes on record: what a method does not have is left out."""
        return {name: value for name, value in vars(self).items() if value is not None}


class Topology:
    """The boolean masks of all layers; ``explored`` are unions of all masks so far, the initial one included.

    ``patterns``: which masks each layer allows; ``is_structured``: they have quotas, so that a layer that keeps to its
    own may have a few weights more or less than its count. ``momentum``: moving
    averages of dense gradients, where the method asks for them; ``initial``: the weights before anything was masked,
    where grown weights start from them.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        masks: Sequence[Tensor],
        patterns: Sequence[Pattern],
        *,
        is_structured: bool = False,
        momentum: Sequence[Tensor] = (),
        initial: Sequence[Tensor] = (),
    ) -> None:
        self.layers = list(layers)
        self.masks = list(masks)
        self.patterns = list(patterns)
        self.is_structured = is_structured
        self._tells_churn = any(pattern.in_blocks for pattern in patterns)
        self.explored = [mask.clone() for mask in masks]
        self.momentum = list(momentum)
        self.initial = list(initial)
        self.reports: list[LayerReport] = []
        self.churn: float | None = None
        """The share that the last update has grown of all active weights that can move; None if reports do not tell."""
        self.refresh()
        self.counts = [report.active for report in self.reports]
        """The active weights of each layer: exactly, or those that its pattern derives its quotas from."""

    def refresh(self, before: Sequence[Tensor] | None = None) -> None:
        """Recount every layer in one host synchronisation; ``before``: the masks at the time of the last reports."""
        common = [] if before is None else torch._foreach_mul(self.masks, list(before))
        found = count_true([*self.masks, *self.explored, *common])
        number = len(self.layers)
        active, explored, stayed = found[:number], found[number : 2 * number], found[2 * number :] or found[:number]
        former = active if before is None else [report.active for report in self.reports]
        tells_churn = self._tells_churn and before is not None
        self.reports = [
            LayerReport(
                layer.name,
                layer.size,
                now,
                ever,
                dropped=was - both,
                grown=now - both,
                churn=(now - both) / now if tells_churn else None,
            )
            for layer, now, ever, both, was in zip(self.layers, active, explored, stayed, former, strict=True)
        ]
        if tells_churn:
            moving = [report for report in self.reports if report.active < report.size]
            self.churn = sum(report.grown for report in moving) / max(1, sum(report.active for report in moving))

    @torch.no_grad()
    def track_momentum(self, gradients: Sequence[Tensor | None], *, may_overflow: bool = False) -> None:
        """Add dense gradients, one of each layer, to the moving averages, in one fused pass.

        ``may_overflow``: leave them out unless all are finite, which the device finds out without the host.
        """
        if self.momentum:
            there = [gradient for gradient in gradients if gradient is not None]
            if len(there) < len(self.layers):
                raise RuntimeError("a moving average of gradients needs a backward pass before every step")
            if may_overflow:
                finite = all_finite(there)
                there = [torch.where(finite, *pair) for pair in zip(there, self.momentum, strict=True)]
            torch._foreach_lerp_(self.momentum, there, 1 - MOMENTUM)

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a step reads and writes: the moving averages. A step that was captured goes on with them."""
        return self.momentum

    def bottlenecks(self) -> dict[str, str]:
        """Return a warning, by layer, where a layer has fewer active weights than outputs, and than inputs.

        The matrix of such a layer cannot have full rank, and the network hardly learns, whatever its total density.
        """
        return {
            report.layer: f"layer {report.layer} is a bottleneck: it keeps {report.active:,} of {report.size:,} "
            f"weights, for {mask.shape[0]:,} outputs of {mask[0].numel():,} inputs each"
            for mask, report in zip(self.masks, self.reports, strict=True)
            if report.active < min(mask.shape[0], mask[0].numel())
        }

    @property
    def size(self) -> int:
        """Number of maskable weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def active(self) -> int:
        """Number of active weights."""
        return sum(report.active for report in self.reports)

    @property
    def explored_count(self) -> int:
        """Number of weights that are or were active."""
        return sum(report.explored for report in self.reports)

    @property
    def active_by_layer(self) -> dict[str, int]:
        """Number of active weights of each layer, by its name, in model order."""
        return {report.layer: report.active for report in self.reports}

    def check(self) -> None:
        """Raise RuntimeError if a layer breaks its budget or its pattern, which only a faulty part can cause."""
        if self.is_structured:
            if broken := self._broken():
                raise RuntimeError(f"layer {broken[0]}: its mask breaks the pattern")
            return
        for report, count in zip(self.reports, self.counts, strict=True):
            if report.active != count:
                raise RuntimeError(f"layer {report.layer} has {report.active} active weights instead of {count}")

    def _broken(self) -> list[str]:
        """Return the layers whose masks their patterns do not allow; every pattern allows a full one."""
        asked = [i for i, report in enumerate(self.reports) if report.active < report.size]
        allows = allowed([self.patterns[i] for i in asked], [self.masks[i] for i in asked])
        return [self.reports[i].layer for i, is_allowed in zip(asked, allows, strict=True) if not is_allowed]

    def replace_all(self, masks: Mapping[int, Tensor]) -> None:
        """Give some layers new boolean masks, by their index; call ``refresh`` next."""
        if not masks:
            return
        for index, mask in masks.items():
            self.masks[index] = mask
        pairs = [(self.explored[index].view(torch.uint8), mask.view(torch.uint8)) for index, mask in masks.items()]
        torch._foreach_maximum_(*map(list, zip(*pairs, strict=True)))  # of 0 and 1, in one kernel for all layers

    @property
    def active_counts(self) -> list[int]:
        """The active weights of each layer exactly, which the host knows: no device is waited for."""
        return [report.active for report in self.reports] if self.is_structured else self.counts

    def state_dict(self) -> dict[str, Any]:
        """Return counts, and by layer name masks, explored masks (boolean), moving averages and initial weights.

        And the state of patterns that have one.
        """
        names = [layer.name for layer in self.layers]
        states = [pattern.state_dict() for pattern in self.patterns]
        patterns = {name: state for name, state in zip(names, states, strict=True) if state}
        tensors = {kind: dict(zip(names, found, strict=True)) for kind, found in self._tensors().items() if found}
        return {
            "counts": list(self.counts),
            **tensors,
            **({"patterns": patterns} if patterns else {}),
            **({"churn": self.churn} if self.churn is not None else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; ValueError if layers, shapes or patterns differ."""
        here = {layer.name: tuple(mask.shape) for layer, mask in zip(self.layers, self.masks, strict=True)}
        for kind, tensors in self._tensors().items():
            if not tensors:
                continue
            if kind not in state:
                raise ValueError(f"the stored state has no {kind}, which this method needs: it is of another method")
            stored = {name: tuple(tensor.shape) for name, tensor in state[kind].items()}
            if stored != here:
                differing = sorted({name for name, _ in stored.items() ^ here.items()})
                raise ValueError(f"stored {kind} do not fit this model: layers {', '.join(differing)} differ")
            pairs = zip(self.layers, tensors, strict=True)
            setattr(self, kind, [state[kind][layer.name].to(old.device, copy=True) for layer, old in pairs])
        for layer, pattern in zip(self.layers, self.patterns, strict=True):
            pattern.load_state_dict(state.get("patterns", {}).get(layer.name, {}))
        self.counts = list(state["counts"])
        self.churn = state.get("churn")
        self.refresh()
        if self.is_structured and (broken := self._broken()):
            raise ValueError(
                f"stored masks break the pattern in layers {', '.join(broken)}: the state is of another method"
            )

    def _tensors(self) -> dict[str, list[Tensor]]:
        """Return all that is kept of each layer, by kind; some kinds only where the method asks for them."""
        return {"masks": self.masks, "explored": self.explored, "momentum": self.momentum, "initial": self.initial}
