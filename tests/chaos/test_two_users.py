"""Two users, neither of them root, on one output root: they share a sweep, or are told why not; no lock is stolen."""

import fcntl
import json
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from dst.records.catalog import find_runs
from dst.records.lock import Holder, this_host
from dst.records.lock_file import write_holder
from dst.records.read import read_run, read_status
from tests.processes import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can be other users (CI runs as root)"),
]

ANN, BEN, GROUP = 12001, 12002, 12000
TINY = (
    *("sparsity=static", "model.hidden=[8]", "schedule.epochs=2", "checkpoint.every_steps=5"),
    *("tracking=none", "tracking.progress=none", "hardware.threads=1"),
)


@pytest.fixture
def place():
    """A folder of Ann's that her group may write to; pytest's own folders are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="dst-two-users-"))
    os.chown(folder, ANN, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def starts(place, user, umask, *overrides, fault=""):
    result = run(*TINY, *overrides, cwd=place, fault=f"user:{user}:{GROUP}:{umask}{fault and f':{fault}'}")
    (place / "output.txt").unlink()
    assert "Traceback" not in result.output, result.output
    return result


def folder_of(place, seed):
    (folder,) = [folder for folder in find_runs(place / "outputs") if read_run(folder)["config"]["seed"] == seed]
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


@pytest.mark.parametrize("umask", ["002", "022"])
def test_a_sweep_of_two_users_is_shared_or_refused_with_whose_it_is(umask, place):
    assert starts(place, ANN, umask, "seed=0").code == 0
    assert starts(place, ANN, umask, "seed=1", fault="kill:step:8").code == -9
    began = folder_of(place, 1)
    before = contents(began)
    ended = starts(place, BEN, umask, "-m", "seed=0,1,2")
    assert "3 runs: 1 finished already, 2 to train" in ended.output
    if umask == "002":
        assert ended.code == 0
        assert [read_status(folder_of(place, seed))["state"] for seed in (0, 1, 2)] == ["done"] * 3
        assert folder_of(place, 2).stat().st_uid == BEN
    else:
        assert ended.code == 2
        belongs = f"belongs to user {ANN}, who has to let the group write"
        assert f"run {began.name} cannot be locked: [Errno 13] Permission denied" in ended.output
        assert "cannot write a record there: [Errno 13] Permission denied: 'outputs/default/" in ended.output
        assert ended.output.count(belongs) == 2
        assert contents(began) == before
        assert starts(place, ANN, umask, "seed=1").code == 0  # which is not disturbed


def test_what_another_user_is_running_is_not_run_beside_it(place):
    assert starts(place, ANN, "002", "seed=0", fault="kill:step:8").code == -9
    folder = folder_of(place, 0)
    before = contents(folder)
    handle = os.open(folder / "lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    write_holder(handle, Holder(this_host(), os.getpid(), since=0.0))
    refused = starts(place, BEN, "002", "seed=0")
    assert refused.code == 2
    assert f"run {folder.name} is being run by host {this_host()}, process {os.getpid()}, since 19" in refused.output
    assert contents(folder) == before
    assert json.loads((folder / "lock").read_text())["pid"] == os.getpid()
    os.close(handle)
    assert starts(place, BEN, "002", "seed=0").code == 0
