"""One step of training: what the device does in it, which reads nothing from the host, and what the host does."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dst.metrics.flops import Ledger
from dst.sparsity import Sparsifier
from dst.sparsity.sparsifier import Turn
from dst.training.captured import Captured
from dst.training.clipping import Clipping
from dst.training.correction import Correction
from dst.training.gradients import Batch, Gradients, Judgement
from dst.training.guard import DivergedError, Guard


@dataclass
class Step:
    """The parts of a run that a step meets, in their order.

    An ordinary step is ``work`` of the device, with ``begin`` before and ``end`` after it on the host. The device meets
    tensors that stay where they are, so that its work can also be captured and replayed. A step whose update is due has
    more to ask (``update``).
    """

    gradients: Gradients
    optimizer: Optimizer
    sparsifier: Sparsifier
    correction: Correction
    clipping: Clipping | None
    ledger: Ledger

    def __post_init__(self) -> None:
        passes = self.gradients.passes
        self.precision, self.processes = passes.precision, passes.processes
        device = next(self.gradients.network.parameters()).device
        self.guard = Guard(self.optimizer, self.gradients.network)
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Sums of loss and of correct answers since the last log line."""
        self.vetoed = torch.zeros((), dtype=torch.bool, device=device)
        """Whether the last step was vetoed."""
        self.active: Mapping[str, int] = self.sparsifier.topology.active_by_layer
        """The active weights of each layer in scope, which the ledger books."""
        # Fused optimizers read a rate on a GPU as float32. They get the same one whether a step is captured or not.
        self._rate = torch.zeros((), dtype=torch.float32, device=device) if device.type == "cuda" else None

    def fix_rate(self) -> None:
        """Let the optimizer read the learning rate from a tensor that stays, also where it need not, on a CPU."""
        self._rate = torch.zeros((), dtype=torch.float64) if self._rate is None else self._rate

    def set_rate(self, rate: float) -> None:
        """Give the optimizer the learning rate of the coming step."""
        if self._rate is not None:
            self._rate.fill_(rate)
        self._give(rate if self._rate is None else self._rate)

    def _give(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    # -- an ordinary step ----------------------------------------------------------------------------------------------

    def ordinary(self, batch: Batch) -> Turn:
        """Take a step without an update."""
        end = self.begin(batch.step, batch.samples)
        for _ in self.work(lambda: batch):
            self.gradients.seed(batch.step)
        return end()

    def begin(self, step: int, samples: int) -> Callable[[], Turn]:
        """Do what the host does before the work; return what it does after it."""
        dense = self.sparsifier.needs_dense_gradient()
        self.sparsifier.begin_step()

        def end() -> Turn:
            self.gradients.book(self.ledger.training, self.active, samples, dense_gradient=dense)
            self.correction.book_step(samples)
            self.guard.note(step, self.vetoed)
            return Turn()

        return end

    def work(self, take: Callable[[], Batch]) -> Iterator[None]:
        """Do all that the device does, in parts: before each of them the random numbers of the step begin anew.

        ``take``: returns the batch.
        """
        yield
        batch = take()
        judged = self.gradients.compute(batch)
        self.processes.sum_apart(self.sparsifier.weights.captured)
        self.sparsifier.average_gradients(may_overflow=self.precision.scales_losses)
        if self.correction.state_of_step:  # it passes the batch again
            yield
        self.correction.change(batch)
        self._judge(judged)
        self._optimize(Turn())
        self._tally(judged, batch)

    @property
    def course(self) -> Hashable:
        """All that the work depends on beside tensors and the size of the batch."""
        return self.correction.state_of_step, self.sparsifier.weights.state_of_step

    # -- a step with an update -----------------------------------------------------------------------------------------

    def update(self, batch: Batch) -> Turn:
        """Take a step whose update is due, or only find out what the update needs, if it comes instead."""
        judged = self._finite_gradients(batch)
        self.processes.sum_apart(self.sparsifier.weights.captured)
        turn = self.sparsifier.read_gradients(may_overflow=self.precision.scales_losses, gradients_are_finite=True)
        if not turn.replaces_step:
            self.correction.correct(batch)
        self._judge(judged)
        self.guard.note(batch.step, self.vetoed)
        self.guard.check(now=True)  # an update cannot be vetoed on the device
        if not turn.replaces_step:
            self._optimize(turn, look=batch.step)
        self._tally(judged, batch)
        return turn

    def _finite_gradients(self, batch: Batch) -> Judgement:
        """Compute the gradients of a batch until those of a scaled loss do not overflow."""
        dense = self.sparsifier.needs_dense_gradient()
        judged = self.gradients.of(batch, self.ledger.training, self.active, dense_gradient=dense)
        while self.precision.scales_losses and torch.isfinite(judged.loss):
            # A step can be left out, an update cannot: compute its gradients again without overflow.
            if self.guard.gradients_finite():
                break
            self.precision.halve_scale()
            self.check_scale(batch.step)
            judged = self.gradients.of(batch, self.ledger.training, self.active, dense_gradient=dense)
        return judged

    def check_scale(self, step: int) -> None:
        """Raise DivergedError if the loss scale has vanished."""
        if self.precision.is_exhausted():
            raise DivergedError(step)

    # -- what both consist of ------------------------------------------------------------------------------------------

    def _judge(self, judged: Judgement) -> None:
        may_overflow, apart = self.precision.scales_losses, self.sparsifier.weights.captured
        self.vetoed = self.guard.judge(judged.loss, gradients_may_overflow=may_overflow, apart=apart)

    def _optimize(self, turn: Turn, *, look: int | None = None) -> None:
        """Let the optimizer step; ``look``: at the weights of this step, whether they are finite."""
        self.sparsifier.mask_gradients()
        self.precision.step(self.optimizer, self.clipping.clip if self.clipping else None)
        if look is not None:
            self.guard.check_weights(look)
        self.sparsifier.check_step(turn)

    def _tally(self, judged: Judgement, batch: Batch) -> None:
        self.sums += torch.stack([judged.loss.double() * batch.samples, judged.right.double()])

    # -- replays -------------------------------------------------------------------------------------------------------

    def replay(self, captured: Captured, step: int, samples: int) -> Turn:
        """Take an ordinary step by the work as it was captured (``captured.prepare``)."""
        end = self.begin(step, samples)
        captured.replay(lambda: self.gradients.seed(step))
        return end()

    @property
    def is_settled(self) -> bool:
        """Say whether everything exists that steps keep, and was checked, so that steps can be replayed."""
        return self.sparsifier.is_proven

    def prepare(self) -> None:
        """Bring in its place what the work reads, before it is captured."""
        self.correction.prepare()
        if self._rate is not None:
            self._give(self._rate)  # a state that was loaded has a number

    @property
    def numbers(self) -> list[Hashable]:
        """The numbers of the host in the optimizer's step, which only a loaded state changes."""
        own = {"params", "lr", "capturable"}
        groups = self.optimizer.param_groups
        return [tuple((name, group[name]) for name in group if name not in own) for group in groups]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that the work reads or writes, those of the batch apart, but what it makes itself."""
        network, state = self.gradients.network, self.optimizer.state
        kept = [value for own in state.values() for value in own.values() if isinstance(value, Tensor)]
        parts = (self.sparsifier.topology, self.sparsifier.weights, self.correction, self.precision, self.clipping)
        return [
            *network.parameters(),
            *network.buffers(),
            *kept,
            *(tensor for part in parts if part is not None for tensor in part.step_tensors),
            self.sums,
            *([] if self._rate is None else [self._rate]),
        ]


def plain_state(optimizer: Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer with learning rates as numbers, where it may read them from a tensor."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{**group, "lr": float(group["lr"])} for group in state["param_groups"]]}
