"""Ctrl-C at telling moments, one to three times; ``python -m tests.chaos.ctrl_c --ways 100`` tries random ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dst import signals
from dst.records.catalog import find_runs
from dst.records.read import read_status
from dst.records.states import State
from dst.run.attempt import _Attempt
from dst.tracking.progress import NoProgress
from dst.tracking.tracker import NoTracker
from dst.training.stopping import StopFlag
from tests.chaos import ctrl_c
from tests.processes import REPOSITORY, run, run_folder

pytestmark = pytest.mark.slow

OPTIONS = (
    *("model.hidden=[32]", "sparsity=set_itop", "schedule.epochs=2", "schedule.update_every=10"),
    *("checkpoint.every_steps=7", "tracking=none", "tracking.progress=none", "hardware.threads=1"),
)
UNSAVED = "interrupted; the same command goes on from what was saved"
TWICE = "preempted: interrupted twice: not saved since the last checkpoint"


def last_lines(output: str) -> list[str]:
    assert not [word for word in ctrl_c.NEVER if word in output], output
    return [line for line in output.splitlines() if any(word in line for word in ctrl_c.LAST_WORDS)]


@pytest.mark.parametrize(
    ("fault", "code", "told", "states"),
    [
        ("ctrl_c:1:compose:1", 130, UNSAVED, []),
        ("ctrl_c:3:feasible:1", 130, UNSAVED, []),
        ("ctrl_c:1:build:1", 75, "stopped by SIGINT after step 1; run the same command to continue", ["preempted"]),
        ("ctrl_c:2:build:1", 130, UNSAVED, []),
        (
            "ctrl_c:1:checkpoint:1",
            75,
            "stopped by SIGINT after step 8; run the same command to continue",
            ["preempted"],
        ),
        ("ctrl_c:2:12", 130, TWICE, ["preempted"]),
        ("ctrl_c:3:checkpoint:3", 130, "", None),  # the third may come before its end is on record, or after
    ],
)
def test_one_line_and_75_after_saving_else_130(fault, code, told, states, tmp_path):
    """Pressed before training, while it is built, between steps and while it saves; the next start goes on."""
    result = run(*OPTIONS, cwd=tmp_path, fault=fault)
    assert result.code == code, result.output
    (line,) = last_lines(result.output)
    assert line.endswith(told)
    found = find_runs(tmp_path / "outputs") if (tmp_path / "outputs").exists() else []
    assert states in (None, [(read_status(folder) or {}).get("state") for folder in found])
    saved = sorted(found[0].glob("checkpoints/*.json")) if found else []
    again = run(*OPTIONS, cwd=tmp_path)
    assert again.code == 0, again.output
    assert ("continuing from step" in again.output) == bool(saved)


def test_a_run_that_is_done_before_it_is_interrupted_is_done(tmp_path):
    result = run(*OPTIONS, cwd=tmp_path, fault="ctrl_c:1:summary:1")
    assert (result.code, last_lines(result.output)) == (0, [])
    (tmp_path / "b").mkdir()
    late = run(*OPTIONS, cwd=tmp_path / "b", fault="ctrl_c:2:end:1")
    assert (late.code, last_lines(late.output)) == (130, [UNSAVED])
    assert read_status(run_folder(tmp_path / "b" / "outputs"))["state"] == "done"


def test_what_was_said_of_a_saved_run_is_not_said_again(monkeypatch, capsys):
    """While the mirror of its record ends, say: that may take a while."""
    attempt = object.__new__(_Attempt)
    monkeypatch.setattr(signals, "_interrupts", signals._Interrupts())
    signals._interrupts.owner = os.getpid()
    attempt.state, attempt.progress, attempt.tracker = State.PREEMPTED, NoProgress(1, 0), NoTracker()
    monkeypatch.setattr(
        attempt, "_train", lambda stop: signals.settle(75, "it is saved") or "it is saved", raising=False
    )
    monkeypatch.setattr(attempt.tracker, "finish", capsys.readouterr, raising=False)
    assert attempt.carry_out(StopFlag()) == State.PREEMPTED
    assert (signals._interrupts.code, signals._interrupts.told) == (75, "")


def test_while_it_imports(tmp_path):
    """The real command, pressed three times before its first line: that waits for the program to be there."""
    command = ctrl_c.Command("one run", OPTIONS, tmp_path)
    way = command.start(ctrl_c.Way(0.0, (0.05, 0.05)))
    assert (way.code, last_lines(way.output)) == (130, [UNSAVED]), way.output


LEAVING = """
import os, signal, sys, threading, time
from dst.run.terminal import program

def main():
    threading.Thread(target=lambda: (time.sleep(0.3), os.kill(os.getpid(), signal.SIGINT), time.sleep(60))).start()
    return 75

sys.exit(program(main, shows=False))
"""


def test_while_it_leaves():
    """A thread of a library may keep Python from ending: Ctrl-C ends it, with the code that it would have had."""
    ended = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, check=False, timeout=30)
    assert (ended.returncode, ended.stdout + ended.stderr) == (75, "")


SWALLOWED = """
import signal, sys
from dst.run.terminal import program
from dst.signals import interrupt_if_asked

class Callback:
    def __del__(self):
        if sys.argv[1] == "destructor":
            signal.raise_signal(signal.SIGINT)

def main():
    Callback()
    try:
        signal.raise_signal(signal.SIGINT)
    except BaseException:
        pass  # as some libraries do while they are imported
    interrupt_if_asked()
    return 0

sys.exit(program(main, shows=False))
"""


@pytest.mark.parametrize("where", ["destructor", "except"])
def test_where_libraries_swallow_it(where):
    ended = subprocess.run(
        [sys.executable, "-c", SWALLOWED, where], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{UNSAVED}\n")


def test_what_the_script_calls_wrong(tmp_path):
    """It finds a traceback, another exit code, a second last line, and a run that begins anew."""
    command = ctrl_c.Command("one run", OPTIONS, tmp_path, saved={"abc": 20})
    (tmp_path / "outputs").mkdir()
    sound = ctrl_c.Way(0, (), 75, "run abc: x; continuing from step 20, 42 steps\nstopped by SIGINT after step 30\n")
    assert ctrl_c.faults(command, sound) == []
    wrong = ctrl_c.Way(0, (), 1, "run abc: x; training, 42 steps\nTraceback\ninterrupted\ninterrupted\n")
    assert ctrl_c.faults(command, wrong) == [
        "it says 'Traceback'",
        "this is no exit code of an interrupted command",
        "it has 2 last lines instead of one",
        "run abc was saved at step 20, but: run abc: x; training, 42 steps",
    ]


def test_help_and_page_have_the_same_exit_codes():
    page = Path(REPOSITORY, "docs", "concepts.md").read_text().split("## Exit codes")[1]
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:]
    help_text = subprocess.run(
        [sys.executable, "run.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    told = help_text.split("exit codes:")[1]
    assert rows == ["0", "1", "2", "3", "75", "130"]
    assert all(f"{code} " in told for code in rows)
