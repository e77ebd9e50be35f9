"""The Hydra launcher of this project: ``hydra/launcher=slurm`` and ``hydra/launcher=local``.

Hydra takes plugins only from this namespace and loads each of them at its start. So the work is done elsewhere, in
``dst.launcher``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from dst.config.launcher import LAUNCHER_OPTIONS, LauncherSettings
from dst.records.states import State


class SubmititLauncher(Launcher):
    """Submits the cells of a sweep through submitit, each with its own frozen config."""

    def __init__(self, cluster: str, **options: Any) -> None:
        self.settings = LauncherSettings(cluster, **options)
        self._conf: Path | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember where the config files are. The task function is not used: a run's frozen config says everything."""
        sources = config.hydra.runtime.config_sources
        self._conf = next(Path(source.path) for source in sources if source.provider == "main")

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Compose, check, freeze and submit the cells; return a result for each cell, whose value is the run's folder.

        Raises ConfigError, with all problems, before anything is submitted.
        """
        from dst.launcher.sweep import submit_cells

        assert self._conf is not None
        submitted = submit_cells(self._conf, job_overrides, self.settings)
        return [_result(overrides, *found) for overrides, found in zip(job_overrides, submitted, strict=True)]


# What the files in conf/hydra/launcher have in common.
ConfigStore.instance().store(
    group="hydra/launcher",
    name="submitit",
    node={"_target_": f"{SubmititLauncher.__module__}.{SubmititLauncher.__qualname__}", **LAUNCHER_OPTIONS},
)


def _result(overrides: Sequence[str], folder: Path, state: State) -> JobReturn:
    status = JobStatus.COMPLETED if state == State.DONE else JobStatus.UNKNOWN
    return JobReturn(overrides=overrides, status=status, _return_value=str(folder))
