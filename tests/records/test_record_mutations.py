"""Whatever becomes of a record's files: who looks at runs goes on, and no run starts on what it cannot trust.

Every field of every file of two real records is nulled, given another type and left out; every file is torn, emptied,
missing, filled with other things.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis import results, tables
from dst.config.launcher import LauncherSettings
from dst.config.schema import ConfigError
from dst.launcher import requeue, status, sync
from dst.launcher import submit as submitting
from dst.launcher.executors import Submission
from dst.launcher.frozen import frozen_code
from dst.launcher.observe import observe
from dst.records.catalog import catalog, find_runs
from dst.records.read import read_json, read_metrics, read_run, read_status, read_summary
from dst.records.store import Record, RecordError
from dst.run import attempt as attempts
from dst.run.cell import Cell
from dst.run.resume import locked_record
from dst.run.verified import from_yaml
from dst.tracking.described import description
from tests.processes import run, run_folder

TINY = (
    *("sparsity=rigl_itop", "model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10"),
    *("tracking=none", "tracking.progress=none", "hardware.threads=1", "tracking.every_steps=10"),
    *("checkpoint.every_steps=7", "output.root=outputs"),
)
HISTORIES = ("attempts.jsonl", "metrics.jsonl", "layers.jsonl")
MISSING = object()


# -- what can become of a file -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mutation:
    """``content``: what the file holds instead; a folder or a link, or nothing at all, where it is no bytes."""

    file: str
    what: str
    content: Any

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"

    def apply(self, folder: Path) -> None:
        path = folder / self.file
        path.unlink()
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        elif self.content == "a folder":
            path.mkdir()
        elif self.content == "a link":
            path.symlink_to("nowhere")


def whole(name: str, content: bytes) -> list[Mutation]:
    """Return what can become of a file whatever is in it."""
    bad = {
        "empty": b"",
        "null": b"null",
        "a list": b"[]",
        "a number": b"7\n",
        "an empty mapping": b"{}",
        "no text": b"\xff\xfe\x00",
        "nested": b"[" * 2_000,
        **{what: what for what in ("missing", "a folder", "a link")},
        **{f"torn at {i}/8": content[: len(content) * i // 8] for i in range(1, 8)},
    }
    return [Mutation(name, what, value) for what, value in bad.items()]


def paths(value: Any) -> list[tuple[str, ...]]:
    """Return the path of every field within a mapping."""
    if not isinstance(value, dict):
        return []
    return [(key, *rest) for key, item in value.items() for rest in [(), *paths(item)]]


def others(value: Any) -> list[Any]:
    """Return what may stand in a value's place: of other types, and of the same one but nothing to work with."""
    if isinstance(value, str):
        return [None, 7, [], MISSING, "a\0b"]
    if isinstance(value, dict):
        return [None, "text", [], MISSING]
    if type(value) in (int, float):
        return [None, "text", {}, MISSING, math.nan, math.inf, 10**400, -1]
    return [None, "text", {}, MISSING] if value is not None else [-1.5, {}, MISSING]


def with_field(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = path
    if rest:
        return {**tree, first: with_field(tree[first], tuple(rest), value)}
    changed = {**tree, first: value}
    if value is MISSING:
        del changed[first]
    return changed


def changed(tree: dict[str, Any], name: str, dump: Any) -> list[Mutation]:
    """Return the mutations of every field of a mapping, each made a file by ``dump``."""
    found = []
    for path in paths(tree):
        old: Any = tree
        for key in path:
            old = old[key]
        for value in others(old):
            if value is MISSING or value != old:
                told = "is missing" if value is MISSING else f"is {value!r}"
                found.append(Mutation(name, f"{'/'.join(path)} {told}", dump(with_field(tree, path, value))))
    return found


def mutations(folder: Path, *names: str) -> list[Mutation]:
    """Return all that can become of the files of a record, or of those named."""
    found = []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and (path.name in names or not names)):
        content = path.read_bytes()
        found += whole(path.name, content)
        if path.suffix == ".json" or path.name == "lock":
            found += changed(json.loads(content or "{}"), path.name, lambda tree: json.dumps(tree).encode())
        elif path.suffix == ".yaml":
            found += changed(yaml.safe_load(content), path.name, lambda tree: yaml.safe_dump(tree).encode())
        elif path.suffix == ".jsonl":
            lines = content.splitlines(keepends=True)
            for at in sorted({0, len(lines) - 1}):

                def dump(line: Any, at: int = at, lines: list[bytes] = lines) -> bytes:
                    return b"".join([*lines[:at], json.dumps(line).encode() + b"\n", *lines[at + 1 :]])

                found += changed(json.loads(lines[at]), path.name, dump)
    return found


# -- two records -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two runs that were submitted as jobs: one that was killed, whose lock still says so, and one that is done."""
    cwd = tmp_path_factory.mktemp("records")
    assert run(*TINY, cwd=cwd, fault="kill:step:30").code == -9
    killed = run_folder(cwd / "outputs")
    (killed / "checkpoints").rename(cwd / "checkpoints")  # copied a thousand times, and not read here
    (killed / "checkpoints").mkdir()
    assert run(*TINY, "seed=1", cwd=cwd).code == 0
    root = cwd / "outputs"
    for folder in find_runs(root):
        submitted = {
            **{"cluster": "local", "submitted": 1.0, "settings": asdict(LauncherSettings("local"))},
            **{"cwd": str(cwd), "runs": 1, "job": "4194304", "logs": str(cwd), "code": str(frozen_code(root))},
            **{"host": os.uname().nodename, "process_started": "1"},
        }
        Record.open(folder).write_launch(submitted)
        with Record.open(folder) as record:
            made = {"phase": 0, "phase_name": "pretrain", "density": 0.1, "active": 118, "loss": 0.5, "accuracy": 0.5}
            for step, name in ((20, "pretrained"), (21, "killed" if folder == killed else "neighbour")):
                record.log_network(attempt=1, step=step, name=name, **made)
    return root


@pytest.fixture(scope="module")
def folders(root):
    """The folders of the killed run and of the one that is done."""
    by_state = {read_status(folder)["state"]: folder for folder in find_runs(root)}
    return by_state["running"], by_state["done"]


class Copy:
    """A copy of the records, in which one file is another at a time."""

    def __init__(self, original: Path, root: Path) -> None:
        self.original, self.root = original, root
        self.anew()

    def anew(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.original, self.root, ignore=shutil.ignore_patterns(".*"))

    def of(self, folder: Path) -> Path:
        return self.root / folder.relative_to(self.original)

    @contextmanager
    def mutated(self, folder: Path, mutation: Mutation) -> Iterator[Path]:
        """Apply a mutation to the copy of a run, and take it back."""
        mutation.apply(self.of(folder))
        try:
            yield self.of(folder)
        finally:
            path = self.of(folder) / mutation.file
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            shutil.copy(folder / mutation.file, path)


@pytest.fixture
def copy(root, tmp_path, monkeypatch):
    """Nothing waits for the disk: no machine goes down here."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return Copy(root, tmp_path / "outputs")


class Problems(list[str]):
    """What went wrong with each mutation, reported at the end."""

    @contextmanager
    def of(self, mutation: Mutation | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.append(f"{mutation}: {type(error).__name__}: {str(error)[:300]}")

    def tell(self) -> None:
        assert not self, f"{len(self)} problems:\n" + "\n".join(self[:15])


def plain(value: Any) -> str:
    return json.dumps(value, default=str, sort_keys=True)


# -- looking on --------------------------------------------------------------------------------------------------------

READ = (
    *("config is", "config/seed", "config/data.name", "config/model.name", "config/model.hidden", "config/tracking."),
    *("config/sparsity.label", "config/sparsity.density", "config/output.group"),
)
"""The keys of a config that commands read which only look at runs; the others are passed on as they are."""


def is_read(mutation: Mutation) -> bool:
    return not mutation.what.startswith("config/") or mutation.what.startswith(READ)


@pytest.mark.parametrize("of", ["killed", "done"])
def test_whoever_looks_at_runs_sees_the_others_whatever_became_of_one(of, folders, copy, capsys, monkeypatch):
    """The status, the catalog, the table of results, what would be submitted again, and what is sent."""
    monkeypatch.setattr(sync, "send", lambda folder, **where: [plain(description(folder)), plain(read_metrics(folder))])
    accuracy = f"{100 * read_summary(folders[1])['test/accuracy']:.2f}"
    folder, other = folders if of == "killed" else reversed(folders)
    names = ("status.json", "run.json", *(("launch.json", "lock", *HISTORIES) if of == "killed" else ("summary.json",)))
    beside, problems, neighbour = copy.of(other), Problems(), {}
    todo = [mutation for mutation in mutations(folder, *names) if is_read(mutation)]
    for mutation in todo:
        capsys.readouterr()
        with problems.of(mutation), copy.mutated(folder, mutation):
            assert status.main([str(copy.root), "--json"]) == 0
            seen = {run["folder"]: run for run in json.loads(capsys.readouterr().out)}
            status.show(observe([copy.of(folder)]))
            assert requeue.main([str(copy.root), "--dry-run"]) in (0, 1, 2)
            assert sync.main([str(copy.root)]) in (0, 1)
            assert f"sent        {beside}" in capsys.readouterr().out
            frame = catalog(copy.root)
            if mutation.file in ("run.json", "status.json", "summary.json"):
                shown = tables.accuracy_table(frame).to_string() + "".join(results.missing_cells(frame))
                assert accuracy in shown or of == "done"
            rows = frame[frame["folder"] == str(beside)].reindex(columns=["id", "state", "test/accuracy"])
            found = plain([seen[str(beside)], rows.to_dict("records")])
            assert neighbour.setdefault(beside, found) == found
    problems.tell()
    assert len(todo) > 300


def test_networks_of_other_runs_are_shown_whatever_became_of_those_of_one(folders, copy):
    killed, _ = folders
    problems, todo = Problems(), mutations(killed, "networks.jsonl")
    for mutation in todo:
        with problems.of(mutation), copy.mutated(killed, mutation):
            frame = catalog(copy.root)
            assert "neighbour" in tables.network_table(frame).to_string()
            notes = results.missing_networks(frame)
            assert not any("not in the table" in note and "networks.jsonl" not in note for note in notes)
    problems.tell()
    assert len(todo) > 60


def test_a_field_of_the_wrong_type_is_no_state(folders, copy):
    """The run is shown as unreadable, with the name of the file and of the field."""
    killed, _ = folders
    problems = Problems()
    needed = ("state", "attempt", "step", "total_steps", "error", "heartbeat", "host", "pid")
    may_be_nothing = (
        *("total_steps", "error", "job", "process_started", "traceback"),
        *("settings.max_parallel", "settings.max_submitted"),
    )
    free = ("cluster", "settings.cluster", "error", "host", "traceback", "process_started")
    for name in ("status.json", "launch.json"):
        for mutation in changed(read_json(killed / name), name, lambda tree: json.dumps(tree).encode()):
            field = mutation.what.split(" is ")[0].replace("/", ".")
            if "missing" in mutation.what and (name == "launch.json" or field not in needed):
                continue
            if ("None" in mutation.what and field in may_be_nothing) or (r"\x00" in mutation.what and field in free):
                continue
            with problems.of(mutation), copy.mutated(killed, mutation):
                (seen,) = observe([copy.of(killed)])
                assert seen.state == "unreadable"
                assert f"{name}: {field} must be" in seen.why
    problems.tell()


# -- submitting again --------------------------------------------------------------------------------------------------


def test_requeue_submits_or_refuses_and_never_raises(folders, copy, monkeypatch, capsys):
    killed, _ = folders
    submitted, problems = [], Problems()

    def submit(runs, settings, *, root, code):
        submitted.extend(run for run, _ in runs)
        return Submission(["9"], root)

    monkeypatch.setattr(submitting, "send", submit)
    monkeypatch.setattr(submitting, "check_copy", lambda code: None)
    (copy.root.parent / ".code").symlink_to(copy.original / ".code")
    wanted = from_yaml((killed / "config.yaml").read_text())
    fields = ("seed", "data/root", "data/mean", "hardware/slurm", "output", "sparsity/drop/name", "schedule is")
    for mutation in mutations(killed, "run.json", "status.json", "launch.json", "config.yaml", "lock"):
        is_tried = " is " not in mutation.what or mutation.what.startswith(fields)
        if not (is_tried if mutation.file == "config.yaml" else is_read(mutation)):
            continue
        copy.anew()
        submitted.clear()
        with problems.of(mutation), copy.mutated(killed, mutation) as folder:
            code = requeue.main([str(folder)])
            told = capsys.readouterr()
            assert submitted or told.err or "nothing to submit" in told.out or "left alone" in told.out
            assert bool(code) == bool(told.err), told.err
            if submitted:
                assert from_yaml(submitted[0].config) == wanted
                assert submitted[0].folder == str(folder.resolve())
    problems.tell()


# -- beginning and continuing ------------------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, Any]:
    """Return what is in a record, but for the lock."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.is_dir() or path.read_bytes()
        for path in folder.rglob("*")
        if path.name != "lock"
    }


def test_a_run_continues_as_what_it_was_or_not_at_all(folders, copy, monkeypatch):
    killed, _ = folders
    begun, config = read_run(killed), from_yaml((killed / "config.yaml").read_text())
    here = {name: begun[name] for name in ("code", "versions", "host", "platform", "machine", "device")}
    here |= {name: begun[name] for name in ("dataset", "sources")}
    monkeypatch.setattr("dst.records.lock.STALE_S", 0.0)  # nobody waits for who has damaged a lock
    refused, problems = set(), Problems()
    for mutation in mutations(killed, *HISTORIES, "run.json", "status.json", "launch.json", "lock", "config.yaml"):
        is_whole = " is " not in mutation.what
        if not (is_whole or is_read(mutation)) or (mutation.file == "config.yaml" and not is_whole):
            continue  # any other config.yaml is another one, whatever is in it
        copy.anew()
        with problems.of(mutation), copy.mutated(killed, mutation) as folder:
            before, told = contents(folder), ""
            try:
                cell = Cell(config, folder)
                assert not cell.is_over
                with locked_record(cell.record("again"), config, {}, here):
                    attempt = attempts._attempts(folder) + 1
            except (ConfigError, RecordError) as error:
                told = str(error)
            if told:
                assert contents(folder) == before
                assert folder.name in told
                assert "output.resume=never" not in told or "by a command for it alone, with output" in told
                refused.add(str(mutation))
                continue
            assert attempt == 2
            about = read_run(folder)
            assert about.get("sources", {}) == begun["sources"]
            for name in ("id", "identity", "config", "config_digest", "dataset", "versions"):
                assert about[name] == begun[name], name
            assert (folder / "config.yaml").read_bytes() == (killed / "config.yaml").read_bytes()
    problems.tell()
    for name in ("id", "identity", "dataset", "code"):
        assert {f"run.json: {name} is None", f"run.json: {name} is missing"} <= refused
    for name in ("state", "attempt", "step"):
        assert {f"status.json: {name} is None", f"status.json: {name} is missing"} <= refused
    assert {told.partition(":")[0] for told in refused} <= {
        "run.json",
        "status.json",
        "attempts.jsonl",
        "config.yaml",
        "lock",
    }
