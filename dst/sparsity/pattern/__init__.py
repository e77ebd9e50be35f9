"""What shapes a mask may take, and the selection inside that shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Size, Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """How many weights of a layer leave and enter in one update.

    ``count``: the layer's number of weights by the distribution; a pattern derives its quotas from it. ``regrow``:
    weights that leave may enter again. ``is_output``: the layer's output units are the network's and must all live.
    ``active``: how many weights the layer has, exactly, if that is known.
    """

    drop: int
    grow: int
    count: int
    regrow: bool = True
    is_output: bool = False
    active: int | None = None


def active_of(budgets: Sequence[Budget]) -> list[int] | None:
    """Return how many weights each layer has; None if that is not known of all."""
    known = [budget.active for budget in budgets if budget.active is not None]
    return known if len(known) == len(budgets) else None


class Moved(NamedTuple):
    """The outcome of an update: ``mask`` is ``kept`` (without those that left) and those that entered."""

    kept: Tensor
    mask: Tensor


class Asked(NamedTuple):
    """What an update asks of the pattern of one layer; all tensors have the weight's shape."""

    pattern: "Pattern"
    drop_scores: Tensor
    grow_scores: Tensor
    mask: Tensor
    budget: Budget


class Pattern(Protocol):
    """The masks that one layer may have. All tensors have the weight's shape; masks are boolean.

    Each layer has a pattern of its own, which may have a state. Every pattern allows a layer that keeps all its
    weights, and is never asked about one.
    """

    in_blocks: bool = False
    """Whether weights move in blocks, of which more or fewer may be new than was dropped: then churn goes on record."""

    def admissible(self, shape: Size, count: int) -> int:
        """Return the number of weights nearest to ``count`` that the pattern allows; ValueError if there is none."""
        ...

    def exception(self, shape: Size) -> str | None:
        """Return what becomes of a layer whose shape the pattern cannot have, and why; None if it can."""
        return None

    def initial(self, scores: Tensor, count: int) -> Tensor:
        """Return a mask of exactly ``count`` (admissible) weights, those of largest score."""
        ...

    def update(self, drop_scores: Tensor, grow_scores: Tensor, mask: Tensor, budget: Budget) -> Moved:
        """Return the next mask: the lowest drop scores leave, the highest grow scores enter."""
        ...

    @classmethod
    def update_all(cls, layers: Sequence[Asked]) -> list[Moved]:
        """Return the next masks of layers whose patterns are of this kind, what ``update`` returns for each.

        A pattern that moves all of them together needs fewer kernels on a GPU, which wait for one another.
        """
        return [own.pattern.update(own.drop_scores, own.grow_scores, own.mask, own.budget) for own in layers]

    def prune(self, scores: Tensor, among: Tensor, like: Tensor) -> Tensor:
        """Return a mask of the highest scores within ``among``, with as many weights as ``like``, a part of it."""
        ...

    def allows(self, mask: Tensor) -> bool:
        """Say whether the pattern allows a mask."""
        ...

    @classmethod
    def allow_all(cls, patterns: "Sequence[Pattern]", masks: Sequence[Tensor]) -> list[bool]:
        """Return what ``allows`` says of each layer, whose patterns are of this kind; a GPU is best waited for once."""
        return [pattern.allows(mask) for pattern, mask in zip(patterns, masks, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        """Return what the pattern has to remember of its layer: tensors and plain data; most remember nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        return None


def updated(layers: Sequence[Asked]) -> list[Moved]:
    """Return the next masks of all layers, in one go for all patterns of a kind."""
    kinds = _kinds([layer.pattern for layer in layers], "update", "update_all")
    return _in_order([(own, kind.update_all([layers[i] for i in own])) for kind, own in kinds])


def allowed(patterns: Sequence[Pattern], masks: Sequence[Tensor]) -> list[bool]:
    """Say of each layer whether its pattern allows its mask, in one go for all patterns of a kind."""
    kinds = _kinds(patterns, "allows", "allow_all")
    return _in_order(
        [(own, kind.allow_all([patterns[i] for i in own], [masks[i] for i in own])) for kind, own in kinds]
    )


def _kinds(patterns: Sequence[Pattern], one: str, all_: str) -> list[tuple[type[Pattern], list[int]]]:
    """Return who does it for all patterns of a kind, and which layers these are.

    A class that says anew what is done for one layer is not spoken for by a class that it derives from.
    """
    kinds: dict[type[Pattern], list[int]] = {}
    for i, pattern in enumerate(patterns):
        kinds.setdefault(type(pattern), []).append(i)
    return [(kind if _owner(kind, all_) <= _owner(kind, one) else Pattern, own) for kind, own in kinds.items()]


def _owner(kind: type[Pattern], name: str) -> int:
    """Return how far up a class has its method from."""
    return next(i for i, base in enumerate(kind.__mro__) if name in vars(base))


def _in_order(found: Sequence[tuple[list[int], list[T]]]) -> list[T]:
    """Return what was found of each layer, by its index."""
    by_index = {i: one for own, results in found for i, one in zip(own, results, strict=True)}
    return [by_index[i] for i in range(len(by_index))]
