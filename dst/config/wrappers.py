"""Refuse corrections and procedures that do not go with the rest of a run; ignore nothing."""

from collections.abc import Iterator
from typing import Any

from dst import registry
from dst.config.method import learns, moves, nominal_density
from dst.config.schema import SLOTS, Config, bound_options, epochs, get, marks
from dst.options import problems, shown
from dst.procedures.options import (
    Budget,
    annealing_epochs,
    annealing_problems,
    annealing_start_problems,
    budget,
    budget_problems,
    rewind_problems,
    start_problems,
    still_problems,
    superposing_problems,
)
from dst.sparsity.options import Part, drop_problems
from dst.training.options import SCALED_LOSSES


def check_correction(config: Config) -> Iterator[str]:
    """Yield what does not go with a correction of the gradient."""
    if "snapshot" not in marks(config, "correction"):
        return
    if config.hardware.precision == "fp16":
        yield f"hardware.precision=fp16 does not go with correction.name={config.correction.name}: {SCALED_LOSSES}"
    yield from _check_estimates(config)


def _check_estimates(config: Config) -> Iterator[str]:
    """Yield options of estimates, of which the first period makes none, if it is the only one."""
    options, defaults = bound_options(config, "correction"), _defaults(config, "correction")
    if options["every_epochs"] < max(epochs(config), level_epochs(config) or 0):
        return
    for name in ("alpha", "clip", "variance_floor", "proxy"):
        if options[name] != defaults[name]:
            yield (
                f"correction.{name}={shown(options[name])} would be ignored: the first period makes no estimate, and "
                f"correction.every_epochs={options['every_epochs']} leaves no other. Use {shown(defaults[name])}, or "
                "shorter periods"
            )


def check_procedure(config: Config) -> Iterator[str]:
    """Yield what does not go with a procedure: how epochs are divided, what would move in cycles, its levels."""
    yield from _check_learned_masks(config)
    if "levels" in marks(config, "procedure"):
        yield from _check_levels(config)
    if "anneals" in marks(config, "procedure"):
        yield from _check_annealing(config)
    if "cycles" not in marks(config, "procedure"):
        return
    if config.schedule.select == "best_val":
        yield (
            f"schedule.select=best_val does not go with procedure.name={config.procedure.name}, which makes the "
            "network that is tested itself, after the last step: use schedule.select=last"
        )
    yield from _check_budget(config)
    yield from _check_moving(config)


def _defaults(config: Config, slot: str) -> dict[str, Any]:
    return registry.find(SLOTS[slot], get(config, slot).name).defaults


def method_epochs(config: Config) -> tuple[int, str]:
    """Return the epochs of the shortest phase that the method trains as it is, and what that is called.

    That is pretraining before cycles, a level of annealing, a level of pruning if the final training is not shorter, or
    training.
    """
    if (divided := _budget(config)) is not None:
        return divided.pretrain_epochs, "pretraining"
    if (lengths := _levels(config)) is not None and not any(annealing_problems(epochs(config), **lengths)):
        return annealing_epochs(epochs(config), **lengths), "a level"
    level = level_epochs(config)
    return (epochs(config), "training") if level is None or epochs(config) < level else (level, "a level")


def level_epochs(config: Config) -> int | None:
    """Return the epochs of a level of pruning; None without levels."""
    found = bound_options(config, "procedure")["level_epochs"] if "levels" in marks(config, "procedure") else None
    return found if isinstance(found, int) else None


def _check_levels(config: Config) -> Iterator[str]:
    """Yield what does not go with levels of pruning: ramps, patterns, epochs to go back to that are never trained."""
    sparsity, options, name = config.sparsity, bound_options(config, "procedure"), config.procedure.name
    if not any(problems(registry.options(SLOTS["procedure"], name, options), options)):  # other checks report them
        yield from rewind_problems(options["rewind"], options["rewind_epoch"], options["level_epochs"], _key)
        if sparsity.density is not None:
            yield from start_problems(sparsity.density, options["density"], _key)
    if (ramp := sparsity.density_schedule.name) != registry.NONE:
        yield (
            f"sparsity.density_schedule.name={ramp} does not go with procedure.name={name}: both say how the density "
            "falls. Use sparsity.density_schedule.name=none, with the density at the start in sparsity.density"
        )
    if "structured" in marks(config, "sparsity.pattern"):
        yield (
            f"sparsity.pattern.name={sparsity.pattern.name} does not go with procedure.name={name}, since a layer "
            "keeps its number of weights by it: use sparsity.pattern.name=unstructured"
        )


def _check_learned_masks(config: Config) -> Iterator[str]:
    """Yield procedures that set masks themselves, where they are learned, and one that anneals others."""
    procedure = f"procedure.name={config.procedure.name}"
    learned = f"sparsity.reparametrize.name={config.sparsity.reparametrize.name}"
    if learns(config) and marks(config, "procedure") & {"cycles", "levels"}:
        yield (
            f"{procedure} does not go with {learned}: it says itself which weights are active, and so do learned "
            "masks. Use procedure=single, or sparsity.reparametrize.name=none"
        )
    if "anneals" in marks(config, "procedure") and "target" not in marks(config, "sparsity.reparametrize"):
        yield (
            f"{procedure} does not go with {learned}: it leads learned masks to their sparsity.reparametrize.density, "
            "and there is none. Use procedure=single, or a method that has one, e.g. sparsity=edge_popup"
        )


def _levels(config: Config) -> dict[str, Any] | None:
    """Return what says how epochs are divided into levels of annealing; None if they are not, or cannot be read."""
    if "anneals" not in marks(config, "procedure") or epochs(config) < 1:
        return None
    options = bound_options(config, "procedure")
    given = {name: options[name] for name in ("levels", "level_epochs")}
    declared = registry.options(SLOTS["procedure"], config.procedure.name, given)
    return None if any(problems(declared, given)) else given


def _check_annealing(config: Config) -> Iterator[str]:
    """Yield levels of annealing that cannot be."""
    options = bound_options(config, "procedure")
    declared = registry.options(SLOTS["procedure"], config.procedure.name, options)
    if any(problems(declared, options)):
        return
    target = nominal_density(config)
    if target is not None and "target" in marks(config, "sparsity.reparametrize"):
        yield from annealing_start_problems(options["start"], target, _key)
    if (lengths := _levels(config)) is not None:
        yield from annealing_problems(epochs(config), **lengths, called=_key)
    if options["levels"] == 1:
        for name in ("start", "level_epochs"):
            if options[name] != (default := _defaults(config, "procedure")[name]):
                yield (
                    f"{_key(name)}={shown(options[name])} would be ignored: {_key('levels')}=1 is at the last "
                    f"density. Use {shown(default)}, or more levels"
                )


def _key(name: str) -> str:
    return f"procedure.{name}"


def _division(config: Config) -> dict[str, Any] | None:
    """Return what says how the epochs are divided; None if they are not, or by what other checks report."""
    if "cycles" not in marks(config, "procedure") or epochs(config) < 1:
        return None
    options = bound_options(config, "procedure")
    given = {name: options[name] for name in ("cycle_rate", "cycle_epochs", "pretrain_epochs")}
    declared = registry.options(SLOTS["procedure"], config.procedure.name, given)
    return None if any(problems(declared, given)) else given


def _budget(config: Config) -> Budget | None:
    """Return how the epochs are divided; None if they are not, or cannot be."""
    given = _division(config)
    return None if given is None or any(budget_problems(epochs(config), **given)) else budget(epochs(config), **given)


def _check_budget(config: Config) -> Iterator[str]:
    if (given := _division(config)) is not None:
        yield from budget_problems(epochs(config), **given, called=_key)
    if (divided := _budget(config)) is not None:
        include_pretrained = bound_options(config, "procedure")["include_pretrained"]
        yield from superposing_problems(divided, include_pretrained, _key)


def _check_moving(config: Config) -> Iterator[str]:
    """Yield options about what moves in cycles that would be ignored."""
    options = bound_options(config, "procedure")
    drop = Part(f"sparsity.drop.name={config.sparsity.drop.name}", marks(config, "sparsity.drop"))
    asked = [] if options["re_explore"] is None else [f"{_key('re_explore')}={options['re_explore']}"]
    if moves(config):
        yield from drop_problems(drop, asked)
    else:
        method = f"sparsity '{config.sparsity.label}'"
        yield from still_problems(options["re_explore"], options["freeze_updates"], method, _key)
    if not asked and options["freeze_updates"] and _keeps_masks(config):
        yield from _ignored_pruning(config, options)
    elif "structured" in marks(config, "sparsity.pattern") and options["pool"] == "layer":
        pattern = f"sparsity.pattern.name={config.sparsity.pattern.name}"
        yield f"{_key('pool')}=layer would be ignored: {pattern} prunes each layer by itself in any case. Use global"


def _keeps_masks(config: Config) -> bool:
    """Say whether pretraining ends with masks of the wanted density, so that only cycles could bring other ones."""
    ends_early = bool(bound_options(config, "sparsity.density_schedule").get("ends_early"))
    return not ends_early and "free_form" not in marks(config, "sparsity.init")


def _ignored_pruning(config: Config, options: dict[str, Any]) -> Iterator[str]:
    """Yield options of averaging and pruning networks of different masks, where all networks have the same."""
    defaults = _defaults(config, "procedure")
    mend = f", or let weights move: {_key('re_explore')}, {_key('freeze_updates')}=false" if moves(config) else ""
    for name in ("prune_back", "average_over", "pool"):
        if options[name] != defaults[name]:
            yield (
                f"{_key(name)}={shown(options[name])} would be ignored: nothing moves in cycles, so that all networks "
                f"have the same masks. Use {shown(defaults[name])}{mend}"
            )
