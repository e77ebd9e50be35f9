"""Which published program a command line is of: the one that takes all its options."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from dst.legacy.arguments import Given, parse
from dst.legacy.tables import LegacyError, Program, programs
from dst.legacy.words import Line


@dataclass(frozen=True)
class Recognised:
    """A command line and what it is of."""

    program: Program
    paper: str
    given: Given
    line: Line


def papers() -> list[str]:
    """Return what ``--from`` may say: papers, and programs by name."""
    return [*sorted({paper for program in programs().values() for paper in program.papers}), *sorted(programs())]


def recognise(line: Line, source: str | None = None) -> Recognised:
    """Return which program a line is of; LegacyError if of none, or of several, which are named."""
    accepted: list[Recognised] = []
    refused: dict[str, LegacyError] = {}
    for program in _candidates(line, source):
        try:
            given = parse(program, line.words)
        except LegacyError as error:
            refused[program.name] = error
        else:
            accepted += [Recognised(program, paper, given, line) for paper in _papers(program, source)]
    if not accepted:
        raise LegacyError(*_nearest(refused, line, source))
    if len(accepted) > 1:
        told = ", ".join(f"{one.paper} ({one.program.title})" for one in accepted)
        names = "|".join(dict.fromkeys(_choices(accepted)))
        raise LegacyError(f"several published programs take this command line: {told}. Say which: --from {names}")
    return accepted[0]


def _choices(accepted: Sequence[Recognised]) -> Iterator[str]:
    """Yield what tells the candidates apart: their papers, or programs where a paper has several of them."""
    of_papers = [one.paper for one in accepted]
    for one in accepted:
        yield one.paper if of_papers.count(one.paper) == 1 else one.program.name


def _papers(program: Program, source: str | None) -> tuple[str, ...]:
    if source in program.papers:
        return (source,)
    return program.papers[:1] if source == program.name else program.papers


def _candidates(line: Line, source: str | None) -> list[Program]:
    """Return the programs that a line may be of by the names of its paper, script and folder."""
    found = [one for one in programs().values() if source is None or source in (*one.papers, one.name)]
    found = [one for one in found if line.script in one.scripts]
    parts = {part for part in PurePosixPath(line.folder).parts if part not in ("/", ".", "..")}
    inside = [one for one in found if parts & set(one.folders)]
    return inside or found


def _nearest(refused: dict[str, LegacyError], line: Line, source: str | None) -> tuple[str, ...]:
    """Return why no program takes a line, by the one that comes nearest to it."""
    if not refused:
        where = f" of {source}" if source else ""
        scripts = sorted({script for one in programs().values() for script in one.scripts})
        return (f"{line.script}: no published program{where} is called so; there are {', '.join(scripts)}",)
    fewest = min(len(error.problems) for error in refused.values())
    nearest = [name for name, error in refused.items() if len(error.problems) == fewest]
    problems = refused[nearest[0]].problems
    if len(nearest) == 1:
        return problems
    return (*problems, f"nearest are {', '.join(nearest)}; --from says which is meant")
