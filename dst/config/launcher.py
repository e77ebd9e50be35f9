"""What a user can say of the launcher that carries out a sweep: ``hydra.launcher.*`` and ``hardware.slurm.*``."""

from dataclasses import dataclass, field, fields
from typing import Final, Literal

from dst.options import aside

Cluster = Literal["slurm", "local"]


@dataclass(frozen=True)
class LauncherSettings:
    """Where and how the cells of a sweep run.

    ``cluster``: SLURM jobs, or processes on this machine. ``wait``: block until all are over and report, instead of
    returning at once. ``max_parallel``: so many jobs at a time (null: SLURM's own limits; here as many as the
    processors and the GPUs allow). ``runs_per_job``: so many cells side by side in one job, each a process of its
    own on the same device.
    """

    cluster: Cluster
    wait: bool = False
    max_parallel: int | None = None
    runs_per_job: int = 1

    def problems(self) -> list[str]:
        """Return what is wrong with the settings, as messages for the user."""
        found = []
        if not isinstance(self.wait, bool):
            found.append(f"hydra.launcher.wait={self.wait}: must be true or false")
        for name in ("max_parallel", "runs_per_job"):
            value = getattr(self, name)
            if (value is None and name == "runs_per_job") or (
                value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1)
            ):
                found.append(f"hydra.launcher.{name}={value}: must be an integer >= 1")
        return found


LAUNCHER_OPTIONS: Final = tuple(item.name for item in fields(LauncherSettings) if item.name != "cluster")
"""The keys of ``hydra.launcher`` that users set."""


@dataclass
class Slurm:
    """What the SLURM launcher asks the cluster for, for each job. What is null is left to the cluster's defaults.

    ``timeout_min``: the time limit; ``signal_delay_s`` before it the run saves and is put back into the queue, at most
    ``max_requeues`` times. ``nodes`` share the run's processes evenly; ``gpus`` per node (default: one a process on
    CUDA), ``cpus`` per process (default: threads and workers), ``memory_gb`` per node. ``setup``: shell lines before
    the program, e.g. ``["module load cuda"]``; ``options``: further ones of sbatch, e.g. ``["mail-type=FAIL"]``.
    """

    timeout_min: int = aside(60)
    signal_delay_s: int = aside(120)
    max_requeues: int = aside(100)
    nodes: int = aside(1)
    gpus: int | None = aside(None)
    cpus: int | None = aside(None)
    memory_gb: float | None = aside(None)
    partition: str | None = aside(None)
    account: str | None = aside(None)
    qos: str | None = aside(None)
    constraint: str | None = aside(None)
    setup: list[str] = field(default_factory=list, metadata={"identity": False})
    options: list[str] = field(default_factory=list, metadata={"identity": False})
