"""How many steps a training has."""

from collections.abc import Iterator


def steps_of(epochs: int, steps_per_epoch: int, max_steps: int | None = None) -> int:
    """Return the number of steps of so many epochs, or ``max_steps`` if that is fewer."""
    steps = epochs * steps_per_epoch
    return steps if max_steps is None else min(steps, max_steps)


def length_problems(max_steps: int | None, epochs: int, multiplier: int, steps_per_epoch: int) -> Iterator[str]:
    """Yield which of ``max_steps`` and ``multiplier`` would be ignored; ``epochs``: those of a multiplier of one."""
    once, whole = (steps_of(n * epochs, steps_per_epoch) for n in (1, multiplier))
    if max_steps is not None and max_steps >= whole:
        yield f"max_steps={max_steps} would be ignored: training has {whole} steps in any case. Give fewer, or null"
    elif max_steps is not None and multiplier > 1 and max_steps <= once:
        yield (
            f"multiplier={multiplier} would be ignored: max_steps={max_steps} ends training within the {once} steps of "
            "a multiplier of 1. Use 1, or more steps"
        )
