"""The runs of a command: each a config, its identity, and the record that exists of it so far."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from pathlib import Path
from typing import Any

from dst.config.compose import to_yaml
from dst.config.identity import id_of, identity, run_name
from dst.config.schema import Config, flatten
from dst.records.read import read_run, read_status, read_summary
from dst.records.same import Held, called, copies, ranked
from dst.records.states import OVER, State
from dst.records.store import Record
from dst.records.swept import cell_name, recorded_name
from dst.run import resume
from dst.run.look import Look, look
from dst.run.report import is_complete, run_report
from dst.run.resume import create, frozen
from dst.run.sources import going_on, sources


@dataclass(frozen=True)
class Cell:
    """One run of a command: its complete config, and its record so far (the newest attempt folder), if any.

    ``changed``: what was changed in its method, dotted key -> value. ``copies``: further folders of that attempt.
    ``swept``: what the command varies, key or group -> its value here.
    """

    config: Config
    found: Path | None
    changed: Mapping[str, Any] = field(default_factory=dict)
    copies: tuple[Path, ...] = ()
    swept: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The run's identity, by key."""
        return identity(self.config)

    @cached_property
    def id(self) -> str:
        """The run id."""
        return id_of(self.identity)

    @property
    def name(self) -> str:
        """What people call the run."""
        return run_name(self.config, self.changed, self.identity)

    @property
    def title(self) -> str:
        """What people call it among the other cells of its command."""
        return cell_name(self.name, self.swept, flatten(self.config) if self.swept else {}, self.changed)

    @cached_property
    def text(self) -> str:
        """The frozen config, in YAML."""
        return to_yaml(frozen(self.config))

    @property
    def building(self) -> Config:
        """The config from which the run is built; ConfigError if it continues and its checkpoint cannot be read now."""
        if self.found is None or not sources(self.config) or self.state == State.NEW:
            return self.config
        return going_on(self.config, self.found)

    @property
    def state(self) -> State:
        """The recorded state; ``NEW`` if there is no record, or if existing ones shall be left alone."""
        if self.found is None or self.config.output.resume == "never":
            return State.NEW
        state: State = (read_status(self.found) or {"state": State.RUNNING})["state"]
        # A run without its final figures is not done: they are computed again from its newest checkpoint.
        is_whole = state != State.DONE or is_complete(read_summary(self.found))
        return state if is_whole else State.RUNNING

    @property
    def is_over(self) -> bool:
        """Say whether training again would change nothing: the run is done, or it diverged and would do so again."""
        return self.state in OVER

    def record(self, command: str, *, durable: bool = True) -> Record:
        """Return the record to continue, or a new one."""
        if self.state == State.NEW:
            known = self.config, self.changed, self.identity, self.text
            return create(*known, command, superseded=self.found, swept=self.swept, durable=durable)
        assert self.found is not None
        return Record.open(self.found, durable=durable)

    def at(self, found: Path | None, copies: tuple[Path, ...] = ()) -> "Cell":
        """Return this run with another record; what was computed from its config is kept."""
        moved = copy.copy(self)
        object.__setattr__(moved, "found", found)
        object.__setattr__(moved, "copies", copies)
        return moved


def cells(
    configs: Iterable[Config],
    changed: Iterable[Mapping[str, Any]] = repeat({}),
    there: Look | None = None,
    *,
    swept: Iterable[Mapping[str, str]] = repeat({}),
) -> list[Cell]:
    """Return the distinct runs of the configs, each with its record if there is one below its output root.

    ``changed``: what was changed in the method of each. ``there``: what lies below the roots, if that is known.
    ``swept``: what their command varies. Of configs that are the same run the first one counts.
    """
    distinct: dict[str, Cell] = {}
    for config, what, varied in zip(configs, changed, swept, strict=False):
        cell = Cell(config, None, what, swept=varied)
        distinct.setdefault(cell.id, cell)
    return looked_up(distinct.values(), there)


def looked_up(cells: Iterable[Cell], there: Look | None = None) -> list[Cell]:
    """Return cells with the records that exist of them now, or that exist ``there``."""
    cells = list(cells)
    there = there or look(cell.config.output.root for cell in cells)
    held: dict[tuple[str, str], list[Held]] = {}
    for root, runs in there.runs.items():
        wanted = {cell.id for cell in cells if cell.config.output.root == root} & runs.keys()
        held |= {(root, run): its for run, its in ranked({run: runs[run] for run in wanted}).items()}
    found = (held.get((cell.config.output.root, cell.id)) for cell in cells)
    return [
        cell.at(its[0].folder, copies(its)) if its else cell.at(None) for cell, its in zip(cells, found, strict=True)
    ]


def enter(cells: Sequence[Cell], command: str) -> None:
    """Make sure that the groups of these cells hold all of them, also runs that lie elsewhere; ConfigError."""
    for cell in cells:
        if cell.found is not None and cell.config.output.resume != "never":
            resume.enter(cell.config, cell.id, cell.title, cell.found, command)


def report(folder: Path) -> str:
    """Return the report of a finished run, from its record alone."""
    about, summary = read_run(folder), read_summary(folder)
    run = called(folder, about)
    return run_report(run, recorded_name(about, run), folder, summary or {}, read_status(folder) or {})
