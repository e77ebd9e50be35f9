"""What a user can say of the launcher that carries out a sweep: ``hydra.launcher.*`` and ``hardware.slurm.*``."""

from dataclasses import dataclass, field
from typing import Annotated, Final

from dst.options import ASIDE, OneOf, Range, declared, problems


@dataclass(frozen=True)
class LauncherSettings:
    """Where and how the cells of a sweep run."""

    cluster: Annotated[str, OneOf("slurm", "local"), "SLURM jobs, or processes on this machine"]
    wait: Annotated[bool, "block until all cells are over and report, instead of returning at once"] = False
    max_parallel: Annotated[
        int | None, Range(1), "at most this many jobs at once; null: SLURM's limits, or what processors and GPUs allow"
    ] = None
    runs_per_job: Annotated[int, Range(1), "cells side by side in one job, each a process on the same device"] = 1
    max_submitted: Annotated[
        int | None, Range(1), "at most this many SLURM jobs, which take the cells one after another; null: one for each"
    ] = None

    def problems(self) -> list[str]:
        """Return what is wrong with the settings, as messages for the user."""
        return [f"hydra.launcher.{problem}" for problem in problems(declared(LauncherSettings), vars(self))]


LAUNCHER_OPTIONS: Final = {
    name: option.default for name, option in declared(LauncherSettings).items() if name != "cluster"
}
"""The keys of ``hydra.launcher`` that users set, with their defaults."""


@dataclass
class Slurm:
    """What the SLURM launcher asks the cluster for, for each job. What is null is left to the cluster's defaults."""

    timeout_min: Annotated[int, ASIDE, Range(1), "the time limit of a job, in minutes"] = 60
    signal_delay_s: Annotated[
        int, ASIDE, Range(1), "how long before the time limit the run saves and is requeued, in seconds"
    ] = 120
    max_requeues: Annotated[int, ASIDE, Range(0), "how often it may be requeued"] = 100
    nodes: Annotated[int, ASIDE, Range(1), "nodes that share the run's processes evenly"] = 1
    gpus: Annotated[int | None, ASIDE, Range(0), "GPUs per node; null: one per process if hardware.device=cuda"] = None
    cpus: Annotated[int | None, ASIDE, Range(1), "CPUs per process; null: one per thread and per worker"] = None
    memory_gb: Annotated[float | None, ASIDE, Range(0, ends="(]"), "memory per node, in GB"] = None
    partition: Annotated[str | None, ASIDE, "the partition of the cluster"] = None
    account: Annotated[str | None, ASIDE, "the account that is charged"] = None
    qos: Annotated[str | None, ASIDE, "the quality of service"] = None
    constraint: Annotated[str | None, ASIDE, "features that nodes must have, e.g. a100|h100"] = None
    setup: Annotated[list[str], ASIDE, 'shell lines before the program, e.g. ["module load cuda"]'] = field(
        default_factory=list
    )
    python: Annotated[
        str | None,
        ASIDE,
        "shell words that start Python in a job, e.g. of a container; null: the Python of the command",
    ] = None
    srun_options: Annotated[
        list[str], ASIDE, 'further options of srun, which starts the program, e.g. ["container-image=my.sqsh"]'
    ] = field(default_factory=list)
    options: Annotated[list[str], ASIDE, 'further options of sbatch, e.g. ["mail-type=FAIL"]'] = field(
        default_factory=list
    )
