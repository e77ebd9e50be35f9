"""Work in processes that crash: every number is answered for once, whatever becomes of the processes."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dst.data import children
from dst.data.children import in_children
from tests.processes import REPOSITORY, wait_until

ENDS = ["crash", "kill", "exit", "raise"]


def crash() -> None:
    ctypes.string_at(0)


@settings(max_examples=15)
@given(
    count=st.integers(0, 120),
    ends=st.dictionaries(st.integers(0, 119), st.sampled_from(["crash", "kill", "exit", "raise"]), max_size=5),
)
def test_each_number_is_answered_once_and_crashes_are_told_by_number(count, ends):
    def work(number: int) -> int:
        match ends.get(number):
            case "crash":
                crash()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(7)
            case "raise":
                raise ValueError("two\nlines")
        return number * number

    answers = sorted(in_children(work, range(count)), key=lambda answer: answer.number)
    told = {
        "crash": "the decoder crashed: SIGSEGV",
        "kill": "the decoder crashed: SIGKILL",
        "exit": "the decoder crashed: exit code 7",
        "raise": "two lines",
    }
    assert [answer.number for answer in answers] == list(range(count))
    for answer in answers:
        expected = told[ends[answer.number]] if answer.number in ends else None
        assert (answer.failure, answer.result) == (expected, None if expected else answer.number**2)


def test_several_processes_share_the_work_and_its_crashes(monkeypatch):
    monkeypatch.setattr(children, "_FEWEST", 50)
    monkeypatch.setattr(children, "_processors", lambda: 3)

    def work(number: int) -> int:
        if number % 40 == 7:
            crash()
        return os.getpid()

    answers = list(in_children(work, range(200)))
    assert sorted(answer.number for answer in answers) == list(range(200))
    assert {answer.number for answer in answers if answer.failure} == {7, 47, 87, 127, 167}
    assert os.getpid() not in {answer.result for answer in answers}


def test_a_process_that_was_ended_by_somebody_else_costs_no_number(tmp_path):
    def work(number: int) -> int:
        if number == 20 and not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    assert sorted(answer.result for answer in in_children(work, range(70))) == list(range(70))


def test_what_libraries_write_to_the_error_stream_belongs_to_the_number(capfd):
    def work(number: int) -> None:
        if number % 3 == 0:
            os.write(2, b"Corrupt data: %d\nmore" % number)
        if number == 4:
            os.write(2, b"x" * 1_000_000)  # more than anybody reads

    answers = {answer.number: answer.said for answer in in_children(work, range(10))}
    assert {number: said for number, said in answers.items() if said and number != 4} == {
        number: f"Corrupt data: {number}" for number in (0, 3, 6, 9)
    }
    assert answers[4] == 200 * "x"
    assert capfd.readouterr().err == ""


def test_requests_to_stop_are_the_parents_business():
    """SLURM and terminals signal the whole process group."""

    def work(number: int) -> int:
        for stop in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            os.kill(os.getpid(), stop)
        return number

    assert [answer.result for answer in in_children(work, range(3))] == [0, 1, 2]


def test_closing_ends_the_processes():
    with closing(in_children(lambda number: os.getpid(), range(100))) as answers:
        process = next(answers).result
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_processes_die_with_their_parent(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom dst.data.children import in_children\n"
        "def work(number):\n    Path(sys.argv[1]).write_text(str(os.getpid()))\n    time.sleep(600)\n"
        "next(in_children(work, range(3)))"
    )
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", code, str(told)], cwd=REPOSITORY)
    wait_until(lambda: told.exists() and told.read_text(), "the child has not begun")
    parent.kill()
    parent.wait()
    status = Path(f"/proc/{told.read_text()}/stat")
    wait_until(lambda: not status.exists() or status.read_text().split()[2] == "Z", "the child lives on", timeout=20)


def test_a_damaged_file_costs_no_seconds():
    begun = time.monotonic()
    assert all(answer.failure for answer in in_children(lambda number: crash(), range(20)))
    assert time.monotonic() - begun < 20  # 40 processes
