import json
import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.records.read import (
    read_compute,
    read_json,
    read_layers,
    read_metrics,
    read_networks,
    read_status,
    read_summary,
)
from dst.records.store import Record, RecordError


@pytest.fixture
def record(tmp_path):
    with Record.create(tmp_path / "abc", config_yaml="", run={"id": "abc"}) as record:
        yield record


def log(record, step, attempt=1, **values):
    record.log(step=step, epoch=step / 10, attempt=attempt, values=values)


def seen(record, name):
    return [(row["step"], row["attempt"], row.get(name)) for row in read_metrics(record.folder)]


def test_what_was_never_written_reads_as_nothing(record):
    assert read_status(record.folder) is None
    assert read_summary(record.folder) is None
    assert read_metrics(record.folder) == []
    assert read_layers(record.folder) == []
    assert read_networks(record.folder) == []


@pytest.mark.parametrize(("text", "reason"), [("{", "is not JSON"), ("[1]", "holds a list"), ("\x00", "is not JSON")])
def test_a_damaged_file_is_an_error_that_names_it(record, text, reason):
    (record.folder / "status.json").write_text(text)
    with pytest.raises(RecordError, match=rf"abc/status\.json {reason}"):
        read_status(record.folder)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "run.json")


def test_lines_of_a_step_are_one_row_in_which_later_values_win(record):
    log(record, 20, loss=1.0)
    log(record, 10, loss=3.0, lr=0.1)
    log(record, 10, loss=2.0, accuracy=0.5)
    assert read_metrics(record.folder) == [
        {"step": 10, "epoch": 1.0, "attempt": 1, "loss": 2.0, "lr": 0.1, "accuracy": 0.5},
        {"step": 20, "epoch": 2.0, "attempt": 1, "loss": 1.0},
    ]


def test_a_resume_voids_what_lies_beyond_it_and_only_what_was_before_it(record):
    for step in (0, 10, 20, 30):
        log(record, step, loss=step)
    record.mark_resume(step=10, attempt=2)
    log(record, 20, attempt=2, loss=-1)
    assert seen(record, "loss") == [(0, 1, 0), (10, 1, 10), (20, 2, -1)]


def test_resuming_from_an_older_checkpoint_voids_two_attempts(record):
    log(record, 10, loss=1)
    log(record, 20, loss=2)
    record.mark_resume(step=20, attempt=2)
    log(record, 30, attempt=2, loss=3)
    record.mark_resume(step=10, attempt=3)
    log(record, 40, attempt=3, loss=4)
    assert seen(record, "loss") == [(10, 1, 1), (40, 3, 4)]


def test_a_resume_voids_layers_too(record):
    for step in (10, 20):
        record.log_layers(step=step, attempt=1, rows=[{"layer": "b", "active": step}, {"layer": "a", "active": step}])
    record.mark_resume(step=10, attempt=2)
    record.log_layers(step=10, attempt=2, rows=[{"layer": "b", "active": 11}])
    assert read_layers(record.folder) == [
        {"step": 10, "attempt": 2, "layer": "b", "active": 11},
        {"step": 10, "attempt": 1, "layer": "a", "active": 10},
    ]


def test_a_resume_voids_times_of_layers_too(record):
    assert read_compute(record.folder) == []
    for step in (10, 20):
        record.log_compute(step=step, attempt=1, rows=[{"layer": "a", "choice": "packed"}])
    record.mark_resume(step=10, attempt=2)
    assert read_compute(record.folder) == [{"step": 10, "attempt": 1, "layer": "a", "choice": "packed"}]


@pytest.mark.parametrize("kept", range(1, 41))
def test_a_layer_history_torn_anywhere_keeps_its_complete_lines(record, kept):
    record.log_layers(step=1, attempt=1, rows=[{"layer": "fc"}])
    path = record.folder / "layers.jsonl"
    whole = path.stat().st_size
    record.log_layers(step=2, attempt=1, rows=[{"layer": "fc"}])
    record.close()
    assert path.stat().st_size == 2 * whole == 82
    os.truncate(path, whole + kept)
    record.log_layers(step=3, attempt=2, rows=[{"layer": "fc"}])
    assert [row["step"] for row in read_layers(record.folder)] == ([1, 2, 3] if kept == whole - 1 else [1, 3])


def network(record, phase, step, name, attempt=1, **more):
    where = {"phase": phase, "phase_name": f"phase {phase}", "step": step}
    record.log_network(attempt=attempt, **where, name=name, density=0.5, active=attempt, **more)


def made(folder):
    return [(row["phase"], row["step"], row["name"], row["attempt"]) for row in read_networks(folder)]


def test_a_resume_voids_the_networks_that_are_made_again(record):
    """Those of the phase that goes on, at its step or later; at that step, what earlier phases made stays."""
    for phase, step, name in ((0, 10, "a"), (0, 20, "b"), (1, 20, "begun"), (1, 30, "c"), (1, 30, "d"), (2, 30, "e")):
        network(record, phase, step, name)
    everything = made(record.folder)
    record.mark_resume(phase=2, step=31, attempt=2)  # in the midst of the last phase
    assert made(record.folder) == everything
    record.mark_resume(phase=2, step=30, attempt=3)  # before what begins it
    assert made(record.folder) == everything[:-1]
    record.mark_resume(phase=1, step=30, attempt=4)  # before what ends the phase before
    network(record, 1, 30, "c", attempt=4)
    assert made(record.folder) == [*everything[:3], (1, 30, "c", 4)]
    record.mark_resume(phase=1, step=20, attempt=5)
    assert made(record.folder) == [(0, 10, "a", 1), (0, 20, "b", 1)]
    record.mark_resume(step=20, attempt=6)  # the first phase, unless told otherwise
    assert made(record.folder) == [(0, 10, "a", 1)]


def test_a_network_is_what_was_said_of_it_last_and_in_the_order_in_which_they_were_made(record):
    for attempt, name in enumerate(("z", "a", "z"), start=1):
        network(record, 1, 5, name, attempt=attempt)
    network(record, 0, 5, "y", attempt=4)
    assert made(record.folder) == [(0, 5, "y", 4), (1, 5, "z", 3), (1, 5, "a", 2)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("phase", value) for value in (None, -1, 1.5, "1", ...)),
        *((name, value) for name in ("name", "phase_name") for value in (None, 3, ...)),
        *(("density", value) for value in (None, "0.1", ...)),
        *(("active", value) for value in (None, 0.5, -1, ...)),
        *((name, value) for name in ("val/loss", "val/accuracy") for value in ("0.1", [], True)),
    ],
)
def test_a_network_with_a_damaged_field_is_an_error_that_names_it(record, field, value):
    network(record, 1, 5, "ticket", loss=0.5, accuracy=0.5)
    path = record.folder / "networks.jsonl"
    line = json.loads(path.read_text()) | {field: value}
    path.write_text(json.dumps({name: value for name, value in line.items() if value is not ...}) + "\n")
    with pytest.raises(RecordError, match=rf"abc/networks\.jsonl: {field} must be .*restore it from a copy"):
        read_networks(record.folder)


STEPS = st.integers(0, 6)
VALUES = st.dictionaries(
    st.sampled_from(["train/loss", "val/accuracy", "lr"]),
    st.none() | st.integers() | st.floats() | st.text(max_size=5),
)
OPERATIONS = st.lists(
    st.tuples(st.just("log"), STEPS, VALUES)
    | st.tuples(st.just("resume"), STEPS, st.just({}))
    | st.tuples(st.just("crash"), st.integers(0, 150), st.just({})),
    max_size=15,
)


def written(operations, folder):
    """Carry the operations out; return the lines that survived as (kind, step, row)."""
    record, path = Record.create(folder, config_yaml="", run={}), folder / "metrics.jsonl"
    path.touch()
    lines = []
    for attempt, (kind, number, values) in enumerate(operations):
        if kind == "crash":
            record.close()
            size = max(0, path.stat().st_size - number)
            os.truncate(path, size)
            lines = [line for line in lines if line[0] <= size + 1]  # a line that lost its end mark only is complete
            record = Record.open(folder)
        elif kind == "resume":
            record.mark_resume(step=number, attempt=attempt)
        else:
            record.log(step=number, epoch=0.5, attempt=attempt, values=values)
        if kind != "crash":
            lines.append((path.stat().st_size, kind, number, {"attempt": attempt, **values}))
    record.close()
    return [line[1:] for line in lines]


def valid_rows(lines):
    """What must be read: by the definition, line by line, not by replaying."""
    rows = {}
    for index, (kind, step, row) in enumerate(lines):
        is_void = any(later == "resume" and step > point for later, point, _ in lines[index + 1 :])
        if kind == "log" and not is_void:
            rows[step] = rows.get(step, {"step": step, "epoch": 0.5}) | row
    finite = [
        {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
        for row in rows.values()
    ]
    return sorted(finite, key=lambda row: row["step"])


@settings(max_examples=150, deadline=None)
@given(OPERATIONS)
def test_any_sequence_of_logs_resumes_and_crashes_reads_back_as_defined(operations):
    with TemporaryDirectory() as folder:
        lines = written(operations, Path(folder) / "run")
        assert read_metrics(Path(folder) / "run") == valid_rows(lines)


PHASES = st.integers(0, 3)
NETWORKS = st.lists(
    st.tuples(st.sampled_from(["log", "log", "resume"]), PHASES, STEPS, st.sampled_from("abc"))
    | st.tuples(st.just("crash"), st.integers(0, 300), st.just(0), st.just("")),
    max_size=15,
)


def written_networks(operations, folder):
    """Carry the operations out; return the lines that survived as (kind, place, name, attempt)."""
    record, path = Record.create(folder, config_yaml="", run={}), folder / "networks.jsonl"
    path.touch()
    lines = []
    for attempt, (kind, number, step, name) in enumerate(operations):
        if kind == "crash":
            record.close()
            size = max(0, path.stat().st_size - number)
            os.truncate(path, size)
            lines = [line for line in lines if line[0] <= size + 1]
            record = Record.open(folder)
            continue
        if kind == "resume":
            record.mark_resume(phase=number, step=step, attempt=attempt)
        else:
            network(record, number, step, name, attempt=attempt)
        lines.append((path.stat().st_size, kind, (number, step), name, attempt))
    record.close()
    return [line[1:] for line in lines]


def valid_networks(lines):
    """What must be read: by the definition, line by line, not by replaying."""
    rows = {}
    for index, (kind, (phase, step), name, attempt) in enumerate(lines):
        resumes = [place for later, place, *_ in lines[index + 1 :] if later == "resume"]
        is_void = any(phase > p or (phase == p and step >= s) for p, s in resumes)
        if kind == "log" and not is_void:
            rows[phase, step, name] = attempt
    return {(*place, attempt) for place, attempt in rows.items()}


@settings(max_examples=150, deadline=None)
@given(NETWORKS)
def test_any_sequence_of_networks_resumes_and_crashes_reads_back_as_defined(operations):
    with TemporaryDirectory() as folder:
        lines = written_networks(operations, Path(folder) / "run")
        found = made(Path(folder) / "run")
        assert set(found) == valid_networks(lines)
        assert len(found) == len(set(found))
        assert [row[:2] for row in found] == sorted(row[:2] for row in found)
