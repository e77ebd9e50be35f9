"""From a config to the objects of a run; the only module that knows every factory."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial, update_wrapper
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dst import registry
from dst.config import SLOTS, Config, ConfigError, get, options
from dst.data import Augment, Batches, Dataset, channel_statistics, load, train_val_split
from dst.metrics.flops import Flops, forward_flops
from dst.sparsity import Scope, Sparsifier, UpdatePlan
from dst.sparsity.allocation import allocate
from dst.sparsity.distribution import uniform
from dst.training.determinism import configure, seed_torch
from dst.training.loop import Settings, Training
from dst.training.lr import LRPlan


@dataclass(frozen=True)
class Parts:
    """A run, ready to train. ``dense_training_flops``: what the same model costs dense, at ``multiplier=1``."""

    training: Training
    test_batches: Batches
    dataset: Dataset
    dense_training_flops: int
    device_name: str


def check(config: Config) -> None:
    """Raise ConfigError if data, model and method do not fit together, before anything is built or recorded.

    Needs the data, but neither time nor memory for the model.
    """
    if config.hardware.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(["hardware.device=cuda: PyTorch finds no CUDA GPU on this machine; use hardware=cpu"])
    try:
        dataset = _dataset(config)
        plan = _plan(config, len(_loaders(config, dataset).train))
        if plan is not None:
            _updating(config, plan)
        with torch.device("meta"):
            model = _model(config, dataset)
        forward_flops(model, dataset.shape)
        with _blaming("sparsity.scope"):
            shapes = [layer.weight.shape for layer in _scope(config).layers(model)]
        with _blaming(f"sparsity.density={config.sparsity.density}"):
            allocate(_part(config, "sparsity.distribution"), shapes, _initial_density(config))
            if config.sparsity.density is not None:  # the final one may be impossible where the first is not
                allocate(uniform, shapes, config.sparsity.density)
        if config.sparsity.redistribute.name != registry.NONE and len(shapes) < 2:
            raise ConfigError(
                [
                    f"sparsity.redistribute.name={config.sparsity.redistribute.name} would be ignored: the model has a "
                    "single sparse layer; set it to none"
                ]
            )
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError([str(error)]) from error


@contextmanager
def _blaming(key: str) -> Iterator[None]:
    """Turn a part's ValueError into a ConfigError that names the key to blame."""
    try:
        yield
    except ValueError as error:
        raise ConfigError([f"{key}: {error}"]) from error


def build(config: Config) -> Parts:
    """Return all objects of a run at its first step."""
    schedule, hardware = config.schedule, config.hardware
    configure(hardware.device, hardware.determinism, hardware.threads)
    dataset = _dataset(config)
    loaders = _loaders(config, dataset)
    steps_per_epoch = len(loaders.train)
    seed_torch(config.seed, "init")
    model = _model(config, dataset).to(hardware.device)
    optimizer = _part(config, "schedule.optimizer")(model.parameters(), lr=schedule.lr.peak)
    sparsifier = _sparsifier(config, model, optimizer, _plan(config, steps_per_epoch))
    flops = Flops(forward_flops(model, dataset.shape), {report.layer: report.size for report in sparsifier.layers})
    warmup_steps = round(schedule.lr.warmup_epochs * steps_per_epoch)
    training = Training(
        model=model,
        optimizer=optimizer,
        sparsifier=sparsifier,
        lr=_part(config, "schedule.lr")(LRPlan(schedule.lr.peak, _epochs(config) * steps_per_epoch, warmup_steps)),
        train_batches=loaders.train,
        val_batches=loaders.val,
        flops=flops,
        settings=_settings(config),
    )
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
    """Return the function that fills a slot, its options bound and its attributes kept; None if the slot is empty."""
    name = get(config, slot).name
    if name == registry.NONE:
        return None
    function = registry.find(SLOTS[slot], name).load()
    return update_wrapper(partial(function, **options(config, slot)), function)


# -- data --------------------------------------------------------------------------------------------------------------


def _dataset(config: Config) -> Dataset:
    data = config.data
    return _load_once(data.name, data.root, data.cache, data.download, data.size)


@cache
def _load_once(name: str, root: str, cache: str, download: bool, size: int | None) -> Dataset:
    """A sweep uses few data sets in many cells."""
    return load(name, registry.find("data", name).load(), root=root, cache=cache, download=download, size=size)


@dataclass(frozen=True)
class _Loaders:
    train: Batches
    val: Batches
    test: Batches


def _loaders(config: Config, dataset: Dataset) -> _Loaders:
    """Return the batches of all three splits, normalised by the statistics of the training split."""
    data = config.data
    train_index, val_index = train_val_split(dataset.train.labels, data.val_fraction, data.split_seed)
    train, val = dataset.train.select(train_index), dataset.train.select(val_index)
    mean, std = (data.mean, data.std) if data.mean is not None else channel_statistics(train)
    batches = partial(Batches, batch_size=config.schedule.batch_size, device=config.hardware.device, mean=mean, std=std)
    augment = Augment(**vars(data.augment))
    return _Loaders(
        train=batches(train, augment=augment, seed=config.seed, shuffle=True),
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
                f"step {round(plan.start * plan.total_steps)} to {plan.stop_step}, its last step aside. Set a smaller "
                "schedule.update_every, or train longer"
            ]
        )
    return plan


def _initial_density(config: Config) -> float | None:
    """Return the density at the first step; None if the distribution alone says it."""
    sparsity = config.sparsity
    if sparsity.distribution.name == "dense":
        return None
    initial = options(config, "sparsity.density_schedule").get("initial")
    return sparsity.density if initial is None else float(initial)


def _sparsifier(config: Config, model: nn.Module, optimizer: Optimizer, plan: UpdatePlan | None) -> Sparsifier:
    return Sparsifier(
        model,
        optimizer,
        density=_initial_density(config),
        distribution=_part(config, "sparsity.distribution"),
        init=_part(config, "sparsity.init"),
        pattern=_part(config, "sparsity.pattern"),
        scope=_scope(config),
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
        select=schedule.select,
        eval_every_epochs=schedule.eval_every_epochs,
        log_every_steps=config.tracking.every_steps,
        checkpoint_every_s=60 * checkpoint.every_min,
        checkpoint_every_steps=checkpoint.every_steps,
    )
