"""What the recipes of several programs share: first masks, and how they move."""

from typing import Any, Final

from dst.legacy.plan import Call, Plan, one_of
from dst.legacy.tables import LegacyError

_GROWTH: Final = {
    **{"random": "random", "gradient": "gradient", "momentum": "momentum"},
    **{"random_unfired": "random_unexplored", "momentum_neuron": "momentum_neuron"},
}
_REDISTRIBUTION: Final = {
    **{"none": "none", "momentum": "momentum", "magnitude": "magnitude"},
    **{"nonzero": "nonzeros", "nonzeros": "nonzeros"},
}
FLOOR: Final = 0.005
"""Where the cosine of the drop fraction ends in all of these codes."""


def drop_fraction(plan: Plan, curve: str, initial: float) -> None:
    """Let so much move, along a curve."""
    falls = curve != "constant"
    plan.put("sparsity.drop_fraction", {"name": curve, "initial": initial})
    plan.put("sparsity.drop_fraction", {"floor": FLOOR if falls else None, "horizon": "end" if falls else None})


def grow(call: Call, plan: Plan) -> None:
    """Choose who enters."""
    plan.values["sparsity.grow.name"] = one_of(call, "growth", _GROWTH)


def redistribute(call: Call, plan: Plan) -> None:
    """Choose which layers get what was dropped."""
    plan.values["sparsity.redistribute.name"] = one_of(call, "redistribution", _REDISTRIBUTION)


def drop(call: Call, plan: Plan, name: str, allowed: dict[str, Any]) -> None:
    """Choose who leaves."""
    chosen = one_of(call, name, allowed)
    plan.values["sparsity.drop.name"] = chosen
    if chosen == "threshold":
        if call.as_run:
            raise LegacyError(f"{call.option(name).option} threshold: the published code fails at the first update")
        plan.values["sparsity.drop.value"] = 0.001
        plan.put("sparsity.drop_fraction", dict.fromkeys(("initial", "floor", "horizon")) | {"name": "none"})
        plan.said.append("threshold: 0.001, a default that the published code never uses; sparsity.drop.value sets it")
    if chosen == "set" and call.as_run:
        plan.missed.append("SET drops all but the most negative weights, about a half, whatever the drop fraction")


def first_masks(call: Call, plan: Plan, density: float | None, distribution: str) -> None:
    """Draw first masks of a density; the published codes draw each weight by itself."""
    plan.put("sparsity", {"density": density, "distribution.name": distribution, "init.name": "random"})
    if call.as_run:
        plan.values["sparsity.init.name"] = "bernoulli"


def dense(plan: Plan) -> None:
    """Train all weights."""
    plan.values = {key: value for key, value in plan.values.items() if not key.startswith("sparsity")}
    plan.set(sparsity="dense")


def moves_to_the_end(call: Call, plan: Plan) -> None:
    """Let updates go on to the end: after the last step, too, in the published codes."""
    if call.as_run:
        plan.values["sparsity.update.on_last_step"] = True
