from pathlib import Path

import pandas as pd
import pytest

from dst.records.catalog import COLUMNS, catalog, find_runs
from dst.records.same import attempt_folder
from dst.records.store import Record


@pytest.fixture
def add(tmp_path):
    """Return a function that makes a run in a folder below ``tmp_path``."""

    def add(folder, *, id=None, created="2026-01-01T00:00:00", state=None, summary=None, **config):
        place = tmp_path / folder
        run = {"id": id or place.name, "name": "a run", "created": created, "identity": config, "config": config}
        run |= {"schema": 2, "changed": {"sparsity.grow.name": "random"}}
        record = Record.create(place, config_yaml="", run=run)
        if state:
            record.write_status(state, attempt=1, step=5, error="boom" if state == "failed" else None)
        if summary:
            record.write_summary(summary)
        return place

    return add


def test_runs_are_found_at_any_depth_in_a_fixed_order(tmp_path, add):
    made = [add(name) for name in ("b/c/run", "a", "b/run", "b/a/x/run")]
    assert find_runs(tmp_path) == [made[1], made[3], made[0], made[2]]


def test_a_run_folder_itself_is_found(add):
    folder = add("group/run")
    assert find_runs(folder) == [folder]


def test_nothing_is_sought_inside_a_run_or_in_hidden_folders(tmp_path, add):
    outer = add("group/run")
    add("group/run/checkpoints/old")
    add(".cache/run")
    assert find_runs(tmp_path) == [outer]


def test_no_root_no_runs(tmp_path):
    assert find_runs(tmp_path / "missing") == []


def test_a_root_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        find_runs(tmp_path / "file")


def test_links_are_followed_once(tmp_path, add):
    elsewhere = add("scratch/group/run").parent
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "link").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(elsewhere)
    assert find_runs(tmp_path / "outputs") == [tmp_path / "outputs" / "link" / "run"]


@pytest.mark.parametrize(("name", "number"), [("abc", 1), ("abc.2", 2), ("abc.10", 10), ("abc.old", 1)])
def test_a_folder_says_which_attempt_folder_of_its_run_it_is(name, number):
    assert attempt_folder(Path("x.3", name)) == number


def test_the_catalog_has_config_and_summary_of_every_run(tmp_path, add):
    done = add(
        "g/h/r1",
        state="done",
        summary={"test/accuracy": 0.9, "flops/train": 3 * 10**18},
        **{"seed": 3, "model.hidden": [64, 32], "schedule.lr.floor": None, "sparsity.label": "set"},
    )
    (row,) = catalog(tmp_path).to_dict("records")
    assert pd.isna(row.pop("error"))
    assert pd.isna(row.pop("config.schedule.lr.floor"))
    assert row == {
        "id": "r1",
        "name": "a run",
        "group": "g/h",
        "folder": str(done),
        "attempt_folder": 1,
        "copies": None,
        "state": "done",
        "attempt": 1,
        "step": 5,
        "created": "2026-01-01T00:00:00",
        "schema": 2,
        "method": "set grow=random",
        "correction": "none",
        "procedure": "single",
        "command": None,
        "identity": '{"model.hidden": [64, 32], "schedule.lr.floor": null, "seed": 3, "sparsity.label": "set"}',
        "config.seed": 3,
        "config.sparsity.label": "set",
        "config.model.hidden": "[64, 32]",
        "test/accuracy": 0.9,
        "flops/train": 3 * 10**18,
    }


def test_no_run_is_dropped_whatever_its_state(tmp_path, add):
    for state in ("queued", "running", "preempted", "failed", "diverged", "done"):
        add(f"g/{state}", state=state)
    add("g/silent")
    for name in ("run.json", "status.json", "summary.json"):
        (add(f"g/{name}_torn") / name).write_text("{")
    frame = catalog(tmp_path).set_index("id")
    assert frame["state"].to_dict() == {
        "queued": "queued",
        "running": "running",
        "preempted": "preempted",
        "failed": "failed",
        "diverged": "diverged",
        "done": "done",
        "silent": "unknown",
        "run.json_torn": "unreadable",
        "status.json_torn": "unreadable",
        "summary.json_torn": "unreadable",
    }
    assert frame.loc["failed", "error"] == "boom"
    assert "run.json_torn/run.json is not JSON" in frame.loc["run.json_torn", "error"]


def test_the_newest_attempt_folder_counts_unless_all_are_wanted(tmp_path, add):
    add("g/abc", state="done")
    add("z/abc.2", id="abc", state="running")
    add("g/other", state="done")
    assert catalog(tmp_path)[["id", "attempt_folder", "state"]].values.tolist() == [
        ["other", 1, "done"],
        ["abc", 2, "running"],
    ]
    assert catalog(tmp_path, all_attempts=True)["attempt_folder"].tolist() == [1, 1, 2]


def test_of_two_copies_of_a_run_the_one_created_last_counts(tmp_path, add):
    add("b/abc", created="2026-01-02")
    add("c/abc", created="2026-01-01")
    assert catalog(tmp_path)["group"].tolist() == ["b"]


def test_an_unreadable_attempt_still_supersedes_its_elders(tmp_path, add):
    add("g/abc", state="done")
    (add("g/abc.2", id="abc") / "run.json").write_text("")
    assert catalog(tmp_path)[["id", "state"]].values.tolist() == [["abc", "unreadable"]]


def test_an_empty_catalog_has_its_columns(tmp_path):
    frame = catalog(tmp_path)
    assert frame.empty
    assert tuple(frame.columns) == COLUMNS
