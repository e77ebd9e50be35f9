"""What is wrong with a config, all at once: names, ignored options, ranges, combinations.

Only what can be seen without data and without torch; ``dst.build.check`` sees the rest.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

from dst import registry
from dst.config import SLOTS, Augment, Config, DensitySchedule, Tracking, Update, get
from dst.registry import REQUIRED, UnknownNameError, suggest


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@dataclass(frozen=True)
class _Range:
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


_POSITIVE = _Range(0, open_low=True)
_NON_NEGATIVE = _Range(0)
_AT_LEAST_ONE = _Range(1)
_FRACTION = _Range(0, 1)
_PROPER_FRACTION = _Range(0, 1, open_high=True)

_RANGES: dict[str, _Range] = {
    "seed": _NON_NEGATIVE,
    "data.val_fraction": _Range(0, 1, open_low=True, open_high=True),
    "data.split_seed": _NON_NEGATIVE,
    "data.size": _Range(1, 4096),
    "data.center_crop": _Range(0, 1, open_low=True),
    "data.augment.crop_padding": _Range(0, 1024),
    "sparsity.density": _Range(0, 1, open_low=True, open_high=True),
    "sparsity.drop_fraction.initial": _Range(0, 1, open_low=True),
    "sparsity.drop_fraction.floor": _PROPER_FRACTION,
    "sparsity.density_schedule.initial": _Range(0, 1, open_low=True),
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
    "schedule.lr.gamma": _Range(0, 1, open_low=True),
    "hardware.threads": _Range(1, 1024),
    "hardware.workers": _NON_NEGATIVE,
    "checkpoint.every_min": _POSITIVE,
    "checkpoint.every_steps": _AT_LEAST_ONE,
    "checkpoint.keep": _AT_LEAST_ONE,
    "tracking.every_steps": _AT_LEAST_ONE,
    "tracking.timeout_s": _POSITIVE,
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.augment.padding_mode": ("reflect", "zeros"),
    "data.storage": ("auto", "resident", "stream"),
    "sparsity.drop_fraction.horizon": ("end", "stop"),
    "sparsity.drop.pool": ("layer", "global"),
    "sparsity.density_schedule.pool": ("layer", "global"),
    "sparsity.update.order": ("after_step", "replaces_step"),
    "schedule.select": ("last", "best_val"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.determinism": ("strict", "fast"),
    "hardware.precision": ("fp32", "tf32", "bf16", "fp16"),
    "schedule.optimizer.decay": ("all", "not_norms", "weights"),
    "output.resume": ("auto", "never"),
    "tracking.mode": ("none", "offline", "online"),
    "tracking.progress": ("auto", "bar", "plain", "none"),
}


def _check_slots(config: Config) -> Iterator[str]:
    for slot, kind in SLOTS.items():
        node = get(config, slot)
        try:
            taken = registry.find(kind, node.name).options
        except UnknownNameError as error:
            yield f"{slot}.name={node.name}: {error}"
            continue
        all_options = {name for member in registry.members(kind).values() for name in member.options}
        for name in sorted(all_options):
            value = getattr(node, name)
            if name not in taken and value is not None:
                yield (
                    f"{slot}.{name}={_shown(value)} would be ignored: {kind} '{node.name}' takes "
                    f"{', '.join(taken) or 'no options'}. Remove it, or set {slot}.{name}=null"
                )
            elif value is None and taken.get(name) is REQUIRED:
                yield f"{slot}.{name} is missing: {kind} '{node.name}' needs it, e.g. {slot}.{name}=..."


def _check_ranges(config: Config) -> Iterator[str]:
    for key, allowed in _RANGES.items():
        value = get(config, key)
        if value is not None and value not in allowed:
            yield f"{key}={_shown(value)}: must be {allowed}"
    for key, names in _CHOICES.items():
        value = get(config, key)
        if value is not None and value not in names:
            yield f"{key}={_shown(value)}: {suggest(value, names)}"


def _check_density(config: Config) -> Iterator[str]:
    sparsity, schedule = config.sparsity, config.sparsity.density_schedule
    if schedule.name == "none":
        if sparsity.distribution.name == "dense" and sparsity.density is not None:
            yield (
                f"sparsity.density={sparsity.density} would be ignored: sparsity '{sparsity.label}' trains all "
                "weights. Remove it, or choose a sparse method, e.g. sparsity=rigl_itop"
            )
        if schedule.pool != DensitySchedule.pool:
            yield f"sparsity.density_schedule.pool={schedule.pool} would be ignored without a density schedule"
    elif sparsity.density is not None and schedule.initial is not None and schedule.initial <= sparsity.density:
        yield (
            f"sparsity.density_schedule.initial={schedule.initial} must exceed the final sparsity.density="
            f"{sparsity.density}"
        )
    elif sparsity.distribution.name == "dense" and schedule.initial not in (None, 1):
        yield (
            f"sparsity.density_schedule.initial={schedule.initial} would be ignored: the distribution is dense at "
            "first; choose uniform, er or erk, or an initial density of 1"
        )
    if schedule.start is not None and schedule.end is not None and schedule.start >= schedule.end:
        yield (
            f"sparsity.density_schedule.start={schedule.start} must lie before sparsity.density_schedule.end="
            f"{schedule.end}"
        )
    is_sparse = sparsity.distribution.name != "dense" or schedule.name != "none"
    if is_sparse and sparsity.density is None:
        yield f"sparsity.density is missing: sparsity '{sparsity.label}' needs it, e.g. sparsity.density=0.1"


def _check_update(config: Config) -> Iterator[str]:
    sparsity, update = config.sparsity, config.sparsity.update
    moves = {
        "sparsity.drop.name": sparsity.drop.name != "none",
        "sparsity.grow.name": sparsity.grow.name != "none",
        "sparsity.drop_fraction.name": sparsity.drop_fraction.name != "none",
    }
    prunes = sparsity.density_schedule.name != "none"
    changes = any(moves.values()) or prunes
    if any(moves.values()) and not all(moves.values()):
        missing = [key for key, is_set in moves.items() if not is_set]
        present = [f"{key}={_shown(get(config, key))}" for key, is_set in moves.items() if is_set]
        yield (
            f"weights move by drop, grow and drop fraction together: {', '.join(present)} would be ignored without "
            f"{', '.join(missing)}. Set all three, or none"
        )
    if changes and update.every is None:
        yield (
            f"sparsity.update.every is missing: sparsity '{sparsity.label}' updates its topology, e.g. "
            "sparsity.update.every=${schedule.update_every}"
        )
    if not any(moves.values()):
        for key, default in (("sparsity.redistribute.name", "none"), ("sparsity.drop.pool", "layer")):
            if get(config, key) != default:
                yield f"{key}={get(config, key)} would be ignored: nothing is dropped and grown"
    elif sparsity.distribution.name == "dense" and not prunes:
        yield (
            f"sparsity.distribution.name=dense leaves nothing to drop and grow, but sparsity '{sparsity.label}' "
            "updates its topology: choose uniform, er or erk, and a density"
        )
    if not changes:
        yield from _ignored_update_keys(config)
    elif update.every == 1 and update.order == "replaces_step":
        yield (
            "sparsity.update.every=1 with sparsity.update.order=replaces_step would replace every step by an update: "
            "nothing would be trained. Update less often, or after_step"
        )
    elif update.on_last_step and update.stop < 1:
        yield f"sparsity.update.on_last_step=true would be ignored: updates stop at {update.stop} of training"
    elif update.start >= update.stop:
        yield (
            f"sparsity.update.start={update.start} must lie before sparsity.update.stop={update.stop}: as it is, there "
            "is no update in the whole run"
        )
    if config.hardware.precision == "fp16" and "momentum" in (sparsity.grow.name, sparsity.redistribute.name):
        yield (
            "hardware.precision=fp16 does not go with growth or redistribution by momentum: scaled gradients overflow "
            "now and then, and their moving average would keep it; use bf16 or fp32"
        )
    end = sparsity.density_schedule.end
    if end is not None and end > update.stop:
        yield (
            f"sparsity.density_schedule.end={end} must not lie behind sparsity.update.stop={update.stop}: the final "
            "density would never be reached"
        )


def _ignored_update_keys(config: Config) -> Iterator[str]:
    defaults, update = Update(), config.sparsity.update
    for item in fields(update):
        value = getattr(update, item.name)
        if value != getattr(defaults, item.name):
            yield (
                f"sparsity.update.{item.name}={_shown(value)} would be ignored: sparsity '{config.sparsity.label}' "
                "never updates its topology"
            )


def _check_schedule(config: Config) -> Iterator[str]:
    lr, optimizer = config.schedule.lr, config.schedule.optimizer
    milestones = lr.milestones or []
    if any(not 0 < m < 1 for m in milestones) or milestones != sorted(set(milestones)):
        yield f"schedule.lr.milestones={milestones}: must be increasing fractions of training in (0, 1)"
    if lr.name == "multistep" and lr.milestones == []:
        yield "schedule.lr.milestones=[]: multistep needs one or more; schedule.lr.name=constant has none"
    if lr.floor is not None and lr.floor > lr.peak:
        yield f"schedule.lr.floor={lr.floor} must not exceed schedule.lr.peak={lr.peak}"
    epochs = config.schedule.epochs * config.schedule.multiplier
    if lr.warmup_epochs >= epochs > 0:
        yield f"schedule.lr.warmup_epochs={lr.warmup_epochs} must be less than the {epochs} epochs of training"
    if optimizer.name == "sgd" and optimizer.momentum == 0 and optimizer.nesterov is not False:
        yield "schedule.optimizer.momentum=0: Nesterov needs momentum; add schedule.optimizer.nesterov=false"
    if config.schedule.accumulate > config.schedule.batch_size:
        yield (
            f"schedule.accumulate={config.schedule.accumulate}: a batch of {config.schedule.batch_size} samples "
            "(schedule.batch_size) cannot be cut into so many parts"
        )
    if config.hardware.precision == "tf32" and config.hardware.device == "cpu":
        yield "hardware.precision=tf32 would be ignored: only GPUs have it; use fp32 or bf16 on a CPU"
    fraction = config.sparsity.drop_fraction
    if fraction.initial is not None and fraction.floor is not None and fraction.floor > fraction.initial:
        yield f"sparsity.drop_fraction.floor={fraction.floor} must not exceed its initial={fraction.initial}"


def _check_data(config: Config) -> Iterator[str]:
    data = config.data
    if (data.mean is None) != (data.std is None):
        yield "data.mean and data.std go together: set both, or neither to use those of the training split"
    if data.std is not None and not all(value in _Range(1e-6) for value in data.std):
        yield f"data.std={data.std}: must be positive, finite and not tiny"
    if data.mean is not None and not all(math.isfinite(value) for value in data.mean):
        yield f"data.mean={data.mean}: must be finite"
    if data.augment.crop_padding == 0 and data.augment.padding_mode != Augment.padding_mode:
        yield f"data.augment.padding_mode={data.augment.padding_mode} would be ignored with data.augment.crop_padding=0"
    if data.center_crop is not None and data.size is None:
        yield f"data.center_crop={data.center_crop} would be ignored without data.size, e.g. data.size=224"
    scale = data.augment.resized_crop_scale
    if scale is None:
        return
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        yield f"data.augment.resized_crop_scale={scale}: must be two shares of the area, e.g. [0.08, 1.0]"
    if data.augment.crop_padding:
        yield (
            f"data.augment.crop_padding={data.augment.crop_padding} and data.augment.resized_crop_scale={scale} are "
            "two kinds of crop: set the one to 0 or the other to null"
        )
    if data.size is None:
        yield "data.size is missing: data.augment.resized_crop_scale needs it, e.g. data.size=224"
    if data.storage == "resident":
        yield (
            "data.storage=resident keeps images at data.size, but data.augment.resized_crop_scale needs them as they "
            "are in their files: set data.storage=auto, or data.augment.resized_crop_scale=null"
        )


def _check_lists(config: Config) -> Iterator[str]:
    hidden = config.model.hidden
    if hidden is not None and (not hidden or min(hidden) < 1 or max(hidden) > _WIDEST):
        yield f"model.hidden={hidden}: must be a list of widths in [1, {_WIDEST}], e.g. model.hidden=[256,256]"
    group = config.output.group
    if not group or group.startswith("/") or any(part.startswith(".") for part in group.split("/")):
        yield f"output.group={group!r}: must be a folder below output.root, relative and without hidden parts"
    for key in ("output.root", "data.root", "data.cache"):
        if not get(config, key).strip():
            yield f"{key} is empty: it must name a folder"
    if not config.sparsity.scope.include:
        yield "sparsity.scope.include=[]: no layer would be sparse; the default is ['*']"


def _check_tracking(config: Config) -> Iterator[str]:
    tracking, defaults = config.tracking, Tracking()
    if tracking.mode == "none":
        for name in ("project", "entity", "tags", "notes", "timeout_s"):
            value = getattr(tracking, name)
            if value != getattr(defaults, name):
                yield (
                    f"tracking.{name}={_shown(value)} would be ignored: nothing is tracked. Remove it, or choose "
                    "tracking=wandb_offline or tracking=wandb_online"
                )
        return
    if not tracking.project:
        yield f"tracking.project is missing: wandb ({tracking.mode}) needs it, e.g. tracking.project=dst"
    for tag in tracking.tags:
        if not 1 <= len(tag) <= _LONGEST_TAG:
            yield f"tracking.tags: {tag!r} has {len(tag)} characters; wandb takes 1 to {_LONGEST_TAG}"


_LONGEST_TAG = 64

_WIDEST = 1_000_000

_CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _check_slots,
    _check_ranges,
    _check_density,
    _check_update,
    _check_schedule,
    _check_data,
    _check_lists,
    _check_tracking,
)


def check(config: Config) -> list[str]:
    """Return every problem that can be seen without data or torch, as messages for the user."""
    return [problem for checker in _CHECKS for problem in checker(config)]
