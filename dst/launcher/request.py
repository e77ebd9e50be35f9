"""What a job asks SLURM for: the options of sbatch and srun, and an environment that says nothing else."""

import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from dst.config.launcher import LauncherSettings
from dst.config.schema import Config, Hardware
from dst.launcher import slurm
from dst.launcher.job import FrozenRun
from dst.run.environment import CODE

Run = tuple[FrozenRun, Config]

_MIB_PER_GB: Final = 1024

_T = TypeVar("_T")


def sbatch_parameters(
    hardware: Hardware, runs_per_job: int, code: Path, throttle: int | None, *, after: str | None = None
) -> dict[str, Any]:
    """Return the request to SLURM for each job, in submitit's words; ``after``: a job that must have ended before."""
    wanted = hardware.slurm
    tasks = hardware.processes // wanted.nodes
    gpus = wanted.gpus if wanted.gpus is not None else (tasks if hardware.device == "cuda" else 0)
    cpus = wanted.cpus or runs_per_job * (hardware.threads + hardware.workers)
    options = dict(option.lstrip("-").partition("=")[::2] for option in wanted.options)
    if after is not None:
        options["dependency"] = ",".join(filter(None, [f"afterany:{after}", options.get("dependency")]))
    asked = {
        "time": wanted.timeout_min,
        "signal_delay_s": wanted.signal_delay_s,
        "nodes": wanted.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus,
        "gpus_per_node": gpus or None,
        # Rounded up: 0M would be all the memory of a node.
        "mem": None if wanted.memory_gb is None else f"{math.ceil(_MIB_PER_GB * wanted.memory_gb)}M",
        "partition": wanted.partition,
        "account": wanted.account,
        "qos": wanted.qos,
        "constraint": wanted.constraint,
        "setup": [*wanted.setup, *(f"export {name}={shlex.quote(value)}" for name, value in imports(code).items())],
        # Since SLURM 22.05 srun does not take this number from its job.
        "srun_args": ["--kill-on-bad-exit=1", f"--cpus-per-task={cpus}", *map(_flag, wanted.srun_options)],
        "stderr_to_stdout": True,
        "additional_parameters": {"requeue": True, **{name: value or True for name, value in options.items()}},
        "array_parallelism": throttle or slurm.max_array_size(),
    }
    return {name: value for name, value in asked.items() if value is not None}


def _flag(option: str) -> str:
    return f"--{option.lstrip('-')}"


def imports(code: Path) -> dict[str, str]:
    """Return the environment variables that make Python import the frozen package, and those that identify it.

    It is imported even if the working folder holds another one.
    """
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1", CODE: code.name}


# ---------------------------------------------------------------------------------------------------------------------
# Which runs share a job, and which jobs an array


def kind_of_job(hardware: Hardware) -> str:
    """Return by what jobs differ for SLURM: those of one kind can share an array."""
    return repr((hardware.slurm, hardware.device, hardware.processes, hardware.threads, hardware.workers))


def jobs_of(runs: Sequence[Run], settings: LauncherSettings) -> list[tuple[list[tuple[FrozenRun, ...]], Hardware]]:
    """Return, for each kind of job, the runs of each job, and what such a job asks for.

    A job has as many runs as go on in it at once, and more, one after another, if there may not be so many jobs.
    """
    kinds: dict[str, tuple[list[FrozenRun], Hardware]] = {}
    for run, config in runs:
        kinds.setdefault(kind_of_job(config.hardware), ([], config.hardware))[0].append(run)
    size = _runs_of_a_job([len(same) for same, _ in kinds.values()], settings)
    return [(list(batches(same, size)), hardware) for same, hardware in kinds.values()]


def _runs_of_a_job(counts: Sequence[int], settings: LauncherSettings) -> int:
    """Return how many runs a job gets at most, if there are so many runs of each kind of job."""
    size = settings.runs_per_job
    while settings.max_submitted is not None and size < max(counts):
        if sum(math.ceil(count / size) for count in counts) <= settings.max_submitted:
            break
        size += 1
    return size


def batches(items: Sequence[_T], size: int) -> Iterator[tuple[_T, ...]]:
    """Cut a list into parts of at most ``size``."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


# ---------------------------------------------------------------------------------------------------------------------
# The environment, which overrules what a job's script asks for

_OF_USERS: Final = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
"""Variables by which SLURM's commands are told where SLURM is; all others that it has in a job are of that job."""

_MEMORY: Final = ("MEM_PER_CPU", "MEM_PER_GPU", "MEM_PER_NODE")
_GPUS: Final = ("GPUS", "GPUS_PER_NODE", "GPUS_PER_SOCKET", "GPUS_PER_TASK")

_OVERRULING: Final[Mapping[str, Sequence[str]]] = {
    "time": ("TIMELIMIT",),
    "mem": _MEMORY,
    "gpus_per_node": _GPUS,
    "cpus_per_task": ("CPUS_PER_GPU",),
    "signal_delay_s": ("SIGNAL",),
    "stderr_to_stdout": ("OUTPUT", "ERROR", "OPEN_MODE"),
    "array_parallelism": ("ARRAY_INX", "JOB_NAME", "WAIT"),
    "requeue": ("NO_REQUEUE", "REQUEUE"),
}
"""What is asked -> the ends of the names of sbatch's variables that say something else, if not its own name."""


@contextmanager
def undisturbed(asked: Mapping[str, Any]) -> Iterator[None]:
    """Within this block, hide environment variables that speak against what is asked of sbatch.

    They would overrule it, or make srun refuse the job: those of a job in which this process runs itself, such as
    ``SLURM_MEM_PER_CPU``, and a user's defaults for what is asked, such as ``SBATCH_TIMELIMIT``.
    """
    hidden = {name: os.environ.pop(name) for name in _disturbing(asked, list(os.environ))}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _disturbing(asked: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    ends = {end for key in (*asked, *asked["additional_parameters"]) for end in _ends(key)}
    overruling = {f"SBATCH_{end}" for end in ends} | {f"SLURM_{end}" for end in _MEMORY}
    is_in_job = "SLURM_JOB_ID" in names
    return [
        name
        for name in names
        if name in overruling or (is_in_job and name.startswith("SLURM_") and name not in _OF_USERS)
    ]


def _ends(key: str) -> Sequence[str]:
    return _OVERRULING.get(key, (key.upper().replace("-", "_"),))
