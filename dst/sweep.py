"""The cells of a command: all composed and checked before the first one runs, then one after another."""

import shlex
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dst import app
from dst.app import Cell
from dst.checks import check
from dst.checks.start import check_start, started
from dst.compose import compose_cells
from dst.config import Config, ConfigError, complete, identity, run_name
from dst.records.read import read_summary
from dst.records.store import RecordError
from dst.report import sweep_report
from dst.training.place import Place

if TYPE_CHECKING:
    from dst.training.distributed import Group, Processes
    from dst.training.stopping import StopFlag

_WORST_FIRST = ("failed", "refused", "diverged", "preempted")
_EXIT_CODES = {**app.EXIT_CODES, "refused": 2}


def run_cells(conf: Path, overrides: Sequence[str], *, multirun: bool, forecast: bool = False) -> int:
    """Run what the overrides describe, one run or with ``multirun`` their product; return the worst exit code.

    With ``forecast``, only print what the cells that are not over yet will cost, each from its beginning.
    Raises ConfigError, with every problem of every cell, before anything is trained or recorded.
    """
    composed = compose_cells(conf, overrides, multirun=multirun)
    _check_all(composed)
    if not forecast:
        here = started()
        check_start([config for _, config in composed], here, multirun=multirun)
        if here.world > 1:
            return together(complete(composed[0][1]), here)
    cells = app.cells([complete(config) for _, config in composed])
    if len(cells) < len(composed):
        print(f"{len(composed)} cells are {len(cells)} distinct runs: the others differ in ways that change no result")
    todo = [cell.config for cell in cells if not _is_over(cell)]
    _check_feasible(todo)
    if forecast:
        return _forecast(todo)
    return _sweep(cells) if multirun else _single(cells[0])


def _check_all(composed: Sequence[tuple[list[str], Config]]) -> None:
    """Raise ConfigError if any config is wrong in itself; what is wrong with all of them is told once."""
    problems = [(" ".join(overrides), text) for overrides, config in composed for text in check(config)]
    texts = [text for _, text in problems]
    if texts:
        told = [text if texts.count(text) == len(composed) else f"[{cell}] {text}" for cell, text in problems]
        raise ConfigError(list(dict.fromkeys(told)))


def _check_feasible(configs: Sequence[Config]) -> None:
    """Raise ConfigError if data, model and method of any cell do not fit together; seeds make no difference."""
    distinct = {repr({**identity(config), "seed": 0}): config for config in configs}
    if not distinct:
        return
    from dst import build  # with torch, which takes its time

    problems: dict[str, None] = {}
    for config in distinct.values():
        try:
            build.check(config)
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))


def _forecast(configs: Sequence[Config]) -> int:
    if not configs:
        print("nothing to train: all runs are finished already")
        return 0
    from dst import forecast

    print(forecast.text(forecast.forecasts(configs)))
    return 0


def together(config: Config, here: Place) -> int:
    """Run one config in several processes, each of which calls this; return the exit code, in all of them the same.

    Raises ConfigError in all of them; that the main one tells it is enough.
    """
    from dst.training.distributed import DismissedError, PeerError, StartError, joined
    from dst.training.stopping import StopFlag

    hardware = config.hardware
    try:
        with (
            StopFlag() as stop,
            joined(here, hardware.device, strict=hardware.determinism == "strict") as processes,
            processes.watched(),
        ):
            if processes.is_main:
                return _lead(config, stop, processes)
            processes.hear()  # that the data is there, and all is well
            return _EXIT_CODES[app.follow(config, stop, processes)]
    except StartError as error:
        raise ConfigError([f"hardware.processes={hardware.processes}: {error}"]) from error
    except DismissedError as end:
        return end.code
    except PeerError as error:
        print(f"error: rank {here.rank}: {error}", file=sys.stderr)
        return _EXIT_CODES["failed"]


def _lead(config: Config, stop: "StopFlag", processes: "Group") -> int:
    """Do all that is to be done once, and train with the others, which are let go whatever happens."""
    code = _EXIT_CODES["failed"]
    try:
        (cell,) = app.cells([config])
        if not cell.is_over:
            _check_feasible([config])
            processes.tell(None)
        code = _single(cell, stop, processes)
        return code
    except ConfigError:
        code = _EXIT_CODES["refused"]
        raise
    finally:
        processes.dismiss(code)


def _single(cell: Cell, stop: "StopFlag | None" = None, processes: "Processes | None" = None) -> int:
    if not cell.is_over:
        from dst.training.stopping import StopFlag

        with nullcontext(stop) if stop else StopFlag() as flag:
            return _EXIT_CODES[app.run(cell, _command(), flag, with_tables=True, processes=processes)]
    assert cell.found is not None
    if cell.state == "done":
        print(app.report(cell.found))
    print(f"run {cell.id} is {cell.state} already, nothing was trained; output.resume=never trains it anew")
    return _EXIT_CODES[cell.state]


def _sweep(cells: Sequence[Cell]) -> int:
    """Run every cell whatever becomes of the others; only a request to stop ends the sweep."""
    states = {cell.id: cell.state for cell in cells if _is_over(cell)}
    todo = [cell for cell in cells if cell.id not in states]
    print(f"{len(cells)} runs: {len(states)} finished already, {len(todo)} to train", flush=True)
    if todo:
        from dst.training.stopping import StopFlag

        with StopFlag() as stop:
            for i, cell in enumerate(todo, start=1):
                print(f"[{i}/{len(todo)}] ", end="", flush=True)
                states[cell.id] = _one_of_many(cell, stop)
                if stop.requested:
                    break
    print(_report(cells, states))
    if len(states) < len(cells):
        print("stopped on request; run the same command to continue")
    worst = next((state for state in _WORST_FIRST if state in states.values()), "done")
    return _EXIT_CODES["preempted" if worst == "done" and len(states) < len(cells) else worst]


def _is_over(cell: Cell) -> bool:
    """Say whether a cell is over; one whose record is damaged is not, and is refused when its turn comes."""
    try:
        return cell.is_over
    except RecordError:
        return False


def _one_of_many(cell: Cell, stop: "StopFlag") -> str:
    """Run a cell so that nothing it does hurts its neighbours; return the state it ended in."""
    try:
        (now,) = app.cells([cell.config])  # another process may have begun or finished it meanwhile
        if now.is_over:
            print(f"run {now.id} is {now.state} already")
            return now.state
        return app.run(now, _command(), stop, with_tables=False)
    except ConfigError as error:  # it cannot be continued as it was begun
        print(error.text(), file=sys.stderr)
        return "refused"
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return "failed"
    except Exception:
        traceback.print_exc()
        return "failed"


def _report(cells: Sequence[Cell], states: dict[str, str]) -> str:
    rows = []
    for cell in app.cells([cell.config for cell in cells]):
        state = states.get(cell.id, "not started")
        summary = read_summary(cell.found) if state == "done" and cell.found else None
        rows.append((run_name(cell.config), state, summary or {}))
    return sweep_report(rows)


def _command() -> str:
    return shlex.join(["python", *sys.argv])
