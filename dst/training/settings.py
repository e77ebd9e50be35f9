"""The options of the training loop."""

from dataclasses import dataclass
from typing import Annotated

from dst.options import Range, require
from dst.training.options import (
    Accumulate,
    ChannelsLast,
    EvalEveryEpochs,
    LabelSmoothing,
    LogEverySteps,
    SaveEverySteps,
    Seed,
    Select,
)


@dataclass(frozen=True)
class Settings:
    """The options of the loop.

    ``select``: end with the ``last`` weights, or with those of the ``best_val`` accuracy at the final density.
    """

    seed: Seed
    label_smoothing: LabelSmoothing
    accumulate: Accumulate
    channels_last: ChannelsLast
    select: Select
    eval_every_epochs: EvalEveryEpochs
    log_every_steps: LogEverySteps
    checkpoint_every_s: Annotated[float, Range(0, ends="(]"), "seconds from one checkpoint to the next"]
    checkpoint_every_steps: SaveEverySteps | None

    def __post_init__(self) -> None:
        require(self)
