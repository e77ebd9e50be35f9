"""The one stateful class that a training loop meets: it composes the parts of a method and applies them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import signature
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dst.fractions import Curve
from dst.options import Range, checked, declared, refuse
from dst.seeding import derive_seed
from dst.sparsity.distribution import Distribution, NamedDistribution
from dst.sparsity.initial_masks import FirstParts, Init, Start, check_layout, check_room, check_sharing, first_masks
from dst.sparsity.marks import marks_of
from dst.sparsity.options import (
    Compute,
    FirstDensity,
    Part,
    Pool,
    ReliableSteps,
    Repair,
    Reparametrize,
    age_problems,
    compute_problems,
    learning_problems,
    pattern_problems,
    repair_problems,
    scope_problems,
)
from dst.sparsity.pattern import Pattern
from dst.sparsity.plan import UpdatePlan
from dst.sparsity.prune import prune_like, prune_to
from dst.sparsity.redistribute import Statistic
from dst.sparsity.reliable import Reliable
from dst.sparsity.reparametrize import Learn
from dst.sparsity.saliency import Criterion, Probe
from dst.sparsity.scope import Layer, Scope, never_sparse, outside
from dst.sparsity.select import count_true
from dst.sparsity.topology import LayerReport, Topology
from dst.sparsity.update import DEFAULT, WITHOUT_PLAN, TopologyUpdate, find_part, refuse_unused, topology_update
from dst.sparsity.view import LayerView, Score
from dst.sparsity.weights.adam_age import counts_steps
from dst.sparsity.weights.held import check_free, check_optimizer
from dst.sparsity.weights.holder import Holder
from dst.sparsity.weights.masked_dense import MaskedDense
from dst.sparsity.weights.packed import Packed
from dst.sparsity.weights.packing import Packing, packing_of
from dst.sparsity.weights.reparametrised import LEARNED, Edges, Reparametrised, Reparametrization

_REPARAMETRIZE = Part("reparametrize")
_NOT_LEARNED = "masks are not learned: set_masks says which weights are active"


@dataclass(frozen=True)
class Turn:
    """What a step's dense gradients have told: whether it updates the topology, and where weights would grow.

    ``update``: None without one. ``overflowed``: an update was due, but gradients are not finite.
    """

    update: TopologyUpdate | None = None
    overflowed: bool = False
    grow_scores: list[Tensor] = field(default_factory=list)

    @property
    def replaces_step(self) -> bool:
        """Say whether the update comes instead of the optimizer step."""
        return self.update is not None and self.update.replaces_step


class Sparsifier:
    """Keep a model sparse while ``optimizer`` trains it, and update its topology as planned (``TopologyUpdate``).

    Args:
        model: its convolution and linear weights (those in ``scope``) are masked in place.
        optimizer: trains all layers in scope, each weight by itself; its state of inactive weights is kept at exactly
            zero. None if it is built later, of the weights as they are held by then (``attach``).
        density: active fraction of all weights in scope at the start; None for the ``dense`` distribution, and for an
            init or a pattern with counts of its own.
        distribution, init, pattern, drop, grow, redistribute: names, or functions as in the modules of those names;
            without ``drop`` and ``grow`` an update only prunes. Options of a part: a ``functools.partial`` of it.
        repair: what is mended in the first masks, which looks at the shape of the probe's data; nothing if not given.
        plan: when to update, by magnitude and gradient if nothing else is given; None for a static topology, which has
            neither ``drop`` nor ``grow``.
        update: all of an update in one, instead of ``plan``, ``drop`` and what else belongs to updates.
        drop_fraction: of a layer's active weights, per update: a number or a curve over steps; 0.3 if not given.
        drop_pool: drop that fraction in each ``layer``, or of all layers together (``global``).
        density_curve: the density over steps, never increasing; None keeps it.
        prune_pool: prune to it by the magnitude in each ``layer``, to the same density, or of all layers together
            (``global``).
        scope: which layers.
        probe: the training data and the loss, for a distribution or an init that looks at them.
        seed: all random choices are derived from it.
        reparametrize: how masks are learned, if they are: then the first masks say what active weights are chosen from,
            nothing else moves, and there is no optimizer yet (``attach``).
        compute: how sparse layers are multiplied: as dense ones with zeros (``masked``), or by their active weights
            alone where a fixed rule of shape and density says so (``packed``), or where times of real layers do
            (``auto``), or another ``Packing``; on a GPU, of units of 16 inputs that 32 outputs or more share.
        count_every: steps from one count of the active weights to the next, where masks are learned; 50 if not given.
        verify_every: call ``verify`` after every n-th update, to find out where a loop goes wrong.
        reliable_steps: count the weights that were active for so many steps in a row (``rs_reliable``); None: do not.

    Raises ValueError for unknown names, options that are not allowed, impossible densities, parts that do not go
    together, and for layers that cannot be held sparse. Warns of weights that no scope can make sparse.

    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None,
        *,
        density: FirstDensity | None,
        distribution: str | Distribution | NamedDistribution | Criterion | None = "erk",
        init: str | Init = "random",
        pattern: str | Callable[[], Pattern] = "unstructured",
        repair: Repair | None = None,
        drop: str | Score | None = DEFAULT,
        grow: str | Score | None = DEFAULT,
        redistribute: str | Statistic | None = None,
        plan: UpdatePlan | None = None,
        drop_fraction: float | Curve | None = None,
        drop_pool: Pool = "layer",
        density_curve: Curve | None = None,
        prune_pool: Pool = "global",
        update: TopologyUpdate | None = None,
        scope: Scope | None = None,
        probe: Probe | None = None,
        seed: int = 0,
        reparametrize: str | Learn | None = None,
        compute: Compute | Packing = "masked",
        count_every: Annotated[int | None, Range(1)] = None,
        verify_every: Annotated[int | None, Range(1)] = None,
        reliable_steps: ReliableSteps | None = None,
    ) -> None:
        self.seed = seed
        self.steps = 0
        """Steps taken so far in this phase, topology updates that replaced a step included."""
        self.updates = 0
        """Topology updates so far, in all phases."""
        self.postponed = False
        """Whether an update is due but has to wait, since the gradients have not been finite."""
        self.verify_every = verify_every
        parts_of_update: dict[str, Any] = {
            **{"drop": drop, "grow": grow, "redistribute": redistribute, "drop_fraction": drop_fraction},
            **{"drop_pool": drop_pool, "density_curve": density_curve, "prune_pool": prune_pool},
        }
        if update is not None:
            _refuse_twice({"plan": plan, **parts_of_update})
        self.topology_update = update or topology_update(plan, **parts_of_update)
        if optimizer is not None:
            _check_age(self.topology_update, optimizer)
        if self.topology_update is None:
            refuse_unused({"verify_every": verify_every}, WITHOUT_PLAN)
        learn: Learn | None = find_part("reparametrize", reparametrize)
        if learn is None:
            refuse_unused({"count_every": count_every}, "masks are not learned. Give reparametrize")
        else:
            self._check_learned(optimizer, compute)
        parts = FirstParts(
            find_part("distribution", distribution),
            find_part("init", init),
            find_part("pattern", pattern),
            repair or Repair(),
        )
        self._check_pattern(parts, learns=learn is not None)
        scope = scope or Scope()
        own = getattr(parts.distribution, "keywords", {}).get("classifier")
        refuse(scope_problems(scope, Part("this distribution", marks_of(parts.distribution)), own), "scope")
        layers = self._layers_of(model, optimizer, scope, parts)
        self.outside = outside(model, layers)
        """What is dense and not counted in any density: name of the parameter -> number of weights.

        It is trained, unless ``outside_is_frozen``.
        """
        start = Start(layers, parts.patterns(layers), seed, probe)
        self.topology = self._first_topology(start, parts, density)
        self.forward_passes = start.forward_passes
        """What the first masks have cost, in dense forward passes of one sample."""
        self.mended = start.mended
        """What was repaired in the first masks; None where no repair was asked for."""
        update = self.topology_update
        if update is not None and update.drop is not None and update.density_curve is None:
            check_room(layers, self.topology.counts)
        self._proven = False
        """Whether the optimizer has been seen to leave inactive weights at zero."""
        self._count_every = count_every or declared(Reparametrize)["every"].default
        self.weights: Holder
        """How the weights are held."""
        if learn is not None:
            edges = Edges(layers, self.topology.masks, seed)
            self.weights = learned = Reparametrised(model, edges, learn(edges))
            self.topology = Topology(layers, learned.active(), start.patterns)
        elif compute == "masked":
            self.weights = MaskedDense(layers, self.topology.masks, self._active)
        else:
            self.weights = Packed(model, layers, self.topology.masks, self._active, packing_of(compute, layers))
        self._reliable = None if reliable_steps is None else Reliable(self.topology, reliable_steps)
        self._expect()
        _warn_of(never_sparse(model, [*self.outside]), self.outside, is_frozen=self.outside_is_frozen)
        if optimizer is not None:
            self.attach(optimizer)

    def attach(self, optimizer: Optimizer) -> None:
        """Let an optimizer train the weights; ValueError unless it trains all of them, each by itself."""
        _check_age(self.topology_update, optimizer)
        self.weights.attach(optimizer)

    @property
    def optimizer(self) -> Optimizer:
        """What trains the weights; RuntimeError before ``attach``."""
        return self.weights.optimizer

    @property
    def learned(self) -> Reparametrization | None:
        """How masks are learned; None where they are not."""
        return self.weights.how if isinstance(self.weights, Reparametrised) else None

    @property
    def outside_is_frozen(self) -> bool:
        """Say whether what is outside the scope is not trained either, since nothing is but scores of weights."""
        return self.learned is not None and self.learned.freezes_rest

    @property
    def trained_by_layer(self) -> dict[str, int] | None:
        """The weights of each layer that every backward pass computes a gradient for; None: the active ones alone.

        Waits for the device.
        """
        if self.learned is None or not self.learned.trains_inactive:
            return None
        return dict(zip([layer.name for layer in self.topology.layers], count_true(self.weights.masks), strict=True))

    @property
    def edge_density(self) -> float | None:
        """The density of the first masks where active weights are chosen from them, learned; None where they are not.

        Waits for the device.
        """
        return None if self.learned is None else sum(count_true(self.weights.masks)) / self.topology.size

    def _check_learned(self, optimizer: Optimizer | None, compute: str | Packing) -> None:
        """Raise ValueError for what does not go with learned masks."""
        refuse(compute_problems(compute if isinstance(compute, str) else "packed", learns=True))
        refuse(learning_problems(_REPARAMETRIZE, ["the update"] if self.topology_update is not None else []))
        if optimizer is not None:
            raise ValueError(
                "masks are learned by tensors that are yet to be made, so no optimizer trains them: give None, and "
                "attach() one that trains all parameters of the model which require gradients then"
            )

    def _check_pattern(self, first: FirstParts, *, learns: bool) -> None:
        """Raise ValueError if the pattern does not go with the init or with what changes the layers' counts."""
        update = self.topology_update
        changing: dict[str, Any] = {"reparametrize": learns or None}
        if update is not None:
            changing |= {"redistribute": update.redistribute, "density_curve": update.density_curve}
        pattern, init = Part("this pattern", marks_of(first.pattern)), Part("this init", marks_of(first.init))
        refuse(pattern_problems(pattern, init, [name for name, part in changing.items() if part is not None]))
        refuse(repair_problems(first.repair, pattern, init))

    def _layers_of(self, model: nn.Module, optimizer: Optimizer | None, scope: Scope, first: FirstParts) -> list[Layer]:
        """Return the layers in scope; ValueError if one of them cannot be held, or does not go with a part."""
        layers = scope.layers(model)
        check_free(layers)
        if optimizer is not None:
            check_optimizer(optimizer, layers)
        update = self.topology_update
        if update is not None and update.redistribute is not None:
            check_sharing(layers, "redistribute")
        check_layout(layers, pattern=first.pattern, init=first.init, grow=update.grow if update else None)
        return layers

    def _first_topology(self, start: Start, first: FirstParts, density: float | None) -> Topology:
        """Return the first masks, with what else the updates need to remember of each layer."""
        update = self.topology_update
        averages = update is not None and "momentum" in update.needs
        goes_back = update is not None and update.grow is not None and update.plan.grown_weights == "initial"
        return Topology(
            start.layers,
            first_masks(start, first, density),
            start.patterns,
            is_structured="structured" in marks_of(first.pattern),
            momentum=[torch.zeros_like(layer.weight) for layer in start.layers] if averages else (),
            initial=[layer.weight.detach().clone() for layer in start.layers] if goes_back else (),
        )

    # -- what a training loop calls ------------------------------------------------------------------------------------

    def step(self, apply: Callable[[], Any] | None = None, *, gradients_are_finite: bool = False) -> bool:
        """Take one step after ``loss.backward()``, in place of ``optimizer.step()``; say whether the topology changed.

        ``apply`` takes the optimizer step where ``optimizer.step()`` is not enough (gradient clipping, GradScaler). It
        sees masked gradients; after a backward pass of its own it has to call ``mask_gradients`` before it goes on.

        If gradients are not finite (a scaled loss has overflowed), an update is postponed to the first step at which
        they are. This step goes to ``apply`` like any other, and a GradScaler leaves it out. If there is an ``apply``,
        averages of gradients leave such steps out too. ``gradients_are_finite``: the caller has looked already, so that
        an update need not wait for the device again.

        Raises RuntimeError if non-finite gradients reach the weights at an update, or if inactive weights move.
        """
        turn = self.read_gradients(may_overflow=apply is not None, gradients_are_finite=gradients_are_finite)
        if not turn.replaces_step:
            self.mask_gradients()
            (apply or self.optimizer.step)()
            self.check_step(turn)
        return self.update(turn)

    @property
    def is_proven(self) -> bool:
        """Say whether the optimizer has been seen to leave inactive weights at zero, which its first step shows."""
        return self._proven

    # -- the pieces of a step, in their order --------------------------------------------------------------------------

    @torch.no_grad()
    def read_gradients(self, *, may_overflow: bool = False, gradients_are_finite: bool = False) -> Turn:
        """Begin a step: read its dense gradients, which masking destroys; say what becomes of the topology.

        ``may_overflow``: averages of gradients leave out those that are not finite. ``gradients_are_finite``: see
        ``step``.
        """
        self.weights.mask_again()
        update = self.topology_update if self.update_due() else None
        self.steps += 1
        # The optimizer's own step would carry an overflow into the weights, so there is no need to look for one.
        self.average_gradients(may_overflow=may_overflow)
        overflowed = update is not None and not self._may_update(gradients_are_finite)
        if overflowed:
            self.postponed, update = True, None
        return Turn(update, overflowed, update.grow_scores(self.topology, self._view) if update else [])

    def average_gradients(self, *, may_overflow: bool = False) -> None:
        """Add dense gradients to their moving averages, if there are any: the device's part of ``read_gradients``."""
        if self.topology.momentum:
            self.topology.track_momentum(self.weights.gradients, may_overflow=may_overflow)

    def begin_step(self) -> None:
        """Begin a step without an update: the host's part of ``read_gradients``, before or after the backward pass."""
        self.weights.mask_again()
        self.steps += 1

    def _may_update(self, gradients_are_finite: bool) -> bool:
        """Return whether the gradients are finite; waits for the device unless that is known."""
        self.weights.check_trainable()
        known = gradients_are_finite and not self.weights.captured  # which nobody else has looked at
        return known or self.weights.all_finite(gradients=True)

    def mask_gradients(self) -> None:
        """Zero the gradients of inactive weights, in one fused pass over the layers that are not full."""
        self.weights.mask_gradients()

    def check_step(self, turn: Turn) -> None:
        """Raise RuntimeError if the optimizer step has moved inactive weights; looks at weights where it has to."""
        self.weights.check_masked()
        self.weights.stepped()
        if turn.overflowed and not self.weights.all_finite(weights=True):
            raise RuntimeError(
                f"gradients of step {self.steps} were not finite and have reached the weights: training has diverged, "
                "or the step went past a GradScaler. Let it take the step: sparsifier.step(step), where step() calls "
                "scaler.step(optimizer) and then scaler.update()"
            )
        # The first step shows whether the optimizer leaves inactive weights at zero, unless a GradScaler has left this
        # step out or training has diverged in it.
        if not self._proven and self.weights.all_finite(gradients=True, weights=True):
            self.verify()
            self._proven = True

    @torch.no_grad()
    def update(self, turn: Turn, *, is_last: bool = False) -> bool:
        """End a step: update the topology if it is time to; say whether it was. Inactive weights become zero.

        Where masks are learned, their active weights are counted instead; ``is_last``: in any case, at the last step of
        a phase.
        """
        if self.learned is not None:
            if is_last or self.steps % self._count_every == 0:
                self.count()
                return True
            return False
        if turn.update is not None:
            with self.weights.unpacked():
                self._update_topology(turn.update, turn.grow_scores)
        self._expect()
        return turn.update is not None

    def _update_topology(self, update: TopologyUpdate, grow_scores: Sequence[Tensor]) -> None:
        before = list(self.topology.masks)
        lost = update.prune(self.topology, self.weights.weights, self.steps)
        if self._moves:  # pruned weights that grow again in the same update start from zero (GraNet, Liu et al. 2021)
            self.weights.clear({i: self.topology.masks[i] for i in lost})
        kept = update.move(self.topology, self.steps, self._view, grow_scores)
        if update.plan.returning_weights == "reset":
            self.weights.clear(kept)
        self._recount(before)
        self.topology.check()
        self.updates += 1
        self.postponed = False
        self.weights.set_masks(
            self.topology.masks,
            self._active,
            values=self.topology.initial,
            are_born=self._goes_by_weights,
        )
        if self.verify_every is not None and self.updates % self.verify_every == 0:
            self.verify()

    @torch.no_grad()
    def count(self) -> None:
        """Take the masks as they are now, where they are learned: they have changed with every step."""
        if self.learned is None:
            return
        before = list(self.topology.masks)
        self.topology.replace_all(dict(enumerate(self.learned.active())))
        self._recount(before)
        self.topology.counts = self._active
        self.updates += 1

    def _recount(self, before: Sequence[Tensor]) -> None:
        """Recount every layer after its mask has changed; ``before``: the masks at the time of the last counts."""
        self.topology.refresh(before)
        if self._reliable is not None:
            self._reliable.changed(self.topology.masks, self.steps)

    def update_due(self) -> bool:
        """Say whether the next step updates the topology, if its gradients are finite."""
        update = self.topology_update
        return update is not None and (self.postponed or update.plan.due(self.steps + 1))

    def needs_dense_gradient(self) -> bool:
        """Say whether the next step needs the dense weight gradient (which training FLOPs count)."""
        update = self.topology_update
        return update is not None and update.reads_dense_gradient(due=self.update_due())

    def _expect(self) -> None:
        """Let the coming backward passes compute what the next step will read."""
        self.weights.expect(dense_gradient=self.needs_dense_gradient())

    def unpacked(self) -> AbstractContextManager[None]:
        """Return a context in which the model has plain dense weights, however they are held: to change them by hand.

        What is inactive has to stay zero; no step can be taken within.
        """
        return self.weights.unpacked()

    @property
    def _moves(self) -> bool:
        """Say whether weights are dropped and grown."""
        return self.topology_update is not None and self.topology_update.drop is not None

    # -- phases and networks -------------------------------------------------------------------------------------------

    def begin(self, update: TopologyUpdate | None) -> None:
        """Begin a phase of training, whose steps count from 0, with updates of its own or none."""
        _check_age(update, self.optimizer)
        if self.learned is not None:
            refuse(learning_problems(_REPARAMETRIZE, [] if update is None else ["the update"]))
        if self._reliable is not None:
            self._reliable.begin_phase(self.steps)
        self.topology_update = update
        self.steps = 0
        self.postponed = False
        self._expect()

    def pruned(self, scores: Sequence[Tensor], among: Sequence[Tensor], counts: int | Sequence[int]) -> list[Tensor]:
        """Return the masks of the highest scores within the masks ``among``, one tensor a layer; changes nothing.

        ``counts``: how many weights stay, of all layers together or of each. A structured pattern chooses by itself in
        each layer, as many as that has now, and then the present masks must lie in ``among``.
        """
        if self.topology.is_structured:
            return prune_like(self.topology.masks, scores, among, self.topology.patterns)
        return prune_to(counts, scores, among)

    @torch.no_grad()
    def set_masks(self, masks: Sequence[Tensor]) -> None:
        """Give every layer another mask; weights outside it, and their optimizer state, become zero.

        Raises RuntimeError, and changes nothing, if the pattern does not allow a mask, or masks are learned.
        """
        if self.learned is not None:
            raise RuntimeError(LEARNED)
        for layer, pattern, mask in zip(self.topology.layers, self.topology.patterns, masks, strict=True):
            if not (mask.all() or pattern.allows(mask)):
                raise RuntimeError(f"layer {layer.name}: its mask breaks the pattern")
        before = list(self.topology.masks)
        self.topology.replace_all(dict(enumerate(masks)))
        self._recount(before)
        if not self.topology.is_structured:
            self.topology.counts = self._active
        self.weights.set_masks(self.topology.masks, self._active, are_born=self._goes_by_weights)

    @torch.no_grad()
    def went_back(self, masks: Sequence[Tensor], births: Mapping[str, Tensor]) -> None:
        """Hold the weights as earlier masks did: model and optimizer were given the state that they had then.

        ``births``: what ``weights.births`` was. Call ``set_masks`` next: weights that it adds are new then.
        """
        with self.weights.unpacked():
            self.weights.set_masks(masks, count_true(masks))
            self.weights.begin_state()
            self.weights.load_births(births)

    def counts_at(self, density: float) -> dict[str, int]:
        """Return how many weights of each layer ``set_density`` would leave active; raises what it would."""
        if self.learned is None:
            raise RuntimeError(_NOT_LEARNED)
        return self.learned.counts_at(density)

    @torch.no_grad()
    def set_density(self, density: float) -> None:
        """Let another share of the weights be active, where masks are learned at a density; count them.

        RuntimeError where it is not so, ValueError if the first masks have not as many.
        """
        if self.learned is None:
            raise RuntimeError(_NOT_LEARNED)
        self.learned.set_density(density)
        self.count()

    def release(self) -> None:
        """Release the layers, so that another Sparsifier may hold them; do not step this one any more."""
        self.weights.release()

    # -- what it reports -----------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Active / maskable weights."""
        return self.topology.active / self.topology.size

    @property
    def exceptions(self) -> dict[str, str]:
        """Layers that the pattern cannot have: what they are instead, and why; those that it leaves full by choice."""
        topology = self.topology
        found = {
            report.layer: (report, pattern.exception(layer.shape))
            for report, pattern, layer in zip(topology.reports, topology.patterns, topology.layers, strict=True)
        }
        return {
            name: why
            for name, (report, why) in found.items()
            if why and (report.active < report.size or "dense" in why)
        }

    @torch.no_grad()
    def verify(self) -> None:
        """Raise RuntimeError, naming layers, unless inactive weights are zero: the real density is the reported one.

        One pass over the weights of the model as it computes now; waits for the device.
        """
        self.weights.check_zeros(self.topology.masks)

    @property
    def density_is_final(self) -> bool:
        """Say whether the density has reached the end of its schedule; always true without a schedule."""
        update = self.topology_update
        if update is None or update.density_curve is None:
            return True
        final = round(update.density_curve(update.plan.total_steps) * self.topology.size)
        return sum(self.topology.counts) <= final

    @property
    def rs(self) -> float:
        """In-time over-parameterisation rate (ITOP, Liu et al. 2021): ever active / maskable weights."""
        return self.topology.explored_count / self.topology.size

    @property
    def rs_reliable(self) -> float | None:
        """Weights that were active for ``reliable_steps`` steps in a row, at any time so far / maskable weights.

        None where they are not counted.
        """
        return None if self._reliable is None else sum(self._reliable.counts(self.steps)) / self.topology.size

    @property
    def drop_fraction(self) -> float:
        """The drop fraction at the current step; 0 for a static topology."""
        return self.topology_update.drop_fraction(self.steps) if self.topology_update else 0.0

    @property
    def layers(self) -> list[LayerReport]:
        """Counts of every layer after the last update, in model order.

        Where thresholds are trained, and where reliable weights are counted, those of now as well.
        """
        found = self.topology.reports
        if thresholds := self.thresholds:
            found = [replace(report, threshold=own) for report, own in zip(found, thresholds, strict=True)]
        if self._reliable is not None:
            counts = self._reliable.counts(self.steps)
            found = [replace(report, reliable=own) for report, own in zip(found, counts, strict=True)]
        return found

    @property
    def thresholds(self) -> list[float]:
        """The present threshold of each layer, where they are trained; waits for the device then."""
        return (self.learned.thresholds or []) if self.learned else []

    # -- state ---------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return counters, the state of the topology, and when weights were grown if their ages matter."""
        counters = {"steps": self.steps, "updates": self.updates, "postponed": self.postponed}
        topology = self.topology.state_dict()
        if self._reliable is not None:
            topology["reliable"] = self._reliable.state_dict()
        if isinstance(self.weights, Reparametrised):
            # Like the weights of the model's state the masks are those of now, not those of the last count.
            now = dict(zip(topology["masks"], self.weights.active(), strict=True))
            learned = self.weights.state_dict()
            return {**counters, **topology, "masks": now, "counted": topology["masks"], "learned": learned}
        births = self.weights.births
        chosen = self.weights.chosen if isinstance(self.weights, Packed) else {}
        return {
            **counters,
            **topology,
            **({"births": births} if births else {}),
            **({"compute": chosen} if chosen else {}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned; load the model and the optimizer first. ValueError if layers differ."""
        self.steps, self.updates = state["steps"], state["updates"]
        self.postponed = bool(state.get("postponed", False))
        if isinstance(self.weights, Reparametrised):
            self._load_topology({**state, "masks": state["counted"]})
            self.weights.load_state_dict(state["learned"])
            self.weights.begin_state()
            return
        self._load_topology(state)
        if isinstance(self.weights, Packed):
            self.weights.chosen = state.get("compute", {})
        with self.weights.unpacked():
            self.weights.set_masks(self.topology.masks, self._active)
            self.weights.begin_state()
            self.weights.load_births(state.get("births", {}) if self._goes_by_weights else {})
        self._expect()

    def _load_topology(self, state: Mapping[str, Any]) -> None:
        self.topology.load_state_dict(state)
        if self._reliable is not None:
            self._reliable.load_state_dict(state.get("reliable"), self.topology.masks)

    # -- the update ----------------------------------------------------------------------------------------------------

    def _view(self, i: int, purpose: str) -> LayerView:
        topology = self.topology
        average = topology.momentum[i] if topology.momentum else None
        seed = derive_seed(self.seed, purpose, self.updates, i)
        update = self.topology_update
        withheld = purpose == "grow" and update is not None and "dense_gradient" not in marks_of(update.grow)
        gradient = None if withheld else partial(self.weights.gradient, i)
        weight, count = self.weights.weight(i), topology.active_counts[i]
        return LayerView(weight, topology.masks[i], topology.explored[i], gradient, seed, average, withheld, count)

    @property
    def _goes_by_weights(self) -> bool:
        """Whether Adam goes by the age of each weight, where there is growth, or else of its tensor."""
        update = self.topology_update
        return update is None or update.plan.adam_age != "tensor"

    @property
    def _active(self) -> list[int]:
        """The active weights of each layer."""
        return [report.active for report in self.topology.reports]


def _check_age(update: TopologyUpdate | None, optimizer: Optimizer) -> None:
    """Raise ValueError if an update says by which age Adam corrects its moments, and has no use for it."""
    if update is not None:
        part = Part(type(optimizer).__name__, frozenset(["ages"] * counts_steps(optimizer)))
        refuse(age_problems(update.plan.adam_age, part, grows=update.grow is not None), "plan")


def _refuse_twice(given: Mapping[str, Any]) -> None:
    """Raise ValueError for what is given of an update, by argument, although all of it is given in one."""
    parameters = signature(topology_update).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()} | {"plan": None}
    for name, value in given.items():
        if value != defaults[name]:
            raise ValueError(f"{name} would be ignored: update says all about updates. Give one of the two")


def _warn_of(names: Sequence[str], sizes: Mapping[str, int], *, is_frozen: bool) -> None:
    """Warn of weights that stay dense although no option says so."""
    if names:
        told = ", ".join(f"{name} ({sizes[name]:,} weights)" for name in names)
        warnings.warn(
            f"{'frozen as they are' if is_frozen else 'trained dense'} and not counted in the density, since only "
            f"weights of convolutions, linear layers and attention can be sparse: {told}",
            stacklevel=3,
        )
