"""How masks are learned instead of chosen: from the edges of a network to how its weights are computed."""

from collections.abc import Callable
from typing import Annotated

from dst.options import Range, checked
from dst.sparsity.marks import marked
from dst.sparsity.weights.edge_popup import EdgePopup
from dst.sparsity.weights.reparametrised import Edges, Reparametrization
from dst.sparsity.weights.soft_threshold import SoftThreshold

Learn = Callable[[Edges], Reparametrization]
"""From the first masks, out of which active weights are learned, to how weights are computed."""


@marked("target")
@checked
def edge_popup(
    edges: Edges, *, density: Annotated[float, Range(0, 1, "()"), "active / maskable weights, in each layer"]
) -> EdgePopup:
    """Train scores, and nothing else: the weights of the largest are active (Ramanujan et al. 2020)."""
    return EdgePopup(edges, density)


@marked("outcome")
@checked
def soft_threshold(
    edges: Edges,
    *,
    threshold_init: Annotated[
        float, Range(-1_000_000, 1_000_000), "thresholds start from the sigmoid of it: far below zero nothing is pruned"
    ],
    threshold_decay: Annotated[float, Range(0), "weight decay of what thresholds are the sigmoid of; raises them"],
) -> SoftThreshold:
    """Train a threshold for each layer, which prunes what lies below (STR, Kusupati et al. 2020)."""
    return SoftThreshold(edges, threshold_init, threshold_decay)
