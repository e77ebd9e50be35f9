"""From a config to the objects of a run; the only module that knows every factory."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the field's name for it
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from dst import published, registry
from dst.config import SLOTS, Config, ConfigError, get, options
from dst.data import (
    Augment,
    Dataset,
    Loader,
    NotHereError,
    Shard,
    Split,
    channel_statistics,
    load,
    loader,
    train_val_split,
)
from dst.data.dataset import DataError, Samples
from dst.fractions import step_at
from dst.metrics.flops import Flops, forward_flops
from dst.sources import checkpoint, stored, with_checkpoints
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity.allocation import allocate
from dst.sparsity.distribution import Distribution, uniform
from dst.sparsity.first import FirstParts, admissible, check_layout
from dst.sparsity.marks import marks_of
from dst.sparsity.saliency import Probe
from dst.sparsity.schedule import Curve
from dst.sparsity.scope import Layer
from dst.training.decay import parameter_groups
from dst.training.determinism import configure, seed_torch
from dst.training.distributed import ALONE, Processes, accumulation_parts
from dst.training.loop import Counters, Settings, Training
from dst.training.lr import LRPlan
from dst.training.precision import Precision


@dataclass(frozen=True)
class Parts:
    """A run, ready to train. ``dense_training_flops``: what the same model costs dense, at ``multiplier=1``."""

    training: Training
    test_batches: Loader
    dataset: Dataset
    dense_training_flops: int
    device_name: str


def check(config: Config, *, elsewhere: bool = False) -> None:
    """Raise ConfigError, with all problems, if data, model and method do not fit together.

    Before anything is built or recorded; needs the data, but neither time nor memory for the model, and touches no
    device: those who submit sit on machines without. ``elsewhere``: the run will be carried out on another machine, so
    its device is not looked for here, nor, if ``data.digest`` says which it is, data that is not here: then it only
    says that this was not checked.
    """
    if config.hardware.device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ConfigError(["hardware.device=cuda: PyTorch finds no CUDA GPU on this machine; use hardware=cpu"])
    problems: list[str] = []
    with _told(problems):
        try:
            dataset = _dataset(config)
        except NotHereError:
            if not elsewhere or (config.data.digest or published.digest(config.data.name)) is None:
                raise
            told = f"data.root={config.data.root}: there is no {config.data.name} here"
            print(f"note: {told}; whether the runs fit it is checked when they begin", file=sys.stderr)
            return
        train = _loaders(config, dataset, "cpu").train
        with _told(problems):
            _check_plan(config, len(train))
        with torch.device("meta"):
            model = _model(config, dataset)
        forward_flops(model, dataset.shape)
        with _told(problems):
            _check_shards(config, train.samples)
            _check_batch_norm(config, model, dataset, train.samples)
        with _told(problems):
            _check_sources(config, model)
        with _told(problems, "sparsity.scope: "):
            layers = _scope(config).layers(model)
            with _told(problems):
                _check_batches(config, len(train))
            with _told(problems, f"sparsity.init.path={config.sparsity.init.path}: "):
                _check_masks(config, layers)
            density = config.sparsity.density
            with _told(problems, "sparsity.pattern: " if density is None else f"sparsity.density={density}: "):
                _check_density(config, layers)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))


@contextmanager
def _told(problems: list[str], key: str = "") -> Iterator[None]:
    """Add what a part finds wrong to the problems, behind the key to blame, and go on after the block."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems
    except (ValueError, RuntimeError, MemoryError) as error:
        problems.append(f"{key}{error}")


def _check_plan(config: Config, steps_per_epoch: int) -> None:
    plan = _plan(config, steps_per_epoch)
    if plan is not None:
        _check_selection(config, steps_per_epoch, plan.total_steps, _updating(config, plan).get("density_curve"))
    lr = config.schedule.lr
    if lr.warmup_epochs > 0 and step_at(lr.warmup_epochs, steps_per_epoch) == 0:
        raise ConfigError(
            [f"schedule.lr.warmup_epochs={lr.warmup_epochs} is less than a step (an epoch has {steps_per_epoch})"]
        )


def _check_selection(config: Config, steps_per_epoch: int, total_steps: int, density: Curve | None) -> None:
    """Raise ConfigError if only the last evaluation is at the final density, so that there is nothing to select."""
    interval = steps_per_epoch * config.schedule.eval_every_epochs
    last_but_one = (total_steps - 1) // interval * interval
    if config.schedule.select == "best_val" and density and density(last_but_one) != density(total_steps):
        raise ConfigError(
            [
                f"schedule.select=best_val would be ignored: the density still falls at step {last_but_one} of "
                f"{total_steps}, where the last evaluation but one takes place, and only networks at their final "
                "density are selected. Let the ramp end earlier (sparsity.density_schedule.end), evaluate more often "
                "(schedule.eval_every_epochs), or use schedule.select=last"
            ]
        )


def _batch_sizes(config: Config, samples: int) -> set[int]:
    """Return the sizes of the batches of an epoch, of which the last one may be smaller."""
    batch_size = config.schedule.batch_size
    return {min(batch_size, samples), samples % batch_size} - {0}


def _check_shards(config: Config, samples: int) -> None:
    """Raise ConfigError if a batch does not leave every process a sample for each part that it accumulates."""
    schedule, processes = config.schedule, config.hardware.processes
    smallest = min(_batch_sizes(config, samples))
    if processes > 1 and smallest // processes < schedule.accumulate:
        each = f", each {schedule.accumulate} (schedule.accumulate)" if schedule.accumulate > 1 else ""
        raise ConfigError(
            [
                f"schedule.batch_size={schedule.batch_size}: the {samples} training samples leave a batch of "
                f"{smallest}, too few for {processes} processes (hardware.processes){each}; choose another batch size "
                "or fewer processes"
            ]
        )


def _check_batch_norm(config: Config, model: nn.Module, dataset: Dataset, samples: int) -> None:
    """Batch norm cannot train on one value a channel, which the last batch of an epoch may come to."""
    schedule, hardware = config.schedule, config.hardware
    has_batch_norm = any(isinstance(module, _BatchNorm) for module in model.modules())
    if hardware.sync_batch_norm:
        if not has_batch_norm:
            raise ConfigError(["hardware.sync_batch_norm=true would be ignored: the model has no batch norm"])
        return  # its statistics are over two processes or more
    if 1 in _part_sizes(config, samples) and has_batch_norm:
        try:
            model.train()(torch.empty(1, *dataset.shape, device="meta"))
        except ValueError as error:
            shared = f" and hardware.processes={hardware.processes}" if hardware.processes > 1 else ""
            raise ConfigError(
                [
                    f"schedule.batch_size: with schedule.batch_size={schedule.batch_size} and schedule.accumulate="
                    f"{schedule.accumulate}{shared} the {samples} training samples leave a batch of one, on which this "
                    "model's batch norm cannot train; choose another batch size"
                ]
            ) from error


def _part_sizes(config: Config, samples: int) -> set[int]:
    """Return the numbers of samples that pass through the model at once in training."""
    world, accumulate = config.hardware.processes, config.schedule.accumulate
    sizes: set[int] = set()
    for batch in _batch_sizes(config, samples):
        for rank in range(world):
            share = torch.empty(len(Shard(rank, world).of(range(batch))))
            sizes |= {len(part) for part in accumulation_parts(share, accumulate, world)}
    return sizes


def _check_density(config: Config, layers: list[Layer]) -> None:
    sparsity = config.sparsity
    shapes = [layer.weight.shape for layer in layers]
    parts = _first_parts(config)
    check_layout(layers, pattern=parts.pattern, init=parts.init, grow=_part(config, "sparsity.grow"))
    if parts.own_counts or parts.distribution is None:
        counts = [layer.size for layer in layers]
    else:  # where data will say how many weights a layer keeps, any distribution shows whether the density can be had
        by_data = "ranks" in marks_of(parts.distribution)
        distribution = uniform if by_data else cast(Distribution, parts.distribution)
        counts = allocate(distribution, shapes, _initial_density(config))
    counts = admissible(parts.pattern(), [layer.name for layer in layers], shapes, counts)
    if sparsity.density is not None:
        allocate(uniform, shapes, sparsity.density)  # the final one may be impossible where the first is not
    if sparsity.redistribute.name != registry.NONE and len(shapes) < 2:
        raise ConfigError(
            [
                f"sparsity.redistribute.name={sparsity.redistribute.name} would be ignored: the model has a single "
                "sparse layer; set it to none"
            ]
        )
    is_full = all(count == layer.size for count, layer in zip(counts, layers, strict=True))
    may_be_full = "own_counts" in marks_of(parts.init) or sparsity.density_schedule.name != registry.NONE
    if is_full and sparsity.drop.name != registry.NONE and not may_be_full:
        mend = "leave out drop and grow" if sparsity.density is None else "choose a smaller density"
        raise ValueError(f"no layer has an inactive weight, so that nothing could be grown; {mend}")


def _check_batches(config: Config, available: int) -> None:
    """Raise ConfigError if a part looks at more batches of data than there are."""
    for slot in ("sparsity.distribution", "sparsity.init"):
        wanted = options(config, slot).get("batches")
        if wanted is not None and wanted > available:
            raise ConfigError([f"{slot}.batches={wanted}: the training set has {available}; ask for fewer"])


def _check_sources(config: Config, model: nn.Module) -> None:
    """Raise ConfigError if the weights that are taken from another run are not there or do not fit."""
    if config.model.weights is None:
        return
    theirs = {name: tuple(t.shape) for name, t in stored(config, "model.weights")["model"].items()}
    ours = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    if theirs != ours:
        differing = sorted({name for name, _ in theirs.items() ^ ours.items()})
        raise ConfigError(
            [f"model.weights={config.model.weights} is of another model: {', '.join(differing[:6])} differ"]
        )


def _check_masks(config: Config, layers: list[Layer]) -> None:
    """Raise ValueError if masks that are taken from another run do not fit the model."""
    if config.sparsity.init.path is None:
        return
    masks = stored(config, "sparsity.init.path")["sparsifier"]["masks"]
    theirs = {name: tuple(mask.shape) for name, mask in masks.items()}
    ours = {layer.name: tuple(layer.weight.shape) for layer in layers}
    if theirs != ours:
        differing = sorted({name for name, _ in theirs.items() ^ ours.items()})
        raise ValueError(f"its masks are of another model or scope: layers {', '.join(differing[:6])} differ")


def build(config: Config, processes: Processes = ALONE) -> Parts:
    """Return all objects of a run at its first step; with several processes all of them call this.

    What it reads is compared with the digests in the config; DataError or ConfigError, naming both, if it differs.
    """
    config = with_checkpoints(config, {})
    schedule, hardware = config.schedule, config.hardware
    configure(hardware.device, hardware.determinism, hardware.threads)
    dataset = _dataset(config)
    loaders = _loaders(config, dataset, hardware.device)
    steps_per_epoch = len(loaders.train)
    seed_torch(config.seed, "init")
    model = _model(config, dataset).to(hardware.device)
    if config.model.weights is not None:
        model.load_state_dict(stored(config, "model.weights")["model"])
    if hardware.channels_last:
        model = model.to(memory_format=torch.channels_last)
    dense_flops = forward_flops(model, dataset.shape)
    groups = parameter_groups(model, schedule.optimizer.decay)
    optimizer = _part(config, "schedule.optimizer")(groups, lr=schedule.lr.peak)
    probe = Probe(
        model,
        lambda count: islice(loaders.train.epoch(0), count),
        partial(F.cross_entropy, label_smoothing=schedule.label_smoothing),
        config.seed,
    )
    sparsifier = _sparsifier(config, model, optimizer, _plan(config, steps_per_epoch), probe)
    if hardware.sync_batch_norm:  # only now, since it can neither be counted nor differentiated twice
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call,unused-ignore]
    if hardware.compile:
        model.compile()  # in place: names of parameters, masks and checkpoints stay as they are
    flops = Flops(dense_flops, {report.layer: report.size for report in sparsifier.layers})
    warmup_steps = step_at(schedule.lr.warmup_epochs, steps_per_epoch)
    training = Training(
        model=model,
        optimizer=optimizer,
        sparsifier=sparsifier,
        lr=_part(config, "schedule.lr")(LRPlan(schedule.lr.peak, _epochs(config) * steps_per_epoch, warmup_steps)),
        train_batches=loaders.train,
        val_batches=loaders.val,
        flops=flops,
        precision=Precision(hardware.precision, hardware.device),
        settings=_settings(config),
        counters=Counters(flops=sparsifier.forward_passes * flops.dense),
        processes=processes,
    )
    if processes.world > 1:
        training.begin_alike()
    return Parts(
        training=training,
        test_batches=loaders.test,
        dataset=dataset,
        dense_training_flops=flops.dense_training(schedule.epochs * loaders.train.samples),
        device_name=torch.cuda.get_device_name() if hardware.device == "cuda" else "cpu",
    )


def _epochs(config: Config) -> int:
    return config.schedule.epochs * config.schedule.multiplier


def _part(config: Config, slot: str) -> Any:
    """Return the function that fills a slot, its options bound; None if the slot is empty."""
    name = get(config, slot).name
    if name == registry.NONE:
        return None
    function = registry.find(SLOTS[slot], name).load()
    return partial(function, **options(config, slot))


# -- data --------------------------------------------------------------------------------------------------------------


def _dataset(config: Config) -> Dataset:
    data = config.data
    storage = data.storage
    if data.augment.resized_crop_scale is not None and storage == "auto":
        storage = "stream"
    found = _load_once(
        data.name,
        digest=data.digest or published.digest(data.name),  # of a config that is not complete
        root=data.root,
        cache=data.cache,
        download=data.download,
        size=data.size,
        center_crop=data.center_crop,
        storage=storage,
    )
    if isinstance(found, DataError):
        raise found
    return found


@cache
def _load_once(name: str, **options: Any) -> Dataset | DataError:
    """A sweep uses few data sets in many cells; to find out what is wrong with one may take as long as to load it."""
    try:
        return load(name, registry.find("data", name).load(), **options)
    except DataError as error:
        if isinstance(error, NotHereError) or isinstance(error.__cause__, OSError):  # which may be another next time
            raise
        return error


@cache
def _split_once(dataset: Dataset, val_fraction: float, split_seed: int) -> tuple[Samples, Samples]:
    train, val = train_val_split(dataset.train.labels, val_fraction, split_seed)
    return dataset.train.select(train), dataset.train.select(val)


@cache
def _statistics(train: Split) -> tuple[list[float], list[float]]:
    return channel_statistics(train)


@dataclass(frozen=True)
class _Loaders:
    train: Loader
    val: Loader
    test: Loader


def _loaders(config: Config, dataset: Dataset, device: str) -> _Loaders:
    """Return the batches of all three splits on a device, normalised by the statistics of the training split."""
    data = config.data
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
    return _Loaders(
        train=batches(train, augment=Augment(**vars(data.augment)), seed=config.seed, shuffle=True),
        val=batches(val),
        test=batches(dataset.test),
    )


# -- model and method --------------------------------------------------------------------------------------------------


def _model(config: Config, dataset: Dataset) -> nn.Module:
    model: nn.Module = _part(config, "model")(dataset.shape, dataset.classes)
    return model


def _scope(config: Config) -> Scope:
    return Scope(**vars(config.sparsity.scope))


def _plan(config: Config, steps_per_epoch: int) -> UpdatePlan | None:
    """Return the update plan; ConfigError if it has no update in the whole run."""
    update = config.sparsity.update
    if update.every is None:
        return None
    plan = UpdatePlan(total_steps=_epochs(config) * steps_per_epoch, **vars(update))
    if plan.updates() == 0:
        raise ConfigError(
            [
                f"sparsity.update.every={update.every}: there is no update in the whole run, which has "
                f"{plan.total_steps} steps ({_epochs(config)} epochs of {steps_per_epoch}) and allows updates from "
                f"step {plan.start_step} to {plan.stop_step}, its last step aside. Set a smaller "
                "schedule.update_every, or train longer"
            ]
        )
    return plan


def _first_parts(config: Config) -> FirstParts:
    init = _part(config, "sparsity.init")
    if config.sparsity.init.path is not None:
        init = partial(init, path=str(checkpoint(config, "sparsity.init.path")))
    return FirstParts(_part(config, "sparsity.distribution"), init, _part(config, "sparsity.pattern"))


def _initial_density(config: Config) -> float | None:
    """Return the density at the first step; None if something else than a density says how many weights are kept."""
    sparsity = config.sparsity
    if _first_parts(config).own_counts:
        return None
    initial = options(config, "sparsity.density_schedule").get("initial")
    return sparsity.density if initial is None else float(initial)


def _sparsifier(
    config: Config, model: nn.Module, optimizer: Optimizer, plan: UpdatePlan | None, probe: Probe
) -> Sparsifier:
    return Sparsifier(
        model,
        optimizer,
        density=_initial_density(config),
        **vars(_first_parts(config)),
        scope=_scope(config),
        probe=probe,
        seed=config.seed,
        plan=plan,
        **(_updating(config, plan) if plan else {}),
    )


def _updating(config: Config, plan: UpdatePlan) -> dict[str, Any]:
    """Return what only a method that updates its topology has."""
    sparsity = config.sparsity
    parts = {slot: _part(config, f"sparsity.{slot}") for slot in ("drop", "grow", "redistribute")}
    if sparsity.drop_fraction.name != registry.NONE:
        parts["drop_fraction"] = _part(config, "sparsity.drop_fraction")(plan)
    if sparsity.density_schedule.name != registry.NONE:
        parts["density_curve"] = _part(config, "sparsity.density_schedule")(plan, sparsity.density)
    return {**parts, "drop_pool": sparsity.drop.pool, "prune_pool": sparsity.density_schedule.pool}


def _settings(config: Config) -> Settings:
    schedule, checkpoint = config.schedule, config.checkpoint
    return Settings(
        seed=config.seed,
        epochs=_epochs(config),
        label_smoothing=schedule.label_smoothing,
        accumulate=schedule.accumulate,
        channels_last=config.hardware.channels_last,
        select=schedule.select,
        eval_every_epochs=schedule.eval_every_epochs,
        log_every_steps=config.tracking.every_steps,
        checkpoint_every_s=60 * checkpoint.every_min,
        checkpoint_every_steps=checkpoint.every_steps,
    )
