"""From a config to the objects of a run; the only module that knows every factory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from torch.optim import Optimizer

from dst import registry
from dst.config.method import learns, nominal_density
from dst.config.schema import SLOTS, Config, ConfigError, bound_options, epochs, get, marks
from dst.data import published
from dst.data.augment import Augment
from dst.data.cache import load
from dst.data.dataset import DataError, Dataset, NotHereError, Samples, Split
from dst.data.loader import Loader, loader, samples_within
from dst.data.normalise import channel_statistics
from dst.data.splits import train_val_split
from dst.data.table import Table, as_vectors
from dst.fractions import Curve, step_at
from dst.kernels.build import UnavailableError
from dst.kernels.build import load as load_kernels
from dst.kernels.fused import Fused, fuse
from dst.kernels.unit_blocks import load as load_unit_kernels
from dst.metrics.flops import Flops, Ledger, forward_flops
from dst.models.initialise import initialise
from dst.procedures.method import Length, Method
from dst.run.compiled import build_below
from dst.run.sources import CHECKPOINTS, checkpoint, goes_on, stored, with_checkpoints
from dst.run.terms import in_config_terms
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity.initial_masks import FirstParts, Start, first_masks
from dst.sparsity.marks import marks_of
from dst.sparsity.saliency import Probe
from dst.sparsity.update import TopologyUpdate, topology_update
from dst.sparsity.weights.packing import Packing, packed, packed_units, timed, timed_units
from dst.sparsity.weights.reparametrised import Edges, Reparametrization
from dst.training.batch_norm import batch_norms
from dst.training.captured import CudaGraphs
from dst.training.clipping import Clipping
from dst.training.correction import Correction, NoCorrection, Situation
from dst.training.decay import left_by_decay, parameter_groups
from dst.training.determinism import configure, seed_torch
from dst.training.distributed import ALONE, Processes
from dst.training.gradients import Gradients, Passes
from dst.training.length import steps_of
from dst.training.loop import Training
from dst.training.lr import LRPlan
from dst.training.phase import Phase
from dst.training.precision import Precision
from dst.training.replays import Capture
from dst.training.settings import Settings


@dataclass(frozen=True)
class Parts:
    """A run, ready to train.

    ``dense_training_flops``: what the same model costs dense, at ``multiplier=1``. ``fused``: what kernels
    compute of it.
    """

    training: Training
    test_batches: Loader
    dataset: Dataset
    dense_training_flops: int
    device_name: str
    fused: Fused


def build(config: Config, processes: Processes = ALONE) -> Parts:
    """Return all objects of a run at its first step; with several processes all of them call this.

    What it reads is compared with the digests in the config; DataError or ConfigError, naming both, if it differs.
    """
    is_new = not goes_on(config)
    config = with_checkpoints(config, {})
    hardware = config.hardware
    configure(hardware.device, hardware.determinism, hardware.threads)
    dataset = load_dataset(config)
    loaders = make_loaders(config, dataset, hardware.device)
    model = _initialised(config, dataset)
    dense_flops = forward_flops(model, dataset.shape)
    planned = partial(make_phases, config, len(loaders.train), model)
    phases = planned()
    sparsifier = _sparsifier(config, model, phases, _probe(config, model, loaders.train), processes)
    optimizer = _optimizer(config, model, sparsifier)
    sparsifier.attach(optimizer)
    fused = _convert(model, config)
    sizes = {report.layer: report.size for report in sparsifier.layers}
    flops = Flops(dense_flops, sizes, sparsifier.trained_by_layer)
    ledger = Ledger(flops)
    ledger.training.dense_forward(sparsifier.forward_passes)
    passes = Passes(_settings(config, dataset), Precision(hardware.precision, hardware.device), processes)
    gradients = Gradients(model, passes)
    training = Training(
        gradients=gradients,
        optimizer=optimizer,
        sparsifier=sparsifier,
        phases=phases,
        train_batches=loaders.train,
        val_batches=loaders.val,
        ledger=ledger,
        correction=_correction(config, Situation(gradients, sparsifier, loaders.train, ledger)),
        clipping=_clipping(config, model),
        capture=_capture(config, sparsifier, processes),
        replan=(lambda active: planned((active, flops.maskable))) if by_first_masks(config) else None,
    )
    if processes.world > 1:
        training.begin_alike()
    if is_new:  # else the masks are those of its checkpoint, which knows how many weights the first ones had
        training.plan(sparsifier.topology.active)
    return Parts(
        training=training,
        test_batches=loaders.test,
        dataset=dataset,
        dense_training_flops=flops.dense_training(_dense_samples(config, loaders.train)),
        device_name=torch.cuda.get_device_name() if hardware.device == "cuda" else "cpu",
        fused=fused,
    )


def total_steps(config: Config, steps_per_epoch: int) -> int:
    """Return how many steps the schedule has; a procedure may train for more."""
    return steps_of(epochs(config), steps_per_epoch, config.schedule.max_steps)


def _dense_samples(config: Config, train: Loader) -> int:
    """Return how many samples the dense training has that the run's FLOPs are compared with.

    It is the same schedule at ``multiplier=1``: a longer training costs more, and one that ends after some steps costs
    as much as these.
    """
    return samples_within(train, steps_of(config.schedule.epochs, len(train), config.schedule.max_steps))


def part(config: Config, slot: str) -> Any:
    """Return the function that fills a slot, its options bound; None if the slot is empty."""
    name = get(config, slot).name
    if name == registry.NONE:
        return None
    function = registry.find(SLOTS[slot], name).load()
    return partial(function, **bound_options(config, slot))


# -- data --------------------------------------------------------------------------------------------------------------


def load_dataset(config: Config) -> Dataset:
    """Return the data set, loaded once for all cells of a sweep; DataError, in config terms, if it cannot be had.

    A table's rows are encoded by those that it is trained on.
    """
    data = config.data
    storage = data.storage
    if data.augment.resized_crop_scale is not None and storage == "auto":
        storage = "stream"
    with in_config_terms("data"):
        found = _load_once(
            data.name,
            digest=data.digest or published.digest(data.name),  # of a config that is not complete
            root=data.root,
            cache=data.cache,
            download=data.download,
            size=data.size,
            center_crop=data.center_crop,
            storage=storage,
            given=_hashable(bound_options(config, "data")),
        )
        if isinstance(found, DataError):
            raise found
    if isinstance(found.train, Table):
        with in_config_terms("data", fraction="data.val_fraction"):
            return _encoded_once(found, data.val_fraction, data.split_seed)
    return found


def _hashable(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items())


@cache
def _load_once(name: str, given: tuple[tuple[str, Any], ...], **options: Any) -> Dataset | DataError:
    """Load a data set once; an error of its content is cached too, since many cells share it.

    ``given``: the options of its own.
    """
    try:
        return load(name, partial(registry.find("data", name).load(), **dict(given)), **options)
    except DataError as error:
        if isinstance(error, NotHereError) or isinstance(error.__cause__, OSError):  # which may be another next time
            raise
        return error


_encoded_once = cache(as_vectors)


@cache
def _split_once(dataset: Dataset, val_fraction: float, split_seed: int) -> tuple[Samples, Samples | None]:
    train, val = train_val_split(dataset.train.labels, val_fraction, split_seed)
    if len(val) == 0:
        return dataset.train, None
    return dataset.train.select(train), dataset.train.select(val)


@cache
def _statistics(train: Split) -> tuple[list[float], list[float]]:
    return channel_statistics(train)


@dataclass(frozen=True)
class _Loaders:
    train: Loader
    val: Loader | None
    test: Loader


def make_loaders(config: Config, dataset: Dataset, device: str) -> _Loaders:
    """Return the batches of the splits on a device, normalised by the statistics of the training split."""
    data = config.data
    with in_config_terms(fraction="data.val_fraction"):
        train, val = _split_once(dataset, data.val_fraction, data.split_seed)
    mean, std = data.mean, data.std
    if mean is None and isinstance(train, Split):
        mean, std = _statistics(train)
    batches = partial(
        loader,
        batch_size=config.schedule.batch_size,
        device=device,
        mean=mean,
        std=std,
        workers=config.hardware.workers,
    )
    with in_config_terms("data", batch_size="schedule.batch_size"):
        return _Loaders(
            train=batches(train, augment=Augment(**vars(data.augment)), seed=config.seed, shuffle=True),
            val=None if val is None else batches(val),
            test=batches(dataset.test),
        )


# -- model and method --------------------------------------------------------------------------------------------------


def make_model(config: Config, dataset: Dataset) -> nn.Module:
    """Return the network for the shape and the classes of a data set, on torch's default device, as it is drawn."""
    init, given = registry.find("model_init", config.model.init).load(), config.model
    with in_config_terms("model", size="data.size"):
        model: nn.Module = part(config, "model")(dataset.shape, dataset.classes)
        initialise(model, init, bias_scale=given.bias_scale, init_density=given.init_density)
    return model


def _initialised(config: Config, dataset: Dataset) -> nn.Module:
    """Return the network on its device and in its memory layout, with the weights that it starts from."""
    seed_torch(config.seed, "init")
    model = make_model(config, dataset).to(config.hardware.device)
    if config.model.weights is not None:
        model.load_state_dict(stored(config, "model.weights"))
    return model.to(memory_format=torch.channels_last) if _is_channels_last(config, dataset) else model


def _is_channels_last(config: Config, dataset: Dataset) -> bool:
    """Say whether images are stored channels-last: as asked, or as fused parts read and write them."""
    return config.hardware.channels_last or (config.hardware.fused == "all" and len(dataset.shape) == 3)


def _convert(model: nn.Module, config: Config) -> Fused:
    """Convert a network, in place, to what the hardware shall run; return what of it kernels compute."""
    hardware = config.hardware
    # Only once all is counted and scored: what is converted cannot be counted, nor differentiated twice.
    fused = fuse(model, kernels(config)) if hardware.fused == "all" else Fused()
    if hardware.sync_batch_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call,unused-ignore]
    if hardware.compile:
        build_below(Path(config.output.root))
        mode = {} if hardware.compile_mode == "default" else {"mode": hardware.compile_mode}
        model.compile(**mode)  # names of parameters, masks and checkpoints stay as they are
    return fused


def kernels(config: Config) -> Path:
    """Return the folder of the kernels, which are in it now; ConfigError says why this machine cannot have them."""
    folder = Path(config.output.root, ".kernels").absolute()
    try:
        load_kernels(folder) if config.hardware.device == "cpu" else load_unit_kernels(folder)
    except UnavailableError as error:
        asked = asks_for_kernels(config)
        told = " and ".join(f"{key}={value}" for key, (value, _) in asked.items())
        mend = " and ".join(f"{key}={none}" for key, (_, none) in asked.items())
        raise ConfigError([f"{told}: {error}; use {mend}"]) from error
    return folder


def asks_for_kernels(config: Config) -> dict[str, tuple[str, str]]:
    """Return the keys by which a config asks for kernels: their values, and those that do not."""
    asked = {
        "sparsity.compute": (config.sparsity.compute, "masked"),
        "hardware.fused": (config.hardware.fused, "none"),
    }
    return {key: (value, none) for key, (value, none) in asked.items() if value != none}


def _optimizer(config: Config, model: nn.Module, sparsifier: Sparsifier) -> Optimizer:
    schedule = config.schedule
    weights = sparsifier.weights
    groups = parameter_groups(model, schedule.optimizer.decay, weights.parameters, weights.groups)
    optimizer: Optimizer = part(config, "schedule.optimizer")(groups, lr=schedule.lr.peak)
    return optimizer


def _correction(config: Config, situation: Situation) -> Correction:
    """Return what is done to the gradients before each step."""
    correct: Callable[[Situation], Correction] | None = part(config, "correction")
    return NoCorrection() if correct is None else correct(situation)


def _clipping(config: Config, model: nn.Module) -> Clipping | None:
    """Return what clips the gradients; None if nothing does."""
    norm, value = config.schedule.clip_norm, config.schedule.clip_value
    return None if norm is None and value is None else Clipping(model.parameters(), norm=norm, value=value)


def _capture(config: Config, sparsifier: Sparsifier, processes: Processes) -> Capture:
    """Return what is captured; nothing on a CPU, where a launch costs next to nothing."""
    hardware = config.hardware
    if hardware.capture == "never" or hardware.device == "cpu":
        return Capture()
    obstacle, is_required = _in_the_way(config, sparsifier, processes), hardware.capture == "always"
    return Capture(None if obstacle else CudaGraphs(), obstacle, is_required)


def _in_the_way(config: Config, sparsifier: Sparsifier, processes: Processes) -> str | None:
    """Return what keeps steps from being captured, as far as it is known before the first one."""
    hardware = config.hardware
    if hardware.processes > 1 or processes is not ALONE:
        return f"hardware.processes={hardware.processes}: a step waits for other processes"
    if hardware.compile_mode != "default":
        return f"hardware.compile_mode={hardware.compile_mode}: the compiler makes graphs of its own"
    return sparsifier.weights.obstacle or None


def by_first_masks(config: Config) -> bool:
    """Say whether the phases depend on the first masks."""
    return "levels" in marks(config, "procedure")


def make_phases(
    config: Config, steps_per_epoch: int, model: nn.Module, first: tuple[int, int] | None = None
) -> list[Phase]:
    """Return the phases of a run, which trains this model.

    ``first``: how many weights the first masks have, of how many; None before it is known.
    """
    steps, batch_size = total_steps(config, steps_per_epoch), config.schedule.batch_size
    length = Length(epochs(config), steps_per_epoch, steps, batch_size)
    method = Method(
        lr=lambda steps: learning_rate(config, steps_per_epoch, steps),
        update=lambda steps: make_update(config, steps),
        density=final_density(config),
        has_batch_norm=bool(batch_norms(model)),
        first=first,
    )
    with in_config_terms("procedure", steps="schedule.max_steps"):
        phases: list[Phase] = part(config, "procedure")(length, method)
    return phases


def learning_rate(config: Config, steps_per_epoch: int, steps: int) -> Curve:
    """Return the learning rate over the steps of a phase."""
    lr = config.schedule.lr
    curve: Curve = part(config, "schedule.lr")(LRPlan(lr.peak, steps, step_at(lr.warmup_epochs, steps_per_epoch)))
    return curve


def _probe(config: Config, model: nn.Module, batches: Loader) -> Probe:
    """Return what the method may look at before the first step: the first training batches and the loss."""
    loss = partial(F.cross_entropy, label_smoothing=config.schedule.label_smoothing)
    return Probe(model, lambda count: islice(batches.epoch(0), count), loss, config.seed)


def make_scope(config: Config) -> Scope:
    """Return which weights may be sparse."""
    return Scope(**vars(config.sparsity.scope))


def make_update(config: Config, steps: int) -> TopologyUpdate | None:
    """Return how the topology is updated in a phase of so many steps; None without updates."""
    sparsity = config.sparsity
    if sparsity.update.every is None:
        return None
    with in_config_terms("sparsity.update"):
        plan = UpdatePlan(total_steps=steps, **vars(sparsity.update))
    parts = {slot: part(config, f"sparsity.{slot}") for slot in ("drop", "grow", "redistribute")}
    if sparsity.drop_fraction.name != registry.NONE:
        with in_config_terms("sparsity.drop_fraction"):
            parts["drop_fraction"] = part(config, "sparsity.drop_fraction")(plan)
    if sparsity.density_schedule.name != registry.NONE:
        with in_config_terms("sparsity.density_schedule", final="sparsity.density"):
            parts["density_curve"] = part(config, "sparsity.density_schedule")(plan, sparsity.density)
    with in_config_terms("sparsity.drop"):
        return topology_update(plan, **parts, drop_pool=sparsity.drop.pool, prune_pool=sparsity.density_schedule.pool)


def first_parts(config: Config) -> FirstParts:
    """Return the parts of the method that make the first masks."""
    drawn = {slot: _first_part(config, f"sparsity.{slot}") for slot in ("distribution", "init", "pattern")}
    return FirstParts(**drawn, repair=config.sparsity.repair)


def _first_part(config: Config, slot: str) -> Any:
    """Return what fills a slot; a part that looks at another run gets the checkpoint in the place of its folder."""
    found, key = part(config, slot), f"{slot}.path"
    if key not in CHECKPOINTS or get(config, key) is None:
        return found
    return partial(found, path=str(checkpoint(config, key)))


def initial_density(config: Config) -> float | None:
    """Return the density at the first step; None where an init, a pattern or ``dense`` counts by itself."""
    sparsity = config.sparsity
    if first_parts(config).own_counts:
        return None
    initial = bound_options(config, "sparsity.density_schedule").get("initial")
    return sparsity.density if initial is None else float(initial)


def final_density(config: Config) -> float | None:
    """Return the density that the method ends with; None where counts are the method's own, or others on purpose."""
    if learns(config):
        return nominal_density(config)
    ramps = config.sparsity.density_schedule.name != registry.NONE
    falls_short = bound_options(config, "sparsity.distribution").get("clip", False)
    rises = config.sparsity.repair.flow == "add"
    return None if (falls_short or rises) and not ramps else config.sparsity.density


def _sparsifier(
    config: Config, model: nn.Module, phases: Sequence[Phase], probe: Probe, processes: Processes
) -> Sparsifier:
    """Return what keeps the network sparse, its first masks drawn; an optimizer is still to be attached."""
    with in_config_terms(
        *(f"sparsity.{node}" for node in ("scope", "distribution", "init", "pattern", "repair", "drop")),
    ):
        return Sparsifier(
            model,
            None,
            density=initial_density(config),
            **vars(first_parts(config)),
            scope=make_scope(config),
            probe=probe,
            seed=config.seed,
            update=next((phase.update for phase in phases if phase.update is not None), None),
            compute=_packing(config, processes),
            reparametrize=(learn := _learn(config)),
            count_every=None if learn is None else config.sparsity.reparametrize.every,
            reliable_steps=config.tracking.reliable_steps,
        )


def _packing(config: Config, processes: Processes) -> str | Packing:
    """Return how sparse layers are multiplied; kernels are built if they are needed."""
    compute, is_on_gpu = config.sparsity.compute, config.hardware.device == "cuda"
    if compute == "masked":
        return compute
    if compute == "packed":
        return (packed_units if is_on_gpu else packed)(kernels(config))
    autocast = Precision(config.hardware.precision, "cpu").dtype
    return (timed_units if is_on_gpu else timed)(kernels(config), autocast=autocast, agree=processes.share)


def _learn(config: Config) -> Callable[[Edges], Reparametrization] | None:
    """Return how masks are learned; None if they are not."""
    make = part(config, "sparsity.reparametrize")

    def learn(edges: Edges) -> Reparametrization:
        with in_config_terms("sparsity.reparametrize"):
            made: Reparametrization = make(edges)
        return made

    return None if make is None else learn


def learned_masks(config: Config, dataset: Dataset) -> Reparametrization | None:
    """Return how masks are learned, as at the first step, of a network drawn on the CPU for this; None if they are not.

    Without a look at data: if first masks need one, or are repaired, all weights stand for those within the masks.
    """
    if (learn := _learn(config)) is None:
        return None
    with torch.random.fork_rng(devices=[]):
        model = _initialised(replace(config, hardware=replace(config.hardware, device="cpu")), dataset)
    layers, parts = make_scope(config).layers(model), first_parts(config)
    looks = marks_of(parts.distribution) | marks_of(parts.init)
    if parts.repair.asked or looks & {"data", "ranks"}:
        masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
    else:
        masks = first_masks(Start(layers, parts.patterns(layers), config.seed), parts, initial_density(config))
    return learn(Edges(layers, masks, config.seed))


def decay_alone(config: Config, phases: Sequence[Phase]) -> Callable[[float], float] | None:
    """Return what weight decay alone leaves of a parameter over all phases; None if the optimizer does not say."""
    optimizer = bound_options(config, "schedule.optimizer")
    rates = [phase.lr(step) for phase in phases for step in range(phase.steps)]
    return left_by_decay(marks(config, "schedule.optimizer"), rates, optimizer.get("momentum", 0.0))


def _settings(config: Config, dataset: Dataset) -> Settings:
    schedule, checkpoint = config.schedule, config.checkpoint
    return Settings(
        seed=config.seed,
        label_smoothing=schedule.label_smoothing,
        accumulate=schedule.accumulate,
        channels_last=_is_channels_last(config, dataset),
        select=schedule.select,
        eval_every_epochs=schedule.eval_every_epochs,
        log_every_steps=config.tracking.every_steps,
        checkpoint_every_s=60 * checkpoint.every_min,
        checkpoint_every_steps=checkpoint.every_steps,
    )
