"""Two starts of one run at once: the one that has its lock first carries it out, the other is told who does."""

import os
import re

import pytest

from dst.config.schema import complete, with_value
from dst.records.read import read_run
from dst.run.cell import Cell
from dst.run.resume import RunningError, locked_record
from dst.run.sources import sources
from tests.composed import compose_cells
from tests.processes import REPOSITORY


@pytest.fixture
def config(tmp_path):
    ((_, found),) = compose_cells(REPOSITORY / "conf", [f"output.root={tmp_path}"], multirun=False)
    return with_value(complete(found), "data.digest", "0" * 64)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_of_two_starts_that_found_no_record_one_is_told_who_runs_it(resume, config, tmp_path):
    config = with_value(config, "output.resume", resume)
    one, other = Cell(config, None), Cell(config, None)  # both have looked, and found nothing
    first = one.record("a command")
    second = other.record("a command")
    assert first.folder == second.folder
    about = read_run(first.folder)
    facts = {"code": about["code"], "versions": {}, "device": "cpu", "dataset": {}, "sources": sources(config)}
    told = rf"run {one.id} is being run by host \S+, process {os.getpid()}, since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with locked_record(first, config, {}, facts):
        with pytest.raises(RunningError) as error, locked_record(second, config, {}, facts):
            pass
        assert re.fullmatch(told, error.value.problems[0])
    assert "Record.open" not in error.value.text()
    assert [path.name for path in first.folder.parent.iterdir()] == [one.id]
