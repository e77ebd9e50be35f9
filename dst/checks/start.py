"""Whether a command was started in as many processes as its configs ask for."""

import shlex
import sys
from collections.abc import Sequence

from dst.config import Config, ConfigError
from dst.training.place import Place, place


def started() -> Place:
    """Return this process's place among those that were started for the command; ConfigError if that makes no sense."""
    try:
        return place()
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def check_start(configs: Sequence[Config], here: Place, *, multirun: bool = False, launches: bool = False) -> None:
    """Raise ConfigError if the processes that were started are not those of the configs.

    ``launches``: the command trains nothing itself but has a launcher start what the configs ask for.
    """
    if launches:
        if here.world > 1:
            raise ConfigError(
                [
                    f"{here.world} processes were started (WORLD_SIZE={here.world} in the environment), but the "
                    "launcher starts those of each run itself: start one process, by python and not by torchrun"
                ]
            )
        return
    wanted = max(config.hardware.processes for config in configs)
    if multirun and max(wanted, here.world) > 1:
        raise ConfigError(
            [
                f"-m with hardware.processes={wanted} and {here.world} processes started: a sweep starts no processes "
                "for its cells; let a launcher do it (hydra/launcher=local, or hardware=slurm_ddp), or start each cell "
                "by itself, by torchrun and without -m"
            ]
        )
    if here.world == wanted:
        return
    if here.world == 1:
        raise ConfigError(
            [
                f"hardware.processes={wanted}: only one process was started. Type: torchrun --nproc_per_node {wanted} "
                f"{shlex.join(sys.argv)}"
            ]
        )
    raise ConfigError(
        [
            f"hardware.processes={wanted}, but {here.world} processes were started (WORLD_SIZE={here.world} in the "
            f"environment): add hardware.processes={here.world}, or start as many as the config says"
        ]
    )
