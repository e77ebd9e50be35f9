"""Runs of two processes: whatever ends one, the same command ends the run bit-identical to an undisturbed one."""

import json
import subprocess
import sys

import pytest

from dst.records.read import read_status
from tests.chaos.test_resume import SMALL, assert_same
from tests.composed import last_given
from tests.processes import REPOSITORY, run, run_folder, run_together, traces

pytestmark = pytest.mark.slow

STEPS = 63  # 3 epochs of 21


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    cache = f"data.cache={tmp_path_factory.mktemp('cache')}"
    more = ("hardware.processes=2", "schedule.epochs=3", "tracking.reliable_steps=15", cache)
    return ("sparsity=rigl", "schedule.select=best_val", *SMALL, *more)


@pytest.fixture(scope="module")
def reference(options, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    results = run_together(*options, cwd=folder)
    assert codes(results) == [0, 0], results
    assert results[0].output.count("done: digits mlp rigl") == 1
    assert results[1].output == ""  # rank 0 speaks for all
    found = traces(run_folder(folder / "outputs"))
    assert 0 < found["summary"]["sparsity/rs_reliable"] < found["summary"]["sparsity/rs"]
    return found


def codes(results):
    return [result.code for result in results]


def status(folder):
    return read_status(run_folder(folder / "outputs"))


def test_kills_leave_no_trace(options, reference, tmp_path):
    """Of all, of the one that keeps the record and of the other; the survivor says what it has lost, and ends."""
    assert codes(run_together(*options, cwd=tmp_path, faults=("kill:step:16", "kill:step:16"))) == [-9, -9]
    results = run_together(*options, cwd=tmp_path, faults=("", "kill:step:30"))
    assert codes(results) == [1, -9]
    assert status(tmp_path)["state"] == "failed"
    assert status(tmp_path)["error"].startswith("PeerError: lost another of the 2 processes")
    assert "Traceback" not in results[0].output
    results = run_together(*options, cwd=tmp_path, faults=("kill:update:3", ""))
    assert codes(results) == [-9, 1]
    assert results[1].output.startswith("error: rank 1: lost another of the 2 processes")
    assert codes(run_together(*options, cwd=tmp_path)) == [0, 0]
    assert_same(tmp_path, reference)
    assert (status(tmp_path)["state"], status(tmp_path)["attempt"]) == ("done", 4)


@pytest.mark.parametrize("faults", [("", "signal:SIGTERM:42"), ("signal:SIGUSR2:13", "signal:SIGTERM:12")])
def test_requests_to_stop_are_heard_by_all(faults, options, reference, tmp_path):
    results = run_together(*options, cwd=tmp_path, faults=faults)
    assert codes(results) == [75, 75], results
    step = min(int(fault.split(":")[2]) for fault in faults if fault)
    assert f"stopped by SIGTERM after step {step}; run the same command to continue" in results[0].output
    assert results[1].output == ""
    assert (status(tmp_path)["state"], status(tmp_path)["step"]) == ("preempted", step)
    assert codes(run_together(*options, cwd=tmp_path)) == [0, 0]
    assert_same(tmp_path, reference)


def test_a_process_that_leaves_the_others_is_caught(options, reference, tmp_path):
    results = run_together(*options, cwd=tmp_path, faults=("", "mask:2"))
    assert codes(results) == [1, 1]
    assert status(tmp_path)["state"] == "failed"
    assert "update 2, at step 20: the masks of rank 1 are not those of rank 0" in status(tmp_path)["error"]
    newest = max((run_folder(tmp_path / "outputs") / "checkpoints").glob("*.json"))
    assert json.loads(newest.read_text())["step"] == 14
    assert codes(run_together(*options, cwd=tmp_path)) == [0, 0]
    assert_same(tmp_path, reference)


def test_divergence_of_one_is_that_of_the_run(options, tmp_path):
    assert codes(run_together(*options, cwd=tmp_path, faults=("", "nan:loss:25"))) == [3, 3]
    assert status(tmp_path)["state"] == "diverged"
    assert "not finite at step 25" in status(tmp_path)["error"]
    again = run_together(*options, cwd=tmp_path)
    assert codes(again) == [3, 3]
    assert "is diverged already, nothing was trained" in again[0].output


def test_refusals_end_all_and_are_told_once(options, tmp_path):
    """By the checks of the config, of data and model, and of the record; without a record of what never began."""
    for wrong, message in (
        ("sparsity.densty=0.1", "unknown key"),
        ("hardware.sync_batch_norm=true", "PyTorch has it on GPUs only"),
        ("schedule.batch_size=1293", "schedule.batch_size=1293: the 1294 training samples leave a batch of 1, too few"),
        ("hardware.processes=3", "hardware.processes=3, but 2 processes were started"),
    ):
        results = run_together(*options, wrong, cwd=tmp_path)
        assert codes(results) == [2, 2]
        assert message in results[0].output
        assert results[1].output == ""
    assert not (tmp_path / "outputs" / "default").exists()
    alone = run(*options, cwd=tmp_path)
    assert alone.code == 2
    assert "Type: torchrun --nproc_per_node 2 run.py sparsity=rigl" in alone.output
    assert run(*options, "--cfg", "job", cwd=tmp_path).code == 0
    forecast = run(*options, "--forecast", cwd=tmp_path)
    assert (forecast.code, "digits mlp rigl" in forecast.output) == (0, True)

    assert codes(run_together(*options, cwd=tmp_path, faults=("kill:step:8", "kill:step:8"))) == [-9, -9]
    about = run_folder(tmp_path / "outputs") / "run.json"
    about.write_text(about.read_text().replace('"digits"', '"other"'))
    results = run_together(*options, cwd=tmp_path)
    assert codes(results) == [2, 2]
    assert "was begun with other data" in results[0].output
    assert results[1].output == ""


def test_torchrun_starts_it(options, reference, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(REPOSITORY / "run.py")]
    result = subprocess.run([*command, *last_given(options)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result
    assert_same(tmp_path, reference)
    assert result.stdout.count(f"training, {STEPS} steps") == 1
    assert "Warning" not in result.stderr
    again = run_together(*options, cwd=tmp_path)
    assert codes(again) == [0, 0]
    assert ["is done already, nothing was trained" in one.output for one in again] == [True, False]


def test_a_launcher_starts_it(options, reference, tmp_path):
    result = run("-m", "hydra/launcher=local", "hydra.launcher.wait=true", *options, cwd=tmp_path)
    assert result.code == 0, result.output
    assert_same(tmp_path, reference)
    assert "training, 63 steps" in (run_folder(tmp_path / "outputs") / "log.txt").read_text()
    assert (run_folder(tmp_path / "outputs") / "log.1.txt").read_text() == ""


def test_two_processes_with_a_corrected_gradient_stop_and_die_without_a_trace(options, tmp_path):
    """Inside the pass over an epoch: a request to one of them, then a kill of the other."""
    undisturbed, disturbed = tmp_path / "a", tmp_path / "b"
    for folder in (undisturbed, disturbed):
        folder.mkdir()
    corrected = (*options, "correction=agent", "correction.gamma=1", "schedule.epochs=2")
    assert codes(run_together(*corrected, cwd=undisturbed)) == [0, 0]
    results = run_together(*corrected, cwd=disturbed, faults=("", "signal:SIGTERM:pass:30"))
    assert codes(results) == [75, 75], results
    assert status(disturbed)["step"] == 21
    assert codes(run_together(*corrected, cwd=disturbed, faults=("", "kill:pass:9"))) == [1, -9]
    assert codes(run_together(*corrected, cwd=disturbed)) == [0, 0]
    assert_same(disturbed, traces(run_folder(undisturbed / "outputs")))
