"""What single ranks do in the tests of packed weights, each in a process of its own."""

import copy
from typing import Any

from dst.run.build import build
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag
from tests.sparsity.test_packed_methods import configured
from tests.training.ranks import processes


class _Masks(NoObserver):
    def __init__(self, training: Any) -> None:
        self.training, self.counts, self.packed = training, [], []
        self.on_layers(0, training.sparsifier.layers)

    def on_layers(self, step: int, layers: Any) -> None:
        self.counts.append([report.active for report in layers])
        self.packed.append(list(getattr(self.training.sparsifier.weights, "packed", ())))


def train(root: str, method: str, compute: str, *options: str) -> dict[str, Any]:
    """Train together; return the last state, and counts and packed layers at first and after each update."""
    config = configured(method, *options, f"sparsity.compute={compute}", f"output.root={root}")
    with processes(strict=config.hardware.determinism == "strict") as group:
        training = build(config, group).training
        training.begin_alike()
        seen = _Masks(training)
        training.run(seen, StopFlag())
    return {"state": copy.deepcopy(training.state_dict()), "counts": seen.counts, "packed": seen.packed}
