"""The cells of a command: all composed and checked before the first one runs, then one after another."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dst import app
from dst.app import Cell
from dst.checks import check
from dst.compose import compose_cells
from dst.config import Config, ConfigError, complete, identity, run_name
from dst.records.read import read_summary
from dst.report import sweep_report

_WORST_FIRST = ("failed", "refused", "diverged", "preempted")
_EXIT_CODES = {**app.EXIT_CODES, "refused": 2}


def run_cells(conf: Path, overrides: Sequence[str], *, multirun: bool) -> int:
    """Run what the overrides describe, one run or with ``multirun`` their product; return the worst exit code.

    Raises ConfigError, with every problem of every cell, before anything is trained or recorded.
    """
    composed = compose_cells(conf, overrides, multirun=multirun)
    _check_all(composed)
    cells = app.cells([complete(config) for _, config in composed])
    if len(cells) < len(composed):
        print(f"{len(composed)} cells are {len(cells)} distinct runs: the others differ in ways that change no result")
    _check_feasible([cell.config for cell in cells if not cell.is_over])
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


def _single(cell: Cell) -> int:
    if not cell.is_over:
        return _EXIT_CODES[app.run(cell, _command(), with_tables=True)]
    assert cell.found is not None
    if cell.state == "done":
        print(app.report(cell.found))
    print(f"run {cell.id} is {cell.state} already, nothing was trained; output.resume=never trains it anew")
    return _EXIT_CODES[cell.state]


def _sweep(cells: Sequence[Cell]) -> int:
    """Run every cell whatever becomes of the others; only a request to stop ends the sweep."""
    states = {cell.id: cell.state for cell in cells if cell.is_over}
    todo = [cell for cell in cells if cell.id not in states]
    print(f"{len(cells)} runs: {len(states)} finished already, {len(todo)} to train", flush=True)
    for i, cell in enumerate(todo, start=1):
        print(f"[{i}/{len(todo)}] ", end="")
        try:
            states[cell.id] = app.run(cell, _command(), with_tables=False)
        except ConfigError as error:  # this one cannot be continued as it was begun; the others can
            print(error.text(), file=sys.stderr)
            states[cell.id] = "refused"
        if states[cell.id] == "preempted":
            break
    print(_report(cells, states))
    worst = next((state for state in _WORST_FIRST if state in states.values()), "done")
    return _EXIT_CODES[worst]


def _report(cells: Sequence[Cell], states: dict[str, str]) -> str:
    rows = []
    for cell in app.cells([cell.config for cell in cells]):
        state = states.get(cell.id, "not started")
        summary = read_summary(cell.found) if state == "done" and cell.found else None
        rows.append((run_name(cell.config), state, summary or {}))
    return sweep_report(rows)


def _command() -> str:
    return shlex.join(["python", *sys.argv])
