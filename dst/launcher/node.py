"""Carry out one frozen run, on the machine of its job: ``python -m dst.launcher.node FOLDER --digest DIGEST``.

Nothing is composed here. The config in the run folder is executed, and only if it is the one that was submitted.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dst.config.schema import Config, ConfigError
from dst.launcher.frozen import check_code
from dst.records.read import read_run
from dst.records.restate import restate
from dst.records.same import called
from dst.records.states import UNFINISHED, State
from dst.run.environment import keep_memory, wait_without_spinning
from dst.run.processes import check_start, run_in_processes, started
from dst.run.resume import CancelledError, RunningError, check_wanted
from dst.run.terminal import program
from dst.run.verified import ContinuedError, frozen_config
from dst.signals import stop_with
from dst.tracking.pulse import starting
from dst.training.stopping import StopFlag

if TYPE_CHECKING:
    from dst.training.distributed import Group


def main(arguments: Sequence[str]) -> int:
    """Execute the run; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dst.launcher.node", description=__doc__)
    parser.add_argument("folder", type=Path, help="the run's folder")
    parser.add_argument("--digest", required=True, help="sha256 of the config that was submitted")
    parser.add_argument("--parent", type=int, help="the process that starts it, without which it stops")
    options = parser.parse_args(arguments)
    wait_without_spinning()
    keep_memory()
    with StopFlag() as stop:
        if options.parent is not None:
            stop_with(options.parent)
        try:
            return _carry_out(options.folder, options.digest, stop)
        except CancelledError as error:
            print(*error.problems, file=sys.stderr)
            return State.CANCELLED.exit_code
        except (RunningError, ContinuedError) as error:  # its own record is right
            print(error.text(), file=sys.stderr)
            return State.REFUSED.exit_code
        except ConfigError as error:
            _record_unbegun(options.folder, error.text())
            print(error.text(), file=sys.stderr)
            return State.REFUSED.exit_code
        except Exception as error:
            _record_unbegun(options.folder, f"{type(error).__name__}: {error}", traceback.format_exc())
            traceback.print_exc()
            return State.FAILED.exit_code


def _carry_out(folder: Path, submitted: str, stop: StopFlag) -> int:
    check_wanted(folder)
    config, here = frozen_config(folder, submitted), started()
    check_code()
    check_start([config], here)
    if here.world == 1:
        return _lead(config, folder, stop)
    return run_in_processes(config, here, stop, lambda processes: _lead(config, folder, stop, processes))


def _lead(config: Config, folder: Path, stop: StopFlag, processes: "Group | None" = None) -> int:
    starting("loading torch", config.tracking.progress)
    from dst.run import attempt, feasible
    from dst.run.cell import Cell

    about = read_run(folder)
    cell = Cell(config, folder, about.get("changed", {}))
    if cell.is_over:
        print(f"run {called(folder, about)} is {cell.state} already")
        return cell.state.exit_code
    starting("preparing data and network", config.tracking.progress)
    feasible.check(cell.building)
    if processes is not None:
        processes.tell(cell.building)
    command = str(about.get("command"))
    return attempt.run(cell, command, stop, with_tables=True, processes=processes).exit_code


def _record_unbegun(folder: Path, error: str, trace: str | None = None) -> None:
    """Record that the run could not begin, unless its end is recorded already. Only the main process does so."""
    if int(os.environ.get("RANK", "0")) == 0:
        restate(folder, State.FAILED, error, among=UNFINISHED, traceback=trace)


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:]), shows=False))
