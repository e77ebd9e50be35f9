"""The typed schema of a run's config.

Every key a user can set is a field here. A field marked ``identity=False`` says where or how the run is carried out
and cannot change a result; all others make up the run id (``dst.config.identity``). ``dst.config.checks`` says what is
wrong with a config.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from typing import Any

from dst import registry
from dst.config.launcher import Slurm
from dst.data import published
from dst.options import aside

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


@dataclass
class Model:
    """The network.

    ``hidden``: widths of the hidden layers of ``mlp``. ``dropout``: the fraction of a wide residual network's maps that
    is dropped between the convolutions of a block. ``fan_in``: ImageNet's residual networks start from Kaiming's normal
    distribution by fan-in instead of fan-out. ``weights``: start from those of another run: its folder;
    ``weights_digest`` of the checkpoint, which identifies it (default: of the newest one there).
    """

    name: str = "mlp"
    hidden: list[int] | None = None
    dropout: float | None = None
    fan_in: bool | None = None
    weights: str | None = aside(None)
    weights_digest: str | None = None


@dataclass
class Augment:
    """Training-time augmentation: random crop after padding by ``crop_padding`` pixels, horizontal flip.

    ``resized_crop_scale``: instead, torchvision's random-resized crop of between these two shares of the image's area,
    e.g. [0.08, 1.0]; for image files, which are then streamed.
    """

    crop_padding: int = 0
    padding_mode: str = "reflect"
    flip: bool = False
    resized_crop_scale: list[float] | None = None


@dataclass
class Data:
    """The data set. ``root``: where its raw files lie or are downloaded to; ``cache``: where decoded sets are kept.

    ``digest`` of its content, which identifies it (default: of the published files where the name stands for them, else
    of what lies in ``root``); another content than that is refused.
    ``val_fraction`` of the training set, stratified by class and chosen by ``split_seed``, validates. ``size``: images
    are stretched to ``size`` x ``size``; or, with ``center_crop``, scaled and cropped to that fraction of their shorter
    side around the centre (224 and 0.875: ImageNet's Resize(256), CenterCrop(224)). ``mean`` and ``std`` per channel
    normalise (default: those of the training split). ``storage`` of image files: ``resident`` in memory, decoded once;
    ``stream``, decoded whenever needed by ``hardware.workers``; ``auto``: resident up to 4 GiB. It changes no batch.
    """

    name: str = "digits"
    digest: str | None = None
    val_fraction: float = 0.1
    split_seed: int = 0
    size: int | None = None
    center_crop: float | None = None
    mean: list[float] | None = None
    std: list[float] | None = None
    augment: Augment = field(default_factory=Augment)
    storage: str = aside("auto")
    root: str = aside("outputs/.datasets")
    cache: str = aside("outputs/.cache")
    download: bool = aside(True)


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
class Distribution:
    """How much where. ``none`` where init or pattern say themselves how many weights are kept.

    ``classifier``: the density of the last layer, of which the others are then independent. ``clip``: layers that would
    exceed a density of 1 are cut off and the total falls short, as in published codes. A saliency criterion (``snip``,
    ``grasp``, ``synflow``, ``magnitude``) gives each layer its share of the best weights of the network; it looks at
    ``batches`` of training data, in ``rounds`` of pruning, with logits divided by ``temperature``.
    """

    name: str = "dense"
    classifier: float | None = None
    clip: bool | None = None
    batches: int | None = None
    rounds: int | None = None
    temperature: float | None = None


@dataclass
class Init:
    """Which positions first. ``criterion`` of ``saliency``, with its options as for the distribution.

    ``path`` of ``file``: the run folder whose masks are taken; ``digest`` of the checkpoint, which identifies it
    (default: of the newest one there). ``rate``: the share of the given weights (see ``model.weights``) that the
    ``prune`` inits remove.
    """

    name: str = "random"
    criterion: str | None = None
    batches: int | None = None
    rounds: int | None = None
    temperature: float | None = None
    path: str | None = aside(None)
    digest: str | None = None
    rate: float | None = None


@dataclass
class Pattern:
    """What shapes a mask may take: ``n`` of ``m`` consecutive input channels; the same fan-in for all output units.

    ``indivisible``: a layer that ``m`` does not divide is an ``error`` or stays ``dense``. ``ablation``: output units
    with fewer salient weights than this share of their fan-in lose all, and the others share them.
    """

    name: str = "unstructured"
    n: int | None = None
    m: int | None = None
    indivisible: str | None = None
    ablation: float | None = None


@dataclass
class Drop:
    """Who leaves. ``pool``: the drop fraction of each ``layer``, or of all layers together (``global``).

    ``value`` or ``quantile`` (of each layer's active weights) of ``threshold``, which drops whatever is below it.
    """

    name: str = "none"
    pool: str = "layer"
    value: float | None = None
    quantile: float | None = None


@dataclass
class DensitySchedule:
    """How dense over time: from ``initial`` to ``sparsity.density`` between the fractions ``start`` and ``end``.

    ``pool``: weights are pruned by magnitude in each ``layer``, to the same density, or in all layers together
    (``global``). ``ends_early``: the ramp ends one update short of the final density, as in the published GraNet.
    """

    name: str = "none"
    initial: float | None = None
    start: float | None = None
    end: float | None = None
    ends_early: bool | None = None
    pool: str = "global"


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
    ``grown_weights`` start from ``zero`` or from their ``initial`` value; ``returning_weights``, dropped and grown in
    the same update, ``keep`` their value and momentum or are ``reset`` as if they were grown.
    """

    every: int | None = None
    start: float = 0.0
    stop: float = 1.0
    order: str = "after_step"
    regrow: bool = True
    on_last_step: bool = False
    grown_weights: str = "zero"
    returning_weights: str = "keep"


@dataclass
class Sparsity:
    """The sparse-training method as a composition of slots. ``label`` names its row in tables.

    ``density``: active / maskable weights; the final one where a ``density_schedule`` leads to it.
    """

    label: str = aside("dense")
    density: float | None = None
    scope: Scope = field(default_factory=Scope)
    distribution: Distribution = field(default_factory=Distribution)
    init: Init = field(default_factory=Init)
    pattern: Pattern = field(default_factory=Pattern)
    drop: Drop = field(default_factory=Drop)
    grow: Slot = field(default_factory=Slot)
    redistribute: Slot = field(default_factory=Slot)
    drop_fraction: DropFraction = field(default_factory=DropFraction)
    density_schedule: DensitySchedule = field(default_factory=DensitySchedule)
    update: Update = field(default_factory=Update)


@dataclass
class Optimizer:
    """The optimizer. Options left null take the optimizer's default.

    ``decay``: weight decay acts on ``all`` parameters, on all but those of normalisation layers (``not_norms``), or
    only on the ``weights`` of convolutions and linear layers.
    """

    name: str = "sgd"
    momentum: float | None = None
    nesterov: bool | None = None
    beta1: float | None = None
    beta2: float | None = None
    weight_decay: float | None = None
    decay: str = "all"


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
    A step is taken on ``batch_size`` samples, whose gradients are accumulated over ``accumulate`` equal parts.
    ``select``: test the ``last`` weights or, of those at the final density, the ones of the ``best_val`` accuracy.
    """

    epochs: int = 10
    batch_size: int = 128
    accumulate: int = 1
    multiplier: int = 1
    update_every: int = aside(100)
    optimizer: Optimizer = field(default_factory=Optimizer)
    lr: LearningRate = field(default_factory=LearningRate)
    label_smoothing: float = 0.0
    select: str = "last"
    eval_every_epochs: int = 1


@dataclass
class Hardware:
    """Where and how the run computes.

    ``determinism``: ``strict`` resumes bit-identically on the same kind of machine, ``fast`` may not. The number of
    ``threads`` changes bits, so it is pinned and part of the identity. ``precision``: ``fp32``, ``tf32`` (on GPUs that
    have it), or automatic mixed precision in ``bf16`` or, with loss scaling, ``fp16``. ``channels_last``: the memory
    layout of images that tensor cores want. ``compile``: the model by torch.compile. ``workers``: processes that load
    streamed data. ``processes``: train on so many processes (one GPU each) that share every batch;
    ``sync_batch_norm``: batch statistics over all of them instead of each by itself.
    """

    device: str = "cpu"
    determinism: str = "strict"
    threads: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False
    workers: int = aside(0)
    processes: int = 1
    sync_batch_norm: bool = False
    slurm: Slurm = field(default_factory=Slurm)


@dataclass
class Checkpoint:
    """When to save: after ``every_min`` minutes, and additionally each ``every_steps`` steps; the newest ``keep``."""

    every_min: float = aside(1.0)
    every_steps: int | None = aside(None)
    keep: int = aside(2)


@dataclass
class Output:
    """Where the record goes: ``root``/``group``/<run id>. ``resume=never`` starts a new attempt folder.

    A run that was begun under another group goes on there; the group has an entry for it.
    """

    root: str = aside("outputs")
    group: str = aside("default")
    resume: str = aside("auto")


@dataclass
class Tracking:
    """What is shown and logged, and where the record is mirrored to.

    ``progress``: ``auto`` is a bar on a terminal and plain lines elsewhere; a history line ``every_steps``. ``mode`` of
    the wandb mirror: ``none``, ``offline`` (sent later, on request) or ``online`` (sent while training); ``project``,
    ``entity``, ``tags`` (besides model, data and method) and ``notes`` are wandb's; ``timeout_s``: how long it may hold
    up a run at its end.
    """

    progress: str = aside("auto")
    every_steps: int = aside(100)
    mode: str = aside("none")
    project: str | None = aside(None)
    entity: str | None = aside(None)
    tags: list[str] = field(default_factory=list, metadata={"identity": False})
    notes: str | None = aside(None)
    timeout_s: float = aside(20.0)


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
    for name, is_node, is_identity in _fields(type(node)):  # type: ignore[arg-type]  # types are hashable
        value, key = getattr(node, name), f"{prefix}{name}"
        if is_node:
            yield from leaves(value, f"{key}.")
        else:
            yield key, value, is_identity


@cache
def _fields(node: type) -> list[tuple[str, bool, bool]]:
    """Return name, whether it is a node, and whether it is identity, of every field; a sweep asks a million times."""
    return [
        (item.name, is_dataclass(item.default_factory), item.metadata.get("identity", True)) for item in fields(node)
    ]


def flatten(config: Config) -> dict[str, Any]:
    """Return all leaves as ``{dotted key: value}``."""
    return {key: value for key, value, _ in leaves(config)}


def get(config: Config, key: str) -> Any:
    """Return the value (leaf or node) at a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


def with_value(node: Any, key: str, value: Any) -> Any:
    """Return a copy of a config (or of a node of it) in which the leaf at a dotted key has another value."""
    name, _, below = key.partition(".")
    return replace(node, **{name: with_value(getattr(node, name), below, value) if below else value})


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
    "sparsity.redistribute": "redistribute",
    "sparsity.drop_fraction": "drop_fraction",
    "sparsity.density_schedule": "density_schedule",
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
    if done.data.digest is None:
        done.data.digest = published.digest(done.data.name)
    return done
