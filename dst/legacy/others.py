"""What is started in other ways: A-BSR-Net, AGENT's make targets, and the notebook on tables."""

import re
from typing import Final

from dst.legacy import names, training
from dst.legacy.plan import Call, Plan
from dst.legacy.tables import LegacyError
from dst.legacy.words import Line


def a_bsr_net(call: Call, plan: Plan) -> None:
    """Plan what run_a_brs_net.py trains, as far as it is neither adversarial nor sparse."""
    values = call.values
    problems = []
    if values.objective != "natural":
        problems.append(
            f"--objective {values.objective}: adversarial training is not built here; --objective natural is without it"
        )
    if values.sparse_train:
        problems.append("--sparse_train: Bayesian rewiring is not built here; sparsity=set grows at random, too")
    if problems:
        raise LegacyError(*problems)
    names.network(call, plan, values.model)
    names.data(plan, values.data, ("cifar10", "cifar100"))
    plan.set(sparsity="dense", correction="agent", schedule="itop_cifar")
    training.milestones(plan, (values.n_epochs / 4, values.n_epochs / 2), values.n_epochs)
    plan.values["data.val_fraction"] = 0
    plan.missed.append("images are shifted by a tenth and not normalised, the rate falls to 0.1 and 0.005 of the first")
    if call.as_run:
        plan.missed.append("the correction does not adapt: its estimate is always 1 - 0.7^epoch")


_METHODS: Final = {"RigL": "rigl", "SET": "set", "SNFS": "snfs"}
_TARGET: Final = re.compile(r"cifar10\.(?:(?P<times>[23])x\.)?(?P<init>ERK|Random)\.(?P<method>\w+)")


def made(line: Line, *, as_run: bool) -> Plan:
    """Plan what a target of AGENT's A-RigL trains: ``make cifar10.ERK.RigL DENSITY=0.2 SEED=0``."""
    match = _TARGET.fullmatch(line.target or "")
    if not match or match["method"] not in _METHODS:
        allowed = ", ".join(f"cifar10.ERK.{name}" for name in _METHODS)
        raise LegacyError(f"make {line.target}: allowed: {allowed}; also Random for ERK, and 2x. or 3x. before it")
    unknown = sorted(set(line.settings) - {"DENSITY", "SEED", "USE_WANDB", "HYDRA_FLAGS", "PYTHON"})
    if unknown:
        raise LegacyError(f"{', '.join(unknown)}: the target takes DENSITY and SEED")
    plan = Plan()
    plan.set(model="wrn_22_2", data="cifar10", sparsity=_METHODS[match["method"]], schedule="rigl_cifar")
    plan.set(correction="agent")
    plan.put("sparsity", {"density": _number(line, "DENSITY", 0.2), "distribution.name": _distribution(match["init"])})
    plan.values["seed"] = int(_number(line, "SEED", 0))
    plan.values["schedule.multiplier"] = int(match["times"] or 1)
    if line.settings.get("USE_WANDB", "").lower() == "false":
        plan.set(tracking="none")
    if match["init"] == "ERK" and not match["times"]:
        _swapped(plan, as_run=as_run)
    if as_run:
        plan.missed.append("the first snapshot is a network of its own, drawn anew")
    return plan


def _swapped(plan: Plan, *, as_run: bool) -> None:
    """Plan the target whose README says one network and whose recipe another."""
    if not as_run:
        plan.said.append("read as WRN-22-2, as the README says; as run, the target trains a ResNet-50 of 100 outputs")
        return
    plan.set(model="resnet50_cifar")
    milestones = [_share(step) for step in range(20_000, _STEPS, 20_000)]
    plan.put("schedule.lr", {"peak": 0.01, "warmup_epochs": 5, "milestones": milestones})
    plan.values["schedule.optimizer.weight_decay"] = 1e-4
    plan.missed.append("the network has 100 outputs for the 10 classes")


_STEPS: Final = 250 * 352


def _share(step: int) -> float:
    return training.share(step, _STEPS)


def _distribution(init: str) -> str:
    return "erk" if init == "ERK" else "uniform"


def _number(line: Line, name: str, default: float) -> float:
    text = line.settings.get(name, str(default))
    try:
        return float(text)
    except ValueError:
        raise LegacyError(f"{name}={text}: this is no number") from None


def notebook(line: Line) -> Plan:
    """Plan what ``tabular.ipynb`` trains, which has no options."""
    if line.script != "tabular.ipynb" or line.words:
        raise LegacyError(f"{line.script}: the published notebook is tabular.ipynb, which takes no options")
    plan = Plan()
    plan.set(model="mlp", data="tabular", sparsity="random_pruning", procedure="imp", schedule="digits")
    plan.put("model", {"hidden": [256, 256, 256], "batch_norm": True})
    plan.put("sparsity", {"density": 0.5, "distribution.name": "uniform"})
    plan.put("procedure", {"density": 0.1, "keep": 0.6687, "level_epochs": 10, "rewind": "none"})
    plan.put("schedule.optimizer", {"name": "adamw", "weight_decay": 0.0, "momentum": None, "nesterov": None})
    plan.put("schedule", {"epochs": 20, "batch_size": 64, "lr.name": "constant", "lr.peak": 0.01})
    plan.values["data.val_fraction"] = 0
    plan.said.append("data.path=breast_cancer stands for the census data that the notebook downloads")
    plan.missed.append("levels at 0.4, 0.3, 0.2 and 0.1: here each keeps the same share, down to 0.1")
    return plan
