"""What is done to the gradient before the optimizer steps."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor, nn

from dst.data.loader import Loader, samples_of
from dst.metrics.flops import Account, Ledger
from dst.options import OneOf, Range, ZeroOr, checked, refuse
from dst.sparsity import Sparsifier
from dst.sparsity.marks import marked
from dst.training.coefficient import Coefficient, Covariances
from dst.training.gradients import Batch, Gradients
from dst.training.options import SCALED_LOSSES, snapshot_problems
from dst.training.phase import Tick
from dst.training.planned import PlannedStep
from dst.training.snapshot import Snapshot, kept_buffers


@dataclass(frozen=True)
class Situation:
    """What a correction works with: the gradients of the model, its masks, the training batches, and the ledger."""

    gradients: Gradients
    sparsifier: Sparsifier
    batches: Loader
    ledger: Ledger


class Correction(Protocol):
    """Changes the gradients of each step before the optimizer sees them."""

    def begin_epoch(self, epoch: int, tick: Tick) -> None:
        """Prepare for the coming epoch, before its first step; changes its own state only at the end."""
        ...

    def correct(self, batch: Batch) -> None:
        """Change the model's gradients of a batch, which are dense and not masked, in place, and book it."""
        ...

    def change(self, batch: Batch) -> None:
        """Do of ``correct`` what the device does."""
        ...

    def book_step(self, samples: int) -> None:
        """Do of ``correct`` what the host does: book a step of so many samples."""
        ...

    def prepare(self) -> None:
        """Make what ``change`` needs, so that it makes nothing that outlives a step."""
        ...

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """What ``change`` depends on and tensors do not tell: a step that was captured is of the same."""
        ...

    @property
    def step_tensors(self) -> list[Tensor]:
        """What ``change`` reads and writes beside the model, its gradients and the optimizer's state."""
        ...

    def end_epoch(self, epoch: int, *, is_last: bool) -> None:
        """Measure after the last step of an epoch; ``is_last``: of training, which may end within one."""
        ...

    def restart(self) -> None:
        """Begin anew: the weights have been changed by something else than a step."""
        ...

    def figures(self, epochs: float) -> dict[str, float]:
        """Return the metrics to log after so many epochs."""
        ...

    def book(self, account: Account, steps: Iterable[PlannedStep], samples: int) -> None:
        """Book what the correction of all steps of a run will cost; ``samples``: those of an epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resume needs."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        ...


class NoCorrection:
    """Leaves gradients as they are."""

    def begin_epoch(self, epoch: int, tick: Tick) -> None:
        """Do nothing."""

    def correct(self, batch: Batch) -> None:
        """Do nothing."""

    def change(self, batch: Batch) -> None:
        """Do nothing."""

    def book_step(self, samples: int) -> None:
        """Do nothing."""

    def prepare(self) -> None:
        """Do nothing."""

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """Return nothing."""
        return ()

    @property
    def step_tensors(self) -> list[Tensor]:
        """Return nothing."""
        return []

    def end_epoch(self, epoch: int, *, is_last: bool) -> None:
        """Do nothing."""

    def restart(self) -> None:
        """Do nothing."""

    def figures(self, epochs: float) -> dict[str, float]:
        """Return nothing."""
        return {}

    def book(self, account: Account, steps: Iterable[PlannedStep], samples: int) -> None:
        """Do nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""


@marked("snapshot")
@checked
def agent(
    situation: Situation,
    *,
    every_epochs: Annotated[int, Range(1), "epochs from one snapshot of the weights to the next"] = 1,
    gamma: Annotated[
        float, Range(0, 1), "the coefficient of the correction is gamma times the smoothed estimate"
    ] = 0.1,
    alpha: Annotated[float, Range(0, 1), "the share of a new estimate in the smoothed one"] = 0.3,
    initial: Annotated[float, Range(0, 1), "the smoothed estimate before the first"] = 0.1,
    clip: Annotated[bool, "bring each estimate into [0, 1]"] = False,
    variance_floor: Annotated[
        float, Range(0), "below this variance, of the proxy at the snapshot, an estimate is left out"
    ] = 0.0,
    proxy: Annotated[
        str,
        OneOf("loss", "gradient"),
        "what the estimate is taken of: the losses of the batches, or their gradients, at a fifth more compute",
    ] = "loss",
    variance_batches: Annotated[
        int,
        ZeroOr(2),
        "batches on which the variance of the gradient is measured with and without the correction, at the end of each "
        "period; 0: off",
    ] = 8,
) -> "Agent":
    """Correct each gradient by that of a snapshot on the same batch, and the mean of these over the epoch.

    AGENT (Lei et al. 2024, "Balance is Essence: Accelerating Sparse Training via Adaptive Gradient Correction").
    """
    coefficient = Coefficient(gamma, alpha, initial, clip, variance_floor)
    return Agent(situation, coefficient, every_epochs, proxy == "gradient", variance_batches)


class Agent:
    """AGENT, made by ``agent``: ``d = (g - c q) + c u`` takes the place of the gradient ``g``.

    Before the first step of a period one pass over the batches of the coming epoch, the same samples, augmentation and
    dropout, gives ``u``, the mean of their gradients; then the snapshot takes the weights. ``q`` is its gradient on the
    batch of ``g``. ``c`` follows an estimate that each period but the first makes in its pass: by how much losses, or
    (``by_gradients``) gradients, at the weights vary with those at the last snapshot.

    In sparse layers the correction is where the snapshot is active: a weight that grows gets it from the next one on.
    All passes are booked as sparse as the network that makes them. They are made whatever the coefficient is, 0
    included, with which training does not change by a bit.

    ValueError with fp16, and with a single batch an epoch.
    """

    def __init__(
        self,
        situation: Situation,
        coefficient: Coefficient,
        every_epochs: int,
        by_gradients: bool,
        variance_batches: int,
    ) -> None:
        if situation.gradients.passes.precision.scales_losses:
            raise ValueError(f"precision=fp16: {SCALED_LOSSES}")
        refuse(f"AGENT {problem}" for problem in snapshot_problems(len(situation.batches)))
        self._gradients, self._sparsifier = situation.gradients, situation.sparsifier
        self._batches, self._ledger = situation.batches, situation.ledger
        self._coefficient = coefficient
        self._every, self._by_gradients, self._variance_batches = every_epochs, by_gradients, variance_batches
        self._snapshot = Snapshot(self._gradients, self._sparsifier)
        self._variance_ratio: float | None = None
        """Var(d) / Var(g) at the end of the last period."""

    # -- a period ------------------------------------------------------------------------------------------------------

    def begin_epoch(self, epoch: int, tick: Tick) -> None:
        """Begin a period, if it is time: a pass over the batches of the epoch, the estimate, the snapshot."""
        if not self._is_due(self._snapshot.epoch, epoch):
            return
        snapshot, covariances = self._snapshot, Covariances()
        common = snapshot.common() if self._by_gradients and snapshot.epoch is not None else []
        total = snapshot.zeros()
        with kept_buffers(self._network, snapshot.network):
            for batch in self._epoch(epoch):
                self._pass(batch, total, covariances, common)
                tick()
        torch._foreach_div_(total, len(self._batches))
        if snapshot.epoch is not None:
            _, covariance, variance = covariances.found()
            self._coefficient.learn(covariance, variance)
        snapshot.take(epoch, total)

    def _pass(self, batch: Batch, total: Sequence[Tensor], covariances: Covariances, common: Sequence[Tensor]) -> None:
        """Add the gradient of a batch to the total, and what the estimate is made of, if there is a snapshot, to it."""
        snapshot, account = self._snapshot, self._ledger.correction
        loss = self._gradients.of(batch, account, self._active).loss
        pairs = zip(total, snapshot.gradients_of_model(), strict=True)
        found = [(mean, gradient) for mean, gradient in pairs if gradient is not None]
        torch._foreach_add_([mean for mean, _ in found], [gradient for _, gradient in found])
        if snapshot.epoch is None:
            return
        if self._by_gradients:
            snapshot.gradients.of(batch, account, snapshot.active)
            self._sparsifier.mask_gradients()
            snapshot.mask(common)
            covariances.add(_joined(snapshot.gradients_of_model()), _joined_of(snapshot.network))
        else:
            covariances.add(loss.double(), snapshot.gradients.loss(batch, account, snapshot.active).double())

    def correct(self, batch: Batch) -> None:
        """Correct the model's gradients of a batch, if there is a snapshot, and book it."""
        self._snapshot.gradients.seed(batch.step)
        self.change(batch)
        self.book_step(batch.samples)

    def change(self, batch: Batch) -> None:
        """Correct the model's gradients of a batch, if there is a snapshot; neither seeds nor books."""
        if self._snapshot.epoch is not None:
            self._snapshot.gradients.compute(batch)
            self._snapshot.correct(self._coefficient.value)

    def book_step(self, samples: int) -> None:
        """Book the passes that correct a step of so many samples, if there is a snapshot."""
        self._book(self._ledger.correction, samples)

    def _book(self, account: Account, samples: int) -> None:
        if self._snapshot.epoch is not None:
            self._snapshot.gradients.book(account, self._snapshot.active, samples)

    def prepare(self) -> None:
        """Make what a correction needs of the snapshot's masks, if it does."""
        if self._snapshot.epoch is not None:
            self._snapshot.prepare()

    @property
    def state_of_step(self) -> tuple[Hashable, ...]:
        """Whether there is a snapshot, how much its gradients count, and whether they are masked by its own masks."""
        if self._snapshot.epoch is None:
            return ()
        return self._coefficient.value, self._snapshot.has_moved

    @property
    def step_tensors(self) -> list[Tensor]:
        """What a correction reads and writes beside gradients: nothing without a snapshot."""
        return [] if self._snapshot.epoch is None else self._snapshot.step_tensors

    def end_epoch(self, epoch: int, *, is_last: bool) -> None:
        """Measure Var(d) / Var(g) at the end of a period and of training; changes nothing else.

        Of the first batches of the epoch, at the present weights: the sample variances of active weights, summed up.
        """
        taken = self._snapshot.epoch
        if self._variance_batches == 0 or taken is None or not (is_last or self._is_due(taken, epoch + 1)):
            return
        covariances, account = Covariances(), self._ledger.measuring
        with kept_buffers(self._network, self._snapshot.network):
            for batch in islice(self._epoch(epoch), self._variance_batches):
                self._gradients.of(batch, account, self._active)
                self._sparsifier.mask_gradients()
                uncorrected = _joined_of(self._network)
                self._snapshot.gradients.seed(batch.step)
                self.change(batch)
                self._book(account, batch.samples)
                self._sparsifier.mask_gradients()
                covariances.add(uncorrected, _joined_of(self._network))
        uncorrected_variance, _, variance = covariances.found()
        self._variance_ratio = variance / uncorrected_variance if uncorrected_variance > 0 else None

    def restart(self) -> None:
        """Begin anew with the next epoch: without a snapshot and estimates."""
        self._snapshot.forget()
        self._coefficient.restart()
        self._variance_ratio = None

    def _is_due(self, taken: int | None, epoch: int) -> bool:
        """Say whether a period begins with an epoch; ``taken``: that of the last snapshot."""
        return taken is None or epoch - taken >= self._every

    @property
    def _network(self) -> nn.Module:
        return self._gradients.network

    @property
    def _active(self) -> dict[str, int]:
        return self._sparsifier.topology.active_by_layer

    def _epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch as its steps meet them."""
        first = epoch * len(self._batches) + 1
        shard = self._gradients.passes.processes.shard
        for i, (inputs, labels) in enumerate(self._batches.epoch(epoch, shard=shard)):
            yield Batch(inputs, labels, samples_of(self._batches, i), first + i)

    # -- what it reports -----------------------------------------------------------------------------------------------

    def figures(self, epochs: float) -> dict[str, float]:
        """Return the coefficient, the last estimate, what the epochs have cost in plain ones, and the variances' ratio.

        An estimate and a ratio are left out as long as there are none.
        """
        total, extra = self._ledger.total, self._ledger.correction.total
        optional = {
            "correction/estimate": self._coefficient.estimate,
            "correction/variance_ratio": self._variance_ratio,
        }
        return {
            "correction/coefficient": 0.0 if self._snapshot.epoch is None else self._coefficient.value,
            "train/compute_epochs": epochs * total / (total - extra),
            **{name: value for name, value in optional.items() if value is not None},
        }

    def book(self, account: Account, steps: Iterable[PlannedStep], samples: int) -> None:
        """Book what the correction of planned steps will cost; ``samples``: those of an epoch."""
        taken: int | None = None
        active: Mapping[str, int] = {}
        for step in steps:
            if step.begins_anew:
                taken = None
            if step.begins_epoch and self._is_due(taken, step.epoch):
                account.forward(step.active, samples)
                account.backward(step.active, samples)
                if taken is not None:
                    account.forward(active, samples)
                    if self._by_gradients:
                        account.backward(active, samples)
                taken, active = step.epoch, step.active
            if taken is not None and not step.is_replaced:
                account.forward(active, step.samples)
                account.backward(active, step.samples)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot, the mean of its gradients, the estimates and the variances' ratio."""
        return {
            "snapshot": self._snapshot.state_dict(),
            "coefficient": self._coefficient.state_dict(),
            "variance_ratio": self._variance_ratio,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; load the model and the sparsifier first."""
        self._snapshot.load_state_dict(state["snapshot"])
        self._coefficient.load_state_dict(state["coefficient"])
        self._variance_ratio = state["variance_ratio"]


def _joined_of(network: nn.Module) -> Tensor:
    """Return a copy of all gradients of a network as one vector."""
    return _joined([parameter.grad for parameter in network.parameters()])


def _joined(gradients: Sequence[Tensor | None]) -> Tensor:
    """Return a copy of gradients as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
