"""The one way in which the state of a run is changed by those who do not carry it out."""

import json
import os
import socket
import time

import pytest

from dst.records.lock import locked
from dst.records.read import read_status
from dst.records.restate import restate
from dst.records.states import RECORDED, UNFINISHED, State
from dst.records.store import Record, RecordError


@pytest.fixture
def record(tmp_path):
    record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
    facts = {"heartbeat": 5.0, "traceback": "Traceback", "job": "7", "started": 2.0, "started_step": 3}
    record.write_status(State.PREEMPTED, attempt=2, step=5, total_steps=9, error="stopped", **facts)
    return record


def test_where_the_run_stands_stays_and_all_else_is_said_anew(record):
    before = time.time()
    assert restate(record.folder, State.QUEUED)
    status = json.loads((record.folder / "status.json").read_text())
    assert before <= status.pop("heartbeat") <= time.time()
    assert status == {
        **{"state": "queued", "attempt": 2, "step": 5, "total_steps": 9, "error": None},
        **{"host": socket.gethostname(), "pid": os.getpid()},
    }


def test_what_is_known_of_the_attempt_can_be_kept(record):
    assert restate(record.folder, State.FAILED, "killed", keep_attempt=True)
    assert json.loads((record.folder / "status.json").read_text()) == {
        **{"state": "failed", "attempt": 2, "step": 5, "total_steps": 9, "error": "killed"},
        **{"heartbeat": 5.0, "host": socket.gethostname(), "pid": os.getpid()},
        **{"traceback": "Traceback", "job": "7", "started": 2.0, "started_step": 3},
    }


@pytest.mark.parametrize("state", RECORDED)
def test_only_the_states_that_were_named_are_replaced(record, state):
    record.write_status(state, attempt=2, step=5)
    before = (record.folder / "status.json").read_bytes()
    assert restate(record.folder, State.FAILED, "why", among=UNFINISHED) == (state in UNFINISHED)
    assert (read_status(record.folder)["error"] == "why") == (state in UNFINISHED)
    assert ((record.folder / "status.json").read_bytes() == before) == (state not in UNFINISHED)


def test_a_run_that_a_process_carries_out_is_left_alone(record):
    before = (record.folder / "status.json").read_bytes()
    with locked(record.folder):
        assert not restate(record.folder, State.CANCELLED, "why")
    assert (record.folder / "status.json").read_bytes() == before
    assert restate(record.folder, State.CANCELLED, "why")


def test_a_run_without_a_status_gets_one(record):
    (record.folder / "status.json").unlink()
    assert restate(record.folder, State.FAILED, "why", among=UNFINISHED, traceback="here")
    status = read_status(record.folder)
    assert (status["state"], status["attempt"], status["step"], status["traceback"]) == ("failed", 0, 0, "here")


def test_a_folder_without_a_record_or_with_a_damaged_one_is_an_error(record, tmp_path):
    with pytest.raises(RecordError, match=r"no run\.json"):
        restate(tmp_path, State.FAILED)
    (record.folder / "status.json").write_text("{")
    with pytest.raises(RecordError, match="is not JSON"):
        restate(record.folder, State.FAILED)


def test_what_no_record_can_say_of_itself_is_refused(record):
    with pytest.raises(RecordError, match="unknown state 'lost'; allowed: submitting, not submitted, queued"):
        restate(record.folder, State.LOST)
    assert read_status(record.folder)["state"] == State.PREEMPTED
