"""With indexes of a tree, without them, and by what the catalog did before there were any: the same, whatever happens.

Here an index is written for a single run already, and a file counts as settled after a few hundredths of a second.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from pandas.testing import assert_frame_equal

from dst.files import replace_text
from dst.launcher import status
from dst.records import index, rows
from dst.records.catalog import catalog, find_runs, runs_of
from dst.records.entries import SUFFIX, Entry, entry_path, write_entry
from dst.records.label import WRAPPERS, method_of, wrapper
from dst.records.read import read_run, read_status, read_summary
from dst.records.store import Record, RecordError
from dst.records.walk import walk
from tests.closed import close
from tests.old_records import BEFORE_PHASES, SCHEMA_1, unpack
from tests.processes import REPOSITORY

SETTLED_S = 0.04


@pytest.fixture
def eager(monkeypatch):
    """Let every folder have an index, soon."""
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.setattr(index, "_SETTLED_NS", int(SETTLED_S * 1e9))


def settle():
    time.sleep(SETTLED_S * 1.5)


def new_run(folder, number=0, *, state="done", **config):
    about = {
        **{"schema": 2, "id": folder.name, "name": f"run {number}", "created": f"2026-01-01T00:00:{number % 60:02}"},
        **{"identity": {"seed": number, "model.hidden": [8, number % 3]}, "changed": {}},
        **({"command": f"python run.py seed={number}"} if number % 2 else {}),
        "config": {"seed": number, "model.hidden": [8, number % 3], "sparsity.label": "set", **config},
    }
    record = Record.create(folder, config_yaml="", run=about, durable=False)
    record.write_status(state, attempt=1, step=number, error="boom" if state == "failed" else None)
    if state == "done":
        record.write_summary({"test/accuracy": number / 64, "flops/train": 10**18 + number, "sparsity/rs": None})
    return folder


# -- by another way ----------------------------------------------------------------------------------------------------


def plain_runs(root):
    """Find runs by listing everything, as it was done before there were indexes."""
    found, seen = [], set()
    for folder, below, files in os.walk(root, followlinks=True):
        at = os.stat(folder)
        if (at.st_dev, at.st_ino) in seen:
            below.clear()
            continue
        seen.add((at.st_dev, at.st_ino))
        if "run.json" in files:
            below.clear()
            found.append(Path(folder))
        below[:] = sorted(name for name in below if not name.startswith("."))
    return sorted(found)


def plain_row(root, run):
    """Return a row of the catalog, as it was made before there were indexes."""
    row = {
        **{"id": run.id, "name": run.name, "group": Path(os.path.relpath(run.group, root)).as_posix()},
        **{"folder": str(run.folder), "attempt_folder": run.attempt},
        "copies": json.dumps([*map(str, run.copies)]) if run.copies else None,
        **{"state": run.state.value if run.state else "unknown", "attempt": None, "step": None, "error": run.why},
        **{"created": None},
        **{"schema": None, "identity": "{}", "method": None, **dict.fromkeys(WRAPPERS), "command": run.command},
    }
    if run.state is not None:
        return row
    try:
        about, told, summary = read_run(run.folder), read_status(run.folder) or {}, read_summary(run.folder) or {}
    except (OSError, RecordError) as error:
        return row | {"state": "unreadable", "error": str(error)}
    identity = about.get("identity", {})
    row |= {name: about[name] for name in ("id", "name", "created", "schema") if name in about}
    row |= {name: told[name] for name in ("attempt", "step", "error") if name in told}
    row |= {"state": told["state"].value} if "state" in told else {}
    row |= {"identity": json.dumps(identity, sort_keys=True), "method": method_of(about)}
    row |= {kind: wrapper(kind, identity) for kind in WRAPPERS} | {"command": run.command or about.get("command")}
    config = identity | about.get("config", {})
    cells = {
        key: json.dumps(own, sort_keys=True) if isinstance(own, list | dict) else own for key, own in config.items()
    }
    return row | {f"config.{key}": own for key, own in cells.items()} | summary


def check(root):
    """Compare the catalog and the runs found with those of the other way."""
    assert find_runs(root) == plain_runs(root)
    wanted = pd.DataFrame([plain_row(root, run) for run in runs_of(root)])
    found = catalog(root, all_attempts=True)
    if wanted.empty:
        assert found.empty
    else:
        assert_frame_equal(found, wanted)


@pytest.mark.parametrize("which", [SCHEMA_1, BEFORE_PHASES])
def test_old_records_have_the_catalog_they_always_had(tmp_path, which, eager):
    root = unpack(tmp_path / "outputs", which).parent
    check(root)
    settle()
    for _ in range(3):
        check(root)


# -- whatever happens --------------------------------------------------------------------------------------------------


def rewritten(path, *, atomically, change=True):
    """Write a file anew: of the same size, and its time of modification is set back."""
    at, content = path.stat(), bytearray(path.read_bytes())
    field = b'"seed": ' if path.name == "run.json" else b'"step": '
    if change:
        content[content.rindex(field) + len(field)] ^= 1  # another digit
    if atomically:
        path.with_name("new").write_bytes(content)
        path.with_name("new").replace(path)
    else:
        path.write_bytes(content)
    os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))


def swapped(one, other):
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


def entered(root, folder, number):
    entry = Entry(folder.name, "a run", folder, "python run.py")
    write_entry(entry_path(root / f"group {number % 3}", entry.id), entry, root=root)


def torn(path):
    path.write_bytes(path.read_bytes()[:-9])


def linked(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


HAPPENINGS = {
    "a run is made": lambda root, run, other, n: new_run(root / f"group {n % 3}" / f"new{n}", n),
    "one is made deeper": lambda root, run, other, n: new_run(root / "group 1" / "below" / f"new{n}", n),
    "one fails": lambda root, run, other, n: Record.open(run).write_status("failed", attempt=2, step=n, error="boom"),
    "one goes on": lambda root, run, other, n: Record.open(run).write_status("running", attempt=3, step=n),
    "one ends": lambda root, run, other, n: Record.open(run).write_summary({"test/accuracy": n, "new/figure": 1.0}),
    "an int becomes a float": lambda root, run, other, n: Record.open(run).write_summary({"test/accuracy": float(n)}),
    "a key of its own": lambda root, run, other, n: new_run(root / "group 0" / f"own{n}", n, **{f"own.key{n}": True}),
    "one is renamed": lambda root, run, other, n: run.rename(run.with_name(f"{run.name}_{n}")),
    "one is moved": lambda root, run, other, n: run.rename(root / "group 2" / f"{run.name}.{n}"),
    "two are swapped": lambda root, run, other, n: swapped(run, other) if run != other else None,
    "one is copied": lambda root, run, other, n: shutil.copytree(run, run.with_name(f"{run.name} copy{n}")),
    "a group is copied": lambda root, run, other, n: shutil.copytree(run.parent, root / f"copy {n}"),
    "one is removed": lambda root, run, other, n: shutil.rmtree(run),
    "run.json is torn": lambda root, run, other, n: torn(run / "run.json"),
    "status.json is torn": lambda root, run, other, n: torn(run / "status.json"),
    "run.json is removed": lambda root, run, other, n: (run / "run.json").unlink(),
    "status.json is removed": lambda root, run, other, n: (run / "status.json").unlink(),
    "run.json becomes a link": lambda root, run, other, n: linked(run / "run.json"),
    "run.json becomes a folder": lambda root, run, other, n: ((run / "run.json").unlink(), (run / "run.json").mkdir()),
    "edited in place": lambda root, run, other, n: rewritten(run / "status.json", atomically=False),
    "replaced": lambda root, run, other, n: rewritten(run / "status.json", atomically=True),
    "run.json is edited": lambda root, run, other, n: rewritten(run / "run.json", atomically=False),
    "the same again": lambda root, run, other, n: rewritten(run / "run.json", atomically=True, change=False),
    "that of another": lambda root, run, other, n: shutil.copy2(other / "status.json", run / "status.json"),
    "a run becomes a group": lambda root, run, other, n: (shutil.rmtree(run), new_run(run / f"in{n}", n)),
    "a link to one": lambda root, run, other, n: (root / "group 0" / f"a link{n}").symlink_to(run.absolute()),
    "an entry": lambda root, run, other, n: entered(root, run, n),
    "an index is torn": lambda root, run, other, n: [torn(path) for path in run.parent.glob(".index/*.json")],
    "an index is removed": lambda root, run, other, n: shutil.rmtree(run.parent / ".index", ignore_errors=True),
    "an index of another": lambda root, run, other, n: [
        shutil.copytree(path, root / f"group {n % 3}" / ".index", dirs_exist_ok=True) for path in root.glob("*/.index")
    ],
}  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_whatever_happens_an_index_changes_nothing(tmp_path, eager, monkeypatch, seed):
    """So often each of these happens to a run that it meets many of the others; the index is used in between."""
    chance, root, used = random.Random(seed), tmp_path / "outputs", []
    told = rows._Known.told
    monkeypatch.setattr(rows._Known, "told", lambda self, of: (told(self, of), used.append(of.name not in self.new))[0])
    for number in range(12):
        new_run(root / f"group {number % 3}" / f"run{number}", number, state=["done", "failed", "queued"][number // 4])
    check(root)
    for number, what in enumerate(chance.sample([*HAPPENINGS], len(HAPPENINGS)), start=20):
        settle()
        check(root)
        run, other = (chance.choice([run for run in find_runs(root) if not run.is_symlink()]) for _ in range(2))
        with suppress(OSError, RecordError):  # a run without that file
            HAPPENINGS[what](root, run, other, number)
        try:
            check(root)
        except AssertionError as error:
            raise AssertionError(f"{what}, {run}: {error}") from error
    assert used.count(True) > used.count(False)


def test_a_file_that_changed_just_before_it_was_read_is_in_no_index(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "WORTH", 1)
    folder = new_run(tmp_path / "group" / "run", 1)
    check(tmp_path)
    for kind in ("rows", "folders"):
        held = json.loads((folder.parent / ".index" / f"{kind}.json").read_bytes().split(b"\n")[1])
        assert held in ({}, {"firsts": held.get("firsts"), "rows": {}})


@pytest.mark.parametrize("turn", range(3))
def test_equal_values_of_different_kinds_stay_what_they_are(tmp_path, eager, turn):
    values = [1, 1.0, True, 0, 0.0, -0.0, False, "1", "", None, 2**70, "é\udcff", [1], {}]
    values = values[turn:] + values[:turn]  # the first run of an index is the one with which others are compared
    for number, value in enumerate(values):
        folder = new_run(tmp_path / "group" / f"run{number:02}", **{"data.size": value})
        replace_text(folder / "summary.json", json.dumps({"whatever": value}), durable=False)
    settle()
    for _ in range(3):
        found = catalog(tmp_path)
        kept = [json.dumps(value) if isinstance(value, list | dict) else value for value in values]
        assert list(map(repr, found["config.data.size"])) == list(map(repr, kept))
        assert list(map(repr, found["whatever"])) == list(map(repr, values))


def test_again_no_record_is_read(tmp_path, eager, monkeypatch):
    for number in range(20):
        new_run(tmp_path / "group" / f"run{number}", number)
    settle()
    first = catalog(tmp_path)
    monkeypatch.setattr(rows, "_read", None)
    assert_frame_equal(catalog(tmp_path), first)
    monkeypatch.undo()
    Record.open(tmp_path / "group" / "run7").write_status("failed", attempt=1, step=8)
    assert catalog(tmp_path).set_index("id").loc["run7", ["state", "step"]].to_list() == ["failed", 8]


def test_few_runs_have_no_index(tmp_path):
    for number in range(index.WORTH - 1):
        new_run(tmp_path / "group" / f"run{number}", number)
    assert len(catalog(tmp_path)) == index.WORTH - 1
    assert not (tmp_path / "group" / ".index").exists()
    new_run(tmp_path / "group" / "last")
    assert len(catalog(tmp_path)) == index.WORTH
    assert sorted(path.name for path in (tmp_path / "group" / ".index").iterdir()) == ["folders.json", "rows.json"]


@pytest.fixture
def indexed(tmp_path, eager):
    """A group of three runs, with indexes."""
    for number in range(3):
        new_run(tmp_path / "group" / f"run{number}", number)
    settle()
    check(tmp_path)
    return tmp_path / "group" / ".index"


def bad_ones(content):
    yield from (content[: len(content) * part // 8] for part in range(8))
    yield from (b"null", b"{}", b"[]\n[]", b"\xff\n\xfe", content.replace(b"index 1", b"index 2"), b"[" * 5000)
    yield from (content.replace(b"run1", b"run2"), content + b" ", content.replace(b"1", b"2", 1))


@pytest.mark.parametrize("kind", ["folders", "rows"])
def test_a_damaged_index_is_none_and_is_made_again(indexed, kind):
    path, content = indexed / f"{kind}.json", (indexed / f"{kind}.json").read_bytes()
    for bad in bad_ones(content):
        path.write_bytes(bad)
        check(indexed.parents[1])
        assert path.read_bytes() == content
    path.unlink()
    path.mkdir()
    check(indexed.parents[1])


def test_rows_that_other_code_has_made_are_made_again(indexed, monkeypatch):
    content = (indexed / "rows.json").read_bytes()
    monkeypatch.setattr(rows, "_version", lambda: "another")
    check(indexed.parents[1])
    assert (indexed / "rows.json").read_bytes() != content


def test_where_none_can_be_written_all_is_the_same(tmp_path, eager):
    for number in range(3):
        new_run(tmp_path / "group" / f"run{number}", number)
    (tmp_path / "group" / ".index").write_text("a file")
    settle()
    check(tmp_path)
    assert (tmp_path / "group" / ".index").read_text() == "a file"


def test_runs_that_are_gone_leave_the_index_when_it_is_written_again(indexed):
    shutil.rmtree(indexed.parent / "run1")
    new_run(indexed.parent / "run5", 5)
    settle()
    check(indexed.parents[1])
    held = json.loads((indexed / "rows.json").read_bytes().split(b"\n")[1])
    assert sorted(held["rows"]) == ["run0", "run2", "run5"]


def test_many_read_while_runs_are_made_and_go_on(tmp_path, eager):
    root = tmp_path / "outputs"
    for number in range(8):
        new_run(root / "group" / f"run{number}", number)

    def look(_):
        return len(catalog(root))

    with ThreadPoolExecutor(6) as pool:
        looks = pool.map(look, range(40))
        for number in range(8, 24):
            new_run(root / "group" / f"run{number}", number)
            Record.open(root / "group" / f"run{number - 4}", durable=False).write_status("running", attempt=2, step=1)
        counts = list(looks)
    assert min(counts) >= 8
    settle()
    check(root)
    assert not list((root / "group" / ".index").glob("*.tmp"))


# -- a hostile tree ----------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_read_is_listed_and_stops_nothing(tmp_path, monkeypatch, capsys):
    good = new_run(tmp_path / "good" / "run")
    closed = tmp_path / "private"
    closed.mkdir()
    close(closed, monkeypatch)
    closed.chmod(0o000)
    try:
        frame = catalog(tmp_path).set_index("id")
        assert frame["state"].to_dict() == {"run": "done", "private": "unreadable"}
        told = (
            f"{closed} cannot be read (Permission denied), and runs in it are not shown: allow it, or move it elsewhere"
        )
        assert frame.loc["private", "error"] == told
        assert status.main([str(tmp_path)]) == 0
        assert told in (shown := capsys.readouterr().out)
        assert "2 runs: 1 unreadable, 1 done" in shown or "2 runs: 1 done, 1 unreadable" in shown
        assert list(walk(tmp_path).closed) == [closed]  # a start goes on, too (see ``dst.run.look``)
        with pytest.raises(PermissionError):
            find_runs(tmp_path)
        with pytest.raises(PermissionError):
            catalog(closed)
        assert find_runs(good.parent) == [good]
    finally:
        closed.chmod(0o755)


def test_in_a_hostile_tree_no_other_row_changes_and_each_is_listed(tmp_path):
    names = ("a1", "a2", "b1", "b2", "c1")
    for number, name in enumerate(names):
        new_run(tmp_path / "group" / name, number)
    before = catalog(tmp_path).set_index("id")
    group = tmp_path / "group"
    for copy in ("a1 copy", "a1_backup", "a1.bak", "z1"):
        shutil.copytree(group / "a1", group / copy)
    (group / "b1").rename(group / "renamed")
    shutil.copytree(group, tmp_path / "a copy of the group")
    strange = ["=cmd|calc", "<script>alert(1)", "über 猫", os.fsdecode(b"not\xffutf8"), "a\nb", "%s{0}", "-rf"]
    for number, name in enumerate(strange, start=10):
        new_run(group / name, number, **{"tracking.notes": name.encode("utf-8", "replace").decode()})
    for name, file in (("t1", "run.json"), ("t2", "status.json"), ("t3", "summary.json")):
        (new_run(group / name, 20) / file).write_text("{")
    new_run(group / "failed", 30, state="failed")
    after = catalog(tmp_path).set_index("id")
    assert sorted(after.index) == sorted([*names, *strange, "t1", "t2", "t3", "failed"])
    moved = ["folder", "group", "copies"]
    same = after.loc[[*names], before.columns].drop(columns=moved)
    as_float = {"flops/train": float}  # as pandas has it where other runs have none
    assert json.loads(same.to_json()) == json.loads(before.drop(columns=moved).astype(as_float).to_json())
    assert after.loc["a1", "folder"] == str(group / "a1")
    copied = ("a1 copy", "a1_backup", "a1.bak", "z1")
    assert {*json.loads(after.loc["a1", "copies"])} == {
        str(place / name) for place in (group, tmp_path / "a copy of the group") for name in ("a1", *copied)
    } - {str(group / "a1")}
    assert pd.isna(after.loc["failed", "copies"])
    assert after.loc["b1", "folder"].endswith("group/renamed")
    assert after.loc[["t1", "t2", "t3"], "state"].to_list() == ["unreadable"] * 3
    command = [sys.executable, "-m", "dst.launcher.status", str(tmp_path)]
    ascii_only = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
    }
    done = subprocess.run(command, env=ascii_only, capture_output=True, encoding="ascii", check=True)
    lines = done.stdout.splitlines()
    assert sum(line.lstrip().startswith("run 0 ") for line in lines) == 1  # a run is shown once
    assert lines[-1].startswith(f"{len(after)} runs: ")
    assert any(r"  a\nb  " in line for line in lines)
    assert any(line.startswith(f"  note: run a1 is also in {tmp_path}/") for line in lines)
    for name in ("t1", "t2", "t3", "failed", "renamed"):
        assert any(name in line for line in lines), name


def test_the_newest_of_copies_counts_and_of_equal_ones_that_with_its_own_name(tmp_path):
    group = new_run(tmp_path / "b" / "abc", 1).parent
    shutil.copytree(group / "abc", group / "zz backup")
    shutil.copytree(group / "abc", tmp_path / "a copy" / "abc copy")
    assert catalog(tmp_path)["folder"].to_list() == [str(group / "abc")]
    shutil.rmtree(group / "abc")
    assert catalog(tmp_path)["folder"].to_list() == [str(group / "zz backup")]


def test_entries_are_found_beside_indexed_runs(indexed):
    root = indexed.parents[1]
    (root / "other").mkdir()
    entered(root, root / "group" / "run1", 1)
    assert (root / "group 1" / f"run1{SUFFIX}").exists()
    assert [run.id for run in runs_of(root)] == ["run0", "run1", "run2"]
    assert [run.folder for run in runs_of(root / "group 1")] == [root / "group" / "run1"]
    replace_text(root / "group 1" / f"run1{SUFFIX}", "{", durable=False)
    assert [run.id for run in runs_of(root)] == ["run0", "run1", "run2"]
