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
from dst.config.schema import Config, ConfigError, flatten
from dst.records.catalog import attempt_folder, find_runs
from dst.records.read import read_run, read_status, read_summary
from dst.records.states import OVER, State
from dst.records.store import Record
from dst.records.swept import cell_name, recorded_name
from dst.run import resume
from dst.run.report import is_complete, run_report
from dst.run.resume import create, frozen
from dst.run.sources import going_on, sources


@dataclass(frozen=True)
class Cell:
    """One run of a command: its complete config, and its record so far (the newest attempt folder), if any.

    ``changed``: what was changed in its method, dotted key -> value. ``swept``: what the command varies, key or group
    -> its value here.
    """

    config: Config
    found: Path | None
    changed: Mapping[str, Any] = field(default_factory=dict)
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

    def at(self, found: Path | None) -> "Cell":
        """Return this run with another record; what was computed from its config is kept."""
        moved = copy.copy(self)
        object.__setattr__(moved, "found", found)
        return moved


def cells(
    configs: Iterable[Config],
    changed: Iterable[Mapping[str, Any]] = repeat({}),
    swept: Iterable[Mapping[str, str]] = repeat({}),
) -> list[Cell]:
    """Return the distinct runs of the configs, each with its record if there is one below its output root.

    ``changed``: what was changed in the method of each; ``swept``: what their command varies. Of configs that are the
    same run the first one counts.
    """
    distinct: dict[str, Cell] = {}
    for config, what, varied in zip(configs, changed, swept, strict=False):
        cell = Cell(config, None, what, varied)
        distinct.setdefault(cell.id, cell)
    return looked_up(distinct.values())


def looked_up(cells: Iterable[Cell]) -> list[Cell]:
    """Return cells with the records that exist of them now."""
    cells = list(cells)
    newest: dict[tuple[str, str], Path] = {}
    for root in {cell.config.output.root for cell in cells}:
        try:
            folders = find_runs(Path(root))
        except OSError as error:
            raise ConfigError([f"output.root={root}: cannot look for runs there: {error}"]) from error
        for folder in sorted(folders, key=attempt_folder):
            newest[root, folder.name.partition(".")[0]] = folder
    return [cell.at(newest.get((cell.config.output.root, cell.id))) for cell in cells]


def enter(cells: Sequence[Cell], command: str) -> None:
    """Make sure that the groups of these cells hold all of them, also runs that lie elsewhere; ConfigError."""
    for cell in cells:
        if cell.found is not None and cell.config.output.resume != "never":
            resume.enter(cell.config, cell.id, cell.title, cell.found, command)


def report(folder: Path) -> str:
    """Return the report of a finished run, from its record alone."""
    name, summary = recorded_name(read_run(folder), folder.name), read_summary(folder)
    return run_report(name, folder, summary or {}, read_status(folder) or {})
