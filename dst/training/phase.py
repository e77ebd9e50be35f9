"""The phases of a run, known in advance, and the networks that it makes on the way from one to the next."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from dst.fractions import Curve
from dst.metrics.flops import Ledger
from dst.sparsity.update import TopologyUpdate

if TYPE_CHECKING:
    from dst.sparsity import Sparsifier
    from dst.training.loop import Training
    from dst.training.observer import Observer

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9 ._-]{0,99}")

Tick = Callable[[], None]
"""Called now and then in work that takes long: it shows that the run is alive, and raises what ends the work early."""


class Action(Protocol):
    """What a phase does before its first step, between two epochs or after its last step.

    A pure function of the state of the run, which it changes only at its very end, so that work that was stopped or
    killed is simply repeated.
    """

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        """Carry it out."""
        ...

    def book(self, ledger: Ledger, active: Mapping[str, int], samples: int) -> None:
        """Book what it will cost, given the active weights of each layer and the number of training samples: nothing.

        Validation figures are not booked.
        """
        return

    def leaves(self, active: Mapping[str, int], sparsifier: "Sparsifier") -> Mapping[str, int]:
        """Return the active weights of each layer that it leaves, as far as that is known before training.

        ``active``: those that it finds; ``sparsifier``: of the run, before its first step.
        """
        return active


@dataclass(frozen=True)
class Report(Action):
    """Validate the present network and report it."""

    name: str

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        """Carry it out."""
        tick()
        run.report_network(observer, self.name)


@dataclass(frozen=True)
class Phase:
    """A part of training, in order. Steps of ``lr`` and ``update`` are those of the phase; None: nothing.

    ``begin``: before the first step, once; networks are reported by ``end`` only. ``midway``: so many steps into the
    phase, at the beginning of an epoch, and again if the run resumes there; it changes no weights.
    """

    name: str
    steps: int
    lr: Curve
    update: TopologyUpdate | None
    begin: Action | None = None
    end: Action | None = None
    midway: tuple[int, Action] | None = None


@dataclass(frozen=True)
class Network:
    """A network that a run makes on the way, such as the ticket of a cycle.

    ``phase``: the one whose beginning or end made it, counted from 0. ``step``: of the whole training. ``name``: no two
    networks of a run share one. ``active``: its weights in the masks. ``loss`` and ``accuracy`` (a fraction): on the
    validation set; None without one. ValueError for a name that no file can have everywhere.
    """

    phase: int
    phase_name: str
    step: int
    name: str
    density: float
    active: int
    loss: float | None
    accuracy: float | None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            told = "must be 1 to 100 lower-case letters, digits, spaces or ._-, as it names a file"
            raise ValueError(f"name={self.name!r}: {told}")


def total_steps(phases: Sequence[Phase]) -> int:
    """Return the steps of all phases."""
    return sum(phase.steps for phase in phases)
