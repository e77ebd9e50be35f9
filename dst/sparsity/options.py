"""Options of the sparsifier that are no member's own. Needs no torch, so that configs are checked without it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

from dst.options import Clash, Each, Needs, OneOf, Range

Density = Annotated[float, Range(0, 1, "()"), "active / maskable weights; with a density schedule, at its end"]
FirstDensity = Annotated[float, Range(0, 1, "(]"), "active / maskable weights at the start"]
Every = Annotated[int, Range(1), "steps from one update to the next"]
Pool = Annotated[str, OneOf("layer", "global")]
ReliableSteps = Annotated[
    int, Range(1), "count the weights that were active for so many steps in a row (sparsity/rs_reliable); null: do not"
]
Compute = Annotated[
    str,
    OneOf("masked", "packed", "auto"),
    "how sparse layers are multiplied: as dense ones; by active weights alone below a density of 0.3 (on a GPU units "
    "of 16 inputs in groups of rows); or as is faster, which is timed layer by layer",
]


@dataclass
class Scope:
    """Which layers are maskable: convolutions and linear layers whose name matches glob patterns.

    A layer is in scope if it matches any of ``include`` and none of ``exclude``. ``dense_first`` and ``dense_last``
    take the first and last remaining layer out: it stays dense and does not count in the density.
    """

    include: Annotated[list[str], Each(least=1), "glob patterns of layers that may be sparse"] = field(
        default_factory=lambda: ["*"]
    )
    exclude: Annotated[list[str], "glob patterns of layers that stay dense"] = field(default_factory=list)
    dense_first: Annotated[bool, "the first matching layer stays dense and does not count in the density"] = False
    dense_last: Annotated[bool, "the last matching layer stays dense and does not count in the density"] = False


@dataclass
class Repair:
    """What is mended in the first masks, before training."""

    flow: Annotated[
        str,
        OneOf("none", "add", "move"),
        "put all units on a path from input to output: add edges, or move some, so that the density stays",
    ] = "none"
    orthogonal: Annotated[bool, "change the masked weights of each layer so that it is nearer to an isometry"] = False

    @property
    def asked(self) -> list[str]:
        """The repairs that are wanted, as people are told of them."""
        return [f"flow={self.flow}"] * (self.flow != "none") + ["orthogonal=true"] * self.orthogonal


@dataclass
class Drop:
    """Who leaves."""

    pool: Annotated[Pool, "apply the drop fraction to each layer, or to all together"] = "layer"


@dataclass
class DensitySchedule:
    """How dense over time."""

    pool: Annotated[Pool, "prune each layer to the density, or all together"] = "global"


@dataclass
class Reparametrize:
    """How masks are learned, instead of chosen."""

    every: Annotated[int, Range(1), "steps from one count of the active weights to the next, and at the end"] = 50


@dataclass
class Update:
    """When the topology is updated, and how an update meets the optimizer."""

    every: Every | None = None
    start: Annotated[float, Range(0, "stop", "[)"), "updates begin at this fraction of training"] = 0.0
    stop: Annotated[float, Range(0, 1, "(]"), "updates end at this fraction of training"] = 1.0
    order: Annotated[
        str,
        OneOf("after_step", "replaces_step"),
        Clash("replaces_step", "every", 1, "every step would be an update, and nothing be trained; choose after_step"),
        "updates come after the optimizer step (ITOP, GraNet), or instead of it (RigL)",
    ] = "after_step"
    regrow: Annotated[bool, "just-dropped weights may return in the same update"] = True
    on_last_step: Annotated[
        bool,
        Clash(True, "stop", Range(0, 1, "[)"), "it would be ignored, since updates end before"),
        "also update after the last step, when nothing can be learned any more",
    ] = False
    grown_weights: Annotated[
        str, OneOf("zero", "initial"), "the value that grown weights start from, always without optimizer state"
    ] = "zero"
    returning_weights: Annotated[
        str,
        OneOf("keep", "reset"),
        Needs("regrow"),
        "keep: a weight dropped and grown in one update keeps its value and state; reset: it starts as if it was grown",
    ] = "keep"
    adam_age: Annotated[
        str | None,
        OneOf("weight", "tensor"),
        "whose age corrects the bias of Adam's moments: a weight's own since it was grown, or that of its tensor, by "
        "which grown weights first move too far; null: weight",
    ] = None


# ---------------------------------------------------------------------------------------------------------------------
# What does not go together. Each rule is stated here once: the parts raise what it yields, and checks of a config quote
# it with the key in front.


@dataclass(frozen=True)
class Part:
    """A part of a method as rules see it: how it is ``told`` to people, and its marks (``dst.sparsity.marks``)."""

    told: str
    marks: frozenset[str] = frozenset()


def scope_problems(scope: Scope, distribution: Part, classifier: float | None) -> Iterator[str]:
    """Yield which layer a scope leaves out although the distribution gives it a density of its own."""
    fixes = {
        "first": "fixes_first" in distribution.marks,
        "last": "fixes_last" in distribution.marks or classifier is not None,
    }
    for layer, leaves_out in (("first", scope.dense_first), ("last", scope.dense_last)):
        if leaves_out and fixes[layer]:
            yield (
                f"dense_{layer}=true leaves the {layer} layer out, but {distribution.told} gives the {layer} layer in "
                f"scope a density of its own, which would be another layer: set dense_{layer}=false, or choose a "
                "distribution without"
                + ("" if f"fixes_{layer}" in distribution.marks else " (leave out its classifier)")
            )


def pattern_problems(pattern: Part, init: Part, changing: Iterable[str]) -> Iterator[str]:
    """Yield what breaks a pattern: parts that are ``changing`` the number of weights of a layer, an init without it."""
    if "structured" not in pattern.marks:
        return
    for told in changing:
        yield f"{told} changes how many weights a layer has, which {pattern.told} keeps: leave out one of the two"
    if "free_form" in init.marks:
        yield (
            f"{init.told} keeps to no pattern, so its masks would break {pattern.told}: choose random, magnitude or "
            "saliency, or the unstructured pattern"
        )


def repair_problems(repair: Repair, pattern: Part, init: Part) -> Iterator[str]:
    """Yield repairs that a pattern or an init does not bear."""
    if "structured" in pattern.marks:
        for told in repair.asked:
            yield (
                f"{told} mends single weights, and {pattern.told} does not go by them: leave the repair out, or choose "
                "the unstructured pattern"
            )
    if repair.flow != "none" and "units" in init.marks:
        yield (
            f"flow={repair.flow} would bring back the units that {init.told} removes on purpose: leave out one of the "
            "two"
        )


def drop_problems(drop: Part, given: Iterable[str]) -> Iterator[str]:
    """Yield what is ``given`` of a drop fraction, and is of no use to a drop that says itself how many leave."""
    if "cuts" in drop.marks:
        for told in given:
            yield f"{told} would be ignored: {drop.told} says itself how many leave; leave it out"


def age_problems(age: str | None, optimizer: Part, *, grows: bool) -> Iterator[str]:
    """Yield that ``adam_age`` is of no use, since nothing is grown, or the optimizer does not go by ages as Adam's."""
    if age is not None and not (grows and "ages" in optimizer.marks):
        why = f"{optimizer.told} does not correct moments by age as Adam does" if grows else "nothing is grown"
        yield f"adam_age={age} would be ignored: {why}; leave it out"


def learning_problems(learn: Part, others: Iterable[str]) -> Iterator[str]:
    """Yield ``others`` that would move weights, or prune, where masks are learned."""
    for told in others:
        yield (
            f"{told} does not go with {learn.told}, by which masks are learned, so that nothing else says which "
            "weights are active: leave out one of the two"
        )


def compute_problems(compute: str, *, learns: bool) -> Iterator[str]:
    """Yield why layers cannot be multiplied as asked, where masks are learned."""
    if learns and compute != "masked":
        yield (
            f"compute={compute} does not go with learned masks, which change at every step and train inactive weights "
            "too: leave out one of the two"
        )


def target_problems(density: float, first: float) -> Iterator[str]:
    """Yield that active weights could not be chosen, since the ``first`` masks have no more than the ``density``."""
    if density >= first:
        yield (
            f"density={density}: must be less than the density of the first masks, {first}, which active weights are "
            "chosen from: choose a smaller one, or denser masks"
        )


def ramp_problems(start: float, end: float, plan: Update) -> Iterator[str]:
    """Yield what is wrong with a density that falls from ``start`` to ``end``, where updates come as in ``plan``."""
    if start < plan.start:
        yield (
            f"start={start}: updates begin later, at plan.start={plan.start}, and the first would prune at once to "
            "where the ramp is by then; let the ramp start where the updates do"
        )
    if end > plan.stop:
        yield (f"end={end}: the ramp would be cut short at the last update (plan.stop={plan.stop}); set end <= stop")
