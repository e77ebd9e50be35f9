"""How to make runs again: code, libraries and commands, for each state of code and libraries that made some."""

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.report.gather import Run, grouped
from dst.records.entries import in_folder


@dataclass(frozen=True)
class Origin:
    """What made some of the runs: ``code`` in words, ``libraries`` as a command, and the commands, with folders."""

    heading: str
    code: str
    python: str | None
    libraries: str
    commands: Sequence[str]


def origins(runs: Sequence[Run]) -> list[Origin]:
    """Return what made the runs, each state of code and libraries once."""
    known = [run for run in runs if run.code or run.versions or run.command]
    states = grouped(known, lambda run: (run.version, tuple(sorted(map(str, run.versions.items())))))
    return [_origin(members, alone=len(states) == 1) for members in states.values()]


def _origin(runs: Sequence[Run], *, alone: bool) -> Origin:
    first = runs[0]
    libraries = [f"{name}=={version}" for name, version in first.versions.items() if name != "python" and version]
    commands = dict.fromkeys(in_folder(run.command, run.cwd) for run in runs)
    return Origin(
        heading=f"All {len(runs)} runs" if alone else f"{len(runs)} runs by {first.version or 'unknown code'}",
        code=_code(first),
        python=first.versions.get("python"),
        libraries=" ".join(["pip install", *libraries]) if libraries else "not on record",
        commands=[command for command in commands if command],
    )


def _code(run: Run) -> str:
    if not run.code:
        return "not on record."
    commit, diff = run.code.get("git"), run.code.get("diff")
    sources = f"the digest of its sources is {run.code['digest']}"
    if not commit:
        return f"no commit is on record; {sources}."
    if diff:
        return f"commit {commit}, with changes that were not committed (digest of the diff {diff}); {sources}."
    return f"commit {commit}; {sources}."
