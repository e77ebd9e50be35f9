"""The loops that are compared: the real one, pure compute, and a plain one."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from dst import registry
from dst.training.loop import Training
from tests.bench.gpu.plan import Plan
from tests.bench.gpu.trainings import Images, NotHereError, Steps, split_of, training
from tests.bench.timing import seconds
from tests.bench.train import Step, plain_step, pure_step

Loop = Callable[[], float]
"""Takes the steps of a round, and returns its seconds."""


class Loops:
    """The loops of a model in a number format."""

    def __init__(self, plan: Plan, model: str, precision: str) -> None:
        self._plan, self._model, self._precision = plan, model, precision
        count = plan.batch * plan.steps
        self._images = Images(count, 1, 28) if model.startswith("lenet") else Images(count)

    def real(self, *words: str) -> Loop:
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
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # libraries set up, the optimizer makes its state
            step()
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        step()
    return graph.replay
