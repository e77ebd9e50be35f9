"""What is wrong with a config, all at once: names, ignored options, ranges, combinations.

Only what can be seen without data and without torch; ``dst.run.feasible.check`` sees the rest.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence

from dst import registry
from dst.config.launcher import LauncherSettings
from dst.config.method import check_density, check_parts, check_update
from dst.config.ranges import CHOICES, RANGES, Range, shown
from dst.config.schema import SLOTS, Augment, Config, ConfigError, Tracking, get
from dst.registry import REQUIRED, UnknownNameError, suggest
from dst.tracking.limits import LONGEST_NAME, LONGEST_TAG, wrong_length, wrong_name


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
                    f"{slot}.{name}={shown(value)} would be ignored: {kind} '{node.name}' takes "
                    f"{', '.join(taken) or 'no options'}. Remove it, or set {slot}.{name}=null"
                )
            elif value is None and taken.get(name) is REQUIRED:
                yield f"{slot}.{name} is missing: {kind} '{node.name}' needs it, e.g. {slot}.{name}=..."


def _check_ranges(config: Config) -> Iterator[str]:
    for key, allowed in RANGES.items():
        value = get(config, key)
        if value is not None and value not in allowed:
            yield f"{key}={shown(value)}: must be {allowed}"
    for key, names in CHOICES.items():
        value = get(config, key)
        if value is not None and value not in names:
            yield f"{key}={shown(value)}: {suggest(value, names)}"


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


def _check_processes(config: Config) -> Iterator[str]:
    hardware = config.hardware
    if not hardware.sync_batch_norm:
        return
    if hardware.processes == 1:
        yield (
            "hardware.sync_batch_norm=true would be ignored: there is one process only. Remove it, or train in more, "
            "e.g. hardware=ddp"
        )
    if hardware.device == "cpu":
        yield "hardware.sync_batch_norm=true: PyTorch has it on GPUs only; use hardware.device=cuda, or remove it"


def _check_data(config: Config) -> Iterator[str]:
    data = config.data
    if (data.mean is None) != (data.std is None):
        yield "data.mean and data.std go together: set both, or neither to use those of the training split"
    if data.std is not None and not all(value in Range(1e-6) for value in data.std):
        yield f"data.std={data.std}: must be positive, finite and not tiny"
    if data.mean is not None and not all(math.isfinite(value) for value in data.mean):
        yield f"data.mean={data.mean}: must be finite"
    if data.augment.crop_padding == 0 and data.augment.padding_mode != Augment.padding_mode:
        yield f"data.augment.padding_mode={data.augment.padding_mode} would be ignored with data.augment.crop_padding=0"
    if data.center_crop is not None and data.size is None:
        yield f"data.center_crop={data.center_crop} would be ignored without data.size, e.g. data.size=224"
    for key in ("data.digest", "model.weights_digest", "sparsity.init.digest"):
        digest = get(config, key)
        if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
            yield f"{key}={digest}: must be a SHA-256, 64 digits of 0-9 and a-f; without it, what is there is taken"
    if config.model.weights_digest is not None and config.model.weights is None:
        yield f"model.weights_digest={config.model.weights_digest} would be ignored without model.weights"
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


def _check_slurm(config: Config) -> Iterator[str]:
    wanted = config.hardware.slurm
    if wanted.signal_delay_s >= 60 * wanted.timeout_min:
        yield (
            f"hardware.slurm.signal_delay_s={wanted.signal_delay_s} must be less than the time limit "
            f"(hardware.slurm.timeout_min={wanted.timeout_min}): a run would be stopped before it begins"
        )
    for option in wanted.options:
        name = option.lstrip("-").partition("=")[0].replace("_", "-")
        if not name:
            yield f"hardware.slurm.options: {option!r} is no option of sbatch, e.g. mail-type=FAIL"
        elif name in _SLURM_KEYS:
            yield f"hardware.slurm.options: {option!r} is what hardware.{_SLURM_KEYS[name]} says; set that"
        elif name in _SLURM_OWN:
            yield f"hardware.slurm.options: {option!r} would be ignored, or break requeueing: the launcher sets {name}"


def _check_tracking(config: Config) -> Iterator[str]:
    tracking, defaults = config.tracking, Tracking()
    if tracking.mode == "none":
        for name in ("project", "entity", "tags", "notes", "timeout_s"):
            value = getattr(tracking, name)
            if value != getattr(defaults, name):
                yield (
                    f"tracking.{name}={shown(value)} would be ignored: nothing is tracked. Remove it, or choose "
                    "tracking=wandb_offline or tracking=wandb_online"
                )
        return
    if tracking.mode == "offline" and tracking.timeout_s != defaults.timeout_s and tracking.timeout_s > 0:
        yield (
            f"tracking.timeout_s={tracking.timeout_s:g} would be ignored: nothing is sent while the run trains. Remove "
            "it, or choose tracking=wandb_online"
        )
    if not tracking.project:
        yield f"tracking.project is missing: wandb ({tracking.mode}) needs it, e.g. tracking.project=dst"
    for name, value in {"project": tracking.project or None, "entity": tracking.entity}.items():
        if value is not None and (problem := wrong_name(value)):
            yield f"tracking.{name}={value} {problem}"
    for tag in tracking.tags:
        if problem := wrong_length(tag, LONGEST_TAG):
            yield f"tracking.tags: {tag!r} {problem}"
    if problem := wrong_length(config.output.group, LONGEST_NAME):
        yield f"output.group={config.output.group} {problem} as a group: choose a shorter one, or tracking=none"


_SLURM_KEYS = {
    **{name: f"slurm.{name}" for name in ("partition", "account", "qos", "constraint", "nodes")},
    **{"time": "slurm.timeout_min", "signal": "slurm.signal_delay_s", "mem": "slurm.memory_gb"},
    **{"cpus-per-task": "slurm.cpus", "gpus-per-node": "slurm.gpus"},
    **{"ntasks-per-node": "processes", "ntasks": "processes"},
}
_SLURM_OWN = ("array", "error", "job-name", "no-requeue", "open-mode", "output", "requeue", "wait", "wrap")
"""Options of sbatch that have a key of their own, and those that nobody else may set."""

_WIDEST = 1_000_000

_CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _check_slots,
    _check_ranges,
    check_density,
    check_parts,
    check_update,
    _check_schedule,
    _check_processes,
    _check_data,
    _check_lists,
    _check_slurm,
    _check_tracking,
)


def check_launcher(overrides: Sequence[str], settings: LauncherSettings | None, *, multirun: bool) -> None:
    """Raise ConfigError if a command sets options of a launcher that will not carry it out."""
    problems = []
    if settings is not None and not multirun:
        problems.append(
            f"hydra/launcher={settings.cluster} launches sweeps: add -m (a sweep may be a single run), or "
            "hydra/launcher=basic to run in this process"
        )
    if settings is None or settings.cluster != "slurm":
        ignored = [text for text in overrides if text.lstrip("+").startswith(("hardware.slurm.", "hardware.slurm="))]
        problems += [f"{text} would be ignored: add hydra/launcher=slurm or hardware=slurm, and -m" for text in ignored]
    if problems:
        raise ConfigError(problems)


def check(config: Config) -> list[str]:
    """Return every problem that can be seen without data or torch, as messages for the user."""
    return [problem for checker in _CHECKS for problem in checker(config)]
