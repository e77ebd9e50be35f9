"""What a procedure gets to make phases of."""

from collections.abc import Callable
from dataclasses import dataclass

from dst.fractions import Curve
from dst.sparsity.update import TopologyUpdate


@dataclass(frozen=True)
class Length:
    """The length of training: ``steps`` in all, ``steps_per_epoch`` in each of the ``epochs``.

    The last epoch is not complete if there are fewer steps. ``batch_size``: samples of every batch but the last of an
    epoch.
    """

    epochs: int
    steps_per_epoch: int
    steps: int
    batch_size: int = 1


@dataclass(frozen=True)
class Method:
    """The method as far as it depends on the length of a phase.

    ``lr``, ``update``: from the steps of a phase to its learning rate and its updates (None if the topology is static).
    ``density``: that of the network at the end; None for a dense one, and where counts are the method's own.
    ``has_batch_norm``: the model keeps averages of the statistics of batches. ``first``: how many weights the first
    masks have, of how many; None as long as that is not known.
    """

    lr: Callable[[int], Curve]
    update: Callable[[int], TopologyUpdate | None]
    density: float | None = None
    has_batch_norm: bool = False
    first: tuple[int, int] | None = None
