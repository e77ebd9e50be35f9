"""The phases of a run, known in advance, and the networks that it makes on the way from one to the next."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol

from dst.fractions import Curve
from dst.metrics.flops import Ledger
from dst.options import Range, Text, require
from dst.sparsity.update import TopologyUpdate

if TYPE_CHECKING:
    from dst.training.loop import Training
    from dst.training.observer import Observer

Tick = Callable[[], None]
"""Called now and then in work that takes long: it shows that the run is alive, and raises what ends the work early."""


class Action(Protocol):
    """What a phase does before its first step or after its last one: a pure function of the state of the run.

    It changes that state only at its very end, so that work that was stopped or killed is simply repeated.
    """

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        """Carry it out."""
        ...

    def book(self, ledger: Ledger, active: Mapping[str, int], samples: int) -> None:
        """Book what it will cost, given the active weights of each layer and the number of training samples."""
        ...


@dataclass(frozen=True)
class Phase:
    """A part of training, in order. Steps of ``lr`` and ``update`` are those of the phase; None: nothing."""

    name: str
    steps: int
    lr: Curve
    update: TopologyUpdate | None
    begin: Action | None = None
    end: Action | None = None


@dataclass(frozen=True)
class Network:
    """A network that a run makes on the way, such as the ticket of a cycle.

    ``phase``: the one whose beginning or end made it, counted from 0. ``step``: of the whole training. ``name``: no two
    networks of a run share one. ``loss`` and ``accuracy`` (a fraction): on the validation set; None without one.
    """

    phase: Annotated[int, Range(0)]
    phase_name: str
    step: Annotated[int, Range(0)]
    name: Annotated[
        str, Text(r"[a-z0-9][a-z0-9 ._-]{0,99}", "lower-case letters, digits, spaces and ._-: it names a file")
    ]
    density: Annotated[float, Range(0, 1)]
    active: Annotated[int, Range(0)]
    loss: float | None
    accuracy: float | None

    def __post_init__(self) -> None:
        require(self)


def total_steps(phases: Sequence[Phase]) -> int:
    """Return the steps of all phases."""
    return sum(phase.steps for phase in phases)
