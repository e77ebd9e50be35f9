"""A state of a run is written in one place only, ``dst/records/states.py``; everywhere else it is a ``State``."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from dst.records.states import State
from tests.processes import REPOSITORY

DECLARATION = "dst/records/states.py"

OTHER_MEANINGS = {
    ("analysis/rows.py", "missing"): ("a column of tables: the seeds without a figure", 1),
    ("analysis/figures/series.py", "unknown"): ("a method whose record does not name it", 1),
    ("analysis/from_wandb.py", "preempted"): ("wandb's word for a state", 1),
    ("analysis/from_wandb.py", "running"): ("wandb's word for a state", 1),
    ("dst/launcher/sync.py", "failed"): ("what became of sending a record, whatever state the run is in", 1),
    ("dst/records/lock_file.py", "unknown"): ("the host of a lock whose content is damaged", 1),
    ("dst/records/read.py", "missing"): ("a field that is not there", 1),
    ("dst/run/terminal.py", "lost"): ("an attribute of a stream", 1),
}
"""Words that are states elsewhere: (file, word) -> what it means there, and how often it is written."""


def sources() -> list[Path]:
    return sorted(path for room in ("dst", "analysis") for path in (REPOSITORY / room).rglob("*.py"))


def written_states(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string that spells a state, wherever it is used: compared, listed, passed, ...."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and node.value in list(State):
            yield node.lineno, node.value


def test_no_state_is_written_as_a_literal():
    found: dict[tuple[str, str], list[int]] = {}
    for path in sources():
        for line, word in written_states(path.read_text()):
            found.setdefault((path.relative_to(REPOSITORY).as_posix(), word), []).append(line)
    elsewhere = {place: lines for place, lines in found.items() if place[0] != DECLARATION}
    told = [
        f"{file}:{line}: '{word}'"
        for (file, word), lines in elsewhere.items()
        for line in lines[OTHER_MEANINGS.get((file, word), ("", 0))[1] :]
    ]
    assert not told, f"use dst.records.states.State: {told}"
    assert {place: len(elsewhere.get(place, [])) for place in OTHER_MEANINGS} == {
        place: times for place, (_, times) in OTHER_MEANINGS.items()
    }, "some are not there any more: take them off the list"


@pytest.mark.parametrize(
    "source",
    [
        "if run.state == 'done': pass",
        "run.state in ('x', 'not submitted')",
        "state = 'failed'",
        "restate(folder, 'queued', why)",
        "restate(folder, state='lost')",
        "codes = {'diverged': 3}",
        "codes['preempted']",
        "def state(default='running'): return default",
        "told = f\"{names.get('cancelled')}\"",
    ],
)
def test_a_literal_is_found_wherever_it_is_used(source):
    assert list(written_states(source))


@pytest.mark.parametrize("source", ["'''What is done.'''", "print(f'{run} done: {why}')", "done = State.DONE"])
def test_a_word_in_a_sentence_is_no_literal(source):
    assert not list(written_states(source))
