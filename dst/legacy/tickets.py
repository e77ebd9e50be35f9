"""The program of strong lottery tickets (ER-SLT)."""

from typing import Any, Final

from dst.legacy import names, training
from dst.legacy.plan import Call, Plan, one_of
from dst.legacy.tables import LegacyError

_INIT: Final[dict[str, tuple[str, bool]]] = {
    **{"kn-zero-bias": ("kaiming_normal", False), "kn-nonzero-bias": ("kaiming_normal", True)},
    **{"signed-const-zero-bias": ("signed_constant", False), "signed-const-with-bias": ("signed_constant", True)},
    **{"ortho-zero-bias": ("looks_linear", False), "ortho-nonzero-bias": ("looks_linear", True)},
}


def er_slt(call: Call, plan: Plan) -> None:
    """Plan what cifar_main.py trains."""
    values = call.values
    names.network(call, plan, values.model)
    names.data(plan, values.dataset, ("cifar10",))
    plan.set(schedule="itop_cifar", sparsity="edge_popup")
    plan.put("data", {"val_fraction": 0, "mean": [0.5] * 3, "std": [0.5] * 3})
    plan.put("data.augment", {"crop_padding": 0, "padding_mode": "reflect", "flip": False})
    plan.put("schedule", {"epochs": values.epochs * values.levels, "optimizer.nesterov": False})
    training.milestones(plan, range(30, values.epochs, 30), values.epochs)
    _init(call, plan)
    plan.put("sparsity", {"density": values.er_init_density, "reparametrize.density": values.sparsity})
    _levels(call, plan)
    if call.as_run:
        plan.missed += [
            "neither the ER mask nor the density is in force: most weights are multiplied by the size of their score",
            "the program cannot start, since two modules are missing",
        ]


def _init(call: Call, plan: Plan) -> None:
    values = call.values
    init, has_biases = one_of(call, "initBias", _INIT)
    chosen: dict[str, Any] = {"init": init}
    if has_biases:
        chosen["bias_scale"] = 1.0 if init == "signed_constant" else values.bfac
    if values.scale_fan:
        chosen["init_density"] = values.sparsity
    plan.put("model", chosen)


def _levels(call: Call, plan: Plan) -> None:
    values = call.values
    if values.anneal:
        plan.set(procedure="anneal")
        plan.put("procedure", {"start": values.sparsity_start, "levels": values.levels, "level_epochs": None})
        if values.anneal.lower() in ("false", "0", "no"):
            plan.said.append(f"--anneal {values.anneal}: any text turns annealing on, and so it is here")
    elif call.as_run:
        raise LegacyError("without --anneal the published code fails at its first row of results")
    else:
        plan.said.append("without --anneal there are no levels: all epochs are trained at the density")
