"""Mend first masks so that everything in a sparse network lies on a path from its input to its output.

*Alive* is an edge (an active weight) on a path of active edges from the input to the output of the real graph, and a
unit of a layer (an input channel or an output unit) with such an edge in that layer. At low density random masks leave
many units dead: they cost and learn nothing. Mended masks have no dead unit and no dead edge, so that every input
channel of the network reaches a class, and every class is reached. New edges are drawn at random and keep the value
that their weights have.

What no mask can bring to life is left alone: weights that only ever meet padding, such as the corners of a kernel on a
map of one pixel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dst.seeding import derive_seed
from dst.sparsity.allocation import share
from dst.sparsity.probe import Probe
from dst.sparsity.repair.cover import Edges, Graph, by_units, cover, spare, units_of
from dst.sparsity.repair.paths import Paths, followed
from dst.sparsity.scope import Layer

_ROUNDS = 100
_PATIENCE = 2
"""So many rounds without a new low of the dead edges, and the paths are widened."""


@dataclass(frozen=True)
class LayerFlow:
    """What was mended in a layer: its ``dead_units`` and ``dead_edges`` before, and edges ``added`` and ``removed``.

    ``idle``: active edges that lie on no path whatever the masks are, since they only ever meet padding.
    """

    layer: str
    dead_units: int
    dead_edges: int
    added: int
    removed: int
    idle: int


@dataclass(frozen=True)
class Flow:
    """Mended masks and the report of each layer. ``forward_passes``: the cost, in those of one sample."""

    masks: list[Tensor]
    layers: list[LayerFlow]
    forward_passes: int


def mend_flow(probe: Probe, layers: Sequence[Layer], masks: Sequence[Tensor], *, move: bool, seed: int = 0) -> Flow:
    """Return masks in which all units and edges are alive, in place of boolean ``masks``, one tensor a layer.

    By default edges are added, as few as give every unit one. ``move``: none are, so that the total stays what it is.
    Dead edges, and those of units that have others, move within their layer, and only where a layer has too few for its
    units does it get some of other layers. Either way a dead edge that cannot be brought to life where it is moves: to
    another kernel position, another place in its layer, or another layer.

    Raises ValueError, naming the least density, for ``move`` with fewer edges than units need; for a network that
    cannot be followed; and where only weights of zero could be added.
    """
    with followed(probe, layers) as paths:
        everywhere = paths.everywhere()
        graphs = [
            _graph(layer, mask, ways, derive_seed(seed, "repair", i))
            for i, (layer, mask, ways) in enumerate(zip(layers, masks, everywhere, strict=True))
        ]
        before = [alive & graph.active for alive, graph in zip(_alive(paths, graphs), graphs, strict=True)]
        if any(_dead_units(graph, alive) for graph, alive in zip(graphs, before, strict=True)) or _dead(graphs, before):
            if move:
                for graph, count in zip(graphs, _counts(graphs), strict=True):
                    spare(graph, count)
            for graph in graphs:
                cover(graph)
            _enliven(paths, graphs)
        reports = [_report(graph, alive) for graph, alive in zip(graphs, before, strict=True)]
        return Flow([graph.mask() for graph in graphs], reports, paths.passes)


def least_edges(layers: Sequence[Layer]) -> int:
    """Return how many edges a network needs so that every unit has one, if every pair of units may have one.

    Looks at shapes only, so the weights may be on the meta device.
    """
    return sum(groups * max(first // groups, second) for layer in layers for groups, first, second in [_units(layer)])


def check_enough(layers: Sequence[Layer], total: int, least: int | None = None) -> None:
    """Raise ValueError, naming the least density, if ``total`` edges are too few to ``move`` some to every unit."""
    least = least_edges(layers) if least is None else least
    size = sum(layer.size for layer in layers)
    if total < least:
        raise ValueError(
            f"flow=move: {total:,} active weights are too few at first: the units of the {len(layers)} layers need "
            f"{least:,} to have one each, a density of {_at_least(least, size)} or more. Start denser, or use flow=add"
        )


def _at_least(count: int, size: int) -> str:
    """Return the lowest density, in as few digits as possible, that gives ``count`` weights."""
    for digits in range(2, 17):
        density = math.ceil(count / size * 10**digits) / 10**digits
        if density > 0 and density * size < 1.02 * count:
            break
    return f"{density:.{digits}f}"


def _units(layer: Layer) -> tuple[int, int, int]:
    groups = layer.groups
    return groups, len(layer.weight), layer.weight.shape[1]


def _graph(layer: Layer, mask: Tensor, ways: Tensor, seed: int) -> Graph:
    counts, active = by_units(layer, ways), by_units(layer, mask)
    able = counts > 0
    fresh = able & (by_units(layer, layer.weight != 0))
    per_position = counts.sum((0, 1, 2))
    return Graph(layer, active.copy(), able, fresh, per_position, np.random.default_rng(seed))


def _counts(graphs: Sequence[Graph]) -> list[int]:
    """Return how many edges each layer has once those with too few for their units have got some of the others.

    Layers that are full give only what others cannot. Raises ValueError if all together have too few.
    """
    own, least = [graph.count for graph in graphs], [graph.least for graph in graphs]
    check_enough([graph.layer for graph in graphs], sum(own), sum(least))
    counts = [max(*pair) for pair in zip(own, least, strict=True)]
    owed = sum(counts) - sum(own)
    for full in (False, True):
        rooms = [
            max(0, count - need) if graph.active.all() == full else 0
            for graph, count, need in zip(graphs, own, least, strict=True)
        ]
        given = min(owed, sum(rooms))
        if given:
            counts = [count - part for count, part in zip(counts, share(given, rooms, rooms), strict=True)]
        owed -= given
    return counts


# -- end to end --------------------------------------------------------------------------------------------------------


def _alive(paths: Paths, graphs: Sequence[Graph]) -> list[Edges]:
    """Return which edges, active or not, join what the input reaches to what reaches the output."""
    found = paths.through([graph.mask() for graph in graphs])
    return [by_units(graph.layer, ways) > 0 for graph, ways in zip(graphs, found, strict=True)]


def _dead_units(graph: Graph, alive: Edges) -> int:
    """Return how many units have no edge that is alive, though they could have one."""
    pairs = zip(units_of(graph.able), units_of(alive), strict=True)
    return sum(int(np.count_nonzero(wanted & ~has)) for wanted, has in pairs)


def _dead(graphs: Sequence[Graph], alive: Sequence[Edges]) -> int:
    """Return how many edges are dead that need not be."""
    pairs = zip(graphs, alive, strict=True)
    return sum(int(np.count_nonzero(graph.active & graph.able & ~living)) for graph, living in pairs)


def _report(graph: Graph, alive: Edges) -> LayerFlow:
    """Return what has become of a layer, of which ``alive`` were alive at first."""
    return LayerFlow(
        graph.layer.name,
        _dead_units(graph, alive),
        int(np.count_nonzero(graph.first & graph.able & ~alive)),
        int(np.count_nonzero(graph.active & ~graph.first)),
        int(np.count_nonzero(graph.first & ~graph.active)),
        int(np.count_nonzero(graph.active & ~graph.able)),
    )


def _enliven(paths: Paths, graphs: Sequence[Graph]) -> None:
    """Move dead edges until none is left; every unit has an edge, so no unit is dead then.

    Where all units have edges, an edge is dead only if maps are so small that what one kernel position lets through
    another shifts out of the map.
    """
    wider = ["wide", "widest"]
    lowest, patience = math.inf, _PATIENCE
    for _ in range(_ROUNDS):
        alive = _alive(paths, graphs)
        dead = _dead(graphs, alive)
        if not dead:
            return
        patience = _PATIENCE if dead < lowest else patience - 1
        lowest = min(dead, lowest)
        if patience < 0 and wider:
            patience, positions = _PATIENCE, wider.pop(0)
            for graph in graphs:
                _widen(graph, getattr(graph, positions))
            continue
        homeless = sum(_revive(graph, living) for graph, living in zip(graphs, alive, strict=True))
        _settle(graphs, alive, homeless)
    names = [graph.layer.name for graph, living in zip(graphs, alive, strict=True) if _dead([graph], [living])]
    raise ValueError(
        f"{dead} edges of layers {', '.join(names[:8])} lead nowhere and cannot be mended: the maps there are too "
        "small for paths through so few weights; use a larger density"
    )


def _revive(graph: Graph, alive: Edges) -> int:
    """Move each dead edge to where it is alive: in its kernel, else in its layer; return how many find no place.

    The last edge of a unit does not leave its two units. If no kernel position is alive, it takes the one that sees
    most, so that it lives as soon as there is a path to it and on from it.
    """
    rest = alive & graph.fresh & ~graph.active
    firsts, seconds = units_of(alive & graph.active)
    leaving = 0
    for edge in map(tuple, np.argwhere(graph.active & graph.able & ~alive)):
        group, first, second, _ = edge
        pair = (group, first, second)
        if rest[pair].any():
            place = graph.pick(pair, rest[pair])
            rest[place] = False
        elif firsts[group, first] and seconds[group, second]:
            graph.active[edge] = False
            leaving += 1
            continue
        else:
            free = (graph.fresh & ~graph.active)[pair] & graph.widest
            place = graph.pick(pair, free) if free.any() and not graph.widest[edge[3]] else edge
        graph.active[edge] = False
        graph.active[place] = True
    return leaving - _place(graph, rest, leaving)


def _place(graph: Graph, rest: Edges, number: int) -> int:
    """Add random edges out of ``rest``, at most ``number``; return how many."""
    places = np.flatnonzero(rest & ~graph.active)
    number = min(number, len(places))
    graph.active.reshape(-1)[graph.random.choice(places, number, replace=False)] = True
    return number


def _settle(graphs: Sequence[Graph], alive: Sequence[Edges], number: int) -> None:
    """Add ``number`` edges where they are alive, in the layers with most room for them first."""
    rests = [living & graph.fresh & ~graph.active for graph, living in zip(graphs, alive, strict=True)]
    for i in sorted(range(len(graphs)), key=lambda i: (-np.count_nonzero(rests[i]), i)) if number else []:
        number -= _place(graphs[i], rests[i], number)


def _widen(graph: Graph, positions: Edges) -> None:
    """Give every output unit an edge at one of these kernel positions, in the place of one that it has."""
    axis = 2 if graph.layer.is_transposed else 1
    having = (graph.active & positions).any((3 - axis, 3))
    for group, unit in np.argwhere(graph.active.any((3 - axis, 3)) & ~having):
        own = np.take(graph.active[group], unit, axis=axis - 1)  # [other unit, position]
        other, position = graph.random.permutation(np.argwhere(own))[0]
        pair = (group, unit, other) if axis == 1 else (group, other, unit)
        free = graph.fresh[pair] & ~graph.active[pair] & positions
        if free.any():
            graph.active[(*pair, position)] = False
            graph.active[graph.pick(pair, free)] = True
