"""What a user can say about how a sweep is launched (``hydra.launcher.*``)."""

from dataclasses import dataclass, fields
from typing import Final, Literal

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
