"""Samples a second: eager, captured, compiled, a plain loop, and pure compute, all in turns."""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Final

import torch

from tests.bench.gpu.loops import Loop, Loops
from tests.bench.gpu.plan import Plan
from tests.bench.gpu.table import Row, failure
from tests.bench.gpu.trainings import NotHereError
from tests.bench.timing import in_turns

MODELS: Final = ("resnet20", "vgg_c", "lenet_300_100", "resnet18")
PRECISIONS: Final = ("fp32", "bf16", "tf32")
COMPILED: Final = {
    "compiled, default": ("hardware.compile=true",),
    "compiled, reduce-overhead": ("hardware.compile=true", "hardware.compile_mode=reduce-overhead"),
}
_PURE: Final = "pure compute, captured"
_EAGER: Final = "eager"


def speed(plan: Plan) -> Iterator[Row]:
    """Yield the figures of the loop against itself and against what it could at most reach."""
    for precision, model in product(PRECISIONS, plan.models or MODELS):
        of = Loops(plan, model, precision)
        makers = {
            _EAGER: partial(of.real, "hardware.capture=never"),
            "captured": partial(of.real, "hardware.capture=always"),
            "pure compute, eager": partial(of.pure, captured=False),
            _PURE: partial(of.pure, captured=True),
            f"plain loop, {plan.workers} workers": of.plain,
        }
        yield from _rows(plan, partial(Row, "speed", model, precision), makers)


def compiled(plan: Plan) -> Iterator[Row]:
    """Yield the figures of the ways in which torch itself saves launches; to compile takes most of the time."""
    for precision, model in product(PRECISIONS, plan.models or MODELS):
        of = Loops(plan, model, precision)
        makers = {
            _EAGER: partial(of.real, "hardware.capture=never"),
            "make_graphed_callables": of.graphed,
            **{name: partial(of.real, "hardware.capture=never", *words) for name, words in COMPILED.items()},
        }
        yield from _rows(plan, partial(Row, "compiled", model, precision), makers)
        torch.compiler.reset()  # compiled models share a limit, beyond which they would be eager


def _rows(plan: Plan, blank: Callable[..., Row], makers: Mapping[str, Callable[[], Loop]]) -> Iterator[Row]:
    """Yield a row for each loop; one that cannot be made, or fails, does not stop the others."""
    if plan.clock.is_over:
        yield from (blank(name, note="no time was left") for name in makers)
        return
    with plan.clock.piece():
        found, others = _measured(plan, blank, makers)
        gc.collect()
        if plan.device != "cpu":
            torch.cuda.empty_cache()
    samples = plan.batch * plan.steps
    for name in makers:
        yield others[name] if name in others else _row(blank, samples, name, found, _EAGER)
    if {"captured", _PURE} <= set(found):
        yield _row(blank, samples, "captured", found, _PURE)


def _measured(
    plan: Plan, blank: Callable[..., Row], makers: Mapping[str, Callable[[], Loop]]
) -> tuple[dict[str, list[float]], dict[str, Row]]:
    """Return the seconds of each loop's rounds, and the rows of loops that have none."""
    loops: dict[str, Loop] = {}
    others: dict[str, Row] = {}
    for name, make in makers.items():
        try:
            loops[name] = make()
        except NotHereError as error:
            others[name] = blank(name, note=str(error))
        except Exception as error:
            others[name] = failure(blank(name), error)
    failed: dict[str, Exception] = {}
    found = in_turns(loops, plan.rounds, failed)
    return found, others | {name: failure(blank(name), error) for name, error in failed.items()}


def _row(blank: Callable[..., Row], samples: int, name: str, found: Mapping[str, Sequence[float]], against: str) -> Row:
    value = samples / statistics.median(found[name])
    if against not in found:
        return blank(name, value, "samples/s")
    # Rounds are pairs: the median of their ratios is steadier than the ratio of the medians.
    ratio = statistics.median(theirs / own for theirs, own in zip(found[against], found[name], strict=True))
    row: Row = blank(name, value, "samples/s", ratio, against)
    return replace(row, target=_TARGETS.get((row.what, name, against), ""))


_TARGETS: Final = {
    ("resnet20", "captured", _EAGER): "target: 2 or more",
    ("lenet_300_100", "captured", _EAGER): "target: 2 or more",
    ("vgg_c", "captured", _PURE): "target: 0.95 or more",
}
"""By model, variant, and what it is compared with."""
