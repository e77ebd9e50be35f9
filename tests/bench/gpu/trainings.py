"""Real trainings, as commands have them, on synthetic images; and what the loop takes for an epoch of them."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch

from dst.config.checks import check
from dst.config.schema import complete
from dst.data.dataset import Dataset, Split
from dst.run import build as building
from dst.training.loop import Training
from dst.training.observer import NoObserver
from dst.training.stopping import StopFlag, StopRequestedError
from tests.bench.timing import wait
from tests.composed import compose_cells

CONF = Path(__file__).parents[3] / "conf"
ENDLESS = ("schedule.epochs=10000", "schedule.lr.name=constant", "schedule.lr.floor=null", "schedule.lr.peak=1e-4")
QUIET = ("tracking=none", "tracking.progress=none", "checkpoint.every_min=1000000", "data.val_fraction=0")
_ROOT = TemporaryDirectory()
"""What torch.compile builds lies in it; it is removed when the process ends."""


class NotHereError(RuntimeError):
    """What cannot be asked of this machine; the message says why."""


@dataclass(frozen=True)
class Images:
    """How many synthetic images there are, of which shape and how many classes."""

    count: int
    channels: int = 3
    size: int = 32
    classes: int = 10

    @property
    def data(self) -> str:
        """The data set whose config they take the place of."""
        return "cifar10" if self.channels == 3 else "mnist"


@cache
def split_of(images: Images) -> Split:
    """Return the images, all of noise."""
    generator = torch.Generator().manual_seed(0)
    shape = (images.count, images.channels, images.size, images.size)
    pixels = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.arange(images.count) % images.classes)


def training(device: str, images: Images, *words: str) -> Training:
    """Return the training of a command. NotHereError says what of it does not go with the device."""
    always = (f"data={images.data}", f"output.root={_ROOT.name}", "output.resume=never", f"hardware.device={device}")
    given = [*always, "hardware.determinism=fast", *QUIET, *ENDLESS, *words]
    ((_, config),) = compose_cells(CONF, given, multirun=False)
    if problems := check(config):
        raise NotHereError("; ".join(problems))
    split = split_of(images)
    dataset = Dataset(images.data, split, split, images.classes, "")
    with patch.object(building, "load_dataset", lambda _: dataset):
        return building.build(complete(config)).training


class Steps(NoObserver):
    """The real loop of a training, let go for some steps at a time."""

    def __init__(self, run: Training, device: str) -> None:
        self._run, self._device = run, device
        self._stop = StopFlag()
        self._look: Callable[[int], bool] = lambda _: True
        self.told: list[str] = []
        """What the run says of its captures."""

    def on_capture(self, step: int, line: str) -> None:
        """Keep the line."""
        self.told.append(line)

    def on_step(self, step: int) -> None:
        """Ask the loop to stop, which it does after the next step, when nobody needs more."""
        if not self._stop.requested and self._look(step):
            self._stop.requested = "the benchmark"

    def seconds(self, steps: int) -> float:
        """Return what the loop takes for so many steps, after one that is not timed."""
        times: dict[int, float] = {}
        first = self._run.counters.step + 1

        def look(step: int) -> bool:
            if step in (first, first + steps):
                wait(self._device)
                times[step] = time.perf_counter()
            return step == first + steps

        self._go(look)
        return times[first + steps] - times[first]

    def each(self, steps: int) -> list[float]:
        """Return what each of so many steps takes, one after another, with nothing left to do on the device."""
        times: list[float] = []

        def look(step: int) -> bool:
            wait(self._device)
            times.append(time.perf_counter())
            return len(times) > steps

        self._go(look)
        return [later - earlier for earlier, later in pairwise(times)]

    def _go(self, look: Callable[[int], bool]) -> None:
        self._look, self._stop.requested = look, None
        with suppress(StopRequestedError):
            self._run.run(self, self._stop)
