"""Give every unit of a layer an edge, one layer by itself: which edges to add, and which can be spared for them.

A layer is a bipartite graph: its two kinds of units are the first two dimensions of its weights (by group, where a
convolution has groups), and a pair of units has an edge for each kernel position.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dst.sparsity.scope import Layer

Edges = NDArray[np.bool_]
Edge = tuple[int, int, int, int]


@dataclass
class Graph:
    """The edges of a layer, boolean arrays [group, first unit, second unit, kernel position].

    ``active``: changed in place. ``able``: those that lie on a path if all edges are active; no other can ever.
    ``fresh``: those that may be added: able, with a value that is not zero. ``ways``: on how many ways each kernel
    position joins input and output, if all edges are active. ``random``: what all choices are made with.
    """

    layer: Layer
    active: Edges
    able: Edges
    fresh: Edges
    ways: NDArray[Any]
    random: np.random.Generator
    first: Edges = field(init=False)
    """The edges that were active at first."""

    def __post_init__(self) -> None:
        self.first = self.active.copy()

    @property
    def count(self) -> int:
        """Number of active edges."""
        return int(np.count_nonzero(self.active))

    @property
    def least(self) -> int:
        """The least number of edges that gives every unit one: the larger of its two numbers of units, by group."""
        return int(np.maximum(*(units.sum(1) for units in units_of(self.able))).sum())

    @property
    def wide(self) -> Edges:
        """Kernel positions that see more than half as much of the map as the one that sees most."""
        found: Edges = self.ways > self.ways.max() / 2
        return found

    @property
    def widest(self) -> Edges:
        """Kernel positions that see most of the map."""
        found: Edges = self.ways == self.ways.max()
        return found

    def mask(self) -> Tensor:
        """Return the active edges as a mask of the weights."""
        weight = self.layer.weight
        return torch.from_numpy(self.active.copy()).view(weight.shape).to(weight.device)

    def pick(self, pair: tuple[int, int, int], among: Edges) -> Edge:
        """Return a random edge of a pair of units ``among`` some kernel positions, one that sees much if there is."""
        positions = np.flatnonzero(among & self.wide) if (among & self.wide).any() else np.flatnonzero(among)
        return (*pair, int(self.random.choice(positions)))


def by_units(layer: Layer, tensor: Tensor) -> NDArray[Any]:
    """Return a tensor of a weight's shape as an array [group, first unit, second unit, kernel position]."""
    groups = layer.groups
    first, second = tensor.shape[:2]
    found: NDArray[Any] = tensor.detach().cpu().contiguous().numpy().reshape(groups, first // groups, second, -1)
    return found


def units_of(edges: Edges) -> tuple[Edges, Edges]:
    """Return which units of the first kind, and of the second, have an edge: [group, unit] each."""
    pairs: Edges = np.any(edges, axis=3)
    firsts: Edges = np.any(pairs, axis=2)
    seconds: Edges = np.any(pairs, axis=1)
    return firsts, seconds


def cover(graph: Graph) -> None:
    """Give every unit without an able edge one, at random: as few as possible, since an edge may serve two units.

    Raises ValueError if the only edges that it could have are zero.
    """
    missing = [
        wanted & ~has for wanted, has in zip(units_of(graph.able), units_of(graph.active & graph.able), strict=True)
    ]
    pairs: Edges = np.any(graph.fresh & ~graph.active, axis=3)
    for group, first in graph.random.permutation(np.argwhere(missing[0])):
        partners = pairs[group, first]
        wanted = partners & missing[1][group]
        second = _one(graph, wanted if wanted.any() else partners)
        missing[1][group, second] = False
        _add(graph, (int(group), int(first), second))
    for group, second in graph.random.permutation(np.argwhere(missing[1])):
        _add(graph, (int(group), _one(graph, pairs[group, :, second]), int(second)))


def _one(graph: Graph, among: Edges) -> int:
    if not among.any():
        raise ValueError(
            f"layer {graph.layer.name}: a unit without edges cannot be given one, since all weights that it may have "
            "are zero, and an edge of zero passes nothing on: start from weights that are not zero, as initialised ones"
        )
    return int(graph.random.choice(np.flatnonzero(among)))


def _add(graph: Graph, pair: tuple[int, int, int]) -> None:
    graph.active[graph.pick(pair, (graph.fresh & ~graph.active)[pair])] = True


def spare(graph: Graph, count: int) -> None:
    """Remove random edges, so that ``cover`` leaves ``count``; no unit that keeps its edges otherwise loses the last.

    Edges that can never lie on a path go first, then those of two units that both have others. Where this is not
    enough, the last edges of two units go in turn, and ``cover`` joins the two. ``count``: ``least`` or more.
    """
    excess = graph.count + _to_add(graph) - count
    for edge in _some(graph, graph.active & ~graph.able):
        if excess <= 0:
            return
        graph.active[edge] = False
        excess -= 1
    degrees = _Degrees(graph.active & graph.able)
    for edge in _some(graph, graph.active & graph.able):
        if excess <= 0:
            return
        if min(degrees.of(edge)) > 1:
            degrees.remove(edge)
            graph.active[edge] = False
            excess -= 1
    _join_stars(graph, degrees, excess)


def _join_stars(graph: Graph, degrees: "_Degrees", excess: int) -> None:
    """Remove last edges of units of both kinds in turn, whose other units have more: each two leave one to add."""
    units = [
        wanted & ~has for wanted, has in zip(units_of(graph.able), units_of(graph.active & graph.able), strict=True)
    ]
    missing = [kind.sum(1) for kind in units]
    leaves: list[list[list[Edge]]] = [[[] for _ in missing[0]] for _ in range(2)]
    for edge in _some(graph, graph.active & graph.able):
        if max(degrees.of(edge)) > 1:
            leaves[degrees.of(edge)[0] > 1][edge[0]].append(edge)  # of the kind whose last edge it is
    for group in range(len(missing[0])):
        while excess > 0:
            kind = int(missing[0][group] > missing[1][group])  # whichever kind lacks fewer; its next one costs nothing
            left = next((edge for edge in _popped(leaves[kind][group]) if max(degrees.of(edge)) > 1), None)
            if left is None:
                break
            before = max(missing[0][group], missing[1][group])
            degrees.remove(left)
            graph.active[left] = False
            missing[kind][group] += 1
            excess -= 1 - int(max(missing[0][group], missing[1][group]) - before)


class _Degrees:
    """How many edges the units have."""

    def __init__(self, edges: Edges) -> None:
        self._first, self._second = edges.sum((2, 3)), edges.sum((1, 3))

    def of(self, edge: Edge) -> tuple[int, int]:
        """Return the degrees of an edge's two units."""
        return int(self._first[edge[0], edge[1]]), int(self._second[edge[0], edge[2]])

    def remove(self, edge: Edge) -> None:
        """Take one edge away from its units."""
        self._first[edge[0], edge[1]] -= 1
        self._second[edge[0], edge[2]] -= 1


def _to_add(graph: Graph) -> int:
    """Return how many edges ``cover`` would add."""
    wanted, has = units_of(graph.able), units_of(graph.active & graph.able)
    lacking = [(want & ~have).sum(1) for want, have in zip(wanted, has, strict=True)]
    return int(np.maximum(*lacking).sum())


def _some(graph: Graph, edges: Edges) -> Iterator[Edge]:
    """Yield edges in random order."""
    for index in graph.random.permutation(np.flatnonzero(edges)):
        group, first, second, position = np.unravel_index(index, edges.shape)
        yield int(group), int(first), int(second), int(position)


def _popped(edges: list[Edge]) -> Iterator[Edge]:
    while edges:
        yield edges.pop()
