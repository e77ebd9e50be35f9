"""The methods of GraNet's code, which Sup-tickets and ER-DST have taken over: ramps down, and regrowth."""

from dataclasses import dataclass, field
from typing import Any, Final

from dst.legacy import methods, training
from dst.legacy.plan import Call, Plan, one_of
from dst.legacy.tables import LegacyError

_GROUPS: Final = {
    **{"GraNet": "granet", "GraNet_uniform": "granet_uniform", "DST": "dst"},
    **{"GMP": "gmp", "GMP_uniform": "gmp_uniform"},
}
_DROP: Final = {"magnitude": "magnitude", "SET": "set", "threshold": "threshold"}
_PRUNING: Final = ("uniform", "global", "structured", "and_grow_uniform", "and_grow_global", "and_grow_structured")
PRUNED: Final = tuple(f"prune_{kind}" for kind in _PRUNING)
"""First masks that remove some of the first weights."""


@dataclass(frozen=True)
class Ramp:
    """What differs between the programs.

    ``epochs``: those of which the ramp's are fractions. ``distributions``: the first masks they have, by name, as
    ``densities`` in ours. ``as_run``: those that the code really has; with all others masks are dense, or ``empty``.
    ``method``, ``initial``: instead of those given, where others are meant. ``curve``: of the drop fraction.
    """

    epochs: float
    distributions: dict[str, str] = field(default_factory=lambda: {"ERK": "erk", "uniform": "uniform"})
    as_run: tuple[str, ...] = ("ERK", "uniform")
    method: str = ""
    curve: str = "cosine"
    stretch: int = 1
    empty: bool = False


def plan_method(call: Call, plan: Plan, ramp: Ramp) -> None:
    """Plan the masks of a command line, and how they move."""
    values = call.values
    if not values.sparse:
        methods.dense(plan)
        return
    method, initial = _method(call, plan, ramp), _initial(call, plan)
    distribution = _distribution(call, plan, ramp)
    if values.rm_first:
        plan.values["sparsity.scope.dense_first"] = True
    if values.sparse_init in PRUNED and distribution == "none":
        _pruned(call, plan, ramp, method)
        return
    if method == "DST" or values.fix:
        density = values.final_density if values.init_density == 0 else initial
        if distribution == "dense":
            methods.dense(plan)
            return
        _regrow(call, plan, ramp, "static" if values.fix else "dst")
        methods.first_masks(call, plan, density, distribution)
        return
    _regrow(call, plan, ramp, _GROUPS[method])
    _down(call, plan, ramp, initial=initial, distribution=distribution)


def _method(call: Call, plan: Plan, ramp: Ramp) -> str:
    """Return the method that is meant."""
    values, method = call.values, ramp.method or call.values.method
    if method not in _GROUPS:
        raise LegacyError(
            f"--method {method}: allowed: {', '.join(_GROUPS)}; with another word the published code silently keeps "
            "the first masks, as --fix does"
        )
    if method.startswith("GraNet") and values.init_density == values.final_density:
        plan.said.append(f"--method {method} from {values.init_density:g} to the same density has no ramp: it is DST")
        if call.as_run:
            plan.missed.append("the ramp that stays prunes at its updates, which can make all weights active")
        return "DST"
    return method


def _initial(call: Call, plan: Plan) -> float:
    """Return the density at the beginning: READMEs say 0 where they mean a sparsity of 0."""
    initial: float = call.values.init_density
    if initial > 0:
        return initial
    if call.as_run:
        raise LegacyError("--init-density 0: as run, the network is empty and nothing trains; 1 is a dense beginning")
    if call.values.method != "DST":
        plan.said.append("--init-density 0 is read as a sparsity of 0 at first; as run, the network is empty")
    return 1.0


def _distribution(call: Call, plan: Plan, ramp: Ramp) -> str:
    """Return how first masks are distributed; ``dense`` and ``none`` as for the key."""
    name, is_default = call.values.sparse_init, not call.has("sparse_init")
    if call.as_run:
        return _as_run(call, plan, ramp)
    if name in PRUNED:
        return "none"
    if is_default and name not in ramp.distributions:
        plan.said.append(f"--sparse-init is not given: read as ERK; as run, its default leaves {_all(ramp)}")
        return "erk"
    if name == "GMP" and call.values.method != "DST":
        return "dense"
    if name not in ramp.distributions:
        raise LegacyError(f"--sparse-init {name}: allowed: {', '.join((*ramp.distributions, *PRUNED))}")
    return ramp.distributions[name]


def _all(ramp: Ramp) -> str:
    return "the network empty" if ramp.empty else "all masks dense"


def _as_run(call: Call, plan: Plan, ramp: Ramp) -> str:
    name = call.values.sparse_init
    if call.values.method == "GMP" or name in ramp.as_run:
        return ramp.distributions.get(name, "erk")
    if name.startswith("prune_and_grow") and "structured" not in name and not ramp.empty:
        raise LegacyError(f"--sparse-init {name}: as run, the program fails: nothing hands it the gradients")
    if name in ("prune_uniform", "prune_global") and not ramp.empty:
        return "none"
    if ramp.empty:
        raise LegacyError(f"--sparse-init {name}: as run, the network is empty; ERK and uniform are what there is")
    plan.said.append(f"--sparse-init {name}: the published code does not know it, and leaves all masks dense")
    return "dense"


def _pruned(call: Call, plan: Plan, ramp: Ramp, method: str) -> None:
    """Plan first masks that remove some of the first weights."""
    if method != "DST" and not call.values.fix:
        raise LegacyError(f"--sparse-init {call.values.sparse_init} goes with --method DST or --fix here")
    _regrow(call, plan, ramp, "static" if call.values.fix else "dst")
    plan.put("sparsity", {"density": None, "distribution.name": "none", "init.name": call.values.sparse_init})
    plan.values["sparsity.init.rate"] = getattr(call.values, "pruning_rate", 0.5)


def _regrow(call: Call, plan: Plan, ramp: Ramp, group: str) -> None:
    """Plan what is dropped and grown."""
    values = call.values
    plan.set(sparsity=group)
    if group == "static" or group.startswith("gmp"):
        return
    if group == "dst" and values.growth == "random":
        plan.set(sparsity="set_itop")
    rate = values.death_rate if call.has("death_rate") else values.prune_rate
    methods.drop_fraction(plan, ramp.curve, rate)
    methods.drop(call, plan, "death" if call.has("death") else "prune", _DROP)
    methods.grow(call, plan)
    methods.redistribute(call, plan)
    methods.moves_to_the_end(call, plan)


def _down(call: Call, plan: Plan, ramp: Ramp, *, initial: float, distribution: str) -> None:
    """Plan the ramp."""
    values = call.values
    start, end = (ramp.stretch * epoch for epoch in (values.init_prune_epoch, values.final_prune_epoch))
    if end <= start:
        raise LegacyError(
            f"--init-prune-epoch {start} --final-prune-epoch {end}: the ramp ends before it begins, and nothing is "
            "pruned, as by the defaults of the published code; give both"
        )
    if end > ramp.epochs:
        plan.said.append(f"--final-prune-epoch {end} is after the end of training: the ramp ends there")
    is_gmp = values.method.startswith("GMP")
    if is_gmp and (initial == 1 or call.as_run):
        distribution = "dense"
    if distribution == "dense" and initial != 1:
        plan.missed.append(
            f"masks are dense until the first update, which prunes to {initial:g}; here the ramp begins at 1"
        )
        initial = 1.0
    if distribution != "dense" and initial != 1:
        methods.first_masks(call, plan, None, distribution)
    plan.values |= {"sparsity.density": values.final_density, "sparsity.distribution.name": distribution}
    shares: dict[str, Any] = {"start": training.share(start, ramp.epochs)}
    shares["end"] = min(1.0, training.share(end, ramp.epochs))
    plan.put("sparsity.density_schedule", {"initial": initial, **shares})
    if call.as_run:
        plan.values["sparsity.density_schedule.ends_early"] = "uniform" not in values.method
        plan.values.pop("sparsity.update.on_last_step", None)
        if "uniform" in values.method:
            plan.missed.append("layers that are sparser than the ramp become dense, and the last one keeps a fifth")


def on_off(call: Call, name: str) -> bool:
    """Return what an option of the words True and False says."""
    return bool(one_of(call, name, {"True": True, "False": False}))
