"""Which folders hold the same run, and which of them counts."""

from pathlib import Path

import pytest

from dst.records.catalog import catalog, newest
from dst.records.same import by_id, called, id_in, rank, ranked
from dst.records.store import Record

RUN = "0123456789ab"


def made(folder, *, state="done", attempt=1, step=5, created="2026-01-01T00:00:00+00:00", **about):
    record = Record.create(folder, config_yaml="", run={"id": RUN, "name": "a run", "created": created, **about})
    record.write_status(state, attempt=attempt, step=step)
    return folder


def order(root):
    """Return the names of the folders of the run, the one that counts first."""
    found = by_id(path for path in sorted(root.iterdir()) if path.is_dir())
    return [one.folder.name for one in ranked(found)[RUN]]


def test_of_the_folders_of_a_run_one_counts(tmp_path):
    made(tmp_path / f"{RUN}_backup")
    made(tmp_path / "later", created="2026-01-02T00:00:00+00:00")
    made(tmp_path / RUN)
    made(tmp_path / "newest, renamed", attempt_folder=2, state="failed", step=1)
    made(tmp_path / f"{RUN}.20260101", step=9)  # no attempt, a date
    made(tmp_path / f"{RUN} copy", state="failed", step=99, created="2027-01-01T00:00:00+00:00")
    # The newest attempt; then finished ones, the last made first; how far they came; own names; what never ended.
    finished = ["later", f"{RUN}.20260101", RUN, f"{RUN}_backup"]
    assert order(tmp_path) == ["newest, renamed", *finished, f"{RUN} copy"]
    attempts = catalog(tmp_path, all_attempts=True)
    assert [(row.attempt_folder, Path(row.folder).name) for row in attempts.itertuples()] == [
        (1, "later"),
        (2, "newest, renamed"),
    ]


def test_an_older_copy_never_counts_beside_the_run_that_went_on(tmp_path):
    made(tmp_path / "best", state="preempted", attempt=2, step=900)  # renamed, and continued there
    made(tmp_path / RUN, state="running", attempt=1, step=950)  # restored as it was killed, beyond its last checkpoint
    made(tmp_path / f"{RUN} copy", state="running", attempt=2, step=700)
    assert order(tmp_path) == ["best", f"{RUN} copy", RUN]
    (row,) = catalog(tmp_path).itertuples()
    assert Path(row.folder).name == "best"


def test_an_older_record_says_by_its_own_name_which_attempt_it_is(tmp_path):
    made(tmp_path / RUN)
    made(tmp_path / f"{RUN}.2", state="failed")
    made(tmp_path / f"x{RUN}.7")
    assert order(tmp_path) == [f"{RUN}.2", RUN, f"x{RUN}.7"]
    assert called(tmp_path / f"{RUN}.2", {"id": RUN}) == f"{RUN}.2"
    assert called(tmp_path / "best.2", {"id": RUN}) == RUN
    assert called(tmp_path / "best", {"id": RUN, "attempt_folder": 3}) == f"{RUN}.3"


def test_a_record_that_cannot_be_read_is_of_the_run_that_its_name_says(tmp_path):
    (made(tmp_path / f"{RUN}.2") / "run.json").write_text("{")
    (made(tmp_path / "strange") / "run.json").write_text("{")
    made(tmp_path / RUN)
    found = by_id(sorted(tmp_path.iterdir()))
    assert {run: [path.name for path in its] for run, its in found.items()} == {
        RUN: [RUN, f"{RUN}.2"],
        "strange": ["strange"],
    }


def test_the_catalogs_of_two_trees_have_each_run_once_and_name_its_copies(tmp_path):
    import pandas as pd

    for tree in ("outputs", "backup"):
        made(tmp_path / tree / RUN)
    made(tmp_path / "backup" / "x")
    frames = [catalog(tmp_path / tree) for tree in ("outputs", "backup", "outputs")]
    (row,) = newest(pd.concat(frames, ignore_index=True)).to_dict("records")
    assert row["folder"] == str(tmp_path / "outputs" / RUN)
    assert row["copies"] == f'["{tmp_path}/backup/{RUN}", "{tmp_path}/backup/x"]'


@pytest.mark.parametrize(("name", "run"), [("abc", "abc"), ("abc.2", "abc"), ("abc.1", "abc"), ("abc.x", "abc.x")])
def test_the_id_in_a_folders_name(name, run):
    assert id_in(name) == run
    assert rank(run, Path(name), 1, {})[-2]
