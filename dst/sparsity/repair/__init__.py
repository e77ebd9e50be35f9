"""What is mended in the first masks and weights of a network, once, before it trains."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dst.sparsity.options import Repair
from dst.sparsity.probe import Probe
from dst.sparsity.repair.flow import LayerFlow, mend_flow
from dst.sparsity.repair.orthogonal import LayerIsometry, mend_orthogonal
from dst.sparsity.scope import Layer


@dataclass(frozen=True)
class Mended:
    """The masks after repair, and what was mended, by layer; ``forward_passes``: the cost, in those of one sample."""

    masks: list[Tensor]
    flow: list[LayerFlow] = field(default_factory=list)
    orthogonal: list[LayerIsometry] = field(default_factory=list)
    forward_passes: int = 0

    def report(self) -> dict[str, list[dict[str, Any]]]:
        """Return what was mended as plain data: the rows of the layers for each kind of repair that was made."""
        kinds: dict[str, Sequence[LayerFlow | LayerIsometry]] = {"flow": self.flow, "orthogonal": self.orthogonal}
        return {kind: [vars(layer) for layer in layers] for kind, layers in kinds.items() if layers}


def mend(repair: Repair, probe: Probe | None, layers: Sequence[Layer], masks: Sequence[Tensor], seed: int) -> Mended:
    """Return mended masks; weights change, in place, if they are to become orthogonal.

    Raises ValueError for a repair of flow without a probe or with masks that are full, and as ``mend_flow`` does.
    """
    found = Mended(list(masks))
    if repair.flow != "none":
        if probe is None:
            raise ValueError(
                f"flow={repair.flow} follows the network from an input on, but there is none: give Sparsifier a probe "
                "(model, batches, loss)"
            )
        if all(bool(mask.all()) for mask in masks):
            raise ValueError(f"flow={repair.flow} would be ignored: all weights are active, so all is on a path")
        flow = mend_flow(probe, layers, masks, move=repair.flow == "move", seed=seed)
        found = Mended(flow.masks, flow.layers, [], flow.forward_passes)
    if repair.orthogonal:
        found.orthogonal.extend(mend_orthogonal(layers, found.masks))
    return found
