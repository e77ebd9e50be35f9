"""Cheap tickets at the end of training, superposed to one network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from torch import Tensor

from dst.metrics.flops import Ledger
from dst.options import Excludes, Needs, OneOf, Range, checked, refuse
from dst.procedures.cycles import constant, cycle_update, triangular
from dst.procedures.method import Length, Method
from dst.procedures.options import batch_norm_problems, budget, superposing_problems, whole_epochs_problems
from dst.procedures.superpose import Superposed, as_superposed, caa, cima, counts_to_keep, within
from dst.procedures.tensors import copied, holding, put, weight_names
from dst.sparsity import Sparsifier
from dst.sparsity.marks import marked
from dst.sparsity.options import Pool
from dst.sparsity.select import count_true
from dst.training.batch_norm import reestimate
from dst.training.phase import Action, Phase, Tick

if TYPE_CHECKING:
    from dst.training.loop import Training
    from dst.training.observer import Observer


@marked("cycles")
@checked
def sup_tickets(
    length: Length,
    method: Method,
    *,
    cycle_rate: Annotated[
        float,
        Range(0, 1, "()"),
        Excludes("pretrain_epochs"),
        "the share of all epochs that cycles may have; what is left over by whole cycles is pretraining",
    ] = 0.2,
    cycle_epochs: Annotated[int, Range(1), "epochs of a cycle, at whose end a ticket is taken"] = 4,
    pretrain_epochs: Annotated[
        int | None, Range(1), "epochs of pretraining, all others being those of cycles; null: by cycle_rate"
    ] = None,
    lr: Annotated[
        str,
        OneOf("triangular", "constant"),
        "the rate in cycles: up to the middle and down again, or the last of pretraining",
    ] = "triangular",
    lr_at_ticket: Annotated[
        float, Range(0, ends="(]"), Needs("lr", "triangular"), "the rate at a cycle's beginning and end"
    ] = 0.001,
    lr_mid_cycle: Annotated[
        float, Range(0, ends="(]"), Needs("lr", "triangular"), "the rate in the middle of a cycle"
    ] = 0.005,
    re_explore: Annotated[
        float | None,
        Range(0, 1, "(]"),
        "the share of weights that an update on a cycle's first step drops and grows; null: no such update",
    ] = None,
    freeze_updates: Annotated[
        bool, "no updates of the topology in cycles but re_explore; false: they go on with the last drop fraction"
    ] = True,
    superpose: Annotated[
        str,
        OneOf("caa", "cima"),
        "caa: the cumulative average of all networks; cima: a moving average of ticket and superposed network",
    ] = "caa",
    cima_factor: Annotated[
        float, Range(0, 1, "()"), Needs("superpose", "cima"), "the share of the ticket in the moving average"
    ] = 0.5,
    include_pretrained: Annotated[bool, "the pretrained network is the first to be superposed"] = True,
    prune_back: Annotated[
        str,
        OneOf("each_cycle", "end"),
        "when the superposed network is pruned to the density: after each cycle, or after the last one only",
    ] = "each_cycle",
    average_over: Annotated[
        str,
        OneOf("networks", "active"),
        Needs("superpose", "caa"),
        "a weight is averaged over all networks, with zeros where it is not active, or over those where it is active",
    ] = "networks",
    pool: Annotated[
        str, OneOf("global", "layer"), "prune back by magnitude in all layers together, or in each to its own count"
    ] = "global",
    batch_norm: Annotated[
        str,
        OneOf("reestimate", "average"),
        "statistics of the superposed network: anew by a pass over the training set, or averaged like the weights",
    ] = "reestimate",
) -> list[Phase]:
    """Train, then take tickets at the ends of short cycles and superpose them, at the same density.

    Sup-tickets (Yin et al. 2022, "Superposing Many Tickets into One"). Phases: ``pretrain``, the method's ordinary run,
    then ``cycle 1``, ``cycle 2``, .... Training goes on from the last ticket; the superposed network becomes the run's
    own after the last cycle only. OptionError for cycles that cannot be, and for what would be ignored.
    """
    parts = budget(length.epochs, cycle_rate=cycle_rate, cycle_epochs=cycle_epochs, pretrain_epochs=pretrain_epochs)
    refuse(whole_epochs_problems(length.epochs * length.steps_per_epoch, length.steps))
    refuse(superposing_problems(parts, include_pretrained))
    refuse(batch_norm_problems(batch_norm, method.has_batch_norm))
    first_steps, steps = (epochs * length.steps_per_epoch for epochs in (parts.pretrain_epochs, parts.cycle_epochs))
    rate, update = method.lr(first_steps), method.update(first_steps)
    rates = triangular(steps, lr_at_ticket, lr_mid_cycle) if lr == "triangular" else constant(rate(first_steps - 1))
    moves = cycle_update(update, steps, re_explore=re_explore, freeze_updates=freeze_updates)
    how = _Superposing(
        average=caa if superpose == "caa" else partial(cima, factor=cima_factor),
        average_over=average_over,
        pool=pool,
        density=method.density,
        reestimates=batch_norm == "reestimate" and method.has_batch_norm,
    )
    cycles = range(1, parts.cycles + 1)
    return [
        Phase("pretrain", first_steps, rate, update, end=_AfterPretraining(how, is_superposed=include_pretrained)),
        *(
            Phase(
                f"cycle {number}",
                steps,
                rates,
                moves,
                end=_AfterCycle(
                    how,
                    number,
                    prunes=prune_back == "each_cycle" or number == parts.cycles,
                    is_last=number == parts.cycles,
                ),
            )
            for number in cycles
        ),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What is done after the phases


@dataclass(frozen=True)
class _Superposing:
    """How networks are superposed. ``density``: that of the superposed network; None: as many weights as a ticket."""

    average: Callable[[Superposed, Superposed], Superposed]
    average_over: str
    pool: Pool
    density: float | None
    reestimates: bool

    def taken(self, run: "Training") -> Superposed:
        """Return a copy of the run's present network."""
        topology = run.sparsifier.topology
        names = weight_names(run.model, run.sparsifier)
        masks = {name: mask.clone() for name, mask in zip(names, topology.masks, strict=True)}
        return as_superposed(copied(run.model), masks, average_over=self.average_over)

    def pruned(self, network: Superposed, sparsifier: Sparsifier) -> Superposed:
        """Return a superposed network with as many weights as it shall have, those of largest magnitude."""
        topology, names = sparsifier.topology, list(network.masks)
        union = list(network.masks.values())
        tickets = [report.active for report in topology.reports]
        target = sum(tickets) if self.density is None else round(self.density * topology.size)
        counts = counts_to_keep(target, count_true(union), tickets, self.pool)
        masks = sparsifier.pruned([network.tensors[name].abs() for name in names], union, counts)
        return within(network, dict(zip(names, masks, strict=True)))


@dataclass(frozen=True)
class _AfterPretraining(Action):
    """Report the pretrained network, and keep it if it is superposed with the tickets."""

    how: _Superposing
    is_superposed: bool

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        tick()
        run.report_network(observer, "pretrained")
        if self.is_superposed:
            run.kept = dict(vars(self.how.taken(run)))


@dataclass(frozen=True)
class _AfterCycle(Action):
    """Take a ticket and superpose it with the networks before; the last time, go over to the superposed network."""

    how: _Superposing
    number: int
    prunes: bool
    is_last: bool

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        tick()
        run.report_network(observer, f"ticket {self.number}")
        ticket = self.how.taken(run)
        made = self.how.average(Superposed(**run.kept), ticket) if run.kept else ticket
        if self.prunes:
            made = self.how.pruned(made, run.sparsifier)
        layers = run.sparsifier.topology.layers
        masks = {layer.name: mask for layer, mask in zip(layers, made.masks.values(), strict=True)}
        with holding(run.model, made.tensors):
            if self.how.reestimates:
                self._reestimate(run, masks, tick)
                made = replace(made, tensors=copied(run.model))
            evaluation = run.report_network(observer, f"superposed {self.number}", masks)
        if not self.is_last:
            run.kept = dict(vars(made))
            return
        run.kept = {}
        put(run.model, made.tensors)
        run.adopt(observer, list(masks.values()), evaluation)

    def _reestimate(self, run: "Training", masks: Mapping[str, Tensor], tick: Tick) -> None:
        """Find the statistics of the network that the model holds, over the epoch that was trained last."""
        batches = run.train_batches
        active = dict(zip(masks, count_true([*masks.values()]), strict=True))
        run.ledger.batch_norm.forward(active, batches.samples)
        reestimate(run.model, run.gradients.passes, batches, run.counters.step // len(batches) - 1, tick)

    def book(self, ledger: Ledger, active: Mapping[str, int], samples: int) -> None:
        """Book the pass for batch norm; each layer is assumed to keep as many weights as the ticket has."""
        if self.how.reestimates:
            ledger.batch_norm.forward(active, samples)
