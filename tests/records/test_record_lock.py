"""One process per run folder, whichever died before."""

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import pytest

from dst.records import lock
from dst.records.lock import HEARTBEAT_S, STALE_S, Holder, LockedError, LockLostError, holder, locked
from dst.records.store import Record

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
        pytest.raises(LockedError) as error,
        locked(tmp_path),
    ):
        pass
    told = rf"run {tmp_path.name} is being run by host \S+, process {elsewhere.pid}, job 7, since \d{{4}}-"
    assert re.match(told, str(error.value))
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


def test_a_file_system_that_fails_for_a_moment_neither_stops_the_heart_nor_ends_the_run(tmp_path, monkeypatch):
    """Else the lock would look stale soon, and another host would take it from a live process."""
    monkeypatch.setattr(lock, "HEARTBEAT_S", 0.01)
    real, failed = os.stat, []

    def stale(path, *more, **options):
        if os.fspath(path) == str(tmp_path / "lock") and len(failed) < 3:
            failed.append(path)
            raise OSError(lock.errno.ESTALE, "Stale file handle")
        return real(path, *more, **options)

    with locked(tmp_path) as held:
        monkeypatch.setattr(lock.os, "stat", stale)
        held.check()
        deadline = time.monotonic() + 10
        while len(failed) < 3:
            assert time.monotonic() < deadline
        os.utime(tmp_path / "lock", (0, 0))
        while (tmp_path / "lock").stat().st_mtime == 0:
            assert time.monotonic() < deadline


def test_a_lock_that_cannot_be_given_back_spoils_no_run_that_is_done(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(lock.errno.EIO, "Input/output error")

    with locked(tmp_path):
        monkeypatch.setattr(lock, "write_none", refuse)
    assert holder(tmp_path) is None


def test_who_was_taken_over_learns_it_after_the_other_has_ended_too(tmp_path, monkeypatch):
    """Where an flock is known to its own host only, and that host was cut off for a while."""
    monkeypatch.setattr(lock, "_flock", lambda _: True)
    monkeypatch.setattr(lock, "STALE_S", 0.2)
    monkeypatch.setattr(lock, "this_host", lambda: "one")
    with locked(tmp_path) as cut_off:
        cut_off.check()
        monkeypatch.setattr(lock, "this_host", lambda: "other")
        for _ in range(2):  # it has the run, ends, and is started again
            with locked(tmp_path) as now:
                now.check()
        with pytest.raises(LockLostError):
            cut_off.check()
    with locked(tmp_path) as now:
        now.check()


# -- whom it waits for -------------------------------------------------------------------------------------------------


def test_a_wait_says_for_whom_and_for_how_long(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lock, "STALE_S", 1.5)
    forge(tmp_path, "another", 17, age=0.5)
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()
    told = capsys.readouterr().err
    holding = f"waiting for host another, process 17, which holds {tmp_path}/lock"
    assert told == f"{holding}: for 1 s, unless it shows a sign of life\n"


@pytest.mark.parametrize("flock", [True, False])
def test_a_heartbeat_of_the_future_is_outwaited(flock, tmp_path, monkeypatch, request):
    """The clock of the file system was set back, or somebody has set the time of the file."""
    if not flock:
        request.getfixturevalue("no_flock")
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    forge(tmp_path, "another", 17, age=-1e6)
    assert holder(tmp_path) is None
    began = time.monotonic()
    with locked(tmp_path):
        assert 0.9 < time.monotonic() - began < 10
    forge(tmp_path, "another", 17, age=-1e6)
    with beating(tmp_path), pytest.raises(LockedError, match="host another, process 17"), locked(tmp_path):
        pass


def test_a_holder_that_ends_meanwhile_is_not_outwaited(tmp_path):
    forge(tmp_path, "another", 17, age=0)
    ending = threading.Timer(0.3, lambda: (tmp_path / "lock").write_text(""))
    ending.start()
    began = time.monotonic()
    with locked(tmp_path):
        assert time.monotonic() - began < STALE_S / 4
    ending.join()


def test_an_flock_that_outlives_its_host_says_what_to_remove(tmp_path, elsewhere, monkeypatch):
    """A file server may keep the lock of a machine that is gone."""
    monkeypatch.setattr(lock, "_ORPHANS_S", 0.1)
    forge(tmp_path, "another", 17, age=7200)
    told = f"process 17, without a sign of life for 7200 s: if it is gone, remove {tmp_path}/lock"
    with pytest.raises(LockedError, match=told), locked(tmp_path):
        pass
    (tmp_path / "lock").unlink()
    with locked(tmp_path):
        assert holder(tmp_path).pid == os.getpid()


# -- what is no lock ---------------------------------------------------------------------------------------------------


def _link(path):
    (path.parent / "theirs").write_text("their work")
    path.symlink_to(path.parent / "theirs")


@pytest.mark.parametrize(
    ("make", "kind"),
    [(_link, "symbolic link"), (os.mkfifo, "pipe"), (os.mkdir, "folder"), (lambda p: p.symlink_to(p), "symbolic link")],
)
def test_what_is_no_file_is_refused_as_a_lock_and_not_waited_for(make, kind, tmp_path):
    make(tmp_path / "lock")
    with pytest.raises(OSError, match=f"{tmp_path}/lock is a {kind}, and no lock: remove it"), locked(tmp_path):
        pass
    assert holder(tmp_path) is None
    assert not (tmp_path / "theirs").exists() or (tmp_path / "theirs").read_text() == "their work"


# -- two writers -------------------------------------------------------------------------------------------------------


def _contend(folder, start, inside):
    start.wait()
    try:
        with locked(folder):
            inside.mkdir()
            time.sleep(0.1)
            inside.rmdir()
    except LockedError:
        os._exit(1)
    os._exit(0)


def test_of_many_that_start_at_once_without_flock_one_at_a_time_goes_in(tmp_path, no_flock, monkeypatch, capfd):
    """They are of the same host here; what tells them apart is the turn, not the process."""
    monkeypatch.setattr(lock, "_WATCH_S", 0.01)
    fork = multiprocessing.get_context("fork")
    for _ in range(5):
        start = fork.Barrier(8)
        processes = [fork.Process(target=_contend, args=(tmp_path, start, tmp_path / "inside")) for _ in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        codes = {process.exitcode for process in processes}
        assert 0 in codes
        assert codes <= {0, 1}
        assert "inside" not in capfd.readouterr().err  # which two at once would have made twice
        assert os.listdir(tmp_path) == ["lock"]  # no claim is left behind


def test_without_flock_a_turn_that_a_crash_left_is_passed_over(tmp_path, no_flock):
    (tmp_path / "lock.4").touch()
    with pytest.raises(LockedError), locked(tmp_path):  # its maker may be about to write its name
        pass
    os.utime(tmp_path / "lock.4", (0, 0))
    with locked(tmp_path):
        assert sorted(os.listdir(tmp_path)) == ["lock", "lock.5"]
    assert os.listdir(tmp_path) == ["lock"]


def test_a_holder_that_was_suspended_may_not_write_after_another_took_over(tmp_path, no_flock, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_S", 1e6)  # it does not run
    with Record.create(tmp_path / "abc", config_yaml="", run={}) as record, locked(record.folder) as own:
        record.fence = own.check
        record.write_status("running", attempt=1, step=1)
        os.utime(record.folder / "lock", (0, 0))
        with locked(record.folder, "their job") as theirs:  # the next attempt
            theirs.check()
            for write in (
                lambda: record.write_status("failed", attempt=1, step=2),
                lambda: record.log_attempt(1, state="failed"),
                record.sync,
            ):
                with pytest.raises(LockLostError, match=r"abc is being run by host .*, job their job, since .*took it"):
                    write()
            own.leave()
            assert holder(record.folder).job == "their job"  # it is still theirs
        assert json.loads((record.folder / "status.json").read_text())["step"] == 1


def test_with_flock_one_whose_lock_was_removed_stops_writing_once_another_has_begun(tmp_path):
    with locked(tmp_path) as own:
        (tmp_path / "lock").unlink()
        own.check()  # nobody else has it
        forge(tmp_path, "another", 17, age=0)
        with pytest.raises(LockLostError, match="being run by host another, process 17"):
            own.check()
