"""What benchmarks share: times of work, on a device too."""

import time
from collections.abc import Callable, Mapping

import torch


def wait(device: str) -> None:
    """Let a GPU finish what it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds(action: Callable[[], object], device: str, times: int = 1) -> float:
    """Return how long it takes to do this so many times."""
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        action()
    wait(device)
    return time.perf_counter() - started


def in_turns(
    actions: Mapping[str, Callable[[], float]], rounds: int, failed: dict[str, Exception] | None = None
) -> dict[str, list[float]]:
    """Return what each action returns, one of each a round, after a round that warms up.

    With ``failed`` an action that raises is put there and has no further turn; else the error ends all.
    """
    found: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            if failed is not None and name in failed:
                continue
            try:
                taken = action()
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = error
                del found[name]
                continue
            if number:
                found[name].append(taken)
    return found
