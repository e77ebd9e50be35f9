"""GraNet's programs, and that of ER-DST, which has grown from them."""

from typing import Final

from dst.legacy import itop, methods, names, training
from dst.legacy.plan import Call, Plan, one_of
from dst.legacy.ramp import Ramp, on_off, plan_method
from dst.legacy.tables import LegacyError


def cifar(call: Call, plan: Plan) -> None:
    """Plan what GraNet's CIFAR/main.py trains."""
    _on_cifar(call, plan, "granet_cifar")
    plan_method(call, plan, Ramp(call.values.epochs, curve=call.values.decay_schedule))


def imagenet(call: Call, plan: Plan) -> None:
    """Plan what GraNet's ImageNet/main.py trains."""
    values = call.values
    itop.on_imagenet(call, plan, "granet_imagenet")
    plan.values["schedule.multiplier"] = values.multiplier
    training.milestones(plan, (30, 60, 90), values.epochs)
    whole = values.epochs * (values.multiplier if call.as_run else 1)
    plan_method(call, plan, Ramp(whole, {"ERK": "erk", "ER": "erk", "uniform": "uniform"}, empty=True))


def _on_cifar(call: Call, plan: Plan, schedule: str, more: tuple[str, ...] = ()) -> None:
    values = call.values
    names.network(call, plan, values.model)
    data = names.data(plan, values.data, ("mnist", "cifar10", "cifar100", *more))
    plan.set(schedule=schedule)
    itop.validation(call, plan, data)
    training.halves(call, plan, values.epochs)
    training.optimizer(call, plan, nesterov=True)
    training.half_precision(call, plan)
    if values.nolr_scheduler:
        training.constant(plan)
        if call.as_run:
            plan.missed.append("--nolr_scheduler fails after the first epoch")
    if call.as_run:
        plan.missed.append("the test set chooses the weights that are reported; held-out images are never used")


_ER: Final = {
    **{"ERK": "erk", "uniform": "uniform", "ER_init": "uniform"},
    **{"ER_same_params_per_layer": "balanced", "ER_same_params": "balanced"},
    **{"pyramid_sparsity": "pyramidal", "pyramid": "pyramidal", "snip": "snip", "ER_synflow": "synflow"},
}
_ER_AS_RUN: Final = ("ERK", "ER_init", "ER_same_params_per_layer", "pyramid_sparsity")
_NEEDS_A_FILE: Final = ("ER_imp", "ER_init_global", "ER_flow_global", "ER_ortho_global")
_INIT: Final = {"default": "default", "normal": "kaiming_normal", "looks-linear": "looks_linear"}


def er_dst(call: Call, plan: Plan) -> None:
    """Plan what ER-DST's main.py trains."""
    values = call.values
    _on_cifar(call, plan, "er_dst_cifar", more=() if call.as_run else ("tiny_imagenet",))
    if values.sparse_init in _NEEDS_A_FILE and not (call.as_run and values.sparse_init == "ER_imp"):
        raise LegacyError(
            f"--sparse-init {values.sparse_init} takes layer densities from a file that is not published; here "
            "sparsity.distribution.name=from_run takes those of a run"
        )
    plan.values["model.init"] = one_of(call, "init_method", _INIT)
    if values.init_method != "default":
        plan.values["model.init_density"] = values.init_density
    plan_method(call, plan, Ramp(values.epochs, _ER, _ER_AS_RUN, curve=values.decay_schedule))
    if plan.values["sparsity"] != "dense":
        _first_and_last(call, plan)


def _first_and_last(call: Call, plan: Plan) -> None:
    """Plan repairs of the first masks, and whether they ever move."""
    flow = on_off(call, "flow_preservation") and (call.as_run or call.has("flow_preservation"))
    ortho = on_off(call, "ortho_repair") and (call.as_run or call.has("ortho_repair"))
    if plan.values.get("sparsity.distribution.name") == "dense":
        flow = ortho = False  # a dense network lacks no edge, and is no nearer to an isometry with a mask
    plan.put("sparsity.repair", {"flow": "add" if flow else "none", "orthogonal": ortho})
    if call.as_run and plan.values.get("sparsity.distribution.name") == "balanced":
        plan.values["sparsity.distribution.clip"] = True
    if call.as_run and flow:
        plan.missed.append("edges that the repair adds have a weight of zero, and most outgoing ones are not added")
    if not on_off(call, "is_prune"):
        _keep(call, plan)


def _keep(call: Call, plan: Plan) -> None:
    """Let masks stay as they are at first."""
    plan.said.append("--is-prune is not True: the first masks stay, whatever --method says")
    if plan.values.get("sparsity.distribution.name") == "dense":
        methods.dense(plan)
        return
    kept = ("sparsity.distribution.", "sparsity.init.", "sparsity.repair.", "sparsity.scope.")
    plan.values = {
        key: value for key, value in plan.values.items() if not key.startswith("sparsity") or key.startswith(kept)
    }
    plan.set(sparsity="static")
    plan.values["sparsity.density"] = call.values.init_density
