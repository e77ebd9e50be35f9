"""Iterative pruning: train, prune, go on or rewind, again and again, from any first masks."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, Final

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import Tensor

from dst.metrics.flops import Ledger
from dst.options import Needs, OneOf, Range, checked, refuse
from dst.procedures.method import Length, Method
from dst.procedures.options import counts_after_levels, rewind_problems
from dst.procedures.tensors import copied, put
from dst.seeding import derive_seed
from dst.sparsity import saliency
from dst.sparsity.allocation import level_counts
from dst.sparsity.marks import marked
from dst.sparsity.plan import NoUpdateError
from dst.sparsity.probe import BACKWARD, FORWARD, Probe
from dst.sparsity.update import TopologyUpdate
from dst.training.phase import Action, Phase, Report, Tick
from dst.training.step import plain_state

if TYPE_CHECKING:
    from dst.sparsity import Sparsifier
    from dst.training.loop import Training
    from dst.training.observer import Observer

_ROUNDS: Final = 100
"""Rounds of pruning within a level, by the strength of paths (synflow)."""


@marked("levels")
@checked
def imp(
    length: Length,
    method: Method,
    *,
    density: Annotated[float, Range(0, 1, "()"), "active / maskable weights of the final network"] = 0.01,
    keep: Annotated[float, Range(0, 1, "()"), "the share of the active weights that a level leaves"] = 0.8,
    level_epochs: Annotated[
        int, Range(1), "epochs of a level, on the schedule's own curve; one that is too short for an update has none"
    ] = 2,
    criterion: Annotated[
        str,
        OneOf("magnitude", "snip", "synflow", "random"),
        "what the trained weights are ranked by, of all layers together",
    ] = "magnitude",
    rewind: Annotated[
        str,
        OneOf("none", "init", "epoch"),
        "a pruned network goes on from its own weights, the first ones, or those after an epoch of the first level",
    ] = "none",
    rewind_epoch: Annotated[
        int | None, Range(1), Needs("rewind", "epoch"), "weights go back to those after this epoch of the first level"
    ] = None,
) -> list[Phase]:
    """Train level by level, each ending with less of its weights; then train what is left.

    Iterative magnitude pruning (Frankle & Carbin 2019, "The Lottery Ticket Hypothesis"), from masks that may be sparse
    already (Gadhikar et al. 2023). Phases: ``level 1``, ``level 2``, ... of ``level_epochs`` each, as many as lead to
    ``density`` (``counts_after_levels``), then ``train``, of the ``length``. Each later phase begins with pruning the
    network of the one before; unless ``rewind`` is ``none``, all weights, norm statistics and the optimizer's state go
    back with it. The rate and the updates of a phase are those of a whole training of its steps. Nothing pruned comes
    back but by updates. OptionError for levels that cannot be, and for an epoch to go back to that is never trained.
    """
    refuse(rewind_problems(rewind, rewind_epoch, level_epochs))
    steps = level_epochs * length.steps_per_epoch
    rate, update = method.lr(steps), _update(method, steps)
    counts = [1] if method.first is None else counts_after_levels(*method.first, density, keep)
    prunings = [
        _Prune(
            level,
            count,
            criterion,
            rewinds=rewind != "none",
            is_last=level == len(counts),
            batch_size=length.batch_size,
        )
        for level, count in enumerate(counts, 1)
    ]
    begins: list[Action | None] = [_KeepPoint() if rewind == "init" else None, *prunings]
    middle = None if rewind_epoch is None else (rewind_epoch * length.steps_per_epoch, _KeepPoint())
    return [
        *(
            Phase(
                f"level {level}",
                steps,
                rate,
                update,
                begin=begins[level - 1],
                end=Report(f"level {level}"),
                midway=middle if level == 1 else None,
            )
            for level in range(1, len(counts) + 1)
        ),
        Phase("train", length.steps, method.lr(length.steps), method.update(length.steps), begin=begins[-1]),
    ]


def _update(method: Method, steps: int) -> TopologyUpdate | None:
    """Return how a level is updated; None if it is too short for an update."""
    try:
        return method.update(steps)
    except NoUpdateError:
        return None


# ---------------------------------------------------------------------------------------------------------------------
# What is done between levels


@dataclass(frozen=True)
class _KeepPoint(Action):
    """Keep what the network will go back to."""

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        tick()
        weights = run.sparsifier.weights
        run.kept = {
            "model": copied(run.model),
            "optimizer": copy.deepcopy(plain_state(run.optimizer)),
            "masks": [mask.clone() for mask in run.sparsifier.topology.masks],
            "births": weights.births,
        }


@dataclass(frozen=True)
class _Prune(Action):
    """Prune the network of a level to ``count`` weights in all, at least one a layer, and rewind those that stay."""

    level: int
    count: int
    criterion: str
    rewinds: bool
    is_last: bool
    batch_size: int

    def __call__(self, run: "Training", observer: "Observer", tick: Tick) -> None:
        tick()
        masks = run.sparsifier.pruned(self._scores(run), run.sparsifier.topology.masks, self.count)
        tick()
        if self.rewinds:
            _go_back(run)
        run.take_masks(observer, masks)
        if self.is_last:
            run.kept = {}

    def _scores(self, run: "Training") -> list[Tensor]:
        """Rank the weights; what it costs is booked, as sparse as the network is."""
        sparsifier = run.sparsifier
        if self.criterion == "random":
            return [
                _uniform(weight, run.settings.seed, self.level, i)
                for i, weight in enumerate(sparsifier.weights.weights)
            ]
        found = _CRITERIA[self.criterion](_probe(run), sparsifier.topology.layers, self.count)
        run.ledger.training.forward(run.active, found.forward_passes)
        return found.scores

    def book(self, ledger: Ledger, active: Mapping[str, int], samples: int) -> None:
        """Book the passes of the criterion: a forward and a backward one of a batch, or of a sample in each round."""
        passes = {"snip": min(self.batch_size, samples), "synflow": _ROUNDS}.get(self.criterion, 0)
        ledger.training.forward(active, (FORWARD + BACKWARD) * passes)

    def leaves(self, active: Mapping[str, int], sparsifier: "Sparsifier") -> Mapping[str, int]:
        """Return as many weights as stay, each layer with the share that it has; training tells which it will have."""
        counts = [*active.values()]
        return dict(zip(active, level_counts(self.count, counts, counts), strict=True))


_CRITERIA: Final[dict[str, Callable[..., saliency.Saliency]]] = {
    "magnitude": saliency.magnitude,
    "snip": saliency.snip,
    "synflow": partial(saliency.synflow, rounds=_ROUNDS),
}


def _probe(run: "Training") -> Probe:
    """Return what a criterion may look at: the first batches of the epoch that comes next, and the loss."""
    batches = run.train_batches
    epoch = run.counters.step // len(batches)
    loss = partial(F.cross_entropy, label_smoothing=run.settings.label_smoothing)
    return Probe(run.model, lambda count: islice(batches.epoch(epoch), count), loss, run.settings.seed, is_trained=True)


def _uniform(weight: Tensor, seed: int, level: int, layer: int) -> Tensor:
    """Return numbers in [0, 1) derived from the run's seed, the level and the layer."""
    generator = torch.Generator(weight.device).manual_seed(derive_seed(seed, "prune", level, layer))
    return torch.rand(weight.shape, generator=generator, device=weight.device)


def _go_back(run: "Training") -> None:
    """Give model and optimizer the state that was kept; the next masks make it sparse."""
    point: Mapping[str, Any] = run.kept
    put(run.model, point["model"])
    run.optimizer.load_state_dict(copy.deepcopy(point["optimizer"]))  # it would go on with these tensors
    run.sparsifier.went_back(point["masks"], point["births"])
