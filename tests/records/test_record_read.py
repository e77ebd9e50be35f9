import math
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.records.read import read_json, read_layers, read_metrics, read_status, read_summary
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
