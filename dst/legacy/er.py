"""The program of static ER masks, iterative magnitude pruning and soft thresholds (STR's, in Gadhikar et al.)."""

from dataclasses import replace
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, Final

import yaml

from dst.legacy import names, training
from dst.legacy.arguments import Given
from dst.legacy.plan import Call, Plan, one_of
from dst.legacy.recognise import Recognised
from dst.legacy.tables import KINDS, LegacyError, Option, str_configs

_RATIOS: Final = {
    **{"uniform": "uniform", "ERK": "erk", "balanced": "balanced"},
    **{"pyramidal": "pyramidal", "pyramid": "pyramidal"},
}
_CRITERIA: Final = {"mag": "magnitude", "snip": "snip", "synflow": "synflow", "random-global": "random"}
_INIT: Final = {"kaiming_normal": "kaiming_normal", "signed_constant": "signed_constant", "standard": "default"}
_SEED: Final = 1
"""Of the README's other commands for this program, where one gives none."""
_FIRST, _KEEP, _LAST, _LEVELS = 0.3, 0.8, 0.01, 15
"""What run_imp.py has as constants."""


def run(call: Call, plan: Plan) -> None:
    """Plan what STR's main.py or run_imp.py trains."""
    values = call.values
    learns = (values.conv_type or "").startswith("STRConv")
    is_older = learns and not call.as_run
    _network(call, plan, values)
    names.data(plan, values.set, ("cifar10", "cifar100"))
    plan.set(schedule="er_cifar")
    plan.put("data", {"val_fraction": 0, "augment.padding_mode": "zeros"})
    if values.set == "cifar100":
        plan.put("data", {"mean": [0.507, 0.487, 0.441], "std": [0.267, 0.256, 0.276]})
    plan.put("schedule", {key: getattr(values, key) for key in ("batch_size", "epochs")})
    plan.put("schedule.optimizer", {"momentum": values.momentum, "weight_decay": values.weight_decay})
    _schedule(call, plan, values, is_older)
    _seed(call, plan, values)
    if learns:
        _thresholds(call, plan, values)
    elif values.conv_type == "DenseConv":
        plan.set(sparsity="dense")
        return
    else:
        plan.set(sparsity="random_pruning")
        _levels(call, plan, values)
    _mask(call, plan, values)
    if call.as_run:
        plan.missed.append("the rate falls epoch by epoch, and the best test accuracy is reported")


def completed(found: Recognised) -> Recognised:
    """Return a command line with what its config says, or what run_imp.py has as constants."""
    values, given = found.given.values, found.given.given
    if found.line.script == "run_imp.py":
        added = {**str_configs()["resnet18-cifar-str-1"], **_IMP}
    elif values["config"]:
        added = _config(values["config"])
        if unknown := sorted(set(added) - set(values)):
            raise LegacyError(f"--config {values['config']}: no options of this program: {', '.join(unknown)}")
        added = {one.name: _typed(one, added[one.name]) for one in found.program.options if one.name in added}
    else:
        raise LegacyError("--config is missing: the published program does not start without one")
    merged = {name: value for name, value in added.items() if name not in given}
    return replace(found, given=Given({**values, **merged}, given | set(merged)))


def _typed(option: Option, value: Any) -> Any:
    """Return a value of a config as its option has it."""
    try:
        if value is None or (option.kind == "flag" and isinstance(value, bool)):
            return value
        if option.kind == "floats":
            return [float(part) for part in value]
        if option.kind != "flag":
            return KINDS[option.kind](str(value))
    except (TypeError, ValueError):
        pass
    raise LegacyError(f"--config: {option.name}: {value} is no value of kind {option.kind}")


_IMP: Final[dict[str, Any]] = {
    **{"seed": 1, "resnet_type": "large", "pruner": "mag", "reset_weights": True, "warmup_epochs": 0, "lr": 0.1},
    **{"er_sparse_method": "balanced", "er_sparse_init": _FIRST, "final_prune_epoch": 150},
    "threshold_list": [_FIRST * _KEEP**level for level in range(1, _LEVELS + 1)],
}


def _config(name: str) -> dict[str, Any]:
    """Return the options in a config: of the file, or of the published one of that name."""
    path = Path(name)
    if path.is_file():
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise LegacyError(f"--config {name}: this is no YAML: {' '.join(str(error).split())}") from error
        if not isinstance(found, dict):
            raise LegacyError(f"--config {name}: this holds no options, such as epochs: 160")
        return {str(key).replace("-", "_"): value for key, value in found.items()}
    known = str_configs()
    if PurePosixPath(name).stem not in known:
        raise LegacyError(f"--config {name}: no such file, and no published config: {', '.join(known)}")
    return dict(known[PurePosixPath(name).stem])


def _network(call: Call, plan: Plan, values: SimpleNamespace) -> None:
    kind = values.resnet_type
    if not call.has("resnet_type"):
        told = "--resnet-type is not given: as run, the network is a ResNet-18 of 64 channels in all stages; here it is"
        (plan.missed if call.as_run else plan.said).append(f"{told} ResNet-18")
        kind = "large"
    networks = {"large": "resnet18", "res50": "resnet50_cifar"}
    if kind not in networks:
        raise LegacyError(f"--resnet-type {kind}: allowed: {', '.join(networks)}; narrower networks are not here")
    plan.set(model=networks[kind])
    plan.values["model.init"] = one_of(call, "init", _INIT)


def _schedule(call: Call, plan: Plan, values: SimpleNamespace, is_older: bool) -> None:
    if values.optimizer == "adam":
        training.optimizer(call, plan, nesterov=False)
        plan.values["schedule.optimizer.weight_decay"] = 0
    elif values.optimizer == "sgd":
        plan.values["schedule.optimizer.nesterov"] = values.nesterov
    else:
        raise LegacyError(f"--optimizer {values.optimizer}: allowed: sgd, adam")
    plan.values["schedule.optimizer.decay"] = "not_norms" if values.no_bn_decay else "all"
    plan.put("schedule.lr", {"name": "cosine", "peak": values.lr, "floor": values.lr_min})
    warmup = values.warmup_epochs
    if is_older:
        warmup = values.warmup_length or 0
        plan.put("schedule", {"label_smoothing": values.label_smoothing or 0, "lr.floor": 0})
        plan.said.append("thresholds: warmup_length and label_smoothing are read as in the branch of that file")
    elif warmup:
        plan.values["schedule.epochs"] = values.epochs + warmup
        plan.said.append(f"--warmup-epochs {warmup} come before the {values.epochs} epochs")
    plan.values["schedule.lr.warmup_epochs"] = warmup


def _seed(call: Call, plan: Plan, values: SimpleNamespace) -> None:
    if values.seed is None:
        plan.said.append(f"--seed is not given: {_SEED}, as in the README's other commands; as run, there is none")
    plan.values["seed"] = _SEED if values.seed is None else values.seed


def _mask(call: Call, plan: Plan, values: SimpleNamespace) -> None:
    """Plan the ER mask."""
    method, density = values.er_sparse_method, values.er_sparse_init
    if values.conv_type == "STRConv" or density == 1:
        plan.put("sparsity", {"density": None, "distribution.name": "dense"})
        return
    init = "bernoulli" if call.as_run else "random"
    distribution = one_of(call, "er_sparse_method", _RATIOS)
    plan.put("sparsity", {"density": density, "distribution.name": distribution, "init.name": init})
    if call.as_run and method in ("balanced", "ERK"):
        plan.values["sparsity.distribution.clip"] = True


def _thresholds(call: Call, plan: Plan, values: SimpleNamespace) -> None:
    """Plan trained thresholds."""
    plan.set(sparsity="str")
    decay = values.weight_decay if values.st_decay is None else values.st_decay
    start = float(values.sInit_value)
    plan.put("sparsity.reparametrize", {"threshold_init": start, "threshold_decay": decay})
    if start > 0:
        plan.said.append(f"thresholds start at the sigmoid of {start:g}: all weights are pruned from the first step on")


def _levels(call: Call, plan: Plan, values: SimpleNamespace) -> None:
    """Plan levels of pruning."""
    levels = values.threshold_list
    if not levels or not values.pruner:
        if levels:
            epochs = len(levels) * values.final_prune_epoch
            plan.missed.append(f"{epochs} epochs are trained before the last phase, and nothing is pruned after them")
        return
    plan.set(procedure="imp")
    keep = levels[-1] / levels[-2] if len(levels) > 1 else levels[0] / values.er_sparse_init
    last = levels[-1]
    if call.found.line.script == "run_imp.py" and not call.as_run:
        last = _LAST
    plan.put("procedure", {"density": round(last, 6), "keep": round(keep, 6), "level_epochs": values.final_prune_epoch})
    rewind = "init" if values.reset_weights else "none"
    plan.put("procedure", {"criterion": one_of(call, "pruner", _CRITERIA), "rewind": rewind})
    if call.as_run:
        plan.missed.append("levels above the density that the mask really has prune nothing")
