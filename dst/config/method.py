"""Refuse compositions of a sparsity method that make no sense; ignore nothing."""

from collections.abc import Iterable, Iterator

from dst import registry
from dst.config.schema import Config, bound_options, get, marks
from dst.options import declared, shown
from dst.sparsity.options import (
    Part,
    age_problems,
    compute_problems,
    drop_problems,
    learning_problems,
    pattern_problems,
    ramp_problems,
    repair_problems,
    scope_problems,
    target_problems,
)


def _marks(config: Config, slot: str) -> frozenset[str]:
    return marks(config, f"sparsity.{slot}")


def _named(config: Config, slot: str) -> str:
    return f"sparsity.{slot}.name={get(config, f'sparsity.{slot}').name}"


def _part(config: Config, slot: str) -> Part:
    return Part(_named(config, slot), _marks(config, slot))


def _chosen(config: Config, *slots: str) -> list[str]:
    """Return the slots that have a member, as people are told of them."""
    return [_named(config, slot) for slot in slots if get(config, f"sparsity.{slot}").name != registry.NONE]


def _with_own_counts(config: Config) -> list[str]:
    """Return the init and the pattern, as far as they say themselves how many weights are kept."""
    return [_named(config, slot) for slot in ("init", "pattern") if "own_counts" in _marks(config, slot)]


def moves(config: Config) -> bool:
    """Say whether weights are dropped and grown."""
    return any(get(config, f"sparsity.{slot}").name != registry.NONE for slot in ("drop", "grow", "drop_fraction"))


def learns(config: Config) -> bool:
    """Say whether masks are learned."""
    return config.sparsity.reparametrize.name != registry.NONE


def nominal_density(config: Config) -> float | None:
    """Return the density that is asked for at the end; None where nothing asks for one: it is an outcome."""
    if "levels" in marks(config, "procedure"):
        return bound_options(config, "procedure")["density"]  # type: ignore[no-any-return]
    if not learns(config):
        return config.sparsity.density
    return config.sparsity.reparametrize.density if "target" in _marks(config, "reparametrize") else None


def check_learning(config: Config) -> Iterator[str]:
    """Yield what does not go with learned masks, and what only they need."""
    if not learns(config):
        yield from _ignored(config, ["reparametrize.every"], ": masks are not learned")
        return
    moving = _chosen(config, "drop", "grow", "redistribute", "drop_fraction", "density_schedule")
    yield from learning_problems(_part(config, "reparametrize"), moving)
    if config.schedule.select == "best_val" and "outcome" in _marks(config, "reparametrize"):
        yield (
            f"schedule.select=best_val: with {_named(config, 'reparametrize')} networks become sparser as they train, "
            "so that an early one, denser than the last, may be the best; use schedule.select=last"
        )
    target = nominal_density(config)
    if target is not None and config.sparsity.density is not None and config.sparsity.repair.flow != "add":
        found = target_problems(target, config.sparsity.density)
        yield from (f"sparsity.reparametrize.{problem}" for problem in found)


def check_compute(config: Config) -> Iterator[str]:
    """Yield what does not go with the way in which sparse layers are multiplied."""
    compute, hardware = config.sparsity.compute, config.hardware
    yield from (f"sparsity.{problem}" for problem in compute_problems(compute, learns=learns(config)))
    if compute == "masked":
        return
    own = f"sparsity.compute={compute}"
    if hardware.device == "cuda" and compute == "packed" and not _has_units(config):
        yield (
            f"{own}: on hardware.device=cuda weights are multiplied by units of 16 adjacent inputs that groups of 32 "
            "rows or more share, as a sparsity.pattern with column_unit=16 and a block_size of 32, 64 or 128 makes "
            "them; use one, or sparsity.compute=masked"
        )
    if compute == "auto" and hardware.determinism == "strict":
        yield (
            f"{own} goes by times, which differ from one time to the next, so that hardware.determinism=strict cannot "
            "hold; use sparsity.compute=packed, a fixed rule, or hardware.determinism=fast"
        )
    if hardware.compile:
        yield f"{own}: torch.compile sees nothing of its kernels; set hardware.compile=false, or compute=masked"


def _has_units(config: Config) -> bool:
    """Say whether masks are of units that kernels on a GPU multiply by."""
    options = bound_options(config, "sparsity.pattern")
    block = options.get("block_size", 0)
    return options.get("column_unit") == 16 and block > 0 and block % 32 == 0


def check_density(config: Config) -> Iterator[str]:
    """Yield problems of the density: what says how many weights are kept, first and last."""
    sparsity, schedule = config.sparsity, config.sparsity.density_schedule
    own = _with_own_counts(config)
    if own:
        yield from _check_own_counts(config, own)
        return
    if schedule.name == registry.NONE:
        if sparsity.distribution.name == "dense" and sparsity.density is not None:
            told, mend = (
                ("has all weights in its first masks", "Use null, or a sparse distribution such as uniform")
                if learns(config)
                else ("trains all weights", "Remove it, or choose a sparse method, e.g. sparsity=rigl_itop")
            )
            yield f"sparsity.density={sparsity.density} would be ignored: sparsity '{sparsity.label}' {told}. {mend}"
        yield from _ignored(config, ["density_schedule.pool"], " without a density schedule")
    elif sparsity.distribution.name == "dense" and schedule.initial not in (None, 1):
        yield (
            f"sparsity.density_schedule.initial={schedule.initial} would be ignored: the distribution is dense at "
            "first; choose uniform, er or erk, or an initial density of 1"
        )
    if sparsity.distribution.name == registry.NONE:
        yield (
            f"sparsity.distribution.name=none: nothing says how many weights each layer keeps, since "
            f"{_named(config, 'init')} and {_named(config, 'pattern')} do not; choose uniform, er or erk, and a density"
        )
    is_sparse = sparsity.distribution.name != "dense" or schedule.name != registry.NONE
    if is_sparse and sparsity.density is None:
        yield f"sparsity.density is missing: sparsity '{sparsity.label}' needs it, e.g. sparsity.density=0.1"


def _check_own_counts(config: Config, own: list[str]) -> Iterator[str]:
    sparsity, who = config.sparsity, " and ".join(own)
    mend = "sparsity.density=null sparsity.distribution.name=none"
    if sparsity.density is not None:
        yield (
            f"sparsity.density={sparsity.density} would be ignored: {who} says itself how many weights are kept. Use "
            f"{mend}"
        )
    if sparsity.distribution.name != registry.NONE:
        yield (
            f"sparsity.distribution.name={sparsity.distribution.name} would be ignored: {who} says itself how many "
            f"weights each layer keeps. Use {mend}"
        )
    if sparsity.density_schedule.name != registry.NONE:
        yield (
            f"sparsity.density_schedule.name={sparsity.density_schedule.name} leads from the density of a distribution "
            f"to another, but {who} says itself how many weights are kept; use an init such as random, or "
            "sparsity.density_schedule.name=none"
        )


def check_parts(config: Config) -> Iterator[str]:
    """Yield options of distribution, init, pattern and drop that do not go together."""
    yield from _check_all_weights(config)
    yield from _check_fixed_layers(config)
    changing = _chosen(config, "redistribute", "density_schedule", "reparametrize")
    pattern, init = _part(config, "pattern"), _part(config, "init")
    yield from pattern_problems(pattern, init, changing)
    yield from (f"sparsity.repair.{problem}" for problem in repair_problems(config.sparsity.repair, pattern, init))


def _check_all_weights(config: Config) -> Iterator[str]:
    """Yield inits, patterns and repairs that would find nothing to do, since all weights are kept."""
    sparsity, schedule = config.sparsity, config.sparsity.density_schedule
    if _with_own_counts(config):  # another check reports those that also have a distribution
        return
    if sparsity.distribution.name == "dense":
        why, mend = "sparsity.distribution.name=dense", "uniform, er or erk, and a density"
    elif schedule.name != registry.NONE and schedule.initial in (None, 1):
        why, mend = "sparsity.density_schedule.initial=1", "an initial density below 1"
    else:
        return
    for slot, default in (("init", "random"), ("pattern", "unstructured")):
        if get(config, f"sparsity.{slot}").name != default:
            yield (
                f"{_named(config, slot)} would be ignored: with {why} all weights are active at first. Choose {mend}, "
                f"or sparsity.{slot}.name={default}"
            )
    if sparsity.repair.flow != "none":
        yield (
            f"sparsity.repair.flow={sparsity.repair.flow} would be ignored: with {why} all weights are active at "
            f"first, and on a path. Choose {mend}, or sparsity.repair.flow=none"
        )


def _check_fixed_layers(config: Config) -> Iterator[str]:
    """Yield layers with a density of their own that are not in scope."""
    sparsity = config.sparsity
    found = scope_problems(sparsity.scope, _part(config, "distribution"), sparsity.distribution.classifier)
    yield from (f"sparsity.scope.{problem}" for problem in found)


def check_update(config: Config) -> Iterator[str]:
    """Yield problems of what moves, how much and when."""
    sparsity, update, ramp = config.sparsity, config.sparsity.update, config.sparsity.density_schedule
    prunes = ramp.name != registry.NONE
    if learns(config):
        yield from _ignored(config, ["drop.pool", *_update_keys(config)], ": masks are learned")
        return
    yield from _check_moves(config) if moves(config) else _ignored_without_moves(config)
    if moves(config) and sparsity.distribution.name == "dense" and not prunes:
        yield (
            f"sparsity.distribution.name=dense leaves nothing to drop and grow, but sparsity '{sparsity.label}' "
            "updates its topology: choose uniform, er or erk, and a density"
        )
    if not (moves(config) or prunes):
        yield from _ignored_update_keys(config)
        return
    if update.every is None:
        yield (
            f"sparsity.update.every is missing: sparsity '{sparsity.label}' updates its topology, e.g. "
            "sparsity.update.every=${schedule.update_every}"
        )
    if prunes and ramp.end is not None:
        found = ramp_problems(ramp.start or 0.0, ramp.end, update)
        yield from (f"sparsity.density_schedule.{problem.replace('plan.', 'sparsity.update.')}" for problem in found)


def _check_moves(config: Config) -> Iterator[str]:
    """Yield problems of drop, grow and drop fraction, which go together."""
    sparsity = config.sparsity
    cuts = "cuts" in _marks(config, "drop")
    slots = ("drop", "grow") if cuts else ("drop", "grow", "drop_fraction")
    missing = [slot for slot in slots if get(config, f"sparsity.{slot}").name == registry.NONE]
    if missing:
        present = ", ".join(_named(config, slot) for slot in slots if slot not in missing)
        yield (
            f"weights move by drop, grow and drop fraction together: {present or 'the others'} would be ignored "
            f"without {', '.join(f'sparsity.{slot}.name' for slot in missing)}. Set all three, or none"
        )
    pool = [] if sparsity.drop.pool == "layer" else [f"sparsity.drop.pool={sparsity.drop.pool}"]
    yield from drop_problems(_part(config, "drop"), [*_chosen(config, "drop_fraction"), *pool])
    optimizer = config.schedule.optimizer.name
    ages = Part(f"schedule.optimizer.name={optimizer}", marks(config, "schedule.optimizer"))
    found = age_problems(sparsity.update.adam_age, ages, grows=True)
    yield from (f"sparsity.update.{problem} (null)" for problem in found)
    if config.hardware.precision == "fp16" and "momentum" in _marks(config, "grow") | _marks(config, "redistribute"):
        yield (
            "hardware.precision=fp16 does not go with growth or redistribution by momentum: gradients are read before "
            "they are unscaled, so that their moving average would mix different loss scales; use bf16 or fp32"
        )


_READ_BY_UPDATES = ("ablation", "regroup_every_updates")
"""Options of patterns that only dropping and growing goes by."""


def _ignored_without_moves(config: Config) -> Iterator[str]:
    taken = registry.find("pattern", config.sparsity.pattern.name).options
    for name in [name for name in _READ_BY_UPDATES if name in taken]:
        value, default = bound_options(config, "sparsity.pattern")[name], taken[name].default
        if value != default:
            told = f"sparsity.pattern.{name}={shown(value)}"
            yield f"{told} would be ignored: nothing is dropped and grown. Use {shown(default)}"
    keys = ["redistribute.name", "drop.pool"]
    if config.sparsity.density_schedule.name != registry.NONE:  # without it every key of update is reported anyway
        keys += [f"update.{name}" for name in ("regrow", "grown_weights", "returning_weights", "adam_age")]
    yield from _ignored(config, keys, ": nothing is dropped and grown")


def _ignored_update_keys(config: Config) -> Iterator[str]:
    yield from _ignored(
        config, _update_keys(config), f": sparsity '{config.sparsity.label}' never updates its topology"
    )


def _update_keys(config: Config) -> list[str]:
    return [f"update.{name}" for name in declared(type(config.sparsity.update))]


def _ignored(config: Config, keys: Iterable[str], why: str) -> Iterator[str]:
    """Yield those of some keys that differ from their default, which would be ignored."""
    for key in keys:
        node, name = key.split(".")
        group = getattr(config.sparsity, node)
        value, default = getattr(group, name), declared(type(group))[name].default
        if value != default:
            yield f"sparsity.{key}={shown(value)} would be ignored{why}. Use {shown(default)}"
