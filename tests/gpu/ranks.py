"""What single ranks do in the tests of several processes with GPUs."""

from typing import Any

import torch
import torch.distributed as dist

from dst.config.schema import complete
from dst.run.build import build
from dst.training import distributed
from dst.training.distributed import ALONE, Processes, StartError, joined
from dst.training.loop import Training
from dst.training.rank import own_rank
from dst.training.stopping import StopFlag
from tests.composed import compose_cells
from tests.processes import REPOSITORY
from tests.training.ranks import Watcher, digest

SHORT = ("model=resnet20", "schedule.epochs=1", "schedule.update_every=5", "schedule.batch_size=64", "tracking=none")
CUDA = ("hardware=gpu", "hardware.determinism=strict")


def trained(processes: Processes, *overrides: str) -> Training:
    """Return a training on the digits, with several updates, at its end."""
    ((_, config),) = compose_cells(REPOSITORY / "conf", [*SHORT, *CUDA, *overrides], multirun=False)
    run = build(complete(config), processes).training
    run.run(Watcher(run), StopFlag())
    return run


def outcome(run: Training) -> dict[str, Any]:
    """Return what is to be compared, on the CPU."""
    return {
        "digest": digest(run),
        "updates": run.sparsifier.updates,
        "weights": torch.cat([p.detach().flatten().cpu() for p in run.model.parameters()]),
        "layers": sorted({type(module).__name__ for module in run.model.modules()}),
    }


def train(strict: bool, *overrides: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train by itself, then as one of a group, whose collectives go through NCCL; return both outcomes."""
    alone = outcome(trained(ALONE, "hardware.sync_batch_norm=false", "hardware.processes=1"))
    with joined(own_rank(), "cuda", strict=strict) as group:
        return alone, outcome(trained(group, *overrides))


def train_on_one_gpu(strict: bool, *overrides: str) -> dict[str, Any]:
    """Train in several processes that share a GPU, which NCCL refuses: the collectives go through gloo."""
    join = dist.init_process_group
    dist.init_process_group = lambda backend, **options: join("gloo", **options)  # type: ignore[assignment]
    distributed._check_gpus = lambda world: None
    with joined(own_rank(), "cuda", strict=strict) as group:
        return outcome(trained(group, *overrides))


def share_a_gpu() -> str:
    """Join a group on a machine that has fewer GPUs than processes; return the error."""
    try:
        with joined(own_rank(), "cuda", strict=True):
            return ""
    except StartError as error:
        return str(error)
