"""The captured work of a run: its ordinary steps and its evaluations, as far as they can be captured."""

import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from dst.data.loader import Loader
from dst.data.resident import FixedBatches, ResidentEpoch
from dst.sparsity.sparsifier import Turn
from dst.training.captured import Captured, CaptureError, Graphs
from dst.training.evaluate import Batches, Forward, Sums, eager_sums, sums_of
from dst.training.gradients import Batch
from dst.training.step import Step

_WARM: Final = 3
"""Steps, or batches of an evaluation, that a process works at before it captures one: until then libraries set up."""


@dataclass(frozen=True)
class Capture:
    """What a run shall do about captures.

    ``graphs``: makes graphs; None where nothing is captured. Then ``obstacle`` says what stands in the way, if anybody
    expects captures. ``is_required``: CaptureError where something does.
    """

    graphs: Graphs | None = None
    obstacle: str | None = None
    is_required: bool = False


class Replays:
    """Replays ordinary steps, and the whole batches of evaluations, once they are captured."""

    def __init__(self, step: Step, capture: Capture) -> None:
        self.steps = 0
        """Steps that were replayed so far in this process."""
        self._step, self._capture, self._graphs = step, capture, capture.graphs
        self._tell: Callable[[str], None] = lambda _: None
        self._told: set[str] = set()
        self._warm = 0
        self._course: Hashable = None
        """That of the last step that was no replay."""
        self._training: _Gathered | None = None
        self._epoch: ResidentEpoch | None = None
        """Of the prepared step."""
        self._evaluations: dict[int, _Evaluation] = {}
        """By the identity of the loader."""
        self._vetoed = step.vetoed
        if capture.graphs is not None:
            step.fix_rate()

    def begin(self, tell: Callable[[str], None]) -> None:
        """Let ``tell`` take a line about each first capture from now on, and one about what stands in the way.

        CaptureError if something is known to, and captures are required.
        """
        self._tell = tell
        if self._capture.obstacle is not None:
            self._give_up(self._capture.obstacle)

    def doubt(self) -> None:
        """Look where everything is before the next replay: something else has worked since the last one."""
        for gathered in (self._training, *self._evaluations.values()):
            if gathered is not None:
                gathered.captured.doubt()

    # -- steps ---------------------------------------------------------------------------------------------------------

    def prepare(self, batches: Batches, loader: Loader) -> bool:
        """Prepare to replay the coming step; say whether ``take`` can do it, which needs a whole batch.

        ``batches``: of the epoch, from the coming step's on.
        """
        if self._graphs is None:
            return False
        if not isinstance(batches, ResidentEpoch):
            self._give_up("batches are streamed from the host")
            return False
        step = self._step
        is_warm = self._warm >= _WARM and self._course == step.course
        is_ordinary = is_warm and step.is_settled and not step.sparsifier.update_due()
        if not is_ordinary or not batches.left or _size(batches) != loader.batch_size:
            return False
        if self._training is None:
            self._training = _Gathered(batches, loader.batch_size, self._graphs, self._work, _of(step))
        self._epoch = batches
        return self._prepared(self._training, batches, "the step", step.course)

    def take(self, number: int) -> Turn:
        """Take the prepared step, on the next batch; ``number``: it is, counted from 1 over the whole training."""
        assert self._training is not None
        assert self._epoch is not None
        self.steps += 1
        self._epoch.skip()
        self._step.vetoed = self._vetoed
        return self._step.replay(self._training.captured, number, self._training.fixed.size)

    def took_another(self) -> None:
        """Note that a step was taken that was no replay."""
        if self._graphs is None:
            return
        self._warm, self._course = self._warm + 1, self._step.course
        self.doubt()

    def _work(self, fixed: FixedBatches) -> Iterator[None]:
        return self._step.work(lambda: Batch(*fixed.gather(), fixed.size, 0))

    # -- evaluations ---------------------------------------------------------------------------------------------------

    def sums(self, loader: Loader) -> Sums:
        """Return what yields the sums over each batch of a loader: replays, as far as batches are whole."""

        def found(batches: Batches, forward: Forward) -> Iterator[tuple[Tensor, int]]:
            if self._graphs is None or not isinstance(batches, ResidentEpoch):
                yield from eager_sums(batches, forward)
                return
            known = self._evaluations.get(id(loader)) or _Evaluation(batches, loader, self._graphs, forward, self._step)
            known.captured.doubt()
            for index in range(batches.left):
                is_warm = index >= _WARM or id(loader) in self._evaluations
                is_whole = _size(batches) == loader.batch_size
                if is_warm and is_whole and self._prepared(known, batches, "an evaluation"):
                    self._evaluations[id(loader)] = known
                    batches.skip()
                    known.captured.replay()
                    yield known.found[index], loader.batch_size
                else:
                    yield from eager_sums([next(batches)], forward)

        return found

    # -- both ----------------------------------------------------------------------------------------------------------

    def _prepared(self, work: "_Gathered", batches: ResidentEpoch, what: str, course: Hashable = None) -> bool:
        """Point work to the next batch, and capture it if need be; False if it cannot be captured."""
        if self._graphs is None:
            return False
        work.point(batches)
        return work.captured.holds(course) or self._is_captured(work, self._graphs, what, course)

    def _is_captured(self, work: "_Gathered", graphs: Graphs, what: str, course: Hashable) -> bool:
        """Capture work; False if it cannot be, after which nothing is."""
        started = time.perf_counter()
        self._step.prepare()
        work.try_out()
        try:
            with _as_capturable(self._step.optimizer):
                work.captured.capture(course)
        except CaptureError as error:
            self._give_up(f"{what}: {error}")
            return False
        if work is self._training:
            self._vetoed = self._step.vetoed
        held = f"; graphs hold {graphs.held / 2**20:,.0f} MiB"
        self._say(f"captured {what} in {time.perf_counter() - started:.2f} s{held}", key=what)
        return True

    def _give_up(self, obstacle: str) -> None:
        """Capture nothing any more, and let go what was captured."""
        self._graphs, self._training = None, None
        self._evaluations.clear()
        if self._capture.is_required:
            raise CaptureError(obstacle)
        self._say(f"not captured, so that the host launches every kernel: {obstacle}", key="obstacle")

    def _say(self, line: str, key: str) -> None:
        if key not in self._told:
            self._told.add(key)
            self._tell(line)


def _of(step: Step) -> Callable[[], list[Hashable]]:
    """Return what tells all that captured work may read of a step."""
    return lambda: [*step.tensors, *step.numbers]


def _size(batches: ResidentEpoch) -> int:
    """Return the number of samples of the next batch."""
    part = batches.next_part
    return int(part.stop - part.start)


class _Gathered:
    """Captured work on whole batches, which are gathered from tensors that stay where they are."""

    def __init__(
        self,
        batches: ResidentEpoch,
        size: int,
        graphs: Graphs,
        work: Callable[[FixedBatches], Iterator[None]],
        reads: Callable[[], list[Hashable]],
    ) -> None:
        self.fixed = fixed = FixedBatches(batches, size)
        self.captured = Captured(graphs, lambda: work(fixed), lambda: [*reads(), *fixed.tensors])
        self._epoch: ResidentEpoch | None = None

    def point(self, batches: ResidentEpoch) -> None:
        """Let the next replay work on the next batch."""
        if batches is not self._epoch:
            self.fixed.begin(batches)
            self._epoch = batches
        self.fixed.point(batches.next_part.start)

    def try_out(self) -> None:
        """Do once what nobody has done so far in this process, so that no kernel has to be loaded within a capture."""
        self.fixed.gather()


class _Evaluation(_Gathered):
    """The captured evaluation of a whole batch of a loader, which leaves its sums in a row of ``found``."""

    def __init__(self, batches: ResidentEpoch, loader: Loader, graphs: Graphs, forward: Forward, step: Step) -> None:
        self.found = found = torch.zeros(len(loader), 2, dtype=torch.float64, device=step.sums.device)

        def work(fixed: FixedBatches) -> Iterator[None]:
            yield
            inputs, labels = fixed.gather()
            self._put(sums_of(forward(inputs), labels))

        super().__init__(batches, loader.batch_size, graphs, work, lambda: [*_of(step)(), found])

    def _put(self, sums: Tensor) -> None:
        self.found.index_copy_(0, self.fixed.number, sums.view(1, 2))

    def try_out(self) -> None:
        """See ``_Gathered``; the row is written again before it is read."""
        super().try_out()
        self._put(torch.zeros_like(self.found[0]))


@contextmanager
def _as_capturable(optimizer: Optimizer) -> Iterator[None]:
    """Let torch's Adam be captured: its fused step is, but it asks for an option that it makes no use of then."""
    groups: list[dict[str, Any]] = [group for group in optimizer.param_groups if group.get("capturable") is False]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group in groups:
            group["capturable"] = False
