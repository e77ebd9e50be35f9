"""The typed schema of a run's config.

Every key a user can set is a field here: of a group that a room declares in its ``options.py``, of a group that belongs
to the run alone and is declared here, or, in a slot, an option of the slot's members, which their functions declare. A
field marked ``ASIDE`` says where or how the run is carried out and cannot change a result; all others make up the run
id (``dst.config.identity``). ``dst.config.checks`` says what is wrong with a config.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar, cast

from dst import registry
from dst.config.launcher import Slurm
from dst.data import options as data_options
from dst.data import published
from dst.kernels import options as kernel_options
from dst.models import options as model_options
from dst.options import ASIDE, PATH, SHA256, Needs, OneOf, Option, Range, Text, Values, declared
from dst.registry import MemberOf
from dst.sparsity import options as sparsity_options
from dst.tracking import options as tracking_options
from dst.training import options as training_options

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


# ---------------------------------------------------------------------------------------------------------------------
# Slots: a name, and the options that its member takes


@dataclass
class Slot:
    """A choice of one member of a registry, with the options of all of them; null is the member's default."""

    name: str = registry.NONE

    if TYPE_CHECKING:  # options of members are known to their own functions only

        def __init__(self, **options: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...


_S = TypeVar("_S", bound=type)


def of_members(kind: str) -> Callable[[_S], _S]:
    """Make a slot of a dataclass: it gets every option that a member of this kind takes, null until it is set."""

    def derive(group: _S) -> _S:
        name = Annotated[str, MemberOf(kind), _first_line(group)]
        own = [("name", name, field(default=group.name))]  # type: ignore[attr-defined]
        taken = [(name, _left_open(by_member), None) for name, by_member in registry.slot_options(kind).items()]
        made = make_dataclass(group.__name__, [*own, *taken], bases=(group,))
        made.__module__, made.__doc__ = group.__module__, group.__doc__
        return cast(_S, made)

    return derive


def _first_line(group: type) -> str:
    return (group.__doc__ or "").partition("\n")[0].rstrip(".")


def _left_open(by_member: Mapping[str, Option]) -> Any:
    """Return the type of an option that only some members of a slot take, as they declare it."""
    option, *_ = by_member.values()
    extras = (*((ASIDE,) if option.aside else ()), *((PATH,) if option.path else ()))
    return Annotated[option.type | None, option.help, *extras]


# ---------------------------------------------------------------------------------------------------------------------
# Groups


@of_members("model")
@dataclass
class Model(model_options.Model, Slot):
    """The network."""

    name: str = "mlp"
    weights: Annotated[str | None, ASIDE, PATH, "start from the weights of another run, given by its folder"] = None
    weights_digest: Annotated[
        str | None, SHA256, Needs("weights"), "identifies the checkpoint; null: the newest in the folder"
    ] = None


@of_members("data")
@dataclass
class Data(data_options.Data, Slot):
    """The data set."""

    name: str = "digits"
    augment: data_options.Augment = field(default_factory=data_options.Augment)


@of_members("distribution")
@dataclass
class Distribution(Slot):
    """How much where. ``none`` where init or pattern say themselves how many weights are kept.

    A saliency criterion gives each layer its share of the best weights of the network.
    """

    name: str = "dense"


@of_members("init")
@dataclass
class Init(Slot):
    """Which positions first."""

    name: str = "random"


@of_members("pattern")
@dataclass
class Pattern(Slot):
    """What shapes a mask may take."""

    name: str = "unstructured"


@of_members("drop")
@dataclass
class Drop(sparsity_options.Drop, Slot):
    """Who leaves."""


@of_members("grow")
@dataclass
class Grow(Slot):
    """Who enters."""


@of_members("redistribute")
@dataclass
class Redistribute(Slot):
    """Who gets the freed weights."""


@of_members("density_schedule")
@dataclass
class DensitySchedule(sparsity_options.DensitySchedule, Slot):
    """How dense over time, down to ``sparsity.density``."""


@of_members("drop_fraction")
@dataclass
class DropFraction(Slot):
    """How much of a layer moves in an update."""


@of_members("reparametrize")
@dataclass
class Reparametrize(sparsity_options.Reparametrize, Slot):
    """How masks are learned, out of the first ones."""


@dataclass
class Sparsity:
    """The sparse-training method as a composition of slots."""

    label: Annotated[str, ASIDE, "names the method's row in tables"] = "dense"
    density: sparsity_options.Density | None = None
    scope: sparsity_options.Scope = field(default_factory=sparsity_options.Scope)
    distribution: Distribution = field(default_factory=Distribution)
    init: Init = field(default_factory=Init)
    pattern: Pattern = field(default_factory=Pattern)
    repair: sparsity_options.Repair = field(default_factory=sparsity_options.Repair)
    drop: Drop = field(default_factory=Drop)
    grow: Grow = field(default_factory=Grow)
    redistribute: Redistribute = field(default_factory=Redistribute)
    drop_fraction: DropFraction = field(default_factory=DropFraction)
    density_schedule: DensitySchedule = field(default_factory=DensitySchedule)
    update: sparsity_options.Update = field(default_factory=sparsity_options.Update)
    reparametrize: Reparametrize = field(default_factory=Reparametrize)
    compute: sparsity_options.Compute = "masked"


@of_members("correction")
@dataclass
class Correction(Slot):
    """What is done to the gradient before the optimizer steps."""


@of_members("procedure")
@dataclass
class Procedure(Slot):
    """The phases of training, and what is done between them."""

    name: str = "single"


@of_members("optimizer")
@dataclass
class Optimizer(training_options.Optimizer, Slot):
    """The optimizer."""

    name: str = "sgd"


@of_members("lr")
@dataclass
class LearningRate(training_options.LearningRate, Slot):
    """How the learning rate falls, after a linear warm-up to its peak."""

    name: str = "cosine"


@dataclass
class Schedule(training_options.Schedule):
    """How long and how fast to train."""

    optimizer: Optimizer = field(default_factory=Optimizer)
    lr: LearningRate = field(default_factory=LearningRate)


@dataclass
class Hardware:
    """Where and how the run computes."""

    device: Annotated[str, OneOf("cpu", "cuda"), "the device to compute on"] = "cpu"
    determinism: training_options.Determinism = "strict"
    threads: training_options.Threads = 2
    precision: training_options.PrecisionName = "fp32"
    channels_last: training_options.ChannelsLast = False
    compile: Annotated[bool, "compile the model with torch.compile"] = False
    compile_mode: training_options.CompileMode = "default"
    capture: Annotated[training_options.Capture, ASIDE] = "auto"
    fused: kernel_options.Fused = "none"
    workers: Annotated[int, ASIDE, Range(0, 256), "processes that load streamed data"] = 0
    processes: Annotated[int, Range(1, 1024), "processes that share every batch, one GPU each"] = 1
    sync_batch_norm: Annotated[bool, "take batch statistics over all processes instead of in each"] = False
    slurm: Slurm = field(default_factory=Slurm)


@dataclass
class Output:
    """Where the record goes: ``root``/``group``/<run id>.

    A run that was begun under another group goes on there; the group has an entry for it.
    """

    root: Annotated[str, ASIDE, PATH, data_options.Folder, "where all records are"] = "outputs"
    group: Annotated[
        str,
        ASIDE,
        Text(r"(?s)(?![/.])(?!.*/\.).+", "a folder below output.root, without hidden parts"),
        "the folder of this run and others",
    ] = "default"
    resume: Annotated[
        str,
        ASIDE,
        OneOf("auto", "never", "require"),
        "auto: continue the run, or begin it; never: start a new attempt folder; require: refuse to train from step 0",
    ] = "auto"
    keep_networks: Annotated[bool, ASIDE, "keep weights and masks of the networks that the run makes on the way"] = (
        False
    )


@dataclass
class Tracking:
    """What is shown and logged, and where the record is mirrored to."""

    progress: Annotated[
        str, ASIDE, OneOf("auto", "bar", "plain", "none"), "auto: a bar on a terminal, plain lines elsewhere"
    ] = "auto"
    every_steps: Annotated[training_options.LogEverySteps, ASIDE] = 100
    reliable_steps: Annotated[sparsity_options.ReliableSteps | None, ASIDE] = None
    mode: Annotated[tracking_options.Mode, ASIDE] = "offline"
    project: Annotated[str | None, ASIDE, "wandb's project"] = "dst"
    entity: Annotated[str | None, ASIDE, "wandb's user or team; null: your own"] = None
    tags: Annotated[list[str], ASIDE, "wandb's tags, besides model, data, method and what wraps it"] = field(
        default_factory=list
    )
    notes: Annotated[str | None, ASIDE, "wandb's notes"] = None
    timeout_s: Annotated[tracking_options.Timeout, ASIDE] = 20.0


@dataclass
class Config:
    """One run: model x data x sparsity x correction x procedure x schedule x hardware."""

    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    sparsity: Sparsity = field(default_factory=Sparsity)
    correction: Correction = field(default_factory=Correction)
    procedure: Procedure = field(default_factory=Procedure)
    schedule: Schedule = field(default_factory=Schedule)
    hardware: Hardware = field(default_factory=Hardware)
    checkpoint: training_options.Checkpoint = field(default_factory=training_options.Checkpoint)
    output: Output = field(default_factory=Output)
    tracking: Tracking = field(default_factory=Tracking)
    seed: training_options.Seed = 0


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
    leaves = declared(node)
    return [
        (item.name, item.name not in leaves, item.name not in leaves or not leaves[item.name].aside)
        for item in fields(node)
    ]


def flatten(config: Config) -> dict[str, Any]:
    """Return all leaves as ``{dotted key: value}``."""
    return {key: value for key, value, _ in leaves(config)}


def nodes(node: Any, key: str = "", around: Values | None = None) -> Iterator[tuple[str, Any, Values]]:
    """Yield ``(dotted key, node, the values of all nodes that it lies in)`` of a config and every node below it."""
    around = around or {}
    yield key, node, around
    inside = {**around, **vars(node)}
    for name, is_node, _ in _fields(type(node)):  # type: ignore[arg-type]  # types are hashable
        if is_node:
            yield from nodes(getattr(node, name), f"{key}.{name}" if key else name, inside)


def seen_key(config: Config, key: str, name: str) -> str:
    """Return the key of an option that the node at ``key`` sees by name: its own, or that of a node it lies in."""
    while key and not hasattr(get(config, key), name):
        key = key.rpartition(".")[0]
    return f"{key}.{name}" if key else name


def epochs(config: Config) -> int:
    """Return how many epochs the run trains for."""
    return config.schedule.epochs * config.schedule.multiplier


def get(config: Config, key: str) -> Any:
    """Return the value (leaf or node) at a dotted key."""
    node: Any = config
    for part in key.split("."):
        node = getattr(node, part)
    return node


_REPLACED: Final = {"model.fan_in": "model.init=fan_in is what model.fan_in=true was; what false was is the default"}
"""Keys that there are no more -> what has taken their place."""


def replaced(*keys: str) -> str:
    """Return, as the end of a message that keys are unknown, what has taken their place; empty if nothing has."""
    return "".join(f": {_REPLACED[key]}" for key in keys if key in _REPLACED)


def with_value(node: Any, key: str, value: Any) -> Any:
    """Return a copy of a config (or of a node of it) in which the leaf at a dotted key has another value."""
    name, _, below = key.partition(".")
    return replace(node, **{name: with_value(getattr(node, name), below, value) if below else value})


# ---------------------------------------------------------------------------------------------------------------------
# Members and their options

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
    "sparsity.reparametrize": "reparametrize",
    "schedule.optimizer": "optimizer",
    "schedule.lr": "lr",
    "correction": "correction",
    "procedure": "procedure",
}
"""Dotted key of each slot -> its registry."""


def bound_options(config: Config, slot: str) -> dict[str, Any]:
    """Return the options of a slot's member as keyword arguments, defaults filled in."""
    node = get(config, slot)
    taken = registry.options(SLOTS[slot], node.name, vars(node))
    given = {name: getattr(node, name) for name in taken}
    return {name: taken[name].default if value is None else value for name, value in given.items()}


def marks(config: Config, slot: str) -> frozenset[str]:
    """Return the marks of a slot's member; none if there is no such member, which the checks report."""
    member = registry.members(SLOTS[slot]).get(get(config, slot).name)
    return member.marks if member else frozenset()


def complete(config: Config) -> Config:
    """Return a copy in which every option that was left null holds the value that will be used."""
    done = replace(config)
    for slot in SLOTS:
        *parents, last = slot.split(".")
        node = done
        for parent in parents:
            setattr(node, parent, replace(getattr(node, parent)))
            node = getattr(node, parent)
        setattr(node, last, replace(getattr(node, last), **bound_options(config, slot)))
    if done.data.digest is None:
        done.data.digest = published.digest(done.data.name)
    # Null where it has no use, so that it is part of the identity of those runs only that it changes.
    if done.sparsity.grow.name != registry.NONE and "ages" in marks(done, "schedule.optimizer"):
        update = done.sparsity.update
        done.sparsity.update = replace(update, adam_age=update.adam_age or "weight")
    return done
