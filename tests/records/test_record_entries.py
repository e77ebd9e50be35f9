"""A group holds the runs that lie in it and, by entries, those that were begun under another one."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dst.records.catalog import catalog, find_runs, runs_of
from dst.records.entries import Entry, entry_path, read_entry, write_entry
from dst.records.store import Record, RecordError


@pytest.fixture
def root(tmp_path):
    """Runs ``default/a``, ``default/b`` and ``paper/one/c``; the group ``paper/one`` has entries for the first two."""
    root = tmp_path / "outputs"
    for place in ("default/a", "default/b", "paper/one/c"):
        record = Record.create(root / place, config_yaml="", run={"id": place[-1], "name": f"run {place[-1]}"})
        record.write_status("done", attempt=1, step=1)
    enter(root, "a")
    enter(root, "b")
    return root


def enter(root, run_id, group="paper/one", under="default"):
    entry = Entry(run_id, f"run {run_id}", root / under / run_id, "python run.py -m seed=0,1")
    path = entry_path(root / group, run_id)
    write_entry(path, entry, root=root)
    return path


def held(root):
    return [(one.id, one.folder, one.state) for one in runs_of(root)]


@pytest.mark.parametrize("group", ["paper", "paper/one"])
def test_a_group_holds_what_lies_elsewhere(root, group):
    expected = [("a", root / "default/a", None), ("b", root / "default/b", None), ("c", root / "paper/one/c", None)]
    assert held(root / group) == expected
    frame = catalog(root / group)
    assert frame["id"].tolist() == ["a", "b", "c"]
    assert set(frame["group"]) == {os.path.relpath(root / "paper/one", root / group)}
    assert find_runs(root / group) == [root / "paper/one/c"]  # what lies there, for those who write


def test_in_the_whole_root_a_run_is_shown_once_where_it_lies(root):
    assert [one.folder for one in runs_of(root)] == find_runs(root)
    assert catalog(root)["group"].tolist() == ["default", "default", "paper/one"]


@pytest.mark.parametrize("where", ["paper/one", "paper", "."])
def test_the_root_can_be_moved_and_read_from_anywhere(root, monkeypatch, where):
    moved = root.parent / "elsewhere" / "results"
    moved.parent.mkdir()
    root.rename(moved)
    assert [one[0] for one in held(moved / where)] == ["a", "b", "c"]
    monkeypatch.chdir(moved / where)
    assert [(one.id, one.state) for one in runs_of(Path())] == [("a", None), ("b", None), ("c", None)]
    link = root.parent / "link"
    link.symlink_to(moved / where)
    assert [one[0] for one in held(link)][-1] == "c"


def test_a_run_that_is_not_there_is_missing_unless_it_is_found_otherwise(root):
    shutil.rmtree(root / "default" / "a")
    (row,) = catalog(root / "paper").loc[lambda runs: runs["state"] == "missing"].to_dict("records")
    assert (row["id"], row["name"], row["folder"]) == ("a", "run a", str(root / "default" / "a"))
    told = f"run a (run a) is missing: it is not in {root}/default/a any more; again by: python run.py -m seed=0,1"
    assert row["error"] == told
    enter(root, "a", group="paper/two")
    assert [one.id for one in runs_of(root)] == ["a", "b", "c"]  # told once
    Record.create(root / "paper" / "one" / "a", config_yaml="", run={"id": "a"})
    assert {one.id: one.state for one in runs_of(root / "paper")} == {"a": None, "b": None, "c": None}


def test_an_entry_stands_for_the_newest_attempt_folder_beside_the_one_it_names(root):
    for number in (2, 10):
        Record.create(root / "default" / f"a.{number}", config_yaml="", run={"id": "a", "name": "anew"})
    (root / "default" / "a.11").mkdir()  # only being made
    assert [one[1].name for one in held(root / "paper")] == ["a.10", "b", "c"]
    assert catalog(root / "paper")["id"].to_list() == ["a", "b", "c"]
    assert [one.folder for one in runs_of(root)] == find_runs(root)
    shutil.rmtree(root / "default" / "a")
    assert [one[2] for one in held(root / "paper")] == [None] * 3


def test_an_entry_is_written_once_and_follows_the_run(root):
    path = enter(root, "a")
    os.utime(path, (1, 1))
    enter(root, "a")
    assert path.stat().st_mtime == 1
    shutil.move(root / "default" / "a", root / "other" / "a")
    enter(root, "a", under="other")
    assert read_entry(path).folder == root / "other" / "a"


def test_entries_inside_runs_and_hidden_folders_are_none(root):
    for place in ("paper/one/c", "paper/.hidden"):
        (root / place).mkdir(exist_ok=True)
        shutil.copy(root / "paper/one/a.elsewhere.json", root / place / "z.elsewhere.json")
    shutil.rmtree(root / "default")
    assert [one.id for one in runs_of(root)] == ["a", "b", "c"]


TOLD = {"id": "a", "name": "run a", "run": "default/a", "root": "../..", "command": "python run.py"}


@pytest.mark.parametrize("name", TOLD)
@pytest.mark.parametrize("value", [None, 0, [], {}, "\0", ...])
def test_a_damaged_entry_is_told_and_hides_nothing(root, name, value):
    path = root / "paper" / "one" / "a.elsewhere.json"
    told = {key: text for key, text in TOLD.items() if key != name} if value is ... else {**TOLD, name: value}
    path.write_text(json.dumps(told))
    with pytest.raises(RecordError, match="does not say where its run is: remove it"):
        read_entry(path)
    assert catalog(root / "paper").set_index("id")["state"].to_dict() == {"a": "unreadable", "b": "done", "c": "done"}
    assert catalog(root)["state"].to_list() == ["done"] * 3
    enter(root, "a")
    assert catalog(root / "paper")["state"].to_list() == ["done"] * 3


def test_an_entry_for_what_no_path_can_be_hides_nothing(root):
    (root / "paper" / "one" / "a.elsewhere.json").write_text(json.dumps({**TOLD, "run": "x" * 300}))
    assert {one.id: one.state for one in runs_of(root / "paper")} == {"a": "unreadable", "b": None, "c": None}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_a_torn_entry_is_told(root, text):
    (root / "paper" / "one" / "a.elsewhere.json").write_text(text)
    assert {one.id: one.state for one in runs_of(root / "paper")} == {"a": "unreadable", "b": None, "c": None}


def test_sweeps_may_write_the_same_entries_at_the_same_time(root):
    """Each follows the run where it saw it last; a reader meanwhile finds every one whole."""
    shutil.copytree(root / "default", root / "other")

    def write(under):
        for _ in range(100):
            for run_id in "ab":
                enter(root, run_id, under=under)

    def read():
        return [one.state for _ in range(50) for one in runs_of(root / "paper")]

    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(write, under) for under in ("default", "other")]
        reading = [pool.submit(read) for _ in range(2)]
    assert [task.result() for task in writing] == [None, None]
    assert {state for task in reading for state in task.result()} == {None}
    assert sorted(os.listdir(root / "paper" / "one")) == ["a.elsewhere.json", "b.elsewhere.json", "c"]


def test_an_entry_finds_a_run_that_was_renamed_or_moved_to_another_group(root):
    (root / "default/a").rename(root / "default/best")
    (root / "elsewhere").mkdir()
    (root / "default/b").rename(root / "elsewhere/also good")
    (root / "default" / "private").mkdir()
    assert held(root / "paper") == [
        ("a", root / "default/best", None),
        ("b", root / "elsewhere/also good", None),
        ("c", root / "paper/one/c", None),
    ]
    assert [one.id for one in runs_of(root)] == ["a", "b", "c"]
    notes = [note for run in runs_of(root / "paper") for note in run.notes]
    assert notes[0] == f"run a is in {root}/default/best, which was renamed"


def test_a_group_that_was_copied_away_has_no_home_folder_searched_to_its_bottom(root, monkeypatch):
    """What seems to be its root may hold millions of files, and folders that nobody may read."""
    home = root.parent / "home"
    (home / "project" / "src" / "deep" / "er").mkdir(parents=True)
    shutil.copytree(root / "paper" / "one", home / "study" / "one")
    shutil.rmtree(root)
    listed, scan = [], os.scandir
    monkeypatch.setattr("dst.records.walk.os.scandir", lambda path: listed.append(str(path)) or scan(path))
    found = runs_of(home / "study" / "one")
    assert [(one.id, one.state) for one in found] == [("a", "missing"), ("b", "missing"), ("c", None)]
    assert str(home / "project" / "src") in listed
    assert str(home / "project" / "src" / "deep") not in listed


def test_an_entry_says_where_its_command_was_given(root):
    path = entry_path(root / "paper/one", "z")
    write_entry(path, Entry("z", "run z", root / "default/z", "python run.py seed=9", "/home/me/a b"), root=root)
    (missing,) = (run for run in runs_of(root / "paper") if run.state)
    assert missing.why.endswith("again by: cd '/home/me/a b' && python run.py seed=9")
