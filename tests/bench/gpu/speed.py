"""Samples a second: eager, captured, compiled, a plain loop, and pure compute, all in turns."""

import gc
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Final

import torch

from dst import registry
from dst.training.loop import Training
from tests.bench.gpu.plan import Plan
from tests.bench.gpu.table import Row, failure
from tests.bench.gpu.trainings import Images, NotHereError, Steps, split_of, training
from tests.bench.timing import in_turns, seconds
from tests.bench.train import Step, plain_step, pure_step

MODELS: Final = ("resnet20", "vgg_c", "lenet_300_100", "resnet18")
PRECISIONS: Final = ("fp32", "bf16", "tf32")
COMPILED: Final = {
    "compiled, default": ("hardware.compile=true",),
    "compiled, reduce-overhead": ("hardware.compile=true", "hardware.compile_mode=reduce-overhead"),
}
_PURE: Final = "pure compute, captured"
_EAGER: Final = "eager"

Loop = Callable[[], float]
"""Takes the steps of a round, and returns its seconds."""


def speed(plan: Plan) -> Iterator[Row]:
    """Yield the figures of the loop against itself and against what it could at most reach."""
    for precision, model in product(PRECISIONS, plan.models or MODELS):
        cell = _Cell(plan, model, precision)
        loops = {
            _EAGER: partial(cell.loop, "hardware.capture=never"),
            "captured": partial(cell.loop, "hardware.capture=always"),
            "pure compute, eager": partial(cell.pure, captured=False),
            _PURE: partial(cell.pure, captured=True),
            f"plain loop, {plan.workers} workers": cell.plain,
        }
        yield from cell.rows("speed", loops)


def compiled(plan: Plan) -> Iterator[Row]:
    """Yield the figures of the ways in which torch itself saves launches; to compile takes most of the time."""
    for precision, model in product(PRECISIONS, plan.models or MODELS):
        cell = _Cell(plan, model, precision)
        loops = {
            _EAGER: partial(cell.loop, "hardware.capture=never"),
            "make_graphed_callables": cell.graphed,
            **{name: partial(cell.loop, "hardware.capture=never", *words) for name, words in COMPILED.items()},
        }
        yield from cell.rows("compiled", loops)
        torch.compiler.reset()  # compiled models share a limit, beyond which they would be eager


class _Cell:
    """A model in a number format."""

    def __init__(self, plan: Plan, model: str, precision: str) -> None:
        self._plan, self._model, self._precision = plan, model, precision
        count = plan.batch * plan.steps
        self._images = Images(count, 1, 28) if model.startswith("lenet") else Images(count)

    def rows(self, section: str, makers: Mapping[str, Callable[[], Loop]]) -> Iterator[Row]:
        """Yield a row for each loop; one that cannot be made, or fails, does not stop the others."""
        plan, blank = self._plan, partial(Row, section, self._model, self._precision)
        if plan.clock.is_over:
            yield from (blank(name, note="no time was left") for name in makers)
            return
        with plan.clock.piece():
            yield from self._measured(makers, blank)

    def _measured(self, makers: Mapping[str, Callable[[], Loop]], blank: Callable[..., Row]) -> Iterator[Row]:
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
        times = in_turns(loops, self._plan.rounds, failed)
        others |= {name: failure(blank(name), error) for name, error in failed.items()}
        for name in makers:
            yield others[name] if name in others else self._row(blank, name, times, _EAGER)
        if {"captured", _PURE} <= set(times):
            yield self._row(blank, "captured", times, _PURE)
        loops.clear()
        gc.collect()
        if self._plan.device != "cpu":
            torch.cuda.empty_cache()

    def _row(self, blank: Callable[..., Row], name: str, times: Mapping[str, list[float]], against: str) -> Row:
        samples = self._plan.batch * self._plan.steps
        ratio = None
        if against in times:  # rounds are pairs: the median of their ratios is steadier than the ratio of the medians
            ratio = statistics.median(theirs / own for theirs, own in zip(times[against], times[name], strict=True))
        target = _TARGETS.get((self._model, name, against), "")
        value = samples / statistics.median(times[name])
        return blank(name, value, "samples/s", ratio, "" if ratio is None else against, target)

    # -- what is compared ----------------------------------------------------------------------------------------------

    def loop(self, *words: str) -> Loop:
        """Return epochs of the real loop."""
        return self._epochs(self._training(*words))

    def graphed(self) -> Loop:
        """Return epochs of the real loop, the model as graphs of its forward and of its backward pass."""
        run = self._training("hardware.capture=never")
        _needs_gpu(self._plan.device, "torch.cuda.make_graphed_callables")
        inputs, _ = next(iter(run.train_batches.epoch(0)))
        if run.settings.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        dtype = run.precision.dtype
        with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            torch.cuda.make_graphed_callables(run.model, (inputs,))
        return self._epochs(run)

    def pure(self, *, captured: bool) -> Loop:
        """Return steps on one resident batch: forward, backward and optimizer, perhaps as one graph."""
        step = pure_step(self._training("hardware.capture=never"))
        if captured:
            _needs_gpu(self._plan.device, "a CUDA graph")
            step = _captured(step)
        return partial(seconds, step, self._plan.device, self._plan.steps)

    def plain(self) -> Loop:
        """Return steps as most published codes take them."""
        plan = self._plan
        if self._precision == "tf32":
            _needs_gpu(plan.device, "tf32")
        step = plain_step(
            split_of(replace(self._images, count=4 * self._images.count)),  # its workers start epochs slowly
            registry.find("model", self._model).load(),
            plan.device,
            plan.batch,
            plan.workers,
            precision=self._precision,
            augments=self._images.channels == 3,
        )
        return partial(seconds, step, plan.device, plan.steps)

    def _training(self, *words: str) -> Training:
        """Return the training of a static sparse network in the layout that suits the number format."""
        is_half = self._precision == "bf16" and self._images.channels == 3
        return training(
            self._plan.device,
            self._images,
            *(f"model={self._model}", "sparsity=static", f"schedule.batch_size={self._plan.batch}"),
            *(f"hardware.precision={self._precision}", f"hardware.channels_last={str(is_half).lower()}"),
            *words,
        )

    def _epochs(self, run: Training) -> Loop:
        return partial(Steps(run, self._plan.device).seconds, self._plan.steps)


def _needs_gpu(device: str, what: str) -> None:
    if device == "cpu":
        raise NotHereError(f"{what} needs a GPU")


def _captured(step: Step) -> Step:
    """Return a step as one CUDA graph, which is replayed."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries set up, the optimizer makes its state
            step()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay


_TARGETS: Final = {
    ("resnet20", "captured", _EAGER): "target: 2 or more",
    ("lenet_300_100", "captured", _EAGER): "target: 2 or more",
    ("vgg_c", "captured", _PURE): "target: 0.95 or more",
}
"""By model, variant, and what it is compared with."""
