"""The programs of shuffled blocks (DSB, SSB)."""

from dataclasses import dataclass
from math import ceil, cos, pi
from typing import Final

from dst.legacy import names, training
from dst.legacy.plan import Call, Plan, one_of

_SAMPLES: Final = {"cifar10": 50_000, "cifar100": 50_000, "tiny_imagenet": 90_000, "imagenet": 1_281_167}
"""Training images, on which the published code counts its steps."""
_RESNETS: Final = ("resnet18", "resnet34", "resnet50_cifar")


@dataclass(frozen=True)
class _Script:
    """``milestones``: epochs at which the rate falls; ``stops``: where updates end, of --T_end."""

    schedule: str
    milestones: tuple[int, ...]
    stops: float


_CIFAR: Final = _Script("shuffled_cifar", (80, 120), 0.5)
_IMAGENET: Final = _Script("shuffled_imagenet", (36, 76, 96), 1.0)


def cifar(call: Call, plan: Plan) -> None:
    """Plan what main.py trains."""
    _plan(call, plan, _CIFAR)


def imagenet(call: Call, plan: Plan) -> None:
    """Plan what train_imagenet.py trains."""
    _plan(call, plan, _IMAGENET)
    if call.as_run:
        plan.missed.append("the program fails at its first step, where print_freq and a process group are missing")


def _plan(call: Call, plan: Plan, script: _Script) -> None:
    values = call.values
    network = names.network(call, plan, values.model)
    data = names.data(plan, values.data_set, tuple(_SAMPLES))
    plan.set(schedule=script.schedule)
    training.milestones(plan, script.milestones, values.epochs)
    plan.put("schedule.optimizer", {"nesterov": False})
    _data(plan, data)
    if network in _RESNETS:
        plan.values["model.stem_pool"] = True
    _masks(call, plan, script, ceil(_SAMPLES[data] / values.batch_size) * values.epochs)
    if call.as_run:
        plan.missed += [
            "random numbers have no seed, convolutions have biases, and the best test accuracy is reported",
            "most networks have 100 outputs whatever the data",
        ]


def _data(plan: Plan, data: str) -> None:
    plan.values["data.val_fraction"] = 0.1 if data == "tiny_imagenet" else 0
    if data == "tiny_imagenet":
        plan.put("data", {"mean": [0, 0, 0], "std": [1, 1, 1]})
    elif data != "imagenet":
        plan.values["data.augment.padding_mode"] = "zeros"


def _masks(call: Call, plan: Plan, script: _Script, steps: int) -> None:
    values = call.values
    updates = one_of(call, "static_update", {"n": "dsb", "no": "dsb", "y": "ssb", "yes": "ssb"})
    plan.set(sparsity=updates)
    plan.values["schedule.update_every"] = values.T
    plan.put("sparsity", {"density": round(1 - values.sparsity, 12), "pattern.block_size": values.block_size})
    if updates == "dsb":
        _updates(call, plan, script, steps)
    if values.block_size == 0:
        _without_blocks(call, plan)
    elif call.as_run:
        plan.put("sparsity.pattern", {"published": True, "min_units": 0})
        plan.missed.append("linear layers have no blocks")


def _updates(call: Call, plan: Plan, script: _Script, steps: int) -> None:
    """Plan the updates: they end in the middle of their cosine, here at its value there."""
    values = call.values
    end = min(steps, int(values.T_end * script.stops))
    floor = values.alpha / 2 * (1 + cos(pi * end / values.T_end))
    plan.put("sparsity.update", {"stop": training.share_up(end, steps)})
    plan.put("sparsity.drop_fraction", {"initial": values.alpha, "floor": round(floor, training.PLACES)})
    if values.static_update == "no" and call.as_run:
        plan.values["schedule.update_every"] = 1
        plan.values["sparsity.update.stop"] = 1.0
        plan.said.append("--static_update no: as run, masks are updated at every single step")


def _without_blocks(call: Call, plan: Plan) -> None:
    """Plan what has no blocks: RigL, as the README says."""
    if not call.as_run:
        plan.said.append("--block_size 0 is RigL, as the README says; as run, convolutions keep their first masks")
    else:
        plan.missed.append("--block_size 0: convolutions keep their first masks, only linear layers are updated")
