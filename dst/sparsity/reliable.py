"""Which weights are reliable: they have been active for some number of steps in a row, at any time so far.

It costs nothing at a step, and nothing to read: between two changes of the masks a weight becomes reliable by its age
alone, so that a few numbers tell when. Only a change looks at weights.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dst.sparsity.select import count_true
from dst.sparsity.topology import Topology
from dst.sparsity.weights.births import Births


class Reliable:
    """Counts, for the present ``topology`` and all of its changes, the weights active for ``steps`` steps in a row.

    First weights are born at step 0, others at the end of the step at whose change they enter: their age is 1 after the
    next. A weight that a change leaves active is not born again, whatever becomes of its value; one that leaves and
    returns is, even before the next step. Steps are those of the whole training, also those that an update has replaced
    or a GradScaler has left out; every ``now`` is such a step, counted in its phase.
    """

    def __init__(self, topology: Topology, steps: int) -> None:
        self.steps = steps
        self._names = [layer.name for layer in topology.layers]
        self._masks = list(topology.masks)
        self._ever = [torch.zeros_like(mask) for mask in self._masks]
        """Which weights were reliable when the masks changed last."""
        self._births = [Births(mask.numel(), mask.device) for mask in self._masks]
        """Of the active ones that were not reliable then."""
        self._past = 0
        """Steps of earlier phases."""
        self._count()

    def begin_phase(self, steps: int) -> None:
        """Begin another phase of training, after so many steps in the present one."""
        self._past += steps

    @torch.no_grad()
    def changed(self, masks: Sequence[Tensor], now: int) -> None:
        """Note that the masks have changed to these at the end of step ``now``."""
        now += self._past
        for i, (mask, before) in enumerate(zip(masks, self._masks, strict=True)):
            if mask is before:
                continue
            births, old_enough = self._births[i], now - self.steps
            if old_enough >= 0:
                self._ever[i] = self._ever[i] | (before & (births.dense().view(mask.shape) <= old_enough))
            births.change(mask, mask & ~before & ~self._ever[i], now, old_enough)
        self._masks = list(masks)
        self._count()

    def counts(self, now: int) -> list[int]:
        """Return how many weights of each layer are or were reliable at the end of step ``now``."""
        last = now + self._past - self.steps
        return [
            ever + sum(number for born, number in young.items() if born <= last)
            for ever, young in zip(self._ever_counts, self._young, strict=True)
        ]

    def _count(self) -> None:
        """Count the reliable weights of each layer, and by their births the active ones that are not yet reliable."""
        number = len(self._masks)
        young = [mask & ~ever for mask, ever in zip(self._masks, self._ever, strict=True)]
        found = count_true([*self._ever, *young])
        self._ever_counts = found[:number]
        self._young = [
            _by_birth(births.births, total) for births, total in zip(self._births, found[number:], strict=True)
        ]

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the steps asked for and those of earlier phases; by layer name, who was reliable, and births."""
        layers = [*zip(self._names, self._births, self._masks, strict=True)]
        return {
            "steps": self.steps,
            "past": self._past,
            "ever": dict(zip(self._names, self._ever, strict=True)),
            "births": {name: births.of(mask) for name, births, mask in layers if len(births.births)},
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, masks: Sequence[Tensor]) -> None:
        """Restore what ``state_dict`` returned at these masks; ValueError if it does not tell who is reliable here."""
        if state is None or state["steps"] != self.steps:
            asked = "without reliable_steps" if state is None else f"with reliable_steps={state['steps']}"
            raise ValueError(
                f"reliable_steps={self.steps}: the stored state was counted {asked}, and does not tell for how long "
                f"weights have been active. Go on {asked}, or train anew"
            )
        self._past, self._masks = state["past"], list(masks)
        self._ever = [
            state["ever"][name].to(mask.device, copy=True) for name, mask in zip(self._names, masks, strict=True)
        ]
        for name, births, mask in zip(self._names, self._births, masks, strict=True):
            births.restore(state["births"], name, mask)
        self._count()


def _by_birth(births: Tensor, total: int) -> dict[int, int]:
    """Return the numbers of so many weights by birth, in growing order; those without one were born at step 0."""
    born, numbers = torch.unique(births, return_counts=True)
    rest = total - len(births)
    return {**({0: rest} if rest else {}), **dict(zip(born.tolist(), numbers.tolist(), strict=True))}
