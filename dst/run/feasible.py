"""Whether data, model and method of a config fit together, found out before anything is built or recorded."""

import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dst import registry
from dst.config.method import learns, nominal_density
from dst.config.schema import Config, ConfigError, bound_options, get, marks
from dst.data import published
from dst.data.dataset import Dataset, NotHereError
from dst.data.shard import Shard
from dst.fractions import step_at
from dst.kernels.blocks import OCTET
from dst.kernels.fused import fuse
from dst.metrics.flops import forward_flops
from dst.network.stored import differing, shapes_of
from dst.options import refuse
from dst.records.lock import this_host
from dst.run.build import (
    asks_for_kernels,
    by_first_masks,
    decay_alone,
    final_density,
    first_parts,
    initial_density,
    kernels,
    learned_masks,
    learning_rate,
    load_dataset,
    make_loaders,
    make_model,
    make_phases,
    make_scope,
    part,
    total_steps,
)
from dst.run.sources import goes_on, stored, unfinished
from dst.run.terms import in_config_terms, translated
from dst.sparsity.allocation import allocate
from dst.sparsity.distribution import uniform
from dst.sparsity.initial_masks import check_layout, check_room, check_sharing, first_counts
from dst.sparsity.marks import marks_of
from dst.sparsity.repair.flow import check_enough
from dst.sparsity.scope import Layer
from dst.sparsity.weights.edge_popup import active_counts
from dst.sparsity.weights.packed_layer import LEAST_SAMPLES
from dst.sparsity.weights.packing import BLOCK_LIMIT, LIMIT, TIMED_LIMIT, is_sparse_enough, told, unpackable
from dst.training.distributed import accumulation_parts
from dst.training.length import length_problems
from dst.training.options import snapshot_problems
from dst.training.phase import Phase


def check(config: Config, *, elsewhere: bool = False) -> list[str]:
    """Raise ConfigError, with all problems, if data, model and method do not fit together; return warnings.

    Before anything is built or recorded. It needs the data, but neither time nor memory for the model, unless weights
    have to be drawn to see what may be learned of them; and it touches no device: those who submit sit on machines
    without one. ``elsewhere``: another machine will carry the run out, so its
    device is not looked for here. Nor is data that is not here, if ``data.digest`` identifies it: then a note says that
    this was not checked.
    """
    if config.hardware.device == "cuda" and not elsewhere and not torch.cuda.is_available():
        raise ConfigError(
            [f"hardware.device=cuda: PyTorch finds no CUDA GPU on this machine ({this_host()}); use hardware=cpu"]
        )
    problems: list[str] = []
    warnings: list[str] = []
    with _collected(problems):
        dataset = _dataset(config, elsewhere=elsewhere)
        if dataset is not None:
            _check_on(config, dataset, problems)
            if not problems and "outcome" in marks(config, "sparsity.reparametrize"):
                warnings += _outlook(config, dataset)
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    if asks_for_kernels(config) and not elsewhere:
        kernels(config)
    return warnings


def _dataset(config: Config, *, elsewhere: bool) -> Dataset | None:
    """Return the data set; None, with a note, where it need not be on this machine and is not."""
    try:
        return load_dataset(config)
    except NotHereError:
        if not elsewhere or (config.data.digest or published.digest(config.data.name)) is None:
            raise
        missing = f"data.root={config.data.root}: there is no {config.data.name} here"
        print(f"note: {missing}; whether the runs fit it is checked when they begin", file=sys.stderr)
        return None


def _check_on(config: Config, dataset: Dataset, problems: list[str]) -> None:
    """Add all that does not fit a data set to the problems."""
    train = make_loaders(config, dataset, "cpu").train
    if config.hardware.channels_last and len(dataset.shape) != 3:
        problems.append(
            f"hardware.channels_last=true is for images, but the samples of data={config.data.name} are vectors: set "
            "it to false"
        )
    _check_length(config, len(train), problems)
    with _collected(problems):
        _check_warmup(config, len(train))
    with torch.device("meta"):
        model = make_model(config, dataset)
    forward_flops(model, dataset.shape)
    if not problems:  # else they would be told twice
        with _collected(problems):
            _check_selection(config, len(train), make_phases(config, len(train), model)[-1])
    with _collected(problems):
        _check_shards(config, train.samples)
        _check_batch_norm(config, model, dataset, train.samples)
    if config.hardware.fused == "all" and not fuse(copy.deepcopy(model), Path()):
        problems.append(
            "hardware.fused=all would be ignored: the model has neither batch norm nor dropout; use hardware.fused=none"
        )
    with _collected(problems):
        _check_sources(config, model)
    with _collected(problems):
        _check_correction(config, len(train))
    with _collected(problems, "sparsity.scope: "), in_config_terms("sparsity.scope"):
        layers = make_scope(config).layers(model)
        with _collected(problems):
            _check_batches(config, len(train))
        misfits = list(_misfits(config, layers))
        problems += misfits
        if (name := config.sparsity.redistribute.name) != registry.NONE:
            with _collected(problems):
                check_sharing(layers, f"sparsity.redistribute.name={name}")
        if misfits and config.sparsity.distribution.path is not None:  # they would be told twice
            return
        density = config.sparsity.density
        with _collected(problems, "sparsity.pattern: " if density is None else f"sparsity.density={density}: "):
            counts = _check_density(config, layers)
            if not problems:
                problems += _blocks_nowhere(config, layers, counts)
        keeps_masks = config.sparsity.compute == "auto" and config.hardware.device == "cuda"  # and says so
        if config.sparsity.compute != "masked" and not problems and not keeps_masks:
            problems += _packed_nowhere(config, model, layers, counts)
        if learns(config) and not problems:
            with _collected(problems), in_config_terms("sparsity.reparametrize"):
                _check_target(config, layers, counts)
        if by_first_masks(config) and not problems:
            _check_levels(config, layers, problems)
            if not (problems or goes_on(config) or first_parts(config).own_counts):  # else only the masks tell
                with _collected(problems):
                    make_phases(config, len(train), model, (sum(counts), sum(layer.size for layer in layers)))


@contextmanager
def _collected(problems: list[str], key: str = "") -> Iterator[None]:
    """Add what a part finds wrong to the problems, behind the key to blame, and go on after the block."""
    try:
        yield
    except ConfigError as error:
        problems += error.problems
    except (ValueError, RuntimeError, MemoryError) as error:
        problems.append(f"{key}{error}")


def _check_length(config: Config, steps_per_epoch: int, problems: list[str]) -> None:
    """Add to the problems what does not fit the number of steps."""
    schedule = config.schedule
    with _collected(problems), in_config_terms("schedule"):
        refuse(length_problems(schedule.max_steps, schedule.epochs, schedule.multiplier, steps_per_epoch))
    length = {} if schedule.max_steps is None else {"total_steps": "schedule.max_steps"}
    with _collected(problems, f"schedule.lr.warmup_epochs={schedule.lr.warmup_epochs}: "), in_config_terms(**length):
        learning_rate(config, steps_per_epoch, total_steps(config, steps_per_epoch))


def _check_warmup(config: Config, steps_per_epoch: int) -> None:
    warmup_epochs = config.schedule.lr.warmup_epochs
    if warmup_epochs > 0 and step_at(warmup_epochs, steps_per_epoch) == 0:
        raise ConfigError(
            [f"schedule.lr.warmup_epochs={warmup_epochs} is less than a step (an epoch has {steps_per_epoch})"]
        )


def _check_selection(config: Config, steps_per_epoch: int, phase: Phase) -> None:
    """Raise ConfigError if only the last evaluation is at the final density: there would be nothing to select."""
    interval = steps_per_epoch * config.schedule.eval_every_epochs
    last_but_one = (phase.steps - 1) // interval * interval
    density = phase.update.density_curve if phase.update else None
    if config.schedule.select == "best_val" and density and density(last_but_one) != density(phase.steps):
        raise ConfigError(
            [
                f"schedule.select=best_val would be ignored: the density still falls at step {last_but_one} of "
                f"{phase.steps}, where the last evaluation but one takes place, and only networks at their final "
                "density are selected. Let the ramp end earlier (sparsity.density_schedule.end), evaluate more often "
                "(schedule.eval_every_epochs), or use schedule.select=last"
            ]
        )


def _batch_sizes(config: Config, samples: int) -> set[int]:
    """Return the sizes of the batches of an epoch, of which the last one may be smaller."""
    batch_size = config.schedule.batch_size
    return {min(batch_size, samples), samples % batch_size} - {0}


def _check_shards(config: Config, samples: int) -> None:
    """Raise ConfigError if a batch has too few samples for the processes and the parts that each accumulates."""
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
    """Raise ConfigError if batch norm would see one value a channel, as in a last batch of one: it cannot train."""
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


def _check_correction(config: Config, steps_per_epoch: int) -> None:
    """Raise OptionError if an epoch has too few batches for what a correction estimates of them."""
    if "snapshot" in marks(config, "correction"):
        problems = snapshot_problems(steps_per_epoch, lambda name: f"schedule.{name}")
        refuse(f"correction.name={config.correction.name} {problem}, or correction=none" for problem in problems)


def _part_sizes(config: Config, samples: int) -> set[int]:
    """Return how many samples pass through the model at once in training: all numbers that occur."""
    world, accumulate = config.hardware.processes, config.schedule.accumulate
    sizes: set[int] = set()
    for batch in _batch_sizes(config, samples):
        for rank in range(world):
            share = torch.empty(len(Shard(rank, world).of(range(batch))))
            sizes |= {len(part) for part in accumulation_parts(share, accumulate, world)}
    return sizes


def _outlook(config: Config, dataset: Dataset) -> Iterator[str]:
    """Yield a warning if training will hardly change what is active; ConfigError if it cannot even begin."""
    if config.sparsity.repair.orthogonal:  # it changes weights, in minutes: what they will be is not known here
        return
    learned = learned_masks(config, dataset)
    steps_per_epoch = len(make_loaders(config, dataset, "cpu").train)
    with torch.device("meta"):
        model = make_model(config, dataset)
    left = decay_alone(config, make_phases(config, steps_per_epoch, model))
    if learned and left and (warning := learned.warning(left)) is not None:
        yield translated(warning, "sparsity.reparametrize")


def _check_levels(config: Config, layers: list[Layer], problems: list[str]) -> None:
    """Add to the problems that levels of pruning cannot end with a weight in each layer."""
    density = bound_options(config, "procedure")["density"]
    with _collected(problems, f"procedure.density={density}: "):
        allocate(uniform, [layer.weight.shape for layer in layers], density)


def _check_density(config: Config, layers: list[Layer]) -> list[int]:
    """Return the first counts; ValueError for densities that are impossible."""
    sparsity = config.sparsity
    parts = first_parts(config)
    check_layout(layers, pattern=parts.pattern, init=parts.init, grow=part(config, "sparsity.grow"))
    with in_config_terms("sparsity.pattern", "sparsity.distribution"):
        counts = first_counts(layers, parts, initial_density(config))
    if sparsity.density is not None:  # the final one may be impossible where the first is not
        allocate(uniform, [layer.weight.shape for layer in layers], sparsity.density)
    if sparsity.repair.flow == "move" and not parts.own_counts and "free_form" not in marks_of(parts.init):
        with in_config_terms("sparsity.repair"):
            check_enough(layers, sum(counts))
    may_be_full = "own_counts" in marks_of(parts.init) or sparsity.density_schedule.name != registry.NONE
    if sparsity.drop.name != registry.NONE and not may_be_full:
        check_room(layers, counts)
    return counts


def _blocks_nowhere(config: Config, layers: Sequence[Layer], counts: Sequence[int]) -> Iterator[str]:
    """Yield that no sparse layer would be in blocks."""
    pattern = first_parts(config).pattern()
    if not pattern.in_blocks:
        return
    sparse = [layer for layer, count in zip(layers, counts, strict=True) if count < layer.size]
    found = {layer.name: pattern.exception(layer.shape) for layer in sparse}
    if sparse and None not in found.values():
        yield (
            f"sparsity.pattern.name={config.sparsity.pattern.name} would be ignored, since no sparse layer fits: "
            f"{told({name: why for name, why in found.items() if why is not None})}; use another "
            "sparsity.pattern.block_size, or sparsity.pattern.name=unstructured"
        )


def _packed_nowhere(config: Config, model: nn.Module, layers: Sequence[Layer], counts: Sequence[int]) -> Iterator[str]:
    """Yield that no layer would be packed, at any time of the run."""
    stay = unpackable(model, layers, config.hardware.device)
    own = f"sparsity.compute={config.sparsity.compute} would be ignored: no layer could be packed at any time"
    if len(stay) == len(layers):
        yield f"{own}: {told(stay)}; use sparsity.compute=masked"
        return
    samples = config.schedule.batch_size // (config.schedule.accumulate * config.hardware.processes)
    if samples < LEAST_SAMPLES and not any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
        yield (
            f"{own}, since only batches of {LEAST_SAMPLES} samples and more are, not of {samples} "
            "(schedule.batch_size, less accumulation and processes); use sparsity.compute=masked, or a larger batch"
        )
        return
    rows = bound_options(config, "sparsity.pattern").get("block_size", 0)
    limit = BLOCK_LIMIT if rows > 0 and rows % OCTET == 0 else LIMIT
    limit = TIMED_LIMIT if config.sparsity.compute == "auto" else limit
    schedule, final = config.sparsity.density_schedule, final_density(config)
    if schedule.name != registry.NONE:
        may_fall = schedule.pool == "global" or (final is not None and final <= limit)
    else:
        parts = first_parts(config)
        is_unknown = (
            "own_counts" in marks_of(parts.init)
            or "ranks" in marks_of(parts.distribution)
            or parts.repair.flow == "move"
        )
        may_fall = is_unknown or by_first_masks(config) or config.sparsity.redistribute.name != registry.NONE
    pairs = zip(layers, counts, strict=True)
    if not may_fall and not any(is_sparse_enough(la, n, limit) for la, n in pairs if la.name not in stay):
        others = f"; besides, these never are: {told(stay)}" if stay else ""
        yield f"{own}, all are denser than {limit}{others}; use sparsity.compute=masked, or a smaller density"


def _check_target(config: Config, layers: list[Layer], counts: list[int]) -> None:
    """Raise ValueError for a density of learned masks that first masks of these counts cannot have."""
    target = nominal_density(config)
    if target is not None and not first_parts(config).own_counts and config.sparsity.repair.flow != "add":
        active_counts(target, [layer.size for layer in layers], counts)


def _check_batches(config: Config, available: int) -> None:
    """Raise ConfigError if a part looks at more batches of data than there are."""
    for slot in ("sparsity.distribution", "sparsity.init"):
        wanted = bound_options(config, slot).get("batches")
        if wanted is not None and wanted > available:
            raise ConfigError([f"{slot}.batches={wanted}: the training set has {available}; ask for fewer"])


def _check_sources(config: Config, model: nn.Module) -> None:
    """Raise ConfigError if the weights of another run, to start from, are not there or do not fit."""
    if config.model.weights is None:
        return
    if misfit := differing(shapes_of(stored(config, "model.weights")), shapes_of(model.state_dict())):
        raise ConfigError([f"model.weights={config.model.weights} is of another model: {misfit}"])


def _misfits(config: Config, layers: list[Layer]) -> Iterator[str]:
    """Yield why the masks of other runs cannot be used: they are of another model, or not the final ones."""
    here = {layer.name: layer.weight.shape for layer in layers}
    for key in ("sparsity.init.path", "sparsity.distribution.path"):
        if get(config, key) is None:
            continue
        try:
            masks = stored(config, key)
        except ConfigError as error:
            yield from error.problems
            continue
        if misfit := differing(shapes_of(masks), here):
            yield f"{key}={get(config, key)}: its masks are of another model or scope: {misfit}"
    if config.sparsity.distribution.path is not None:
        yield from unfinished(config, "sparsity.distribution.path")
