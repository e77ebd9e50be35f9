"""Sup-tickets' programs: GraNet's, with cycles at the end whose networks are superposed."""

from typing import Final

from dst.legacy import itop, names, training
from dst.legacy.plan import Call, Plan, one_of
from dst.legacy.ramp import Ramp, plan_method
from dst.legacy.tables import LegacyError

_CURVES: Final = {"cosine": "cosine", "constant": "constant", "linear": "linear"}
_CURVES_AS_RUN: Final = {"cosine": "cosine", "constant": "constant", "linear": "constant"}


def cifar(call: Call, plan: Plan) -> None:
    """Plan what main_suptickets.py trains."""
    values = call.values
    names.network(call, plan, values.model)
    data = names.data(plan, values.data, ("mnist", "cifar10", "cifar100"))
    plan.set(schedule="granet_cifar")
    itop.validation(call, plan, data)
    if values.model.startswith("wrn"):
        plan.values["model.dropout"] = 0.0
    training.optimizer(call, plan, nesterov=False)
    training.half_precision(call, plan)
    cycles = int(values.epochs * values.cycle_rate) // values.cycle * values.cycle
    pretraining = values.epochs - cycles
    training.halves(call, plan, pretraining)
    if values.nolrsche:
        training.constant(plan)
    is_cyclic = _phases(call, plan)
    if is_cyclic:
        plan.put("procedure", {"cycle_rate": values.cycle_rate, "cycle_epochs": values.cycle})
        _cycles(call, plan, values.update_bn)
    elif call.as_run:
        plan.values["schedule.epochs"] = pretraining
        plan.said.append(f"without --cyclic_train only {pretraining} of {values.epochs} epochs are trained")
    _multiplier(call, plan)
    curve = one_of(call, "decay_schedule", _CURVES_AS_RUN if call.as_run else _CURVES)
    whole = pretraining if is_cyclic or call.as_run else values.epochs
    plan_method(call, plan, Ramp(whole, curve=curve, stretch=values.multiplier if call.as_run else 1))
    _nothing_moves(plan)
    _as_run(call, plan, is_cyclic)
    if call.as_run and data != "mnist":
        told = "the test set is what is called validation" if data == "cifar100" else "the test set is never tested on"
        plan.missed.append(told)


def imagenet(call: Call, plan: Plan) -> None:
    """Plan what Sup-tickets' ImageNet/main.py trains."""
    values = call.values
    itop.on_imagenet(call, plan, "granet_imagenet")
    pretraining = values.pretrain_epoch
    times = values.multiplier if call.as_run else 1
    training.milestones(plan, [times * at for at in (values.first_m, values.second_m, values.third_m)], pretraining)
    is_cyclic = _phases(call, plan)
    plan.values["schedule.epochs"] = pretraining + (values.cyclic_epochs if is_cyclic else 0)
    if is_cyclic:
        plan.put("procedure", {"pretrain_epochs": pretraining, "cycle_epochs": values.cycle})
        _cycles(call, plan, values.bn_update)
    _multiplier(call, plan)
    distributions = {"ERK": "erk", "ER": "erk", "uniform": "uniform"}
    plan_method(call, plan, Ramp(pretraining, distributions, method=_meant(call, plan), empty=True))
    if values.sparse and values.density != values.final_density:
        plan.missed.append(f"the superposed network is pruned to another density, --density {values.density:g}")
    _nothing_moves(plan)
    _as_run(call, plan, is_cyclic)
    if call.as_run and is_cyclic:
        plan.missed.append("from the second cycle on the optimizer steps weights that are no longer the network's")


def _meant(call: Call, plan: Plan) -> str:
    """Return the method that the README's heading names: its commands for ImageNet are swapped."""
    values = call.values
    if values.method == "DST" and values.init_density > values.final_density and not call.as_run:
        plan.said.append(
            "--method DST with a ramp of densities is read as GraNet, as the README heads that command; as run, it is "
            f"RigL at density {values.init_density:g}"
        )
        return "GraNet"
    return ""


def _multiplier(call: Call, plan: Plan) -> None:
    if not call.as_run:
        plan.values["schedule.multiplier"] = call.values.multiplier
    elif call.values.multiplier != 1:
        plan.said.append("--multiplier does not change the number of epochs")


def _phases(call: Call, plan: Plan) -> bool:
    """Say whether there are cycles."""
    values = call.values
    if not (values.pre_train or values.cyclic_train):
        raise LegacyError("neither --pre_train nor --cyclic_train is given: the published code ends without training")
    if values.cyclic_train and not values.pre_train:
        raise LegacyError("--cyclic_train without --pre_train: the published code fails at its first superposition")
    if values.cyclic_train and not values.sparse:
        raise LegacyError("--cyclic_train without --sparse: the published code fails, there is nothing to superpose")
    return bool(values.cyclic_train)


def _cycles(call: Call, plan: Plan, anew: bool) -> None:
    """Plan the cycles."""
    values = call.values
    method = one_of(call, "superposing_method", {"CAA": "caa", "CIMA": "cima"})
    if method == "cima" and call.as_run:
        raise LegacyError("--superposing_method CIMA: the published code fails at the first superposition")
    plan.set(procedure="sup_tickets")
    rates = (values.lr_1, values.lr_2) if values.cyc_lr else (None, None)
    plan.put("procedure", {"lr": "triangular" if values.cyc_lr else "constant", "superpose": method})
    plan.put("procedure", {"lr_at_ticket": rates[0], "lr_mid_cycle": rates[1]})
    plan.put("procedure", {"re_explore": values.large_death_rate if values.re_explore else None})
    plan.put("procedure", {"freeze_updates": values.no_maskupdates})
    plan.put("procedure", {"batch_norm": "reestimate" if anew else "average"})
    if method == "cima":
        plan.values["procedure.cima_factor"] = values.CIMA_factor
    if call.has("large_death_rate") and not values.re_explore:
        plan.said.append("--large-death-rate has no effect without --re_explore")


def _nothing_moves(plan: Plan) -> None:
    """Freeze masks in the cycles of methods that do not move them."""
    moves = "sparsity.drop_fraction.name" in plan.values
    if "procedure.freeze_updates" in plan.values and not moves:
        plan.values["procedure.freeze_updates"] = True


def _as_run(call: Call, plan: Plan, is_cyclic: bool) -> None:
    """Say what the code does besides."""
    if not call.as_run or not is_cyclic:
        return
    plan.values.pop("sparsity.update.on_last_step", None)
    if call.values.re_explore:
        plan.missed.append("re-exploration goes by the gradient of the batch before the cycle")
    if plan.values.get("sparsity.drop_fraction.name") == "cosine":
        plan.missed.append("the drop fraction falls over all --epochs, here over those of pretraining")
