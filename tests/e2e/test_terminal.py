"""Nothing that happens to the terminal changes a run: not its state, its figures or its exit code."""

import fcntl
import os
import pty
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dst.records.catalog import find_runs
from dst.records.lock import locked
from dst.records.read import read_attempts, read_metrics, read_status, read_summary
from dst.records.store import Record
from tests.composed import last_given
from tests.processes import REPOSITORY, run, run_folder, wait_until

pytestmark = pytest.mark.slow

TINY = (
    *("model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10"),
    *("tracking=none", "hardware.threads=1", "sparsity=rigl_itop"),
)
LONG = last_given([*TINY, "schedule.epochs=4000", "tracking.every_steps=10"])
PROGRAM = shlex.join([sys.executable, str(REPOSITORY / "run.py"), *TINY])


def shell(command: str, cwd: Path, **env: str) -> str:
    """Run a line of bash in which RUN is the tiny run, and return what it writes to fd 9."""
    result, told = os.pipe()
    line = f"set -o pipefail; exec 9>&{told}; {command.replace('RUN', PROGRAM)}"
    subprocess.run(["bash", "-c", line], cwd=cwd, env={**os.environ, **env}, pass_fds=[told], check=False, timeout=300)
    os.close(told)
    with os.fdopen(result) as file:
        return file.read().strip()


@pytest.fixture(scope="module")
def accuracy(tmp_path_factory):
    """The test accuracy of the tiny run where all goes well."""
    folder = tmp_path_factory.mktemp("well")
    assert run(*TINY, cwd=folder).code == 0
    return read_summary(run_folder(folder / "outputs"))["test/accuracy"]


TROUBLE = {
    "the reader leaves after the first line": "RUN | head -1 >/dev/null; echo ${PIPESTATUS[0]} >&9",
    "the reader leaves before the end": "RUN | sed '/step 42/q' >/dev/null; echo ${PIPESTATUS[0]} >&9",
    "both streams go to a reader who leaves": "RUN tracking.progress=bar 2>&1 | head -1; echo ${PIPESTATUS[0]} >&9",
    "the disk is full": "RUN tracking.progress=bar >/dev/full 2>&1; echo $? >&9",
    "everything is closed": "RUN tracking.progress=bar <&- >&- 2>&-; echo $? >&9",
    "standard error is closed": "RUN 2>&- >/dev/null; echo $? >&9",
}


@pytest.mark.parametrize("command", TROUBLE.values(), ids=TROUBLE)
def test_a_run_ends_as_if_all_of_it_had_been_shown(command, tmp_path, accuracy):
    assert shell(command, tmp_path) == "0"
    folder = run_folder(tmp_path / "outputs")
    status = read_status(folder)
    assert (status["state"], status["step"], status["attempt"], status["error"]) == ("done", 42, 1, None)
    assert read_summary(folder)["test/accuracy"] == accuracy
    assert [attempt["state"] for attempt in read_attempts(folder)] == ["done"]
    for path in folder.rglob("*"):  # no file got the number of a closed stream, and what is printed
        assert path.is_dir() or path.suffix == ".pt" or b"test accuracy" not in path.read_bytes(), path


def test_a_sweep_of_which_nobody_reads_the_end_runs_all_of_its_cells(tmp_path):
    assert shell("RUN -m seed=0,1 | head -1 >/dev/null; echo ${PIPESTATUS[0]} >&9", tmp_path) == "0"
    assert [read_status(folder)["state"] for folder in find_runs(tmp_path / "outputs")] == ["done", "done"]


def test_an_encoding_that_lacks_a_character_shows_its_number(tmp_path, accuracy):
    command = """RUN 'sparsity.label="é — 中"' >out 2>&1; echo $? >&9"""
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    assert shell(command, tmp_path, PYTHONIOENCODING="ascii") == "0"
    assert rb"\xe9 \u2014 \u4e2d" in (tmp_path / "out").read_bytes()
    folder = run_folder(tmp_path / "outputs")
    assert (read_status(folder)["state"], read_summary(folder)["test/accuracy"]) == ("done", accuracy)
    tables = f"cd {REPOSITORY}; {sys.executable} -m analysis.tables {tmp_path} >{tmp_path}/out; echo $? >&9"
    assert shell(tables, tmp_path, **ascii_only) == "0"
    assert rb"\xe9 - \u4e2d" in (tmp_path / "out").read_bytes()  # a table says its dashes in ASCII
    assert shell(command, tmp_path, **ascii_only) == "2"  # there the argument is no text
    assert rb"this is not text in this locale's encoding, ascii; try LC_ALL=C.UTF-8" in (tmp_path / "out").read_bytes()


def test_the_code_of_a_failure_is_that_of_the_run(tmp_path):
    assert shell("RUN seed=-1 2>/dev/full >&2; echo $? >&9", tmp_path) == "2"
    assert shell("RUN schedule.lr.peak=1e30 schedule.lr.warmup_epochs=0 >/dev/full 2>&1; echo $? >&9", tmp_path) == "3"
    assert read_status(run_folder(tmp_path / "outputs"))["state"] == "diverged"


def test_what_is_only_to_be_shown_fails_if_it_is_lost_and_not_if_enough_was_seen(tmp_path):
    (tmp_path / "outputs").mkdir()
    status = f"cd {REPOSITORY}; {sys.executable} -m dst.launcher.status {tmp_path}"
    assert shell("RUN --cfg job >/dev/full 2>/dev/null; echo $? >&9", tmp_path) == "1"
    assert shell("RUN --cfg job | head -1 >/dev/null; echo ${PIPESTATUS[0]} >&9", tmp_path) == "0"
    assert shell(f"{status} >/dev/full 2>/dev/null; echo $? >&9", tmp_path) == "1"
    assert shell(f"{status} >&-; echo $? >&9", tmp_path) == "0"


def test_every_program_has_streams_that_survive():
    """But those that are read by another process of ours, which wants to hear of everything."""
    inner = {REPOSITORY / "dst" / "tracking" / name for name in ("send.py", "fetch.py")}
    inner |= {REPOSITORY / "dst" / "launcher" / name for name in ("devices.py", "keeper.py")}
    files = [REPOSITORY / "run.py", *(REPOSITORY / "dst").rglob("*.py"), *(REPOSITORY / "analysis").rglob("*.py")]
    programs = {path for path in files if 'if __name__ == "__main__":' in path.read_text()} - inner
    assert len(programs) > 10
    assert [path for path in programs if "sys.exit(program(" not in path.read_text()] == []


def test_who_shows_again_and_again_ends_when_nobody_looks(tmp_path):
    record = Record.create(tmp_path / "group" / "run", config_yaml="", run={"name": "a run"})
    record.write_status("running", attempt=1, step=5)
    status = f"cd {REPOSITORY}; {sys.executable} -m dst.launcher.status --watch 0.2 {tmp_path}"
    with locked(record.folder):
        end = f"{status} 2>{tmp_path}/err | head -1 >/dev/null; echo ${{PIPESTATUS[0]}} >&9"
        assert shell(f"timeout 60 bash -c '{end}'", tmp_path) == "0"
    assert (tmp_path / "err").read_text() == ""


# -- a terminal that is closed, or has no size -------------------------------------------------------------------------


def on_a_terminal(command: list[str], cwd: Path, rows: int, columns: int) -> tuple[int, int]:
    """Start a program that leads a terminal of its own; return its process id and the terminal's other end."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(cwd)
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    return process, terminal


def ended(process: int) -> int:
    """Return the exit code of a process."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def steps(root: Path) -> int:
    """Return how far the run below a folder has come, as far as it is in its history."""
    histories = [rows for folder in find_runs(root) if (rows := read_metrics(folder))]
    return histories[0][-1]["step"] if histories else 0


def read_until(terminal: int, text: bytes) -> bytes:
    """Return what is shown until a text appears, or until the end."""
    seen = b""
    with suppress(OSError):  # the other side is closed
        while text not in seen and (data := os.read(terminal, 65536)):
            seen += data
    return seen


def test_a_terminal_whose_size_nobody_has_set_shows_the_bar(tmp_path):
    process, terminal = on_a_terminal([sys.executable, str(REPOSITORY / "run.py"), *TINY], tmp_path, 0, 0)
    seen = read_until(terminal, b"\0")
    assert ended(process) == 0
    os.close(terminal)
    assert b"42/42" in seen


def test_a_terminal_of_any_size_shows_the_bar(tmp_path):
    command = [sys.executable, str(REPOSITORY / "run.py"), *last_given([*TINY, "schedule.epochs=100"])]
    process, terminal = on_a_terminal(command, tmp_path, 0, 0)
    read_until(terminal, b"training")
    for columns in (1, 3, 10, 0, 400):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 1, columns, 0, 0))
        time.sleep(0.1)
    seen = read_until(terminal, b"\0")
    assert ended(process) == 0
    os.close(terminal)
    assert b"2100/2100" in seen
    assert read_status(run_folder(tmp_path / "outputs"))["state"] == "done"


def test_closing_the_terminal_saves_and_stops(tmp_path):
    process, terminal = on_a_terminal([sys.executable, str(REPOSITORY / "run.py"), *LONG], tmp_path, 24, 80)
    wait_until(lambda: steps(tmp_path / "outputs"), "the run does not begin")
    os.close(terminal)
    assert ended(process) == 75
    folder = run_folder(tmp_path / "outputs")
    status = read_status(folder)
    assert (status["state"], status["error"]) == (
        "preempted",
        f"stopped by SIGHUP after step {status['step']}; run the same command to continue",
    )
    assert (folder / "checkpoints" / f"step_{status['step']:09d}.pt").exists()


def test_under_nohup_a_run_outlives_its_terminal(tmp_path):
    command = ["/usr/bin/env", "nohup", sys.executable, str(REPOSITORY / "run.py"), *LONG]
    process, terminal = on_a_terminal(command, tmp_path, 24, 80)
    wait_until(lambda: steps(tmp_path / "outputs"), "the run does not begin")
    folder = run_folder(tmp_path / "outputs")
    os.kill(process, signal.SIGHUP)
    os.close(terminal)
    before = steps(folder)
    wait_until(lambda: steps(folder) > before + 100, "the run does not go on")
    assert read_status(folder)["state"] == "running"
    os.kill(process, signal.SIGTERM)
    assert ended(process) == 75
    assert read_status(folder)["error"].startswith("stopped by SIGTERM")
    assert (tmp_path / "nohup.out").exists()


def test_a_process_of_a_group_leaves_before_python_ends():
    """In Python's own end a thread of gloo may abort the process; what was printed is shown, the exit code is ours."""
    text = (
        "import atexit, sys; from dst.run.terminal import leave_at_once, program; atexit.register(print, 'the end'); "
        "leave_at_once(); sys.exit(program(lambda: print('shown') or 75, shows=False))"
    )
    result = subprocess.run([sys.executable, "-c", text], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (75, "shown\n", "")


def test_a_log_has_a_line_at_once_and_one_of_the_first_figures(tmp_path):
    """It says what it does while torch is loaded and data are prepared, and does not wait for the first tenth."""
    command = [sys.executable, str(REPOSITORY / "run.py"), "model.hidden=[16]", "schedule.epochs=21", "tracking=none"]
    more = ["schedule.update_every=50", "schedule.max_steps=60", "tracking.every_steps=5", "hardware.threads=1"]
    ended = subprocess.run([*command, *more], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines() == ["loading torch ...", "preparing data and network ..."]
    shown = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("  step ")]
    assert shown[0] in ("5/60", "21/60"), ended.stdout
