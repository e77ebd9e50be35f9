"""One process per run folder, whichever died before."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from dst.records import lock
from dst.records.lock import HEARTBEAT_S, STALE_S, Holder, LockedError, holder, locked

HOLD = """
import pathlib, sys
from dst.records.lock import locked
with locked(pathlib.Path(sys.argv[1]), "7"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path):
    """Another process that holds the lock until it is asked to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def forge(folder, host, pid, age):
    (folder / "lock").write_text(json.dumps({"host": host, "pid": pid, "job": None}))
    os.utime(folder / "lock", (time.time() - age,) * 2)


def test_nobody_holds_a_new_folder(tmp_path):
    assert holder(tmp_path) is None


def test_a_held_lock_names_its_holder(tmp_path, elsewhere):
    with (
        pytest.raises(LockedError, match=f"host {socket.gethostname()}, process {elsewhere.pid}, job 7"),
        locked(tmp_path),
    ):
        pass
    assert holder(tmp_path) == Holder(socket.gethostname(), elsewhere.pid, "7")


def test_it_ends_with_its_holder(tmp_path, elsewhere):
    elsewhere.communicate("")
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


def test_a_killed_holder_leaves_it_stale(tmp_path, elsewhere):
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    assert json.loads((tmp_path / "lock").read_text())["pid"] == elsewhere.pid
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


@contextmanager
def beating(folder, every=0.2):
    """Touch a lock as its holder does."""
    over = threading.Event()

    def beat():
        while not over.wait(every):
            os.utime(folder / "lock")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_another_host_counts_while_its_heart_beats(tmp_path):
    forge(tmp_path, "another", 1, age=STALE_S / 2)
    assert holder(tmp_path) == Holder("another", 1)
    with beating(tmp_path), pytest.raises(LockedError, match="host another, process 1"), locked(tmp_path):
        pass
    forge(tmp_path, "another", 1, age=STALE_S + 1)
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path).host == socket.gethostname()


def test_a_job_that_starts_elsewhere_just_after_a_kill_waits_for_the_lock_to_be_stale(tmp_path, monkeypatch):
    """As the next submission does, on another node than the killed one: its heart has just beaten for the last time."""
    monkeypatch.setattr(lock, "STALE_S", 2.0)
    forge(tmp_path, "another", 1, age=1)
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


@pytest.fixture
def no_flock(monkeypatch):
    """On a file system that has none."""

    def refuse(*_):
        raise OSError(lock.errno.ENOLCK, "no locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)


def test_without_flock_the_heartbeat_decides(tmp_path, no_flock):
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text()
    forge(tmp_path, "another", 1, age=0)
    with beating(tmp_path), pytest.raises(LockedError), locked(tmp_path):
        pass


def test_without_flock_a_process_of_the_same_host_counts_too(tmp_path, no_flock):
    forge(tmp_path, socket.gethostname(), os.getppid(), age=0)
    assert holder(tmp_path).pid == os.getppid()
    with beating(tmp_path), pytest.raises(LockedError), locked(tmp_path):
        pass
    forge(tmp_path, socket.gethostname(), os.getppid(), age=STALE_S + 1)  # another process of the same number
    assert holder(tmp_path) is None
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    with locked(tmp_path):
        os.utime(tmp_path / "lock", (0, 0))
        deadline = time.monotonic() + 10
        while (tmp_path / "lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline
    assert HEARTBEAT_S * 4 < STALE_S


def test_clocks_may_differ(tmp_path, monkeypatch):
    """The age of a heartbeat is measured by the file system's own clock."""
    forge(tmp_path, "another", 1, age=0)
    monkeypatch.setattr(lock.time, "time", lambda: 1e12)
    assert holder(tmp_path) is not None
