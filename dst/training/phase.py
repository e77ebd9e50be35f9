"""The phases of a run, and the networks that it makes on the way from one to the next."""

import re
from dataclasses import dataclass
from typing import Final

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9 ._-]{0,99}")


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
