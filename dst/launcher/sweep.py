"""The cells of a command: all are composed and checked before the first one runs, here or elsewhere."""

import os
import shlex
import sys
import traceback
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from dst.config.checks import check, check_launcher
from dst.config.compose import Composed, ComposedCell, compose_command, compose_each
from dst.config.identity import run_id
from dst.config.overrides import own_overrides
from dst.config.schema import Config, ConfigError, Optimizer, complete, flatten
from dst.files import kept_back
from dst.launcher.grouped import grouped, listed
from dst.records.label import LABEL
from dst.records.provenance import PACKAGE, pasteable
from dst.records.read import read_run, read_summary
from dst.records.states import State, worst
from dst.records.store import RecordError
from dst.records.swept import recorded_name
from dst.registry import NONE
from dst.run import attempt
from dst.run.cell import Cell, enter, looked_up, report
from dst.run.cell import cells as cells_of
from dst.run.look import Look, look
from dst.run.lost import check_resumable
from dst.run.notes import notes
from dst.run.processes import check_start, run_in_processes, started
from dst.run.report import sweep_report
from dst.run.sources import Known, identified
from dst.tracking.pulse import starting
from dst.training.rank import Rank

if TYPE_CHECKING:
    from dst.config.launcher import LauncherSettings
    from dst.launcher.submit import Submitted
    from dst.training.distributed import Group, Processes
    from dst.training.stopping import StopFlag


def run_cells(conf: Path, overrides: Sequence[str], *, multirun: bool, forecast: bool = False) -> int:
    """Run the run that the overrides describe, or with ``multirun`` their product; return the worst exit code.

    With ``forecast``, only print what each cell that is not over will cost from its beginning.
    Raises ConfigError, with every problem of every cell, before anything is trained or recorded.
    """
    composed = compose_command(conf, overrides, multirun=multirun)
    check_launcher(overrides, composed.launcher, multirun=multirun or forecast)
    if not forecast:
        here, by_launcher = started(), composed.launcher is not None
        check_start([cell.config for cell in composed.cells], here, multirun=multirun, by_launcher=by_launcher)
        if here.world > 1:
            return _in_processes(composed.cells, here)
    with kept_back():
        cells = _checked(composed, _identified(composed.cells), forecast=forecast)
        if not forecast and composed.launcher is None:
            _refuse_second(cells)
    if forecast:
        return _forecast([cell for cell in cells if not _is_over(cell)])
    if composed.launcher is not None:
        return _submit(cells, composed.launcher)
    return _sweep(cells) if multirun else _single(cells[0])


def submit_cells(conf: Path, cells: Sequence[Sequence[str]], settings: "LauncherSettings") -> list[tuple[Path, State]]:
    """Submit cells given by their overrides, for Hydra's own command line; return the folder and state of each.

    Raises ConfigError, with every problem of every cell, before anything is submitted.
    """
    from dst.launcher.observe import observe
    from dst.launcher.submit import submit, wait

    composed = Composed(compose_each(conf, cells), settings)
    with kept_back():
        configs = _identified(composed.cells)
        checked = _checked(composed, configs)
    submitted = submit(checked, settings, _command())
    if submitted.left:
        print(submitted.told(), file=sys.stderr, flush=True)
    folders = submitted.folders
    observed = wait(folders) if settings.wait else observe(folders)
    by_id = {cell.id: (folder, run.state) for cell, folder, run in zip(checked, folders, observed, strict=True)}
    return [by_id[run_id(config)] for config in configs]


def _identified(composed: Sequence[ComposedCell]) -> list[Config]:
    """Return the complete configs of cells, with the digests of all that they read; see ``dst.run.sources``.

    Raises ConfigError if any config is invalid on its own, or names something that is not there.
    """
    _check_all(composed)
    known: Known = {}
    configs, problems = [], []
    for name, (_, config, *_) in zip(_names(composed), composed, strict=True):
        try:
            configs.append(identified(complete(config), known))
        except ConfigError as error:
            problems += [(name, text) for text in error.problems]
    _raise(problems, len(composed))
    return configs


def _checked(composed: Composed, completed: Sequence[Config], *, forecast: bool = False) -> list[Cell]:
    """Return the distinct runs of the cells, each with its record; ConfigError if any of them is invalid."""
    there = look(config.output.root for config in completed)
    swept = [cell.swept for cell in composed.cells]
    cells = cells_of(completed, [cell.changed for cell in composed.cells], there, swept=swept)
    if len(cells) < len(completed):
        alike = _alike([cell.overrides for cell in composed.cells], map(run_id, completed))
        print(f"{len(completed)} cells are {len(cells)} distinct runs: {alike}")
    if not forecast:
        _tell(cells, there)
    todo = [cell for cell in cells if not _is_over(cell)]
    settings = composed.launcher
    if settings is not None and not forecast:
        from dst.launcher.submit import check_settings

        check_settings(settings, [cell.config for cell in todo])
    names = {id(config): name for name, config in zip(_names(composed.cells), completed, strict=True)}
    named = [(names[id(cell.config)], cell) for cell in todo]
    if not forecast:
        _check_resumable(named)
    _check_feasible(named, elsewhere=forecast or (settings is not None and settings.cluster == "slurm"))
    return cells


def _tell(cells: Sequence[Cell], there: Look) -> None:
    for note in notes(cells, there, PACKAGE.parent):
        print(note, file=sys.stderr, flush=True)


def _check_resumable(named: Sequence[tuple[str, Cell]]) -> None:
    """Raise ConfigError if any cell cannot be continued although ``output.resume`` requires it."""
    problems = []
    for name, cell in named:
        try:
            check_resumable(cell.id, cell.found, cell.config)
        except ConfigError as error:
            problems += [(name, text) for text in error.problems]
    _raise(problems, len(named))


def _alike(cells: Sequence[Sequence[str]], ids: Iterable[str]) -> str:
    """Return which cells are the same run: the overrides in which they differ; none is listed twice."""
    same: dict[str, list[Sequence[str]]] = defaultdict(list)
    for cell, run in zip(cells, ids, strict=True):
        same[run].append(cell)
    told = []
    for group in same.values():
        differing = list(map(" ".join, own_overrides(group)))
        if len(group) > 1:
            told.append(", ".join(differing if all(differing) else map(" ".join, group)))
    return listed(list(dict.fromkeys(told)), between="; ")


def _names(composed: Sequence[ComposedCell]) -> list[str]:
    """Return the names of cells in messages: what is swept."""
    return list(map(" ".join, own_overrides([cell.overrides for cell in composed])))


def _check_all(composed: Sequence[ComposedCell]) -> None:
    """Raise ConfigError if any config is invalid on its own."""
    known: dict[str, list[str]] = {}
    problems = []
    for name, (_, config, *_) in zip(_names(composed), composed, strict=True):
        key = repr({**flatten(config), "seed": min(config.seed, 0)})  # no valid seed makes a difference
        if key not in known:
            known[key] = check(config)
        problems += [(name, text) for text in known[key]]
    _raise(problems, len(composed))


def _raise(problems: Sequence[tuple[str, str]], cells: int) -> None:
    """Raise ConfigError if there are problems, each (cell, text)."""
    if problems:
        raise ConfigError(grouped(problems, cells))


_ALWAYS_FEASIBLE = frozenset({"seed", "schedule.label_smoothing"})
_RATES = frozenset(
    {
        *(f"schedule.lr.{name}" for name in ("name", "peak", "floor", "milestones", "gamma")),
        *(f"schedule.optimizer.{item.name}" for item in fields(Optimizer)),
    }
)
"""Keys whose valid values cannot decide whether data, model and method fit together; rates, unless masks are learned.
"""


def _check_feasible(named: Sequence[tuple[str, Cell]], *, elsewhere: bool) -> None:
    """Raise ConfigError if data, model and method of any cell do not fit together; print warnings.

    ``named``: cells with their names; ``elsewhere``: they will run on another machine.
    """
    alike: dict[str, list[tuple[str, Config]]] = defaultdict(list)
    for name, cell in named:
        learns = cell.building.sparsity.reparametrize.name != NONE
        same = _ALWAYS_FEASIBLE if learns else _ALWAYS_FEASIBLE | _RATES
        alike[repr({key: value for key, value in cell.identity.items() if key not in same})].append(
            (name, cell.building)
        )
    if not alike:
        return
    quiet = all(cell.config.tracking.progress == "none" for _, cell in named)
    mode = "none" if quiet else "auto"
    if "torch" not in sys.modules:
        starting("loading torch", mode)
    from dst.run import feasible

    warnings, problems = [], []
    starting("preparing data and network" if len(alike) == 1 else f"preparing data and {len(alike)} networks", mode)
    for cells in alike.values():
        (_, config), *_ = cells
        try:
            warnings += [(name, text) for text in feasible.check(config, elsewhere=elsewhere) for name, _ in cells]
        except ConfigError as error:
            problems += [(name, text) for text in error.problems for name, _ in cells]
    starting(None)
    for told in grouped(warnings, len(named)):
        print(f"warning: {told}", file=sys.stderr)
    _raise(problems, len(named))


def _forecast(cells: Sequence[Cell]) -> int:
    if not cells:
        print("nothing to train: all runs are finished already")
        return 0
    from dst.run import forecast

    print(forecast.text(forecast.forecasts(cells)))
    return 0


def _in_processes(composed: Sequence[ComposedCell], here: Rank) -> int:
    """Run the one cell of a command in several processes."""
    from dst.training.stopping import StopFlag

    _check_all(composed)
    ((_, config, changed, _),) = composed

    def lead(processes: "Group") -> int:
        with kept_back():
            (known,) = _identified(composed)
            there = look([known.output.root])
            (cell,) = cells_of([known], [changed], there)
            _tell([cell], there)
            if not cell.is_over:
                _check_feasible([("", cell)], elsewhere=False)
                _refuse_second([cell])
        if not cell.is_over:
            processes.tell(cell.building)
        return _single(cell, stop, processes)

    with StopFlag() as stop:
        return run_in_processes(complete(config), here, stop, lead)


def _refuse_second(cells: Sequence[Cell]) -> None:
    """Raise ConfigError if output.resume=never would start a second attempt while the first is under way."""
    from dst.launcher.observe import observe

    found = [cell.found for cell in cells if cell.found is not None and cell.config.output.resume == "never"]
    problems = [
        f"output.resume=never: run {run.folder} is {run.state}{f', as job {run.job}' if run.has_job else ''}: "
        f"cancel it first ({pasteable('dst.launcher.cancel', run.folder)}, or Ctrl-C where it "
        "runs), or wait for its end"
        for run in observe(found)
        if run.is_taken
    ]
    if problems:
        raise ConfigError(problems)


def _single(cell: Cell, stop: "StopFlag | None" = None, processes: "Processes | None" = None) -> int:
    enter([cell], _command())
    if not cell.is_over:
        from dst.training.stopping import StopFlag

        with nullcontext(stop) if stop else StopFlag() as flag:
            return attempt.run(cell, _command(), flag, with_tables=True, processes=processes).exit_code
    assert cell.found is not None
    if cell.state == State.DONE:
        print(report(cell.found))
    _note_names([cell])
    print(f"run {cell.id} is {cell.state} already, nothing was trained; output.resume=never trains it anew")
    return cell.state.exit_code


def _sweep(cells: Sequence[Cell]) -> int:
    """Run every cell, even if others fail; only a request to stop ends the sweep."""
    enter(cells, _command())
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
    _note_names(cells)
    if len(states) < len(cells):
        print("stopped on request; run the same command to continue")
    unfinished = State.PREEMPTED.exit_code if len(states) < len(cells) else 0
    return worst(state.exit_code for state in states.values()) or unfinished


def _submit(cells: Sequence[Cell], settings: "LauncherSettings") -> int:
    """Submit the cells, print what was done and how to go on, and wait if the settings say so."""
    from dst.launcher.executors import SubmissionError
    from dst.launcher.submit import submit, wait

    try:
        submitted = submit(cells, settings, _command())
    except SubmissionError as error:
        print(f"error: {error}", file=sys.stderr)
        return State.FAILED.exit_code
    print(_summary(cells, submitted, settings), flush=True)
    _note_names(cells)
    left = [State.REFUSED.exit_code] * len(submitted.left)
    if submitted.left:
        print(submitted.told(), file=sys.stderr, flush=True)
    if not settings.wait:
        return worst(left)
    try:
        ended = wait(submitted.folders)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("waits no longer; the jobs go on") from None
    states = {cell.id: run.state for cell, run in zip(cells, ended, strict=True)}
    print(_report(cells, states))
    return worst([*left, *(state.exit_code for state in states.values())])


def _summary(cells: Sequence[Cell], submitted: "Submitted", settings: "LauncherSettings") -> str:
    from dst.launcher.submit import jobs_told

    told = {
        "finished already": submitted.finished,
        "under way already": submitted.under_way,
        "left alone": len(submitted.left),
    }
    counts = [f"{count} {what}" for what, count in told.items() if count]
    lines = [f"{len(cells)} runs: {', '.join([*counts, f'{len(submitted.submitted)} submitted'])}"]
    if submitted.stopping:
        lines.append(f"  {submitted.stopping} of those under way are just stopping: give the command again then")
    if submitted.submission is not None:
        root = os.path.abspath(cells[0].config.output.root)
        where = "to SLURM as" if settings.cluster == "slurm" else "to this machine as"
        lines += [
            f"  {where} {jobs_told(submitted.submission.jobs)}; logs in {submitted.submission.logs}",
            f"  watch: {pasteable('dst.launcher.status', root)}",
            f"  cancel: {pasteable('dst.launcher.cancel', root)}",
        ]
    return "\n".join(lines)


def _is_over(cell: Cell) -> bool:
    """Say whether a cell is over. A cell with a damaged record is not; it is refused when its turn comes."""
    try:
        return cell.is_over
    except RecordError:
        return False


def _one_of_many(cell: Cell, stop: "StopFlag") -> State:
    """Run a cell so that its failure does not affect the others; return the state in which it ended."""
    try:
        (now,) = looked_up([cell])  # another process may have begun or finished it
        _refuse_second([now])
        enter([now], _command())
        if now.is_over:
            print(f"run {now.id} is {now.state} already")
            return now.state
        return attempt.run(now, _command(), stop, with_tables=False)
    except ConfigError as error:  # it cannot be continued as it was begun
        print(error.text(), file=sys.stderr)
        return State.REFUSED
    except RecordError as error:
        print(f"error: {error}", file=sys.stderr)
        return State.FAILED
    except Exception:
        traceback.print_exc()
        return State.FAILED


def _report(cells: Sequence[Cell], states: Mapping[str, State]) -> str:
    rows = []
    for cell in looked_up(cells):
        name, state, summary = cell.title, states.get(cell.id, State.NOT_STARTED), None
        with suppress(OSError, RecordError):  # a record that was damaged or removed meanwhile must not hide the others
            name = recorded_name(read_run(cell.found), name) if cell.found else name
            summary = read_summary(cell.found) if state == State.DONE and cell.found else None
        rows.append((name, state, summary or {}))
    return sweep_report(rows)


def _note_names(cells: Sequence[Cell]) -> None:
    """Say which runs keep another name than the label of this command gives them: they are over or under way."""
    for cell in looked_up([cell for cell in cells if LABEL in cell.changed]):
        with suppress(OSError, RecordError):
            recorded = read_run(cell.found).get("name", cell.name) if cell.found else cell.name
            if recorded != cell.name:
                print(
                    f"note: run {cell.id} keeps its name '{recorded}', since sparsity.label names a run when it begins "
                    "or goes on; output.resume=never trains it anew"
                )


def _command() -> str:
    return shlex.join(["python", *sys.argv])
