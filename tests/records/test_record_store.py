import json
import math
import os
import socket
import subprocess
import sys
import time

import pytest

from dst.records.read import read_json, read_layers, read_metrics, read_networks, read_status, read_summary
from dst.records.states import RECORDED
from dst.records.store import Record, RecordError
from tests.limits import largest_file


@pytest.fixture
def record(tmp_path):
    with Record.create(tmp_path / "group" / "abc", config_yaml="seed: 0\n", run={"id": "abc"}) as record:
        yield record


def test_create_writes_config_and_run(record):
    assert (record.folder / "config.yaml").read_text() == "seed: 0\n"
    assert json.loads((record.folder / "run.json").read_text()) == {"id": "abc"}
    assert record.checkpoints == record.folder / "checkpoints"
    assert sorted(os.listdir(record.folder)) == ["config.yaml", "run.json"]


def test_create_refuses_to_overwrite_a_record(record):
    with pytest.raises(RecordError, match=r"holds a record already.*Record\.open"):
        Record.create(record.folder, config_yaml="", run={"id": "other"})
    assert read_json(record.folder / "run.json") == {"id": "abc"}


def test_of_two_that_create_a_record_at_once_one_leaves_it_to_the_other(tmp_path, monkeypatch):
    """Else it would wipe out what the other one has begun with, and that run could not be continued."""
    begun, write = {"id": "abc", "dataset": {"digest": "0"}}, Record.write_config

    def write_meanwhile(record, text):
        write(record, text)
        (record.folder / "run.json").write_text(json.dumps(begun))

    monkeypatch.setattr(Record, "write_config", write_meanwhile)
    with pytest.raises(RecordError, match="holds a record already"):
        Record.create(tmp_path, config_yaml="", run={"id": "abc"})
    assert read_json(tmp_path / "run.json") == begun
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "run.json"]


def test_create_needs_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    Record.create(tmp_path, config_yaml="", run={"id": "abc"})
    assert read_json(tmp_path / "run.json") == {"id": "abc"}
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "run.json"]


def test_create_takes_over_a_folder_that_never_became_a_run(tmp_path):
    (tmp_path / "config.yaml").write_text("torn")
    Record.create(tmp_path, config_yaml="whole", run={})
    assert (tmp_path / "config.yaml").read_text() == "whole"


def test_open_needs_a_record(tmp_path):
    with pytest.raises(RecordError, match=r"no run\.json.*Record\.create"):
        Record.open(tmp_path)


def test_status_holds_what_was_said_and_who_said_it(record):
    before = time.time()
    record.write_status("failed", attempt=2, step=30, total_steps=100, error="boom\nline two")
    status = read_status(record.folder)
    assert before <= status.pop("heartbeat") <= time.time()
    assert status == {
        "state": "failed",
        "attempt": 2,
        "step": 30,
        "total_steps": 100,
        "error": "boom\nline two",
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


@pytest.mark.parametrize("state", RECORDED)
def test_every_state_can_be_written(record, state):
    record.write_status(state, attempt=1, step=0)
    assert read_status(record.folder)["state"] == state


def test_an_unknown_state_is_refused(record):
    with pytest.raises(RecordError, match="'finished'; allowed: " + ", ".join(RECORDED)):
        record.write_status("finished", attempt=1, step=0)
    assert read_status(record.folder) is None


WRITER = """
import sys
from pathlib import Path
from dst.records.store import Record
record = Record.open(Path(sys.argv[1]))
for step in range(10**9):
    record.write_status("running", attempt=1, step=step, error="x" * (step % 7 * 1000))
"""


def test_a_reader_never_sees_a_torn_status_even_if_the_writer_is_killed(record):
    record.write_status("queued", attempt=1, step=0)
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(record.folder)])
        steps = set()
        try:
            while len(steps) < 10 and writer.poll() is None:
                status = read_status(record.folder)  # raises if torn
                if status["pid"] == writer.pid:
                    assert len(status["error"]) == status["step"] % 7 * 1000
                    steps.add(status["step"])
        finally:
            writer.kill()
            writer.wait()
        assert len(steps) == 10
        assert read_status(record.folder)["pid"] == writer.pid
    Record.open(record.folder).write_status("done", attempt=2, step=7)
    assert read_status(record.folder)["state"] == "done"


def test_non_finite_numbers_become_null(record):
    record.log(step=1, epoch=math.nan, attempt=1, values={"train/loss": math.nan, "lr": math.inf, "val/loss": 1.5})
    record.write_summary({"test/accuracy": -math.inf, "per_class": [0.5, math.nan], "time/seconds": 3})
    expected = {"step": 1, "epoch": None, "attempt": 1, "train/loss": None, "lr": None, "val/loss": 1.5}
    assert read_metrics(record.folder) == [expected]
    assert read_summary(record.folder) == {"test/accuracy": None, "per_class": [0.5, None], "time/seconds": 3}


@pytest.mark.parametrize("name", ["step", "epoch", "attempt", "event"])
def test_a_value_cannot_take_the_name_of_a_field(record, name):
    with pytest.raises(RecordError, match=f"{name}: every history line has this field; rename it, e.g. train/{name}"):
        record.log(step=1, epoch=0.1, attempt=1, values={name: 3})


def test_a_value_that_json_cannot_hold_is_refused_before_anything_is_written(record):
    record.log(step=1, epoch=0.1, attempt=1, values={"lr": 1.0})
    with pytest.raises(RecordError, match=r"complex.*convert it"):
        record.log(step=2, epoch=0.2, attempt=1, values={"lr": 1j})
    assert [row["step"] for row in read_metrics(record.folder)] == [1]


def test_a_line_is_in_the_file_when_log_returns(record):
    record.log(step=1, epoch=0.1, attempt=1, values={"train/note": "two\nlines"})
    assert (record.folder / "metrics.jsonl").read_text() == (
        '{"step": 1, "epoch": 0.1, "attempt": 1, "train/note": "two\\nlines"}\n'
    )


def test_layers_get_a_line_each(record):
    rows = [
        {"layer": "fc1", "size": 100, "active": 10, "explored": 12, "dropped": 2, "grown": 2},
        {"layer": "fc2", "size": 50, "active": 5, "explored": 5, "dropped": 0, "grown": 0},
    ]
    record.log_layers(step=4, attempt=1, rows=iter(rows))
    assert read_layers(record.folder) == [{"step": 4, "attempt": 1, **row} for row in rows]
    assert len((record.folder / "layers.jsonl").read_text().splitlines()) == 2


def test_a_layer_row_needs_its_layer(record):
    with pytest.raises(RecordError, match="'layer'; given: size, active"):
        record.log_layers(step=1, attempt=1, rows=[{"size": 3, "active": 1}])


def test_no_layers_no_line(record):
    record.log_layers(step=1, attempt=1, rows=[])
    assert read_layers(record.folder) == []


TICKET = {"phase": 1, "phase_name": "cycle 1", "step": 40, "name": "ticket 1", "density": 0.05, "active": 59}


def test_a_network_gets_a_line(record):
    record.log_network(attempt=2, **TICKET, loss=0.25, accuracy=0.5)
    record.log_network(attempt=2, **TICKET | {"name": "superposed 1", "active": 60})
    assert (record.folder / "networks.jsonl").read_text() == (
        '{"phase": 1, "phase_name": "cycle 1", "step": 40, "attempt": 2, "name": "ticket 1", "density": 0.05, '
        '"active": 59, "val/loss": 0.25, "val/accuracy": 0.5}\n'
        '{"phase": 1, "phase_name": "cycle 1", "step": 40, "attempt": 2, "name": "superposed 1", "density": 0.05, '
        '"active": 60}\n'
    )
    assert [row["name"] for row in read_networks(record.folder)] == ["ticket 1", "superposed 1"]


def test_a_loss_that_is_not_finite_is_on_record_as_null_and_not_as_absent(record):
    record.log_network(attempt=1, **TICKET, loss=math.nan, accuracy=0.1)
    (row,) = read_networks(record.folder)
    assert (row["val/loss"], row["val/accuracy"]) == (None, 0.1)


def test_a_record_without_networks_has_no_file_for_them(record):
    record.mark_resume(step=0, attempt=1)
    assert sorted(os.listdir(record.folder)) == ["config.yaml", "layers.jsonl", "metrics.jsonl", "run.json"]
    assert read_networks(record.folder) == []


def test_a_full_disk_harms_no_other_network(record):
    record.log_network(attempt=1, **TICKET)
    size = (record.folder / "networks.jsonl").stat().st_size
    with largest_file(size + 10), pytest.raises(OSError, match="File too large"):
        record.log_network(attempt=1, **TICKET | {"name": "b"})
    record.log_network(attempt=1, **TICKET | {"name": "c"})
    assert [row["name"] for row in read_networks(record.folder)] == ["ticket 1", "c"]


def test_sync_reaches_the_disk(record, monkeypatch):
    record.log(step=1, epoch=0.1, attempt=1, values={})
    record.log_layers(step=1, attempt=1, rows=[{"layer": "fc"}])
    record.log_network(attempt=1, **TICKET)
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    record.sync()
    assert synced == [str(record.folder / f"{name}.jsonl") for name in ("metrics", "layers", "networks")]


def test_a_full_disk_is_an_error_and_harms_no_other_line(record):
    record.log(step=1, epoch=0.1, attempt=1, values={"train/loss": 3.0})
    size = (record.folder / "metrics.jsonl").stat().st_size
    with largest_file(size + 10), pytest.raises(OSError, match="File too large"):
        record.log(step=2, epoch=0.2, attempt=1, values={"train/loss": 2.0})
    assert (record.folder / "metrics.jsonl").stat().st_size == size + 10
    assert [row["step"] for row in read_metrics(record.folder)] == [1]
    record.log(step=3, epoch=0.3, attempt=1, values={"train/loss": 1.0})
    assert [(row["step"], row["train/loss"]) for row in read_metrics(record.folder)] == [(1, 3.0), (3, 1.0)]


def test_a_full_disk_leaves_the_old_status_and_no_litter(record):
    record.write_status("running", attempt=1, step=1)
    with largest_file(5), pytest.raises(OSError, match="File too large"):
        record.write_status("running", attempt=1, step=2)
    assert read_status(record.folder)["step"] == 1
    assert sorted(os.listdir(record.folder)) == ["config.yaml", "run.json", "status.json"]


def test_closing_lets_go_of_the_files_and_writing_opens_them_again(record):
    def is_open(name):
        files = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        return str(record.folder / name) in {os.readlink(file) for file in files if os.path.lexists(file)}

    record.log(step=1, epoch=0.1, attempt=1, values={})
    assert is_open("metrics.jsonl")
    record.close()
    assert not is_open("metrics.jsonl")
    record.log(step=2, epoch=0.2, attempt=1, values={})
    assert [row["step"] for row in read_metrics(record.folder)] == [1, 2]


def test_records_start_fast():
    code = (
        "import sys, dst.records.store, dst.records.read, dst.records.catalog;"
        "print(sorted({'torch', 'hydra', 'omegaconf', 'pandas', 'numpy'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
