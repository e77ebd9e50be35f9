"""Runs side by side on one GPU, by the real launcher, against one after another; starts included."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from tests.bench.gpu.plan import Plan
from tests.bench.gpu.table import Row, failure
from tests.bench.submit import ON, Done, sweep

PIPES: Final = "CUDA_MPS_PIPE_DIRECTORY"
_TINY: Final = ("model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10", "hardware.device=cpu")


def packed(plan: Plan) -> Iterator[Row]:
    """Yield the seconds of so many runs, one after another, which comes first, and side by side."""
    for runs in plan.runs:
        alone: float | None = None
        for variant in ("one after another", "side by side, MPS", "side by side, no MPS"):
            row, done = _measured(plan, runs, variant)
            if done is not None and variant.startswith("one"):
                alone = done.seconds
            elif done is not None and alone is not None:
                row = replace(row, ratio=alone / done.seconds, against="one after another")
            yield row


def _measured(plan: Plan, runs: int, variant: str) -> tuple[Row, Done | None]:
    """Return the row of a sweep, and the sweep if there was one."""
    blank = Row("packed", f"{runs} runs", "fp32", variant)
    by_mps = variant.endswith("side, MPS")
    if by_mps and (reason := _without_mps(plan.device)):
        return replace(blank, note=reason), None
    if plan.clock.is_over:
        return replace(blank, note="no time was left"), None
    try:
        with plan.clock.piece():
            done = _done(runs, _TINY if plan.is_quick else ON["gpu"], variant, plan.clock.left)
    except Exception as error:
        return failure(blank, error), None
    told = next((line.strip() for line in reversed(done.output.splitlines()) if "MPS" in line), "")
    target = "target: 3 or more" if by_mps else ""
    return replace(blank, value=done.seconds, unit="s", target=target, note=told), done


def _without_mps(device: str) -> str:
    """Return why there can be no MPS; empty if there can."""
    if device == "cpu":
        return "MPS needs a GPU"
    return "" if shutil.which("nvidia-cuda-mps-control") else "there is no nvidia-cuda-mps-control here"


def _done(runs: int, options: tuple[str, ...], variant: str, timeout_s: float) -> Done:
    with tempfile.TemporaryDirectory() as nowhere:
        # A folder in which no daemon listens: CUDA works without MPS then, and the launcher starts none.
        environment = {**os.environ, **({PIPES: nowhere} if variant.endswith("no MPS") else {})}
        done = sweep(runs, options, packed=variant.startswith("side"), env=environment, timeout=timeout_s)
    if done.code:
        raise RuntimeError(f"exit code {done.code}: {' '.join(done.output.split())[-300:]}")
    return done
