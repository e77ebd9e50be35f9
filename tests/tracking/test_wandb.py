"""The mirror holds what the record holds, and whatever happens to it, the run is the one without it (atol = 0)."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from dst.records.catalog import find_runs
from dst.records.read import read_status, read_summary
from dst.tracking.tracker import RunFacts, tracker
from tests.processes import REPOSITORY, run, run_folder, traces
from tests.tracking import offline
from tests.tracking.servers import KEY, server

pytestmark = pytest.mark.slow

TINY = (
    "model.hidden=[16]",
    "schedule.epochs=2",
    "schedule.update_every=10",
    "tracking.every_steps=5",
    "tracking.progress=none",
    "hardware.threads=1",
)
OFFLINE = ("sparsity=rigl_itop", "tracking=wandb_offline", *TINY)
ONLINE = ("sparsity=rigl_itop", "tracking=wandb_online", *TINY)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory):
    """Traces and seconds of the same run without tracking."""
    folder = tmp_path_factory.mktemp("untracked")
    begun = time.monotonic()
    result = run("sparsity=rigl_itop", "tracking=none", *TINY, cwd=folder)
    assert result.code == 0, result.output
    assert not (run_folder(folder / "outputs") / "wandb").exists()
    return traces(run_folder(folder / "outputs")), time.monotonic() - begun


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tracked")
    home = folder / "home"
    home.mkdir()
    more = ("tracking.tags=[mine]", "tracking.notes=why", "output.group=some/study")
    before = set(Path("/tmp").glob("dst-wandb-*"))
    result = run(*OFFLINE, *more, cwd=folder, env={"HOME": str(home)})
    assert result.code == 0, result.output
    assert set(Path("/tmp").glob("dst-wandb-*")) <= before
    return folder, run_folder(folder / "outputs"), result.output


def only(run_folder):
    (folder,) = offline.folders(run_folder)
    return offline.read(folder)


def children(process):
    """Return the ids of a process's children."""
    listed = (path.read_text().split() for path in Path("/proc", str(process), "task").glob("*/children"))
    return [int(child) for children in listed for child in children]


def state(process):
    return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0]


def in_folder(folder):
    """Return the ids of all processes that were given a folder in their environment: mirrors, and wandb's own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{folder}/".encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


# -- what is mirrored --------------------------------------------------------------------------------------------------


def test_offline_files_hold_config_history_and_summary(tracked):
    _, folder, _ = tracked
    found = only(folder)
    assert found.run.run_id == folder.name
    assert found.run.project == "dst"
    assert found.run.run_group == "some/study"
    assert found.run.job_type == "train"
    assert found.run.display_name == "digits mlp rigl_itop density=0.1 seed=0"
    assert found.run.notes == "why"
    assert set(found.run.tags) == {"mlp", "digits", "rigl_itop", "mine"}
    assert found.config["sparsity"]["drop_fraction"]["initial"] == 0.5
    assert found.config["schedule"]["epochs"] == 2
    (metric,) = found.metrics
    assert (metric.glob_name, metric.step_metric) == ("*", "step")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    mirrored = [{key: row[key] for key in row if not key.startswith("_")} for row in found.history]
    assert mirrored[:-1] == lines
    assert read_summary(folder).items() <= found.summary.items()
    assert found.exit_code == 0


def test_the_table_of_layers(tracked):
    _, folder, _ = tracked
    (path,) = folder.glob("wandb/*/files/media/table/sparsity/*.json")
    table = json.loads(path.read_text())
    assert table["columns"] == ["layer", "size", "active", "density", "explored"]
    last = [json.loads(line) for line in (folder / "layers.jsonl").read_text().splitlines()][-2:]
    expected = [[x["layer"], x["size"], x["active"], x["active"] / x["size"], x["explored"]] for x in last]
    assert table["data"] == expected


def test_nothing_is_written_elsewhere_printed_or_left_running(tracked):
    folder, _, output = tracked
    assert sorted(path.name for path in folder.iterdir()) == ["home", "output.txt", "outputs"]
    assert list((folder / "home").iterdir()) == []
    assert "wandb" not in output
    assert "warning" not in output
    assert in_folder(folder / "outputs") == []


def test_the_result_is_the_same(tracked, untracked):
    assert traces(tracked[1]) == untracked[0]


# -- trouble -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["refuse", "hang", "500"])
def test_servers_that_are_no_help(kind, tmp_path, untracked):
    limit = 20.0  # the default
    with server(kind) as url:
        begun = time.monotonic()
        result = run(
            *ONLINE, f"tracking.timeout_s={limit}", cwd=tmp_path, env={"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        )
        lost = time.monotonic() - begun - untracked[1]
    assert result.code == 0, result.output
    assert lost < limit + 1
    assert result.output.count("warning") == 1
    assert "the run goes on offline, send it later with: python -m dst.launcher.sync" in result.output
    folder = run_folder(tmp_path / "outputs")
    assert traces(folder) == untracked[0]
    (files,) = (folder / "wandb").glob("offline-run-*")
    assert offline.read(files).exit_code == 0
    assert f"{folder}\n" in result.output


def test_no_api_key(tmp_path, untracked):
    result = run(*ONLINE, cwd=tmp_path, env={"HOME": str(tmp_path), "WANDB_API_KEY": "", "NETRC": "/dev/null"})
    assert result.code == 0, result.output
    assert result.output.count("warning") == 1
    assert traces(run_folder(tmp_path / "outputs")) == untracked[0]


FAKES = {
    "missing": "raise ModuleNotFoundError('No module named wandb', name='wandb')",
    "hanging": "import time; time.sleep(100)",
    "dying": "import os; os.kill(os.getpid(), 9)",
    "broken": "raise RuntimeError('half installed')",
}
TOLD = {
    "missing": "wandb: not installed: pip install wandb; the run goes on",
    "hanging": "wandb: not finished after 2 s",
    "dying": "wandb: it ended unexpectedly",
    "broken": "wandb: half installed; the run goes on",
}


@pytest.mark.parametrize("kind", FAKES)
def test_wandbs_that_are_no_help(kind, tmp_path, untracked):
    (tmp_path / "wandb.py").write_text(FAKES[kind])
    result = run(*OFFLINE, "tracking.timeout_s=2", cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert result.code == 0, result.output
    assert f"warning: {TOLD[kind]}" in result.output
    assert result.output.count("warning") == 1
    assert traces(run_folder(tmp_path / "outputs")) == untracked[0]


def test_a_folder_that_cannot_be_made(tmp_path, untracked):
    assert run(*OFFLINE, cwd=tmp_path, fault="kill:step:3").code == -9
    folder = run_folder(tmp_path / "outputs") / "wandb"
    ended(folder)
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("in the way")
    result = run(*OFFLINE, cwd=tmp_path)
    assert result.code == 0, result.output
    assert "warning: wandb: " in result.output
    assert str(folder) in result.output
    assert traces(folder.parent) == untracked[0]


# -- ends --------------------------------------------------------------------------------------------------------------


def ended(folder, seconds=60.0):
    """Wait until the mirror of a killed run has written how it ended."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        files = list(folder.glob("offline-run-*/run-*.wandb"))
        if files and all(offline.read(path.parent).exit_code is not None for path in files):
            return
        time.sleep(0.05)
    raise AssertionError(f"no exit record in {folder} after {seconds} s")


def test_a_killed_run_has_complete_files_and_continues_under_its_id(tmp_path, untracked):
    options = (*OFFLINE, "checkpoint.every_steps=7")
    assert run(*options, cwd=tmp_path, fault="kill:step:30").code == -9
    folder = run_folder(tmp_path / "outputs")
    ended(folder / "wandb")
    result = run(*options, cwd=tmp_path)
    assert result.code == 0, result.output
    first, second = (offline.read(path) for path in offline.folders(folder))
    assert first.run.run_id == second.run.run_id == folder.name
    assert (first.exit_code, second.exit_code) == (254, 0)
    assert [row["step"] for row in first.history] == [5, 10, 15, 20, 21, 21, 25]
    assert {row["attempt"] for row in second.history[:-1]} == {2}
    assert second.history[0]["step"] == 30  # again, after going back to 28
    assert read_summary(folder).items() <= second.summary.items()
    assert traces(folder) == untracked[0]


def test_stopped_on_request(tmp_path, untracked):
    result = run(*OFFLINE, cwd=tmp_path, fault="signal:SIGTERM:20")
    assert result.code == 75, result.output
    folder = run_folder(tmp_path / "outputs")
    assert read_status(folder)["state"] == "preempted"
    found = only(folder)
    assert (found.exit_code, found.is_preempting) == (1, True)
    assert found.history[-2]["step"] == 20
    assert run(*OFFLINE, cwd=tmp_path).code == 0
    assert traces(folder) == untracked[0]


def test_diverged(tmp_path):
    assert run(*OFFLINE, cwd=tmp_path, fault="nan:loss:15").code == 3
    assert only(run_folder(tmp_path / "outputs")).exit_code == 1


def test_every_run_of_a_sweep_is_finished(tmp_path):
    result = run("-m", *OFFLINE, "seed=0,1,2", cwd=tmp_path)
    assert result.code == 0, result.output
    folders = find_runs(tmp_path / "outputs")
    found = [only(folder) for folder in folders]
    assert [item.exit_code for item in found] == [0, 0, 0]
    assert sorted(item.run.run_id for item in found) == sorted(folder.name for folder in folders)


def test_a_new_attempt_folder_is_a_run_of_its_own(tmp_path):
    assert run(*OFFLINE, cwd=tmp_path).code == 0
    assert run(*OFFLINE, "output.resume=never", cwd=tmp_path).code == 0
    first, second = sorted(find_runs(tmp_path / "outputs"))
    assert only(second).run.run_id == second.name == f"{first.name}.2"


# -- the training process is left alone --------------------------------------------------------------------------------


def facts(folder):
    return RunFacts("abc", "name", "group", ("tag",), folder, 1, {"seed": 0})


def start(folder):
    mirror = tracker(mode="offline", project="p", entity=None, tags=[], notes=None, timeout_s=20)
    mirror.begin(facts(folder))
    return mirror


def surroundings():
    return [
        random.getstate(),
        [part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
        [signal.getsignal(number) for number in signal.valid_signals()],
        signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        threading.enumerate(),
        dict(os.environ),
        sorted(os.listdir("/proc/self/fd")),
        [name for name in sys.modules if name.split(".")[0] == "wandb"],
    ]


def test_the_process_is_as_before(tmp_path):
    start(tmp_path / "warm").finish({}, "done")
    before = surroundings()
    mirror = start(tmp_path)
    mirror.log(1, 0.5, {"train/loss": float("nan")})
    mirror.finish({"test/accuracy": 1.0}, "done")
    assert surroundings() == before
    found = only(tmp_path)
    assert found.summary["test/accuracy"] == 1.0
    assert found.history[0]["step"] == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR2", "SIGKILL"])
def test_signals_to_all_processes_lose_nothing(name, tmp_path):
    """Ctrl-C goes to a process group, SLURM's signals to a whole step; wandb's own process dies of most of them."""
    mirror = start(tmp_path)
    mirror.log(1, 0.5, {"train/loss": 1.0})
    worker = mirror._process.pid
    while not list(tmp_path.glob("wandb/*/run-abc.wandb")):
        time.sleep(0.01)
    core = children(worker)
    assert core
    for process in [worker, *core] if name != "SIGKILL" else core:
        os.kill(process, signal.Signals[name])
    time.sleep(0.2)
    mirror.log(2, 0.5, {"train/loss": 0.5})
    mirror.finish({"test/accuracy": 1.0}, "preempted")
    found = only(tmp_path)
    assert [row["step"] for row in found.history] == [1, 2]
    assert found.summary["test/accuracy"] == 1.0
    assert (found.is_preempting, found.exit_code) == (True, 1)
    assert mirror._process is None
    assert not any(Path(f"/proc/{process}").exists() and "Z" not in state(process) for process in [worker, *core])


def test_a_mirror_that_does_not_read_never_blocks(tmp_path, capsys):
    mirror = tracker(mode="offline", project="p", entity=None, tags=[], notes=None, timeout_s=0.5)
    mirror.begin(facts(tmp_path))
    os.kill(mirror._process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    for step in range(5000):  # about 500 kB; a pipe holds 64
        mirror.log(step, 0.0, {f"metric/{number}": 0.123456789 for number in range(4)})
    assert time.monotonic() - begun < 2
    mirror.finish({}, "done")
    assert time.monotonic() - begun < 4
    assert capsys.readouterr().err.count("warning: wandb: not finished after 0.5 s") == 1


def test_wandb_is_started_for_training_only(tmp_path):
    (tmp_path / "wandb.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    env = {"PYTHONPATH": str(tmp_path)}
    assert run(*OFFLINE, "tracking=none", cwd=tmp_path).code == 0
    for arguments, code in {
        ("--help",): 0,
        ("--cfg", "job"): 0,
        ("sparsity.density=7",): 2,
        OFFLINE: 0,  # finished already, however it was tracked
    }.items():
        assert run(*arguments, cwd=tmp_path, env=env).code == code
        assert not (tmp_path / "imported").exists()
    assert run(*OFFLINE, "seed=1", cwd=tmp_path, env=env).code == 0
    assert (tmp_path / "imported").exists()


def test_in_a_process_that_ends_as_usual(tmp_path):
    """Not forked, with exit hooks: nothing is printed at the end, nothing is left."""
    command = [sys.executable, str(REPOSITORY / "run.py"), *OFFLINE]
    result = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert in_folder(tmp_path) == []
