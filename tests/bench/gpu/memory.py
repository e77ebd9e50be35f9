"""What a captured step holds and costs: megabytes of private pools, milliseconds of a capture."""

import gc
import statistics
from collections.abc import Iterator
from typing import Final

import torch

from tests.bench.gpu.plan import Plan
from tests.bench.gpu.speed import MODELS
from tests.bench.gpu.table import Row, failure
from tests.bench.gpu.trainings import Images, NotHereError, Steps, training

_STEPS: Final = 20
"""Within these a run captures its step."""


def memory(plan: Plan) -> Iterator[Row]:
    """Yield both for each model."""
    for model in plan.models or MODELS:
        blank = Row("memory", model, "fp32", "captured")
        if plan.clock.is_over:
            yield Row("memory", model, "fp32", "captured", note="no time was left")
            continue
        try:
            with plan.clock.piece():
                held, cost, told = _measured(plan, model)
            yield Row("memory", model, "fp32", "graphs hold", held, "MB", note=told)
            yield Row("memory", model, "fp32", "a capture", cost, "ms", note="the slowest of the first steps, less one")
        except NotHereError as error:
            yield Row("memory", model, "fp32", "captured", note=str(error))
        except Exception as error:
            yield failure(blank, error)


def _measured(plan: Plan, model: str) -> tuple[float, float, str]:
    """Return megabytes, milliseconds and what the run says; an eager run before has set up all that any run does."""
    images = Images(10 * plan.batch, 1, 28) if model.startswith("lenet") else Images(10 * plan.batch)
    words = (f"model={model}", "sparsity=static", f"schedule.batch_size={plan.batch}")
    captured = Steps(training(plan.device, images, *words, "hardware.capture=always"), plan.device)
    Steps(training(plan.device, images, *words, "hardware.capture=never"), plan.device).each(_STEPS)
    gc.collect()
    before = _pools()
    times = captured.each(_STEPS)
    return (_pools() - before) / 1e6, 1e3 * (max(times) - statistics.median(times)), "; ".join(captured.told)


def _pools() -> int:
    """Return the bytes of device memory that belong to private pools, which graphs have."""
    segments = torch.cuda.memory_snapshot()
    return sum(segment["total_size"] for segment in segments if tuple(segment["segment_pool_id"]) != (0, 0))
