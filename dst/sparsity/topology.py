"""Masks and explored masks of all layers: what is active, and what ever was."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dst.sparsity.scope import Layer


@dataclass(frozen=True)
class LayerReport:
    """Exact counts of one layer after an update (or at the start, when nothing was dropped or grown)."""

    layer: str
    size: int
    active: int
    explored: int
    dropped: int = 0
    grown: int = 0


class Topology:
    """The boolean masks of all layers; ``explored`` are unions of all masks so far, the initial one included."""

    def __init__(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> None:
        self.layers = list(layers)
        self.masks = list(masks)
        self.explored = [mask.clone() for mask in masks]
        self.reports: list[LayerReport] = []
        self.refresh()

    def refresh(self, before: Mapping[int, Tensor] | None = None) -> None:
        """Recount every layer in one host synchronisation; ``before``: former masks of the layers that changed."""
        zero = torch.zeros((), dtype=torch.int64, device=self.masks[0].device)
        counts = []
        for i, (new, explored) in enumerate(zip(self.masks, self.explored, strict=True)):
            active, dropped, grown = torch.count_nonzero(new), zero, zero
            if before and i in before:
                stayed = torch.count_nonzero(before[i] & new)
                dropped, grown = torch.count_nonzero(before[i]) - stayed, active - stayed
            counts.append(torch.stack([active, torch.count_nonzero(explored), dropped, grown]))
        rows: list[list[int]] = torch.stack(counts).tolist()
        self.reports = [LayerReport(lay.name, lay.size, *row) for lay, row in zip(self.layers, rows, strict=True)]

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

    def replace(self, index: int, mask: Tensor) -> None:
        """Give one layer a new boolean mask; call ``refresh`` after the last one."""
        self.masks[index] = mask
        self.explored[index] |= mask

    def state_dict(self) -> dict[str, Any]:
        """Return masks and explored masks as boolean tensors by layer name."""
        return {
            "masks": {layer.name: mask for layer, mask in zip(self.layers, self.masks, strict=True)},
            "explored": {layer.name: seen for layer, seen in zip(self.layers, self.explored, strict=True)},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore masks and explored masks; ValueError if the layers or shapes differ."""
        for kind in ("masks", "explored"):
            stored = {name: tuple(tensor.shape) for name, tensor in state[kind].items()}
            here = {layer.name: tuple(layer.weight.shape) for layer in self.layers}
            if stored != here:
                differing = sorted({name for name, _ in stored.items() ^ here.items()})
                raise ValueError(f"stored {kind} do not fit this model: layers {', '.join(differing)} differ")
        for i, layer in enumerate(self.layers):
            device = layer.weight.device
            self.masks[i] = state["masks"][layer.name].to(device, torch.bool, copy=True)
            self.explored[i] = state["explored"][layer.name].to(device, torch.bool, copy=True)
        self.refresh()
