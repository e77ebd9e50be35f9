"""What the recipes of several programs share: rates, optimizers, processes."""

from collections.abc import Sequence
from math import ceil
from typing import Final

from dst.legacy.plan import Call, Plan
from dst.legacy.tables import LegacyError

PLACES: Final = 4
"""Decimals to which an epoch becomes a fraction of training."""


def share(part: float, whole: float) -> float:
    """Return which fraction of training an epoch or step is."""
    return round(part / whole, PLACES)


def share_up(part: int, whole: int) -> float:
    """Return the least fraction of training that holds a step."""
    return min(1.0, ceil(part * 10**PLACES / whole) / 10**PLACES)


def milestones(plan: Plan, epochs: Sequence[float], whole: float) -> None:
    """Let the rate fall at epochs; those that are never reached are left out."""
    inside = [share(epoch, whole) for epoch in epochs if 0 < share(epoch, whole) < 1]
    if inside:
        plan.put("schedule.lr", {"name": "multistep", "milestones": inside})
    else:
        constant(plan)


def constant(plan: Plan) -> None:
    """Keep the rate."""
    plan.put("schedule.lr", {"name": "constant", "milestones": None, "gamma": None})


def halves(call: Call, plan: Plan, epochs: int) -> None:
    """Let the rate fall at a half and at three quarters; the published codes round down to whole epochs."""
    exact = (epochs // 2, epochs * 3 // 4) if call.as_run else (epochs / 2, epochs * 3 / 4)
    milestones(plan, exact, epochs)


def optimizer(call: Call, plan: Plan, *, nesterov: bool) -> None:
    """Choose SGD, or what is next to Adam."""
    name = call.values.optimizer
    if name == "sgd":
        plan.put("schedule.optimizer", {"name": "sgd", "nesterov": nesterov})
    elif name == "adam":
        plan.put("schedule.optimizer", {"name": "adamw", "momentum": None, "nesterov": None})
        plan.said.append("--optimizer adam is AdamW here, whose weight decay does not go through the moments")
    else:
        raise LegacyError(f"--optimizer {name}: allowed: sgd, adam")


def half_precision(call: Call, plan: Plan) -> None:
    """Train in half precision where that is asked for; masters are kept in full."""
    if call.values.fp16:
        plan.values.setdefault("hardware", "gpu")
        plan.values["hardware.precision"] = "fp16"


def processes(call: Call, plan: Plan) -> None:
    """Train in as many processes as the command starts."""
    if call.processes > 1:
        plan.set(hardware="ddp")
        plan.values["hardware.processes"] = call.processes
        if call.as_run:
            plan.missed.append("each process draws and moves masks of its own; here all have the same")
