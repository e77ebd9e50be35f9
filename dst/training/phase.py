"""The phases of a run, and the networks that it makes on the way from one to the next."""

from dataclasses import dataclass
from typing import Annotated

from dst.options import Range, Text, require


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
