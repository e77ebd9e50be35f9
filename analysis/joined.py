"""Which experiments of two sweeps are the same but for what tells the sweeps apart."""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from analysis.rows import Row
from analysis.runs import SCHEMA
from analysis.selection import NAMING, value_text
from analysis.text import cell_text


@dataclass(frozen=True)
class Pair:
    """An experiment of one sweep and that of the other which fits it; ``differs``: key -> its value in either."""

    a: Row
    b: Row
    differs: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Joined:
    """Two sweeps, experiment by experiment; those of either that fit none or several of the other stand alone."""

    pairs: list[Pair]
    only_a: list[Row]
    only_b: list[Row]

    @property
    def common(self) -> dict[str, tuple[str, str]]:
        """The keys in which all pairs differ in the same way: what tells the sweeps apart."""
        first, *others = [pair.differs.items() for pair in self.pairs] or [{}.items()]
        return {key: values for key, values in first if all((key, values) in other for other in others)}


def join(a: Sequence[Row], b: Sequence[Row]) -> Joined:
    """Join experiments by their identity without the seed.

    First those that are equal; of the others those that are equal but for the keys of which the two sweeps share no
    value; those that differ just as all joined so far; then those of equal labels. Each of these must fit exactly one.
    """
    found = Joined([], [*a], [*b])
    found = _matched(found, lambda row: tuple(sorted(_identity(row).items())))
    apart = _apart(found.only_a, found.only_b)
    found = _matched(found, lambda row: tuple(sorted(item for item in _identity(row).items() if item[0] not in apart)))
    found = _alike(found)
    found = _matched(found, lambda row: tuple(cell_text(row.labels.get(name)) for name in NAMING))
    order = {id(row): place for place, row in enumerate(a)}
    return Joined(sorted(found.pairs, key=lambda pair: order[id(pair.a)]), found.only_a, found.only_b)


def _matched(found: Joined, key: Callable[[Row], Hashable]) -> Joined:
    """Return what is joined when also those are that alone have their key on both sides."""
    sides = [_alone(rows, key) for rows in (found.only_a, found.only_b)]
    shared = [one for one in sides[0] if one in sides[1]]
    return _with(found, [_pair(sides[0][one], sides[1][one]) for one in shared])


def _alike(found: Joined) -> Joined:
    """Return what is joined when also those are that differ exactly as all that are joined."""
    if not found.common:
        return found
    fits = [pair for a in found.only_a for b in found.only_b if (pair := _pair(a, b)).differs == found.common]
    used = [id(row) for pair in fits for row in (pair.a, pair.b)]
    pairs = [pair for pair in fits if used.count(id(pair.a)) == used.count(id(pair.b)) == 1]
    return _with(found, pairs)


def _with(found: Joined, pairs: Sequence[Pair]) -> Joined:
    taken = {id(row) for pair in pairs for row in (pair.a, pair.b)}
    rest = ([row for row in rows if id(row) not in taken] for rows in (found.only_a, found.only_b))
    return Joined([*found.pairs, *pairs], *rest)


def _alone(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> dict[Hashable, Row]:
    """Return the rows by their keys, but for those that share one."""
    found: dict[Hashable, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return {one: those[0] for one, those in found.items() if len(those) == 1}


def _apart(a: Sequence[Row], b: Sequence[Row]) -> set[str]:
    """Return the keys of which the experiments of two sweeps share no value."""
    sides = [[_identity(row) for row in rows] for rows in (a, b)]
    keys = {key for side in sides for identity in side for key in identity}
    return {key for key in keys if not {one.get(key) for one in sides[0]} & {one.get(key) for one in sides[1]}}


def _pair(a: Row, b: Row) -> Pair:
    one, other = _identity(a), _identity(b)
    keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    return Pair(a, b, {key: (_value(a, key), _value(b, key)) for key in keys})


def _identity(row: Row) -> dict[str, str]:
    """Return what an experiment is, by key, values as JSON: the schema and the identity without the seed."""
    run = row.runs.iloc[0]
    identity = {key: json.dumps(value, sort_keys=True) for key, value in json.loads(run["identity"]).items()}
    identity.pop("seed", None)
    return {**identity, SCHEMA: cell_text(run[SCHEMA])}


def _value(row: Row, key: str) -> str:
    """Return the value that a key has in an experiment; what is not in its identity has its default."""
    run = row.runs.iloc[0]
    return value_text(run.get(key if key == SCHEMA else f"config.{key}"))
