"""The training loop: measured without disturbance, and stoppable and resumable at any step."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.data.loader import Loader, samples_of
from dst.metrics.flops import Ledger
from dst.network.places import parameter_count
from dst.options import refuse
from dst.signals import StalledError
from dst.sparsity import Sparsifier
from dst.sparsity.select import count_true
from dst.sparsity.sparsifier import Turn
from dst.training.clipping import Clipping
from dst.training.correction import Correction, NoCorrection
from dst.training.evaluate import Batches, Evaluation, evaluate
from dst.training.gradients import Batch, Gradients
from dst.training.guard import DivergedError
from dst.training.observer import Observer
from dst.training.options import unvalidated_problems
from dst.training.phase import Action, Network, Phase, Tick, total_steps
from dst.training.replays import Capture, Replays
from dst.training.settings import Settings
from dst.training.step import Step, plain_state
from dst.training.stopping import StopFlag
from dst.training.watch import Watch


@dataclass
class Counters:
    """All plain numbers that a resume needs.

    ``step``: steps taken, in all phases; ``phase``: the index of the present one, which is that of no phase at the end
    if the last one has an end of its own; ``begun``: that of the last one whose beginning was carried out;
    ``evaluated``: the step of the last validation; ``initial_active``: the weights of the first masks, None where
    earlier versions of this code began the run.
    """

    step: int = 0
    phase: int = 0
    begun: int = -1
    evaluated: int = 0
    val_loss: float = 0.0
    val_accuracy: float = 0.0
    samples: int = 0
    seconds: float = 0.0
    logged_samples: int = 0
    logged_seconds: float = 0.0
    initial_active: int | None = None


class _StopAskedError(Exception):
    """Somebody asks the run to stop while it works between two steps."""


@dataclass
class Training:
    """Everything that changes while a run trains, and the loop that changes it."""

    gradients: Gradients
    optimizer: Optimizer
    sparsifier: Sparsifier
    phases: Sequence[Phase]
    train_batches: Loader
    val_batches: Loader | None
    ledger: Ledger
    correction: Correction = field(default_factory=NoCorrection)
    clipping: Clipping | None = None
    capture: Capture = field(default_factory=Capture)
    counters: Counters = field(default_factory=Counters)
    best: dict[str, Any] | None = None
    """With ``best_val``: step, validation loss and accuracy, and copies of the model's and the sparsifier's state."""
    kept: dict[str, Any] = field(default_factory=dict)
    """What the procedure keeps from one phase to the next: tensors and plain numbers."""
    replan: Callable[[int], Sequence[Phase]] | None = None
    """The phases for so many weights in the first masks, if they depend on that."""

    def __post_init__(self) -> None:
        self.model: nn.Module = self.gradients.network
        self.settings: Settings = self.gradients.passes.settings
        self.precision = self.gradients.passes.precision
        self.processes = self.gradients.passes.processes
        self._step = Step(self.gradients, self.optimizer, self.sparsifier, self.correction, self.clipping, self.ledger)
        self._guard, self._sums = self._step.guard, self._step.sums
        self.replays = Replays(self._step, self.capture)
        if self.val_batches is None:
            refuse(unvalidated_problems(self.settings.select, self.settings.eval_every_epochs))
        self._planned_for: int | None = None
        """The weights of the first masks that the phases are made for, if they depend on that."""
        self.total_steps = total_steps(self.phases)
        """Steps of the whole training."""
        self.sparsifier.begin(self.phases[0].update)

    @property
    def active(self) -> Mapping[str, int]:
        """The active weights of each layer in scope."""
        return self._step.active

    # -- phases --------------------------------------------------------------------------------------------------------

    def plan(self, active: int | None) -> None:
        """Make the phases for so many weights in the first masks, if they depend on that; None: it is not known."""
        if self.replan is not None and active is not None and active != self._planned_for:
            self.phases, self._planned_for = self.replan(active), active
            self.total_steps = total_steps(self.phases)

    @property
    def phase(self) -> Phase:
        """The present phase; the last one when training is over."""
        return self.phases[min(self.counters.phase, len(self.phases) - 1)]

    @property
    def phase_step(self) -> int:
        """Steps taken in the present phase."""
        return self.counters.step - total_steps(self.phases[: self.counters.phase])

    @property
    def is_over(self) -> bool:
        """Say whether nothing is left to do."""
        return self.counters.phase == len(self.phases) or (
            self.counters.step == self.total_steps and self.phase.end is None
        )

    def run(self, observer: Observer, stop: StopFlag) -> None:
        """Train from the current state to the end.

        Raises StopRequestedError after saving if ``stop`` was requested, DivergedError if a loss or gradient was not
        finite (nothing is saved then, so the newest checkpoint is a good one). With several processes all of them call
        this, and it ends in the same way and at the same step in all of them; PeerError if one is lost,
        DesynchronisedError if their masks differ.
        """
        watch = Watch(self.settings, self.processes, stop)
        self.replays.begin(lambda line: observer.on_capture(self.counters.step, line))
        with self.processes.watched():
            try:
                self._run(observer, watch)
            except StalledError:
                if self.processes.world > 1:  # the others wait in the midst of a step
                    raise
                self._checkpoint(observer)
                raise watch.stopped(self.counters.step) from None

    def _run(self, observer: Observer, watch: Watch) -> None:
        self.processes.check_masks(self.sparsifier.topology, f"at step {self.counters.step}")
        self._started = time.perf_counter() - self.counters.seconds
        if self.counters.step == 0:
            self.counters.initial_active = self.sparsifier.topology.active
            self.plan(self.counters.initial_active)
        self._evaluate_if_due(observer)
        while not self.is_over:
            if self.phase.begin is not None and self.counters.begun < self.counters.phase:
                self._act(self.phase.begin, observer, watch)
                self.correction.restart()
            self.counters.begun = self.counters.phase
            while self.phase_step < self.phase.steps:
                self._train_epoch(observer, watch)
            if self.phase.end is not None:
                self._guard.check(now=True)
                self._act(self.phase.end, observer, watch)
            if not self.is_over:
                self._next_phase(observer, watch)
        self._checkpoint(observer)

    def _next_phase(self, observer: Observer, watch: Watch) -> None:
        """Go on to the next phase, and save what the end of this one did."""
        has_changed = self.phase.end is not None
        self.counters.phase += 1
        if self.counters.phase < len(self.phases):
            self.sparsifier.begin(self.phase.update)
        if has_changed and not self.is_over:
            self._checkpoint(observer)
            watch.saved()

    def _train_epoch(self, observer: Observer, watch: Watch) -> None:
        """Train to the end of the epoch or of the phase, whichever comes first."""
        counters, per_epoch = self.counters, len(self.train_batches)
        epoch, first = divmod(counters.step, per_epoch)
        if self.phase.midway is not None and self.phase.midway[0] == self.phase_step:
            self._act(self.phase.midway[1], observer, watch)
        if first == 0:
            self._between_steps(lambda _, __, tick: self.correction.begin_epoch(epoch, tick), observer, watch)
        batches = self.train_batches.epoch(epoch, start=first, shard=self.processes.shard)
        for batch in islice(self._coming(batches), self.phase.steps - self.phase_step):
            samples = samples_of(self.train_batches, counters.step % per_epoch)
            if batch is None:
                self.replay_step(observer)
            else:
                self.train_step(*batch, observer, samples)
            is_last = counters.step == self.total_steps
            is_epoch_over = counters.step % per_epoch == 0 or is_last
            if is_epoch_over:
                self.correction.end_epoch(epoch, is_last=is_last)
            counters.seconds = time.perf_counter() - self._started
            self._guard.check(now=self.is_over)
            if counters.step % self.settings.log_every_steps == 0 or is_epoch_over:
                self._log(observer)
            is_due, stopping = watch.look(counters.step)
            if is_due and not self.is_over:
                self._checkpoint(observer)
                watch.saved()
            if stopping and not self.is_over:
                raise watch.stopped(counters.step)
            observer.on_step(counters.step)
            self._evaluate_if_due(observer)

    def _coming(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor] | None]:
        """Yield the batches of an epoch; None in the place of one that a replay is prepared for, which gathers it."""
        left = iter(batches)
        while True:
            if self.replays.prepare(batches, self.train_batches):
                yield None
            elif (batch := next(left, None)) is not None:
                yield batch
            else:
                return

    def _act(self, action: Action, observer: Observer, watch: Watch) -> None:
        """Carry out what a phase does beside its steps, which meets plain weights however they are held."""

        def act(run: "Training", observer: Observer, tick: Tick) -> None:
            with run.sparsifier.unpacked():
                action(run, observer, tick)

        self._between_steps(act, observer, watch)

    def _between_steps(
        self, work: Callable[["Training", Observer, Tick], None], observer: Observer, watch: Watch
    ) -> None:
        """Carry out work that changes the run at its very end only; a request to stop saves the state from before."""

        def tick() -> None:
            observer.on_step(self.counters.step)
            if watch.look(self.counters.step)[1]:
                raise _StopAskedError

        booked = self.ledger.state_dict()
        self.replays.doubt()
        try:
            work(self, observer, tick)
        except (_StopAskedError, StalledError) as asked:
            if isinstance(asked, StalledError) and self.processes.world > 1:
                raise
            self.ledger.load_state_dict(booked)
            self._checkpoint(observer)
            raise watch.stopped(self.counters.step) from None
        self._report_compute(observer)
        self.counters.seconds = time.perf_counter() - self._started

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
            self.sparsifier.count()
            self._step.active = self.sparsifier.topology.active_by_layer
        with self.processes.watched():
            test = self.evaluate(test_batches, "test set")
        test_flops = self.ledger.flops.test(self.active)
        return {
            "test/accuracy": test.accuracy,
            "test/loss": test.loss,
            **({} if self.val_batches is None else _validation(selected["loss"], selected["accuracy"])),
            "selected_step": selected["step"],
            **self._initial_density(),
            **self._edge_density(),
            "sparsity/density": self.sparsifier.density,
            "sparsity/active": self.sparsifier.topology.active,
            "sparsity/rs": self.sparsifier.rs,
            **self._rs_reliable(),
            "model/parameters": self.parameters,
            "model/maskable": self.sparsifier.topology.size,
            "flops/test": test_flops,
            "flops/test_ratio": test_flops / self.ledger.flops.dense,
            "flops/train": self.ledger.total,
            "time/seconds": counters.seconds,
            "time/samples_per_second": counters.samples / counters.seconds,
            **self.correction.figures(counters.step / len(self.train_batches)),
        }

    @property
    def parameters(self) -> int:
        """The number of the network's parameters, however they are held."""
        layers = self.sparsifier.topology.layers
        return parameter_count(self.model) + sum(layer.size - layer.weight.numel() for layer in layers)

    def _initial_density(self) -> dict[str, float]:
        """Return the density of the first masks, if it is known."""
        active = self.counters.initial_active
        return {} if active is None else {"sparsity/initial_density": active / self.sparsifier.topology.size}

    def _edge_density(self) -> dict[str, float]:
        """Return the density of the masks that active weights are chosen from, where they are learned."""
        density = self.sparsifier.edge_density
        return {} if density is None else {"sparsity/edge_density": density}

    def _rs_reliable(self) -> dict[str, float]:
        """Return the share of weights that were active for long enough, where it is kept."""
        share = self.sparsifier.rs_reliable
        return {} if share is None else {"sparsity/rs_reliable": share}

    # -- one step ------------------------------------------------------------------------------------------------------

    def train_step(self, inputs: Tensor, labels: Tensor, observer: Observer, samples: int | None = None) -> None:
        """Take one step on a batch, or the topology update that replaces it.

        ``samples``: the size of the batch over all processes, if this one has only a shard of it.
        """
        batch = Batch(inputs, labels, samples or len(labels), self.counters.step + 1)
        self._step.set_rate(self.phase.lr(self.phase_step))
        take = self._step.update if self.sparsifier.update_due() else self._step.ordinary
        turn = take(batch)
        self.replays.took_another()
        self._end_step(turn, batch.samples, observer)

    def replay_step(self, observer: Observer) -> None:
        """Take the step that a replay is prepared for."""
        self._step.set_rate(self.phase.lr(self.phase_step))
        turn = self.replays.take(self.counters.step + 1)
        self._end_step(turn, self.train_batches.batch_size, observer)

    def _end_step(self, turn: Turn, samples: int, observer: Observer) -> None:
        """Update the topology if it is time to, count, and report."""
        self.counters.step += 1
        if self.sparsifier.update(turn, is_last=self.phase_step == self.phase.steps):
            self._report_update(observer)
        elif self.counters.step == self.total_steps:
            self._report_reliable(observer)
        self._report_compute(observer)
        self.counters.samples += samples

    def _report_update(self, observer: Observer) -> None:
        """Compare and report the masks after an update."""
        step = self.counters.step
        self.processes.check_masks(self.sparsifier.topology, f"update {self.sparsifier.updates}, at step {step}")
        self._step.active = self.sparsifier.topology.active_by_layer
        observer.on_layers(step, self.sparsifier.layers)

    def _report_reliable(self, observer: Observer) -> None:
        """Report the layers, none of which has changed, if weights are counted that have become reliable since."""
        if self.sparsifier.rs_reliable is not None:
            unchanged = [replace(report, dropped=0, grown=0, churn=None) for report in self.sparsifier.layers]
            observer.on_layers(self.counters.step, unchanged)

    def _report_compute(self, observer: Observer) -> None:
        """Report what was found out of how layers are multiplied, before it can be saved."""
        if decisions := self.sparsifier.weights.decisions:
            observer.on_compute(self.counters.step, decisions)

    # -- measuring -----------------------------------------------------------------------------------------------------

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits as float32 or finer, computed in the run's layout and precision; not for backward passes."""
        return self.gradients.passes.logits(self.model, inputs)

    def _log(self, observer: Observer) -> None:
        """Log the mean training loss and accuracy since the last log line, and reset the sums."""
        counters = self.counters
        self._step.check_scale(counters.step)
        samples = counters.samples - counters.logged_samples
        seconds = counters.seconds - counters.logged_seconds
        loss, correct = (self._sums / samples).tolist()
        epochs = counters.step / len(self.train_batches)
        values = {
            "train/loss": loss,
            "train/accuracy": correct,
            "lr": self.phase.lr(self.phase_step - 1),
            "flops/train": self.ledger.total,
            "time/seconds": counters.seconds,
            "time/samples_per_second": samples / max(seconds, 1e-9),
            **self._sparsity(),
            **self.correction.figures(epochs),
            **(self.clipping.figures() if self.clipping else {}),
        }
        observer.on_metrics(counters.step, epochs, values)
        self._sums.zero_()
        counters.logged_samples, counters.logged_seconds = counters.samples, counters.seconds

    def _sparsity(self) -> dict[str, float]:
        thresholds, churn = self.sparsifier.thresholds, self.sparsifier.topology.churn
        return {
            "sparsity/density": self.sparsifier.density,
            "sparsity/active": self.sparsifier.topology.active,
            "sparsity/rs": self.sparsifier.rs,
            **self._rs_reliable(),
            "sparsity/drop_fraction": self.sparsifier.drop_fraction,
            **({"sparsity/churn": churn} if churn is not None else {}),
            **({"sparsity/threshold": sum(thresholds) / len(thresholds)} if thresholds else {}),
        }

    def evaluate(self, batches: Loader, what: str = "validation set") -> Evaluation:
        """Return the loss and accuracy of the present weights; all processes call this.

        ``what``: what the batches are of. DivergedError if the loss on it is not finite, which training need not show.
        """
        passing = batches.epoch(0, shard=self.processes.shard)
        found = evaluate(self.model, passing, self.forward, self.processes, self.replays.sums(batches))
        if not math.isfinite(found.loss):
            raise DivergedError(self.counters.step, f"the loss on the {what} is {found.loss}: it is")
        return found

    def _evaluate_if_due(self, observer: Observer) -> None:
        """Validate at the end of every n-th epoch and of training, once, even if a run resumes at just that step."""
        counters, per_epoch = self.counters, len(self.train_batches)
        at_interval = counters.step % (per_epoch * self.settings.eval_every_epochs) == 0
        is_due = counters.step > 0 and (at_interval or counters.step == self.total_steps)
        if self.val_batches is None or not is_due or counters.evaluated == counters.step:
            return
        result = self.evaluate(self.val_batches)
        counters.evaluated = counters.step
        counters.val_loss, counters.val_accuracy = result.loss, result.accuracy
        observer.on_metrics(counters.step, counters.step / per_epoch, _validation(result.loss, result.accuracy))
        is_last_phase = counters.phase == len(self.phases) - 1  # only its networks are what the procedure makes
        may_be_best = self.settings.select == "best_val" and is_last_phase and self.sparsifier.density_is_final
        if may_be_best and (self.best is None or result.accuracy > self.best["accuracy"]):
            self.best = {
                "step": counters.step,
                "loss": result.loss,
                "accuracy": result.accuracy,
                "model": _copy(self.model.state_dict()),
                "sparsifier": _copy(self.sparsifier.state_dict()),
            }

    # -- networks on the way -------------------------------------------------------------------------------------------

    def report_network(
        self, observer: Observer, name: str, masks: Mapping[str, Tensor] | None = None
    ) -> Evaluation | None:
        """Validate the present weights and report them as a network of the procedure; all processes call this.

        ``masks``: those of the weights, by layer, if they are not the run's. Returns the validation figures, if there
        is a validation split.
        """
        counters, topology = self.counters, self.sparsifier.topology
        evaluation = None
        if self.val_batches is not None:
            is_known = masks is None and counters.evaluated == counters.step
            known = Evaluation(counters.val_loss, counters.val_accuracy)
            evaluation = known if is_known else self.evaluate(self.val_batches)
        sparsifier = self.sparsifier.state_dict() if masks is None else {"masks": masks}
        active = topology.active if masks is None else sum(count_true([*masks.values()]))
        figures = (evaluation.loss, evaluation.accuracy) if evaluation else (None, None)
        where = (counters.phase, self.phase.name, counters.step)
        network = Network(*where, name, active / topology.size, active, *figures)
        observer.on_network(network, {"model": self.model.state_dict(), "sparsifier": sparsifier})
        return evaluation

    def adopt(self, observer: Observer, masks: Sequence[Tensor], evaluation: Evaluation | None) -> None:
        """Take the present weights, with other masks, for the run's own network, which is what will be tested.

        ``evaluation``: its validation figures.
        """
        counters = self.counters
        self.take_masks(observer, masks)
        values = {}
        if evaluation is not None:
            counters.val_loss, counters.val_accuracy = evaluation.loss, evaluation.accuracy
            values = _validation(evaluation.loss, evaluation.accuracy)
        epochs = counters.step / len(self.train_batches)
        observer.on_metrics(counters.step, epochs, {**values, **self._sparsity()})

    def take_masks(self, observer: Observer, masks: Sequence[Tensor]) -> None:
        """Give the run's network other masks, and report them; weights outside, and their state, become zero."""
        self.sparsifier.set_masks(masks)
        self._report_update(observer)

    def take_density(self, observer: Observer, density: float) -> None:
        """Let learned masks have another density from now on, and report them."""
        self.sparsifier.set_density(density)
        if self.counters.step == 0:
            self.counters.initial_active = self.sparsifier.topology.active
        self._report_update(observer)

    # -- state ---------------------------------------------------------------------------------------------------------

    def begin_alike(self) -> None:
        """Take the weights and masks of the main process: other hardware may have made slightly different ones."""
        state = self.sparsifier.state_dict()
        tensors = [*_tensors_in(state)]
        counts = torch.tensor(state["counts"], device=self._sums.device)
        with self.sparsifier.unpacked():
            self.processes.share([*self.model.parameters(), *self.model.buffers(), *tensors, counts])
            self.sparsifier.load_state_dict({**state, "counts": counts.tolist()})
        self._step.active = self.sparsifier.topology.active_by_layer

    @property
    def _parts(self) -> dict[str, Any]:
        """The parts of the run that have a state of their own, in the order in which they are restored."""
        return {
            "model": self.model,
            "optimizer": self.optimizer,
            "sparsifier": self.sparsifier,
            "precision": self.precision,
            "ledger": self.ledger,
            "correction": self.correction,
            **({"clipping": self.clipping} if self.clipping else {}),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything a resume needs, as tensors and plain data."""
        parts = self._parts.items()
        return {
            **{name: plain_state(part) if part is self.optimizer else part.state_dict() for name, part in parts},
            "counters": dict(vars(self.counters)),
            "sums": self._sums,
            "best": self.best,
            "procedure": self.kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        state = _as_now(state)
        self.replays.doubt()
        self.counters = Counters(**state["counters"])
        self.plan(self.counters.initial_active)
        self.sparsifier.begin(self.phase.update)
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
        self._sums.copy_(state["sums"])
        self.best, self.kept = state["best"], state["procedure"]
        self._step.active = self.sparsifier.topology.active_by_layer
        # What was drawn before may be of other first masks: a run that goes on draws them from its own checkpoint.
        self.ledger.flops.set_trained(self.sparsifier.trained_by_layer)


def _as_now(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a state that code before phases and corrections has saved as it would be saved now."""
    if "ledger" in state:
        return state
    counters = dict(state["counters"])
    ledger = {"training": counters.pop("flops"), "correction": 0, "batch_norm": 0, "measuring": 0}
    return {**state, "counters": counters, "ledger": ledger, "correction": {}, "procedure": {}}


def _validation(loss: float, accuracy: float) -> dict[str, float]:
    return {"val/loss": loss, "val/accuracy": accuracy}


def _copy(state: Any) -> Any:
    """Copy the tensors of a nested state."""
    if isinstance(state, Tensor):
        return state.clone()
    return {key: _copy(value) for key, value in state.items()} if isinstance(state, Mapping) else state


def _tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield all tensors of a state, in their order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors_in(inner)
