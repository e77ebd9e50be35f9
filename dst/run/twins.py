"""Runs that differ from one in nothing but how it is computed, such as ``hardware.threads``, which changes bits.

They are other runs, with other ids. Whoever gives a command again on another machine may not know that. Their ids are
computed, since to read the records of all runs would take longer than a start.
"""

from collections.abc import Container, Iterator, Mapping
from itertools import product
from typing import Any, Final

from dst.config.identity import id_of
from dst.config.schema import Config, Hardware, Sparsity, get
from dst.options import OneOf, Option, declared

_COUNTS: Final = (*range(1, 65), 72, 80, 96, 112, 128, 192, 256)
"""Values of keys that are numbers, such as threads and processes, which are tried."""

_TOGETHER: Final = ("device", "determinism", "precision", "channels_last", "compile")
"""What the files of ``conf/hardware`` choose together."""


def twins(config: Config, identity: Mapping[str, Any], known: Container[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the ids of the runs among ``known`` that differ from a run in how it is computed, and their other values.

    ``identity``: that of the run.
    """
    for others in _others(config):
        changed = {key: value for key, value in identity.items() if key not in others}
        changed |= {key: value for key, value in others.items() if value != _OPTIONS[key].default}
        if (run := id_of(changed)) in known:
            yield run, others


def _others(config: Config) -> Iterator[dict[str, Any]]:
    """Yield other values of the keys that say how a run is computed: of one of them, or of some together."""
    values = {
        key: [value for value in _values(option) if value != get(config, key)] for key, option in _OPTIONS.items()
    }
    for key, its in values.items():
        yield from ({key: value} for value in its)
    keys = [f"hardware.{name}" for name in _TOGETHER]
    for chosen in product(*([None, *values[key]] for key in keys)):
        others = {key: value for key, value in zip(keys, chosen, strict=True) if value is not None}
        if len(others) > 1:
            yield others


def _values(option: Option) -> tuple[Any, ...]:
    """Return the values of an option that are tried."""
    if option.type is bool:
        return (False, True)
    names = [condition.names for condition in option.conditions if isinstance(condition, OneOf)]
    return names[0] if names else _COUNTS


_OPTIONS: Final[dict[str, Option]] = {
    **{f"hardware.{name}": option for name, option in declared(Hardware).items() if not option.aside},
    "sparsity.compute": declared(Sparsity)["compute"],
}
"""The keys that say how a run is computed and may change its bits."""
