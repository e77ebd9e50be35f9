"""How much is measured."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.bench.gpu.table import Clock


@dataclass(frozen=True)
class Plan:
    """Sizes; a round of the loops is an epoch of ``steps`` steps. ``models``: none for all."""

    device: str = "cuda"
    models: Sequence[str] = ()
    batch: int = 128
    steps: int = 100
    rounds: int = 3
    workers: int = 8
    updates: int = 7
    runs: Sequence[int] = (4, 8)
    is_quick: bool = False
    clock: Clock = field(default_factory=lambda: Clock(0))


def quick(device: str, models: Sequence[str], clock: Clock) -> Plan:
    """Return the smallest sizes, by which the script itself is tried out."""
    small = {"batch": 16, "steps": 3, "rounds": 1, "workers": 0, "updates": 3, "runs": (2,)}
    return Plan(device=device, models=models or ("lenet_300_100",), **small, is_quick=True, clock=clock)
