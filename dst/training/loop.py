"""The training loop: measured without disturbance, and stoppable and resumable at any step."""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.data.loader import Loader, samples_of
from dst.fractions import Curve
from dst.metrics.flops import Flops
from dst.options import Range, refuse, require
from dst.sparsity import Sparsifier
from dst.sparsity.topology import LayerReport
from dst.training.clipping import Clipping
from dst.training.determinism import seed_torch
from dst.training.distributed import ALONE, Processes
from dst.training.evaluate import Evaluation, evaluate
from dst.training.guard import DivergedError, Guard
from dst.training.length import steps_of
from dst.training.options import (
    Accumulate,
    ChannelsLast,
    Epochs,
    EvalEveryEpochs,
    LabelSmoothing,
    LogEverySteps,
    MaxSteps,
    SaveEverySteps,
    Seed,
    Select,
    unvalidated_problems,
)
from dst.training.precision import Precision
from dst.training.stopping import StopFlag, StopRequestedError


@dataclass(frozen=True)
class Settings:
    """The options of the loop.

    ``select``: end with the ``last`` weights, or with those of the ``best_val`` accuracy at the final density.
    """

    seed: Seed
    epochs: Epochs
    label_smoothing: LabelSmoothing
    accumulate: Accumulate
    channels_last: ChannelsLast
    select: Select
    eval_every_epochs: EvalEveryEpochs
    log_every_steps: LogEverySteps
    checkpoint_every_s: Annotated[float, Range(0, ends="(]"), "seconds from one checkpoint to the next"]
    checkpoint_every_steps: SaveEverySteps | None
    max_steps: MaxSteps | None = None

    def __post_init__(self) -> None:
        require(self)


class Observer(Protocol):
    """Receives what the loop measures and saves; the loop never waits for an answer."""

    def on_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Take named values of a step."""
        ...

    def on_layers(self, step: int, layers: list[LayerReport]) -> None:
        """Take the layers' counts after a topology update."""
        ...

    def on_step(self, step: int) -> None:
        """Note that a step is done."""
        ...

    def on_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Save the state durably."""
        ...


class NoObserver:
    """An observer that does nothing, for training alone."""

    def on_metrics(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Do nothing."""

    def on_layers(self, step: int, layers: list[LayerReport]) -> None:
        """Do nothing."""

    def on_step(self, step: int) -> None:
        """Do nothing."""

    def on_checkpoint(self, step: int, state: dict[str, Any]) -> None:
        """Do nothing."""


@dataclass
class Counters:
    """All plain numbers that a resume needs. ``step``: steps taken; ``evaluated``: the step of the last validation."""

    step: int = 0
    evaluated: int = 0
    val_loss: float = 0.0
    val_accuracy: float = 0.0
    flops: int = 0
    samples: int = 0
    seconds: float = 0.0
    logged_samples: int = 0
    logged_seconds: float = 0.0


@dataclass
class Training:
    """Everything that changes while a run trains, and the loop that changes it."""

    model: nn.Module
    optimizer: Optimizer
    sparsifier: Sparsifier
    lr: Curve
    train_batches: Loader
    val_batches: Loader | None
    flops: Flops
    precision: Precision
    settings: Settings
    counters: Counters = field(default_factory=Counters)
    processes: Processes = ALONE
    clipping: Clipping | None = None
    best: dict[str, Any] | None = None
    """With ``best_val``: step, validation loss and accuracy, and copies of the model's and the sparsifier's state."""

    def __post_init__(self) -> None:
        device = next(self.model.parameters()).device
        self._sums = torch.zeros(2, dtype=torch.float64, device=device)
        """Sums of loss and of correct answers since the last log line."""
        self._guard = Guard(self.optimizer, self.model)
        if self.val_batches is None:
            refuse(unvalidated_problems(self.settings.select, self.settings.eval_every_epochs))
        self._active = self._count_active()
        self._buffers = list(self.model.buffers())
        self._replica = self.processes.replica(self.model)

    @property
    def total_steps(self) -> int:
        """Steps of the whole training."""
        return steps_of(self.settings.epochs, len(self.train_batches), self.settings.max_steps)

    def run(self, observer: Observer, stop: StopFlag) -> None:
        """Train from the current state to the end.

        Raises StopRequestedError after saving if ``stop`` was requested, DivergedError if a loss or gradient was not
        finite (nothing is saved then, so the newest checkpoint is a good one). With several processes all of them call
        this, and it ends in the same way and at the same step in all of them; PeerError if one is lost,
        DesynchronisedError if their masks differ.
        """
        with self.processes.watched():
            self._run(observer, stop)

    def _run(self, observer: Observer, stop: StopFlag) -> None:
        self.processes.check_masks(self.sparsifier.topology, f"at step {self.counters.step}")
        per_epoch = len(self.train_batches)
        started, saved = time.perf_counter() - self.counters.seconds, time.monotonic()
        self._evaluate_if_due(observer)
        while self.counters.step < self.total_steps:
            epoch, first = divmod(self.counters.step, per_epoch)
            batches = self.train_batches.epoch(epoch, start=first, shard=self.processes.shard)
            for inputs, labels in islice(batches, self.total_steps - self.counters.step):
                counters = self.counters
                samples = samples_of(self.train_batches, counters.step % per_epoch)
                self.train_step(inputs, labels, observer, samples)
                counters.seconds = time.perf_counter() - started
                is_last = counters.step == self.total_steps
                self._guard.check(now=is_last)
                if is_last or counters.step % self.settings.log_every_steps == 0 or counters.step % per_epoch == 0:
                    self._log(observer)
                every = self.settings.checkpoint_every_steps
                due = every is not None and counters.step % every == 0
                late = time.monotonic() - saved >= self.settings.checkpoint_every_s
                stopping, late = self.processes.agree(stop.requested is not None, late and self.processes.is_main)
                if (due or late or stopping) and not is_last:
                    self._checkpoint(observer)
                    saved = time.monotonic()
                if stopping and not is_last:
                    name = self.processes.any_name(stop.requested)
                    raise StopRequestedError(name or "a request", counters.step)
                observer.on_step(counters.step)
                self._evaluate_if_due(observer)
        self._checkpoint(observer)

    def _checkpoint(self, observer: Observer) -> None:
        """Save, unless a number that should be saved is not finite."""
        self._guard.check(now=True)
        self._guard.check_weights(self.counters.step)
        observer.on_checkpoint(self.counters.step, self.state_dict())

    def finish(self, test_batches: Loader) -> dict[str, float]:
        """Restore the selected weights and topology, test them, and return all final figures, all of these weights."""
        counters = self.counters
        selected = {"step": counters.step, "loss": counters.val_loss, "accuracy": counters.val_accuracy}
        self.sparsifier.verify()  # so that the reported density is the real one
        if self.best is not None:
            selected = self.best
            self.model.load_state_dict(self.best["model"])
            self.sparsifier.load_state_dict(self.best["sparsifier"])
            self._active = self._count_active()
        with self.processes.watched():
            test = self._evaluate(test_batches)
        test_flops = self.flops.test(self._active)
        return {
            "test/accuracy": test.accuracy,
            "test/loss": test.loss,
            **({} if self.val_batches is None else _validation(selected["loss"], selected["accuracy"])),
            "selected_step": selected["step"],
            "sparsity/density": self.sparsifier.density,
            "sparsity/active": self.sparsifier.topology.active,
            "sparsity/rs": self.sparsifier.rs,
            "model/parameters": sum(p.numel() for p in self.model.parameters()),
            "model/maskable": self.sparsifier.topology.size,
            "flops/test": test_flops,
            "flops/test_ratio": test_flops / self.flops.dense,
            "flops/train": counters.flops,
            "time/seconds": counters.seconds,
            "time/samples_per_second": counters.samples / counters.seconds,
        }

    # -- one step ------------------------------------------------------------------------------------------------------

    def train_step(self, inputs: Tensor, labels: Tensor, observer: Observer, samples: int | None = None) -> None:
        """Take one step on a batch, or the topology update that replaces it.

        ``samples``: the size of the batch over all processes, if this one has only a shard of it.
        """
        step, samples = self.counters.step + 1, samples or len(labels)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(self.counters.step)
        loss, correct = self._backward(inputs, labels, samples, step)
        self._guard.inspect(loss, step, gradients_may_overflow=self.precision.scales_losses)
        due = self.sparsifier.update_due()
        if due:
            self._guard.check(now=True)  # an update cannot be vetoed on the device
            while self.precision.scales_losses and not self._guard.gradients_finite():
                # A step can be left out, an update cannot: compute its gradients again without overflow.
                self.precision.halve_scale()
                self._check_scale(step)
                loss, correct = self._backward(inputs, labels, samples, step)
        if self.sparsifier.step(self._stepper(step), gradients_are_finite=due):
            self.processes.check_masks(self.sparsifier.topology, f"update {self.sparsifier.updates}, at step {step}")
            self._active = self._count_active()
            observer.on_layers(step, self.sparsifier.layers)
        self._sums += torch.stack([loss.double() * samples, correct.double()])
        self.counters.step = step
        self.counters.samples += samples

    def _stepper(self, step: int) -> Callable[[], Any] | None:
        """Return the function that takes the step (None: the optimizer); before an update it checks the weights too."""
        take = self.precision.stepper(self.optimizer, self.clipping.clip if self.clipping else None)
        if not self.sparsifier.update_due():
            return take

        def checked() -> None:
            (take or self.optimizer.step)()
            self._guard.check_weights(step)

        return checked

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits as float32 or finer, computed in the run's layout and precision; not for backward passes."""
        return self._forward(self.model, inputs)

    def _forward(self, model: nn.Module, inputs: Tensor) -> Tensor:
        if self.settings.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast():
            logits: Tensor = model(inputs)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _backward(self, inputs: Tensor, labels: Tensor, samples: int, step: int) -> tuple[Tensor, Tensor]:
        """Accumulate the gradients of the mean loss over a batch; return that loss and the number of right answers.

        Gradients, loss and answers are those of all ``samples``, of which this process may have only a shard.
        """
        settings, processes = self.settings, self.processes
        seed_torch(settings.seed, "step", step, *processes.seed_path)
        self.optimizer.zero_grad()
        losses, correct = [], []
        parts = [processes.parts(tensor, settings.accumulate) for tensor in (inputs, labels)]
        for i, (part, targets) in enumerate(zip(*parts, strict=True)):
            is_last = i == len(parts[0]) - 1
            with nullcontext() if is_last else processes.local(self._replica):
                logits = self._forward(self._replica, part)
                mean = F.cross_entropy(logits, targets, label_smoothing=settings.label_smoothing)
                loss = mean * (len(targets) / samples)
                self.precision.scaled(processes.to_sum(loss)).backward()  # type: ignore[no-untyped-call,unused-ignore]
            losses.append(loss.detach())
            correct.append((logits.detach().argmax(1) == targets).sum())
        processes.sum_gradients(self.model.parameters())
        processes.share(self._buffers)  # all use the running statistics of the main process, which saves them
        dense_gradient = self.sparsifier.needs_dense_gradient()
        self.counters.flops += self.flops.train_step(self._active, samples, dense_gradient=dense_gradient)
        loss, right = processes.total(torch.stack(losses).sum(), torch.stack(correct).sum())
        return loss, right

    def _check_scale(self, step: int) -> None:
        """Raise DivergedError if the loss scale has vanished."""
        if self.precision.is_exhausted():
            raise DivergedError(step)

    def _count_active(self) -> dict[str, int]:
        return {report.layer: report.active for report in self.sparsifier.layers}

    # -- measuring -----------------------------------------------------------------------------------------------------

    def _log(self, observer: Observer) -> None:
        """Log the mean training loss and accuracy since the last log line, and reset the sums."""
        counters = self.counters
        self._check_scale(counters.step)
        samples = counters.samples - counters.logged_samples
        seconds = counters.seconds - counters.logged_seconds
        loss, correct = (self._sums / samples).tolist()
        values = {
            "train/loss": loss,
            "train/accuracy": correct,
            "lr": self.lr(counters.step - 1),
            "flops/train": counters.flops,
            "time/seconds": counters.seconds,
            "time/samples_per_second": samples / max(seconds, 1e-9),
            **self._sparsity(),
            **(self.clipping.figures() if self.clipping else {}),
        }
        observer.on_metrics(counters.step, counters.step / len(self.train_batches), values)
        self._sums.zero_()
        counters.logged_samples, counters.logged_seconds = counters.samples, counters.seconds

    def _sparsity(self) -> dict[str, float]:
        return {
            "sparsity/density": self.sparsifier.density,
            "sparsity/active": self.sparsifier.topology.active,
            "sparsity/rs": self.sparsifier.rs,
            "sparsity/drop_fraction": self.sparsifier.drop_fraction,
        }

    def _evaluate(self, batches: Loader) -> Evaluation:
        return evaluate(self.model, batches.epoch(0, shard=self.processes.shard), self.forward, self.processes)

    def _evaluate_if_due(self, observer: Observer) -> None:
        """Validate at the end of every n-th epoch and of training, once, even if a run resumes at just that step."""
        counters, per_epoch = self.counters, len(self.train_batches)
        at_interval = counters.step % (per_epoch * self.settings.eval_every_epochs) == 0
        is_due = counters.step > 0 and (at_interval or counters.step == self.total_steps)
        if self.val_batches is None or not is_due or counters.evaluated == counters.step:
            return
        result = self._evaluate(self.val_batches)
        counters.evaluated = counters.step
        counters.val_loss, counters.val_accuracy = result.loss, result.accuracy
        observer.on_metrics(counters.step, counters.step / per_epoch, _validation(result.loss, result.accuracy))
        may_be_best = self.settings.select == "best_val" and self.sparsifier.density_is_final
        if may_be_best and (self.best is None or result.accuracy > self.best["accuracy"]):
            self.best = {
                "step": counters.step,
                "loss": result.loss,
                "accuracy": result.accuracy,
                "model": _copy(self.model.state_dict()),
                "sparsifier": _copy(self.sparsifier.state_dict()),
            }

    # -- state ---------------------------------------------------------------------------------------------------------

    def begin_alike(self) -> None:
        """Take the weights and masks of the main process: other hardware may have made slightly different ones."""
        state = self.sparsifier.state_dict()
        tensors = [tensor for value in state.values() if isinstance(value, Mapping) for tensor in value.values()]
        counts = torch.tensor(state["counts"], device=self._sums.device)
        self.processes.share([*self.model.state_dict().values(), *tensors, counts])
        self.sparsifier.load_state_dict({**state, "counts": counts.tolist()})
        self._active = self._count_active()

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resume needs, as tensors and plain data."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sparsifier": self.sparsifier.state_dict(),
            "precision": self.precision.state_dict(),
            "counters": dict(vars(self.counters)),
            "sums": self._sums,
            "best": self.best,
            "clipping": self.clipping and self.clipping.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sparsifier.load_state_dict(state["sparsifier"])
        self.precision.load_state_dict(state["precision"])
        self.counters = Counters(**state["counters"])
        self._sums.copy_(state["sums"])
        self.best = state["best"]
        if self.clipping:
            self.clipping.load_state_dict(state["clipping"])
        self._active = self._count_active()


def _validation(loss: float, accuracy: float) -> dict[str, float]:
    return {"val/loss": loss, "val/accuracy": accuracy}


def _copy(state: Any) -> Any:
    """Copy the tensors of a nested state."""
    if isinstance(state, Tensor):
        return state.clone()
    return {key: _copy(value) for key, value in state.items()} if isinstance(state, Mapping) else state
