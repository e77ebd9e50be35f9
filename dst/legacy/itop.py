"""ITOP, and AGENT's program that has ITOP's options to the letter."""

from typing import Final

from dst.legacy import methods, names, training
from dst.legacy.plan import Call, Plan
from dst.legacy.tables import LegacyError

_DROP: Final = {"magnitude": "magnitude", "SET": "set", "Taylor_FO": "taylor", "threshold": "threshold"}


def cifar(call: Call, plan: Plan) -> None:
    """Plan what ITOP's and AGENT's main.py train."""
    values = call.values
    names.network(call, plan, values.model)
    data = names.data(plan, values.data, ("mnist", "cifar10", "cifar100"))
    plan.set(schedule="itop_cifar")
    validation(call, plan, data)
    training.halves(call, plan, values.epochs)
    training.optimizer(call, plan, nesterov=True)
    training.half_precision(call, plan)
    if call.paper == "agent":
        plan.set(correction="agent")
    if call.as_run:
        _as_run(call, plan)
    _method(call, plan)


def validation(call: Call, plan: Plan, data: str) -> None:
    """Hold out what the published code does: nothing of CIFAR-100."""
    held = 0 if data == "cifar100" else call.values.valid_split
    plan.values["data.val_fraction"] = held
    if held == 0 and data == "cifar100" and call.has("valid_split"):
        plan.said.append("--valid_split has no effect on CIFAR-100: all images are trained on")


def _as_run(call: Call, plan: Plan) -> None:
    """Add what the code does besides."""
    if plan.values["data.val_fraction"]:
        plan.values["schedule.select"] = "best_val"
        plan.missed.append("validation images are augmented like those of training")
    else:
        plan.missed.append("the test set chooses the weights that are tested")
    if call.paper == "agent":
        plan.missed += [
            "each pass of an epoch shuffles and augments anew, and the sum of gradients holds the last batch before it",
            "the program fails at the end of its first epoch, where a folder is missing",
        ]
    elif not call.values.sparse:
        plan.missed.append("a dense run fails at its very end, where it prints Rs")
    if call.values.model.startswith("wrn"):
        plan.missed.append("wide ResNets fail: a second class has taken the name of their blocks")


def _method(call: Call, plan: Plan) -> None:
    values = call.values
    if not values.sparse or values.sparse_init == "GMP":
        if values.sparse:
            plan.said.append("--sparse_init GMP: all masks are ones, so this is dense training")
        methods.dense(plan)
        return
    distributions = {"ERK": "erk", "uniform": "uniform", "lottery_ticket": "magnitude"}
    if values.sparse_init not in distributions:
        raise LegacyError(
            f"--sparse_init {values.sparse_init}: allowed: {', '.join(distributions)}, GMP; with another word the "
            "published code silently trains an empty network"
        )
    if values.fix or _never_explores(call, plan):
        plan.set(sparsity="static")
    else:
        plan.set(sparsity="set_itop" if values.growth == "random" else "rigl_itop")
        methods.drop_fraction(plan, values.decay_schedule, values.death_rate)
        methods.drop(call, plan, "death", _DROP)
        methods.grow(call, plan)
        methods.redistribute(call, plan)
        methods.moves_to_the_end(call, plan)
    methods.first_masks(call, plan, values.density, distributions[values.sparse_init])
    if values.sparse_init == "lottery_ticket":
        plan.values["sparsity.init.name"] = "magnitude"


def _never_explores(call: Call, plan: Plan) -> bool:
    """Say whether growth has no effect as it is run."""
    growth = call.values.growth
    if not call.as_run:
        return False
    if growth == "momentum" and call.values.optimizer == "sgd":
        plan.said.append(
            "--growth momentum: the momentum of weights that are off is zero, so that each update grows what it has "
            "dropped; the masks stay as they are"
        )
        return True
    if growth == "momentum_neuron":
        raise LegacyError("--growth momentum_neuron: as run, nothing grows, and the network loses all its weights")
    return False


_DROP_IMAGENET: Final = {"magnitude": "magnitude", "SET": "set", "global_magnitude": "magnitude"}


def imagenet(call: Call, plan: Plan) -> None:
    """Plan what ITOP's ImageNet/main.py trains."""
    values = call.values
    on_imagenet(call, plan, "itop_imagenet")
    training.milestones(plan, (30, 60, 90), values.epochs)
    if values.dense:
        methods.dense(plan)
        return
    if values.sparse_init not in ("ER", "ERK", "uniform"):
        raise LegacyError(f"--sparse_init {values.sparse_init}: allowed: ER, uniform")
    if values.sparse_init == "ERK" and call.as_run:
        raise LegacyError("--sparse_init ERK: as run, the network is empty; this program calls it ER")
    if values.fix:
        plan.set(sparsity="static")
    else:
        plan.set(sparsity="set_itop" if values.growth == "random" else "rigl_itop")
        methods.drop_fraction(plan, "cosine", values.prune_rate)
        methods.drop(call, plan, "prune", _DROP_IMAGENET)
        if values.prune == "global_magnitude":
            plan.values["sparsity.drop.pool"] = "global"
        if values.growth == "global_momentum_growth":
            raise LegacyError("--growth global_momentum_growth: there is no equivalent; momentum is the nearest")
        methods.grow(call, plan)
        methods.redistribute(call, plan)
        methods.moves_to_the_end(call, plan)
    distribution = "uniform" if values.sparse_init == "uniform" else "erk"
    methods.first_masks(call, plan, values.density, distribution)
    if call.as_run and distribution == "erk":
        plan.values["sparsity.distribution.clip"] = True
        plan.missed.append("weights that grow have the momentum that they had while they were off")


def on_imagenet(call: Call, plan: Plan, schedule: str) -> None:
    """Plan what all programs for ImageNet share."""
    values = call.values
    names.network(call, plan, values.arch, imagenet=True)
    plan.set(data="imagenet", schedule=schedule)
    plan.values["data.val_fraction"] = 0
    if values.model_config not in ("classic", "fanin"):
        raise LegacyError(f"--model-config {values.model_config}: allowed: classic, fanin")
    plan.values["model.init"] = "fan_in" if values.model_config == "fanin" else "default"
    plan.values["schedule.batch_size"] = values.batch_size * call.processes
    decay = "all" if values.bn_weight_decay else "not_norms"
    plan.put("schedule.optimizer", {"nesterov": False, "decay": decay})
    training.half_precision(call, plan)
    training.processes(call, plan)
    if call.as_run:
        plan.missed.append("the accuracy is the best on the validation set over all epochs")
        if not values.bn_weight_decay:
            plan.missed.append("the norms of the shortcuts are decayed, since bn is not in their names")
