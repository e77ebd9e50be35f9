"""What single ranks do in the tests of procedures, each in a process of its own."""

import copy
from typing import Any

from dst.config.schema import complete
from dst.run.build import build
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag
from tests.composed import compose_cells
from tests.processes import REPOSITORY
from tests.training.ranks import processes


class _Networks(NoObserver):
    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_network(self, network: Any, state: Any) -> None:
        masks = copy.deepcopy(dict(state["sparsifier"]["masks"]))
        figures = {"loss": network.loss, "accuracy": network.accuracy}
        self.found[network.name] = {"model": copy.deepcopy(dict(state["model"])), "masks": masks, **figures}


def train(*overrides: str) -> dict[str, Any]:
    """Train as these overrides say, together with the others; return every network on the way and the FLOPs."""
    ((_, config),) = compose_cells(REPOSITORY / "conf", overrides, multirun=False)
    networks = _Networks()
    with processes() as group:
        training = build(complete(config), group).training
        training.run(networks, StopFlag())
    final = copy.deepcopy(training.model.state_dict())
    return {"networks": networks.found, "final": dict(final), "flops": training.ledger.state_dict()}
