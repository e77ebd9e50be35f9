"""One run in several processes: the main one leads and keeps the record, the others follow."""

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dst.config.schema import Config, ConfigError
from dst.records.states import State
from dst.run import attempt
from dst.run.terminal import leave_at_once
from dst.run.terms import translated
from dst.training.rank import Rank, own_rank

if TYPE_CHECKING:
    from dst.training.distributed import Group
    from dst.training.stopping import StopFlag


def run_in_processes(config: Config, here: Rank, stop: "StopFlag", lead: Callable[["Group"], int]) -> int:
    """Run a config in several processes, each of which calls this; return the exit code, the same in all of them.

    The main process calls ``lead``. It does what must be done once, such as checking the config and preparing the data;
    then it sends the others the config, with the digests of all that they shall read, by ``tell``, and runs it. The
    others are released in every case. Raises ConfigError in all processes; only the main one needs to print it.
    """
    from dst.training.distributed import DismissedError, PeerError, StartError, joined

    hardware = config.hardware
    leave_at_once()  # sometimes a thread of gloo wants Python's lock while Python ends, and aborts the process
    try:
        with joined(here, hardware.device, strict=hardware.determinism == "strict") as processes, processes.watched():
            if processes.is_main:
                return _led(processes, lead)
            identified: Config = processes.hear()  # it comes once the main process has checked everything
            return attempt.follow(identified, stop, processes).exit_code
    except StartError as error:
        raise ConfigError([f"hardware.processes={hardware.processes}: {translated(str(error), 'hardware')}"]) from error
    except DismissedError as end:
        return end.code
    except PeerError as error:
        print(f"error: rank {here.rank}: {error}", file=sys.stderr)
        return State.FAILED.exit_code


def _led(processes: "Group", lead: Callable[["Group"], int]) -> int:
    code = State.FAILED.exit_code
    try:
        code = lead(processes)
        return code
    except ConfigError:
        code = State.REFUSED.exit_code
        raise
    finally:
        processes.dismiss(code)


def started() -> Rank:
    """Return this process's rank among those started for the command; ConfigError if the environment is wrong."""
    try:
        return own_rank()
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def check_start(configs: Sequence[Config], here: Rank, *, multirun: bool = False, by_launcher: bool = False) -> None:
    """Raise ConfigError if the configs ask for another number of processes than were started.

    ``by_launcher``: the command trains nothing itself; a launcher starts the processes.
    """
    if by_launcher:
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
