"""Every run that was tracked offline arrives at wandb's server once and whole, whatever became of its attempts."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from dst.launcher.sync import NotSentError, main, send
from dst.records.catalog import find_runs
from dst.records.lock import locked
from dst.records.read import read_metrics, read_summary
from dst.records.store import Record
from dst.tracking.limits import shortened
from dst.tracking.mirrored import contents, write_book
from tests.processes import REPOSITORY, run
from tests.tracking.servers import KEY, server
from tests.tracking.stub_server import stub_server

TINY = (
    "sparsity=rigl_itop",
    "tracking=wandb_offline",
    "model.hidden=[16]",
    "schedule.epochs=2",
    "schedule.update_every=10",
    "tracking.every_steps=5",
    "tracking.progress=none",
    "hardware.threads=1",
    "checkpoint.every_steps=7",
    "output.group=some/study",
    "tracking.tags=[mine]",
)


@pytest.fixture
def stub(monkeypatch):
    with stub_server() as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        yield running


def sync(capsys, *arguments):
    """Return the exit code, and the verdict on each run by the name of its folder."""
    code = main([str(argument) for argument in arguments])
    *lines, _ = capsys.readouterr().out.splitlines()
    verdicts = {Path(line[12:].split("  ")[0]).name: line[:12].strip() for line in lines}
    return code, verdicts


def book(folder):
    with suppress(FileNotFoundError):
        return json.loads((folder / "wandb" / "sent.json").read_text())


# -- real runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_and_continued_runs_are_one_run_each_sent_once_also_after_a_refusal(tmp_path, stub, capsys):
    root = tmp_path / "outputs"
    assert run(*TINY, "seed=0", cwd=tmp_path, fault="kill:step:27").code == -9
    assert run(*TINY, "seed=0", cwd=tmp_path).code == 0
    (done,) = find_runs(root)
    assert run(*TINY, "seed=1", cwd=tmp_path, fault="kill:step:27").code == -9
    (killed,) = set(find_runs(root)) - {done}
    assert not any((folder / "wandb").exists() for folder in (done, killed))

    stub.refusing = {done.name}
    assert sync(capsys, root, "--timeout-s", "20") == (1, {done.name: "failed", killed.name: "sent"})
    assert book(done) is None
    stub.refusing = set()
    assert sync(capsys, root) == (0, {done.name: "sent", killed.name: "up to date"})
    assert arrived(stub, killed) == recorded(killed)
    assert run(*TINY, "seed=1", cwd=tmp_path).code == 0
    assert sync(capsys, root) == (0, {done.name: "up to date", killed.name: "sent"})

    assert {name for _, name in stub.runs} == {done.name, killed.name}
    for folder in (done, killed):
        found = stub.run(folder.name)
        assert arrived(stub, folder) == recorded(folder)
        assert [line["_step"] for line in found.history] == [2 * row["step"] for row in read_metrics(folder)]
        assert found.lines_received == len(found.history)
        assert read_summary(folder).items() <= found.summary.items()
        assert found.summary["sparsity/layers"]["nrows"] == 2
        assert found.config["sparsity"]["value"]["drop_fraction"]["initial"] == 0.5
        assert found.about("groupName") == "some/study"
        assert set(found.about("tags")) == {"mlp", "digits", "rigl_itop", "mine"}
        assert found.exit_code == 0

    before = len(stub.requests)
    assert sync(capsys, root) == (0, {done.name: "up to date", killed.name: "up to date"})
    assert len(stub.requests) == before


def arrived(stub, folder):
    return [plain(line) for line in stub.run(folder.name).history]


def recorded(folder):
    return [plain(line) for line in read_metrics(folder)]


def plain(line):
    """Return a line without what wandb adds, and without what a step done again, to the same bits, has of its own."""
    return {name: value for name, value in line.items() if not name.startswith(("_", "time/", "attempt"))}


@pytest.mark.slow
def test_runs_that_were_not_tracked_with_values_that_wandb_refuses(tmp_path, stub, capsys):
    """A long label was an automatic tag and lost the whole run; runs without tracking could not be sent at all."""
    label = "rigl_itop with" + " a label that names what was changed" * 4
    options = [f"sparsity.label='{label}'", f"output.group={'g' * 140}", "tracking=none"]
    plain_options = [option for option in TINY if not option.startswith(("tracking=", "tracking.tags", "output.group"))]
    result = run(*plain_options, *options, cwd=tmp_path)
    assert result.code == 0, result.output
    (folder,) = find_runs(tmp_path / "outputs")
    assert sync(capsys, tmp_path / "outputs") == (0, {folder.name: "sent"})
    found = stub.run(folder.name)
    assert arrived(stub, folder) == recorded(folder)
    assert [(project, name) for project, name in stub.runs] == [("dst", folder.name)]
    assert found.about("tags") == ["mlp", "digits", shortened(label, 64)]
    assert found.about("groupName") == shortened("g" * 140, 128)
    assert len(found.about("displayName")) == 128
    assert found.about("displayName").endswith(" density=0.1 seed=0")
    assert found.config["sparsity"]["value"]["label"] == label


# -- trouble, with records made by hand --------------------------------------------------------------------------------


def made(root, name, rows=4, state="done"):
    """Make the record of a run."""
    config = {
        "model.name": "mlp", "data.name": "digits", "sparsity.label": "rigl", "output.group": "g",
        "tracking.tags": [], "tracking.notes": None, "tracking.project": "dst", "tracking.entity": None,
    }  # fmt: skip
    about = {"id": name, "name": "a run", "created": "2026-01-02T03:04:05+00:00", "identity": {}, "config": config}
    folder = root / "g" / name
    with Record.create(folder, config_yaml="", run=about) as record:
        record.write_status(state, attempt=1, step=rows)
        for step in range(1, rows + 1):
            record.log(step=step, epoch=1.0, attempt=1, values={"train/loss": 1 / step, "lr": None})
        record.write_summary({"test/accuracy": 0.5})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refuse", "hang"])
def test_a_server_that_is_no_help(kind, tmp_path, monkeypatch, capsys):
    folder = made(tmp_path, "aaa")
    with server(kind) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        assert main([str(folder), "--timeout-s", "3"]) == 1
    out = capsys.readouterr().out
    assert out.startswith(f"failed      {folder}  wandb: ")
    assert out.endswith("\n1 failed\n")
    assert book(folder) is None
    assert [path.name for path in (folder / "wandb").iterdir()] == ["lock"]


@pytest.mark.slow
def test_a_run_that_was_deleted_on_the_server_is_told_and_can_be_sent_elsewhere(tmp_path, stub, capsys):
    folder = made(tmp_path, "aaa")
    assert sync(capsys, folder) == (0, {"aaa": "sent"})
    assert sync(capsys, folder) == (0, {"aaa": "up to date"})
    stub.deleted.add("aaa")
    stub.runs.clear()
    with Record.open(folder) as record:
        record.log(step=5, epoch=1.0, attempt=2, values={"train/loss": 0.1})
    assert main([str(folder), "--timeout-s", "8"]) == 1
    out = capsys.readouterr().out
    assert "wandb: " in out
    assert "previously created and deleted" in out
    stub.deleted.clear()
    assert sync(capsys, folder, "--project", "other") == (0, {"aaa": "sent"})
    assert [row["step"] for row in stub.run("aaa").history] == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_two_at_a_time_send_a_run_once(tmp_path, stub, capsys):
    folder = made(tmp_path, "aaa", rows=300)

    def attempt(_):
        try:
            return send(folder, project="dst", entity=None, timeout_s=60.0)
        except NotSentError as error:
            return str(error)

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(attempt, range(3)))
    assert [] in outcomes
    others = [outcome for outcome in outcomes if outcome != []]
    assert all(outcome.startswith("wandb: it is being sent already (host ") for outcome in others)
    assert stub.run("aaa").lines_received == 300
    with locked(folder / "wandb"):
        (folder / "wandb" / "sent.json").unlink()
        assert sync(capsys, folder) == (0, {"aaa": "left out"})


@pytest.mark.slow
def test_a_long_history_is_not_sent_from_its_beginning_again(tmp_path, stub, capsys):
    folder = made(tmp_path, "aaa", rows=0)
    lines = 5_000
    values = {f"group/metric_{number}": 0.123456789 for number in range(10)}
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, lines + 1):
            file.write(json.dumps({"step": step, "epoch": 1.0, "attempt": 1, **values}) + "\n")
    assert sync(capsys, folder) == (0, {"aaa": "sent"})
    assert stub.run("aaa").lines_received == lines
    with Record.open(folder) as record:
        record.mark_resume(step=lines - 10, attempt=2)
        for step in range(lines - 9, lines + 3):
            record.log(step=step, epoch=1.0, attempt=2, values=values)
    (folder / "wandb" / "sent.json").unlink()  # an interrupted sending leaves none
    assert sync(capsys, folder) == (0, {"aaa": "sent"})
    found = stub.run("aaa")
    assert (found.lines_received, len(found.history)) == (lines + 2, lines + 2)


def test_without_wandb(tmp_path, monkeypatch, capsys):
    fake = tmp_path / "modules"
    fake.mkdir()
    (fake / "wandb.py").write_text("raise ModuleNotFoundError('No module named wandb', name='wandb')")
    monkeypatch.setenv("PYTHONPATH", str(fake))
    folder = made(tmp_path, "aaa")
    assert main([str(folder)]) == 1
    assert capsys.readouterr().out == f"failed      {folder}  wandb: not installed: pip install wandb\n1 failed\n"


# -- without a server --------------------------------------------------------------------------------------------------


@pytest.fixture
def sendings(monkeypatch):
    """Note what would be sent instead of sending it."""
    sent = []

    def send(folder, *, project, entity, timeout_s):
        sent.append((folder.name, {"project": project, "entity": entity, "timeout_s": timeout_s}))
        (folder / "wandb").mkdir(exist_ok=True)
        write_book(folder, contents(folder, project, entity), {})
        return []

    monkeypatch.setattr("dst.launcher.sync.send", send)
    return sent


def test_only_what_is_new_is_sent_and_to_where_it_shall_go(tmp_path, sendings, capsys):
    folder = made(tmp_path, "aaa")
    assert sync(capsys, tmp_path, "--dry-run") == (0, {"aaa": "would send"})
    assert sendings == []
    assert sync(capsys, tmp_path, "--timeout-s", "7") == (0, {"aaa": "sent"})
    assert sendings == [("aaa", {"project": "dst", "entity": None, "timeout_s": 7.0})]
    assert sync(capsys, tmp_path) == (0, {"aaa": "up to date"})
    assert sync(capsys, tmp_path, "--project", "other", "--entity", "us") == (0, {"aaa": "sent"})
    assert sendings[-1] == ("aaa", {"project": "other", "entity": "us", "timeout_s": 120.0})
    (folder / "wandb" / "sent.json").write_text("{")
    assert sync(capsys, tmp_path, "--project", "other", "--entity", "us") == (0, {"aaa": "sent"})
    with Record.open(folder) as record:
        record.log(step=5, epoch=1.0, attempt=2, values={"train/loss": 0.1})
    assert sync(capsys, tmp_path, "--project", "other", "--entity", "us") == (0, {"aaa": "sent"})
    assert len(sendings) == 4


def test_runs_that_go_on_or_have_not_begun_are_left_out(tmp_path, sendings, capsys):
    running = made(tmp_path, "aaa", state="running")
    queued = made(tmp_path, "bbb", rows=0, state="queued")
    Record.open(queued).write_status("queued", attempt=0, step=0)
    with locked(running, "7"):
        assert main([str(tmp_path)]) == 0
        out = capsys.readouterr().out
        assert f"running (host {socket.gethostname()}, process {os.getpid()}, job 7, since " in out
        assert "--running sends what there is\nleft out    " in out
        assert out.endswith("  it has not begun\n2 left out\n")
        assert sync(capsys, tmp_path, "--running") == (0, {"aaa": "sent", "bbb": "left out"})
    Record.open(running).write_status("running", attempt=1, step=9)  # killed, since no process has the lock
    assert sync(capsys, tmp_path) == (0, {"aaa": "up to date", "bbb": "left out"})


def test_a_name_that_wandb_refuses_is_told_with_its_key_and_the_remedy(tmp_path, capsys):
    folder = made(tmp_path, "aaa")
    about = json.loads((folder / "run.json").read_text())
    about["config"]["tracking.project"] = "a/b"
    (folder / "run.json").write_text(json.dumps(about))
    assert main([str(tmp_path)]) == 1
    told, _ = capsys.readouterr().out.splitlines()
    assert "tracking.project=a/b " in told
    assert told.endswith(": choose another one with --project")


def test_what_cannot_be_read_or_sent_is_told_and_the_others_are_sent(tmp_path, monkeypatch, capsys):
    def send(folder, **_):
        if folder.name == "ccc":
            raise NotSentError("wandb: refused")
        return ["wandb: no table of layers"]

    monkeypatch.setattr("dst.launcher.sync.send", send)
    (made(tmp_path, "aaa") / "run.json").write_text("{")
    (made(tmp_path, "bbb") / "run.json").write_text('{"config": {}}')
    made(tmp_path, "ccc")
    made(tmp_path, "ddd")
    assert main([str(tmp_path)]) == 1
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line[:9] for line in lines] == ["failed   ", "failed   ", "failed   ", "sent     "]
    assert "is not JSON" in lines[0]
    assert lines[1].endswith("run.json lacks 'tracking.project'")
    assert lines[2].endswith("wandb: refused")
    assert lines[3].endswith("  -> dst; wandb: no table of layers")
    assert last == "1 sent, 3 failed"


@pytest.mark.parametrize("name", ["run.json", "status.json", "summary.json", "metrics.jsonl", "wandb/sent.json"])
@pytest.mark.parametrize("change", [None, 7, "text", [], {}, "torn", "missing"])
def test_no_record_stops_the_sending_of_others(name, change, tmp_path, sendings, capsys):
    """Each field of a file mistyped; each file torn, missing, or something else."""
    whole = made(tmp_path, "whole")
    assert sync(capsys, tmp_path) == (0, {"whole": "sent"})
    data = (whole / name).read_text()
    fields = json.loads(data.splitlines()[0] if name == "metrics.jsonl" else data)
    for number, field in enumerate([*fields, "itself"]):
        path = made(tmp_path, f"run{number}") / name
        path.parent.mkdir(exist_ok=True)
        own = {**fields, "id": path.parent.name} if name == "run.json" else fields
        path.write_text(data[: len(data) // 2])
        if change == "missing":
            path.unlink()
        elif change != "torn":
            path.write_text(json.dumps(change if field == "itself" else {**own, field: change}))
    main([str(tmp_path)])
    *lines, _ = capsys.readouterr().out.splitlines()
    assert len(lines) == (1 if (name, change) == ("run.json", "missing") else len(fields) + 2)
    assert lines[-1] == f"up to date  {whole}"


def test_projects_that_wandb_refuses(tmp_path, sendings, capsys):
    folder = made(tmp_path, "aaa")
    about = json.loads((folder / "run.json").read_text())
    about["config"]["tracking.project"] = "a/b"
    (folder / "run.json").write_text(json.dumps(about))
    assert main([str(tmp_path)]) == 1
    assert "tracking.project=a/b contains '/'" in capsys.readouterr().out
    assert sync(capsys, tmp_path, "--project", "ab") == (0, {"aaa": "sent"})
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--project", "a/b"])
    assert "wandb takes none of" in capsys.readouterr().err


def test_folders_without_runs(tmp_path, capsys):
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "no runs\n"
    assert main([str(tmp_path / "missing")]) == 2
    assert f"there is no folder {tmp_path / 'missing'}; give an output root" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--timeout-s", "0"])


def test_it_starts_without_what_is_slow():
    code = "import sys, dst.launcher.sync; print({'torch', 'hydra', 'omegaconf', 'pandas', 'wandb'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
