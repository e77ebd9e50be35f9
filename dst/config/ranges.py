"""What values a key may have by itself: intervals of numbers and sets of names."""

import math
from dataclasses import dataclass
from typing import Any

from dst import registry


def shown(value: Any) -> str:
    """Return a value as it is written in an override."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class Range:
    """An interval; ``low`` and ``high`` themselves are allowed unless ``open_low`` or ``open_high``."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        left, right = "(["[not self.open_low], ")]"[not self.open_high]
        return (
            f"a finite number in {left}{self.low}, {self.high}{right}"
            if self.high < math.inf
            else (f"a finite number {'>' if self.open_low else '>='} {self.low}")
        )


_POSITIVE = Range(0, open_low=True)
_NON_NEGATIVE = Range(0)
_AT_LEAST_ONE = Range(1)
_FRACTION = Range(0, 1)
_PROPER_FRACTION = Range(0, 1, open_high=True)

RANGES: dict[str, Range] = {
    "seed": _NON_NEGATIVE,
    "data.val_fraction": Range(0, 1, open_low=True, open_high=True),
    "data.split_seed": _NON_NEGATIVE,
    "data.size": Range(1, 4096),
    "data.center_crop": Range(0, 1, open_low=True),
    "data.augment.crop_padding": Range(0, 1024),
    "sparsity.density": Range(0, 1, open_low=True, open_high=True),
    "sparsity.distribution.classifier": Range(0, 1, open_low=True),
    "sparsity.distribution.batches": _AT_LEAST_ONE,
    "sparsity.distribution.rounds": _AT_LEAST_ONE,
    "sparsity.distribution.temperature": _POSITIVE,
    "sparsity.init.batches": _AT_LEAST_ONE,
    "sparsity.init.rounds": _AT_LEAST_ONE,
    "sparsity.init.temperature": _POSITIVE,
    "sparsity.init.rate": Range(0, 1, open_low=True, open_high=True),
    "sparsity.pattern.n": _AT_LEAST_ONE,
    "sparsity.pattern.m": Range(2),
    "sparsity.pattern.ablation": _PROPER_FRACTION,
    "sparsity.drop.value": _POSITIVE,
    "sparsity.drop.quantile": Range(0, 1, open_low=True, open_high=True),
    "sparsity.drop_fraction.initial": Range(0, 1, open_low=True),
    "sparsity.drop_fraction.floor": _PROPER_FRACTION,
    "sparsity.density_schedule.initial": Range(0, 1, open_low=True),
    "sparsity.density_schedule.start": _PROPER_FRACTION,
    "sparsity.density_schedule.end": _FRACTION,
    "sparsity.update.every": _AT_LEAST_ONE,
    "sparsity.update.start": _FRACTION,
    "sparsity.update.stop": _FRACTION,
    "schedule.epochs": _AT_LEAST_ONE,
    "schedule.batch_size": _AT_LEAST_ONE,
    "schedule.accumulate": _AT_LEAST_ONE,
    "schedule.multiplier": _AT_LEAST_ONE,
    "schedule.update_every": _AT_LEAST_ONE,
    "schedule.eval_every_epochs": _AT_LEAST_ONE,
    "schedule.label_smoothing": _PROPER_FRACTION,
    "schedule.optimizer.momentum": _PROPER_FRACTION,
    "schedule.optimizer.beta1": _PROPER_FRACTION,
    "schedule.optimizer.beta2": _PROPER_FRACTION,
    "schedule.optimizer.weight_decay": _NON_NEGATIVE,
    "schedule.lr.peak": _POSITIVE,
    "schedule.lr.floor": _NON_NEGATIVE,
    "schedule.lr.warmup_epochs": _NON_NEGATIVE,
    "schedule.lr.gamma": Range(0, 1, open_low=True),
    "hardware.threads": Range(1, 1024),
    "hardware.workers": _NON_NEGATIVE,
    "hardware.processes": Range(1, 1024),
    "hardware.slurm.timeout_min": _AT_LEAST_ONE,
    "hardware.slurm.signal_delay_s": _AT_LEAST_ONE,
    "hardware.slurm.max_requeues": _NON_NEGATIVE,
    "hardware.slurm.nodes": _AT_LEAST_ONE,
    "hardware.slurm.gpus": _NON_NEGATIVE,
    "hardware.slurm.cpus": _AT_LEAST_ONE,
    "hardware.slurm.memory_gb": _POSITIVE,
    "checkpoint.every_min": _POSITIVE,
    "checkpoint.every_steps": _AT_LEAST_ONE,
    "checkpoint.keep": _AT_LEAST_ONE,
    "tracking.every_steps": _AT_LEAST_ONE,
    "tracking.timeout_s": _POSITIVE,
}

CHOICES: dict[str, tuple[str, ...]] = {
    "data.augment.padding_mode": ("reflect", "zeros"),
    "data.storage": ("auto", "resident", "stream"),
    "sparsity.drop_fraction.horizon": ("end", "stop"),
    "sparsity.drop.pool": ("layer", "global"),
    "sparsity.density_schedule.pool": ("layer", "global"),
    "sparsity.pattern.indivisible": ("error", "dense"),
    "sparsity.init.criterion": tuple(registry.members("criterion")),
    "sparsity.update.order": ("after_step", "replaces_step"),
    "sparsity.update.grown_weights": ("zero", "initial"),
    "sparsity.update.returning_weights": ("keep", "reset"),
    "schedule.select": ("last", "best_val"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.determinism": ("strict", "fast"),
    "hardware.precision": ("fp32", "tf32", "bf16", "fp16"),
    "schedule.optimizer.decay": ("all", "not_norms", "weights"),
    "output.resume": ("auto", "never"),
    "tracking.mode": ("none", "offline", "online"),
    "tracking.progress": ("auto", "bar", "plain", "none"),
}
