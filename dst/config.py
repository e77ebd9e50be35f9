"""The typed schema of a run's config, its checks, and the run id.

Every key a user can set is a field here. A field marked ``identity=False`` says where or how the run is carried out
and cannot change a result; all others make up the run id. ``check`` reports every problem at once.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from dst import registry
from dst.registry import REQUIRED, UnknownNameError, suggest

SCHEMA_VERSION = 1
"""Part of every run id. Raise it when the meaning of an existing key changes."""


_BULLET = "\n  - "


class ConfigError(ValueError):
    """One or more problems of a config, each a message for the user."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))

    def text(self) -> str:
        """Return all problems as one message."""
        lines = self.problems
        return f"configuration error: {lines[0] if len(lines) == 1 else ''.join(f'{_BULLET}{line}' for line in lines)}"


def _aside(default: Any) -> Any:
    """Declare a field that is no part of the run's identity."""
    return field(default=default, metadata={"identity": False})


@dataclass
class Model:
    """The network. ``hidden``: widths of the hidden layers of ``mlp``."""

    name: str = "mlp"
    hidden: list[int] | None = None


@dataclass
class Augment:
    """Training-time augmentation: random crop after padding by ``crop_padding`` pixels, horizontal flip."""

    crop_padding: int = 0
    padding_mode: str = "reflect"
    flip: bool = False


@dataclass
class Data:
    """The data set. ``root``: where its raw files lie or are downloaded to; ``cache``: where decoded sets are kept.

    ``val_fraction`` of the training set, stratified by class and chosen by ``split_seed``, validates; ``size`` resizes
    images to ``size`` x ``size``; ``mean`` and ``std`` per channel normalise (default: those of the training split).
    """

    name: str = "digits"
    val_fraction: float = 0.1
    split_seed: int = 0
    size: int | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: Augment = field(default_factory=Augment)
    root: str = _aside("outputs/.datasets")
    cache: str = _aside("outputs/.cache")
    download: bool = _aside(True)


@dataclass
class Scope:
    """Which weights may be sparse: those of convolutions and linear layers, narrowed by glob patterns on layer names.

    ``dense_first`` and ``dense_last`` leave the first and last such layer dense and out of the density.
    """

    include: list[str] = field(default_factory=lambda: ["*"])
    exclude: list[str] = field(default_factory=list)
    dense_first: bool = False
    dense_last: bool = False


@dataclass
class Slot:
    """A slot that takes a name only."""

    name: str = "none"


@dataclass
class DropFraction:
    """How much of a layer moves in an update, as a curve from ``initial`` to ``floor``.

    ``horizon``: the curve ends at the ``end`` of training or at the ``stop`` of the updates.
    """

    name: str = "none"
    initial: float | None = None
    floor: float | None = None
    horizon: str | None = None


@dataclass
class Update:
    """When the topology is updated, and how an update meets the optimizer.

    ``every`` steps, from ``start`` to ``stop`` (fractions of training). ``order``: ``after_step`` updates after the
    optimizer step (ITOP, GraNet), ``replaces_step`` instead of it (RigL). ``regrow``: just-dropped weights may return.
    ``on_last_step``: also update after the last step of training, when nothing can be learned any more.
    """

    every: int | None = None
    start: float = 0.0
    stop: float = 1.0
    order: str = "after_step"
    regrow: bool = True
    on_last_step: bool = False


@dataclass
class Sparsity:
    """The sparse-training method as a composition of slots. ``label`` names its row in tables."""

    label: str = "dense"
    density: float | None = None
    scope: Scope = field(default_factory=Scope)
    distribution: Slot = field(default_factory=lambda: Slot("dense"))
    init: Slot = field(default_factory=lambda: Slot("random"))
    pattern: Slot = field(default_factory=lambda: Slot("unstructured"))
    drop: Slot = field(default_factory=Slot)
    grow: Slot = field(default_factory=Slot)
    drop_fraction: DropFraction = field(default_factory=DropFraction)
    update: Update = field(default_factory=Update)


@dataclass
class Optimizer:
    """The optimizer. Options left null take the optimizer's default."""

    name: str = "sgd"
    momentum: float | None = None
    nesterov: bool | None = None
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None


@dataclass
class LearningRate:
    """The learning rate as a function of the step: linear warm-up to ``peak``, then the curve ``name``.

    ``milestones`` of ``multistep`` are fractions of training; each multiplies the rate by ``gamma``.
    """

    name: str = "cosine"
    peak: float = 0.1
    warmup_epochs: float = 0.0
    floor: float | None = None
    milestones: list[float] | None = None
    gamma: float | None = None


@dataclass
class Schedule:
    """How long and how fast to train.

    ``multiplier`` scales the epochs, and with them milestones and horizons, but not ``update_every`` (steps), which
    methods that update their topology take as ``sparsity.update.every`` (the key that identifies a run).
    ``select``: test the ``last`` weights or those of the ``best_val`` accuracy.
    """

    epochs: int = 10
    batch_size: int = 128
    multiplier: int = 1
    update_every: int = _aside(100)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr: LearningRate = field(default_factory=LearningRate)
    label_smoothing: float = 0.0
    select: str = "last"
    eval_every_epochs: int = 1


@dataclass
class Hardware:
    """Where and how the run computes.

    ``determinism``: ``strict`` resumes bit-identically on the same kind of machine, ``fast`` may not. The number of
    ``threads`` changes bits, so it is pinned and part of the identity.
    """

    device: str = "cpu"
    determinism: str = "strict"
    threads: int = 1


@dataclass
class Checkpoint:
    """When to save: after ``every_min`` minutes, and additionally each ``every_steps`` steps; the newest ``keep``."""

    every_min: float = _aside(1.0)
    every_steps: int | None = _aside(None)
    keep: int = _aside(2)


@dataclass
class Output:
    """Where the record goes: ``root``/``group``/<run id>. ``resume=never`` starts a new attempt folder."""

    root: str = _aside("outputs")
    group: str = _aside("default")
    resume: str = _aside("auto")


@dataclass
class Tracking:
    """What is shown and logged. ``progress``: ``auto`` is a bar on a terminal and plain lines elsewhere."""

    progress: str = _aside("auto")
    every_steps: int = _aside(100)


@dataclass
class Config:
    """One run: model x data x sparsity x schedule x hardware."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    sparsity: Sparsity = field(default_factory=Sparsity)
    schedule: Schedule = field(default_factory=Schedule)
    hardware: Hardware = field(default_factory=Hardware)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    output: Output = field(default_factory=Output)
    tracking: Tracking = field(default_factory=Tracking)
    seed: int = 0


# ---------------------------------------------------------------------------------------------------------------------
# Walking the schema


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, bool]]:
    """Yield ``(dotted key, value, is identity)`` of every leaf of a config, in the schema's order."""
    for item in fields(node):
        value, key = getattr(node, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{key}.")
        else:
            yield key, value, item.metadata.get("identity", True)


def flatten(config: Config) -> dict[str, Any]:
    """Return all leaves as ``{dotted key: value}``."""
    return {key: value for key, value, _ in leaves(config)}


def get(config: Config, key: str) -> Any:
    """Return the value (leaf or node) at a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


# ---------------------------------------------------------------------------------------------------------------------
# Slots: a name, and the options that its member takes

SLOTS = {
    "model": "model",
    "data": "data",
    "sparsity.distribution": "distribution",
    "sparsity.init": "init",
    "sparsity.pattern": "pattern",
    "sparsity.drop": "drop",
    "sparsity.grow": "grow",
    "sparsity.drop_fraction": "drop_fraction",
    "schedule.optimizer": "optimizer",
    "schedule.lr": "lr",
}
"""Dotted key of each slot -> its registry."""


def options(config: Config, slot: str) -> dict[str, Any]:
    """Return the options of a slot's member as keyword arguments, defaults filled in."""
    node = get(config, slot)
    given = {name: getattr(node, name) for name in registry.find(SLOTS[slot], node.name).options}
    defaults = registry.find(SLOTS[slot], node.name).options
    return {name: defaults[name] if value is None else value for name, value in given.items()}


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


def complete(config: Config) -> Config:
    """Return a copy in which every option that was left null holds the value that will be used."""
    done = replace(config)
    for slot in SLOTS:
        *parents, last = slot.split(".")
        node = done
        for parent in parents:
            setattr(node, parent, replace(getattr(node, parent)))
            node = getattr(node, parent)
        setattr(node, last, replace(getattr(node, last), **options(config, slot)))
    return done


# ---------------------------------------------------------------------------------------------------------------------
# Checks


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
    "data.size": _AT_LEAST_ONE,
    "data.augment.crop_padding": _NON_NEGATIVE,
    "sparsity.density": _Range(0, 1, open_low=True, open_high=True),
    "sparsity.drop_fraction.initial": _Range(0, 1, open_low=True),
    "sparsity.drop_fraction.floor": _PROPER_FRACTION,
    "sparsity.update.every": _AT_LEAST_ONE,
    "sparsity.update.start": _FRACTION,
    "sparsity.update.stop": _FRACTION,
    "schedule.epochs": _AT_LEAST_ONE,
    "schedule.batch_size": _AT_LEAST_ONE,
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
    "hardware.threads": _AT_LEAST_ONE,
    "checkpoint.every_min": _POSITIVE,
    "checkpoint.every_steps": _AT_LEAST_ONE,
    "checkpoint.keep": _AT_LEAST_ONE,
    "tracking.every_steps": _AT_LEAST_ONE,
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "data.augment.padding_mode": ("reflect", "zeros"),
    "sparsity.drop_fraction.horizon": ("end", "stop"),
    "sparsity.update.order": ("after_step", "replaces_step"),
    "schedule.select": ("last", "best_val"),
    "hardware.device": ("cpu", "cuda"),
    "hardware.determinism": ("strict", "fast"),
    "output.resume": ("auto", "never"),
    "tracking.progress": ("auto", "bar", "plain", "none"),
}


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
    sparsity = config.sparsity
    if sparsity.distribution.name == "dense":
        if sparsity.density is not None:
            yield (
                f"sparsity.density={sparsity.density} would be ignored: sparsity '{sparsity.label}' trains all "
                "weights. Remove it, or choose a sparse method, e.g. sparsity=rigl_itop"
            )
    elif sparsity.density is None:
        yield f"sparsity.density is missing: sparsity '{sparsity.label}' needs it, e.g. sparsity.density=0.1"


def _check_update(config: Config) -> Iterator[str]:
    sparsity, update = config.sparsity, config.sparsity.update
    parts = {
        "sparsity.drop.name": sparsity.drop.name != "none",
        "sparsity.grow.name": sparsity.grow.name != "none",
        "sparsity.drop_fraction.name": sparsity.drop_fraction.name != "none",
        "sparsity.update.every": update.every is not None,
    }
    if any(parts.values()) and not all(parts.values()):
        missing = [key for key, is_set in parts.items() if not is_set]
        present = [f"{key}={_shown(get(config, key))}" for key, is_set in parts.items() if is_set]
        yield (
            f"an update of the topology needs drop, grow, drop fraction and interval together: {', '.join(present)} "
            f"would be ignored without {', '.join(missing)}. Set all four, or none for a static topology"
        )
    if any(parts.values()) and sparsity.distribution.name == "dense":
        yield (
            f"sparsity.distribution.name=dense leaves nothing to drop and grow, but sparsity '{sparsity.label}' "
            "updates its topology: choose uniform, er or erk, and a density"
        )
    if not any(parts.values()):
        defaults = Update()
        for item in fields(update):
            value = getattr(update, item.name)
            if value != getattr(defaults, item.name):
                yield (
                    f"sparsity.update.{item.name}={_shown(value)} would be ignored: sparsity '{sparsity.label}' never "
                    "updates its topology"
                )
    elif update.start >= update.stop:
        yield (
            f"sparsity.update.start={update.start} must lie before sparsity.update.stop={update.stop}: as it is, there "
            "is no update in the whole run"
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
    fraction = config.sparsity.drop_fraction
    if fraction.initial is not None and fraction.floor is not None and fraction.floor > fraction.initial:
        yield f"sparsity.drop_fraction.floor={fraction.floor} must not exceed its initial={fraction.initial}"


def _check_lists(config: Config) -> Iterator[str]:
    hidden = config.model.hidden
    if hidden is not None and (not hidden or min(hidden) < 1):
        yield f"model.hidden={hidden}: must be a list of positive widths, e.g. model.hidden=[256,256]"
    data = config.data
    if (data.mean is None) != (data.std is None):
        yield "data.mean and data.std go together: set both, or neither to use those of the training split"
    if data.std is not None and not all(value in _POSITIVE for value in data.std):
        yield f"data.std={data.std}: must be positive"
    if data.augment.crop_padding == 0 and data.augment.padding_mode != Augment.padding_mode:
        yield f"data.augment.padding_mode={data.augment.padding_mode} would be ignored with data.augment.crop_padding=0"
    if not config.output.group or config.output.group.startswith("/") or ".." in config.output.group.split("/"):
        yield f"output.group={config.output.group!r}: must be a relative folder name below output.root"
    if not config.sparsity.scope.include:
        yield "sparsity.scope.include=[]: no layer would be sparse; the default is ['*']"


_CHECKS: tuple[Callable[[Config], Iterator[str]], ...] = (
    _check_slots,
    _check_ranges,
    _check_density,
    _check_update,
    _check_schedule,
    _check_lists,
)


def check(config: Config) -> list[str]:
    """Return every problem that can be seen without data or torch, as messages for the user."""
    return [problem for checker in _CHECKS for problem in checker(config)]


# ---------------------------------------------------------------------------------------------------------------------
# Identity


def identity(config: Config) -> dict[str, Any]:
    """Return what identifies the run: identity fields whose value is not the default, by dotted key."""
    defaults = flatten(Config())
    for slot in SLOTS:
        defaults |= {f"{slot}.{name}": value for name, value in _defaults_of(config, slot).items()}
    return {
        key: value
        for key, value, is_identity in leaves(config)
        if is_identity and value is not None and value != defaults[key]
    }


def _defaults_of(config: Config, slot: str) -> dict[str, Any]:
    member = registry.find(SLOTS[slot], get(config, slot).name)
    return {name: value for name, value in member.options.items() if value is not REQUIRED}


def run_id(config: Config) -> str:
    """Return the run's id: 12 hex digits of a digest of the schema version and the identity."""
    canonical = json.dumps([SCHEMA_VERSION, identity(config)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def run_name(config: Config) -> str:
    """Return a readable name, for people; the id is what counts."""
    density = "" if config.sparsity.density is None else f" density={config.sparsity.density:g}"
    return f"{config.data.name} {config.model.name} {config.sparsity.label}{density} seed={config.seed}"
