"""Sweeps on a real SLURM: what is submitted is what runs, states are true, and nothing is lost on the way."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from dst.config.launcher import LauncherSettings
from dst.launcher import slurm
from dst.launcher.executors import send
from dst.launcher.job import FrozenRun
from dst.launcher.observe import observe
from dst.records.catalog import find_runs
from dst.records.read import read_attempts, read_json, read_launch, read_metrics, read_status
from tests.composed import compose_cells
from tests.processes import REPOSITORY, is_moving, run, run_folder, run_together, traces, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SLURM = ("-m", "hydra/launcher=slurm", "hardware.threads=1", "tracking=none")
SHORT = ("model.hidden=[16]", "schedule.epochs=4", "schedule.update_every=10")


def python(cluster, *arguments, cwd):
    """Run a module of ours as users do; return what it prints."""
    return cluster.run(sys.executable, "-m", *arguments, cwd=cwd, env={"PYTHONPATH": str(REPOSITORY)})


def submit(cluster, *overrides, cwd, code=0, **options):
    result = run(*SLURM, *overrides, cwd=cwd, env=cluster.env, **options)
    assert result.code == code, result.output
    return result.output


def jobs(root):
    """Return the job of each run, by its seed."""
    folders = find_runs(root / "outputs")
    return {read_json(folder / "run.json")["config"]["seed"]: read_launch(folder)["job"] for folder in folders}


def by_seed(root):
    return {read_json(folder / "run.json")["config"]["seed"]: folder for folder in find_runs(root / "outputs")}


def states_of_sacct(cluster, ids):
    return {job: (row["State"].split()[0], row["ExitCode"]) for job in ids for row in cluster.sacct(job)}


def test_a_sweep_with_a_failing_cell(cluster, tmp_path):
    """Held back until its config files are edited and gone, and the place of one run's checkpoints is taken."""
    conf = shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    command = (*SHORT, "sparsity=set_itop", "sparsity.density=0.2", "seed=range(0,6)")
    output = submit(cluster, *command, "hardware.slurm.options=[hold]", cwd=tmp_path, conf=conf)
    assert "6 runs: 6 submitted" in output
    ids = jobs(tmp_path)
    array = ids[0].partition("_")[0]
    assert sorted(ids.values()) == [f"{array}_{i}" for i in range(6)]  # one array
    waiting = observe(find_runs(tmp_path / "outputs"))
    assert [(found.state, found.slurm, found.reason) for found in waiting] == [("queued", "PENDING", "JobHeldUser")] * 6
    again = submit(cluster, *command, cwd=tmp_path, conf=conf)
    assert "6 runs: 6 under way already, 0 submitted" in again

    method = conf / "sparsity" / "set_itop.yaml"
    method.write_text(method.read_text().replace("initial: 0.5", "initial: 0.9"))
    shutil.move(conf, tmp_path / "elsewhere")
    folders = by_seed(tmp_path)
    (folders[4] / "checkpoints").write_text("in the way")
    cluster.run("scontrol", "release", array)
    cluster.wait_for(array, ("COMPLETED", "FAILED"), timeout=600)

    assert states_of_sacct(cluster, ids.values()) == {
        job: ("FAILED", "1:0") if seed == 4 else ("COMPLETED", "0:0") for seed, job in ids.items()
    }
    for seed, folder in folders.items():
        status, about = read_status(folder), read_json(folder / "run.json")
        assert status["state"] == ("failed" if seed == 4 else "done")
        assert about["config"]["sparsity.drop_fraction.initial"] == 0.5
        (attempt,) = read_attempts(folder)
        assert attempt["config_digest"] == about["config_digest"]
        assert attempt["job"] == ids[seed]
    failed = read_status(folders[4])
    assert str(folders[4] / "checkpoints") in failed["error"]
    log = Path(read_launch(folders[4])["logs"], f"{ids[4]}_0_log.out").read_text()
    assert failed["error"].splitlines()[0] in log

    told = json.loads(python(cluster, "dst.launcher.status", "outputs", "--json", cwd=tmp_path))
    assert {run["job"]: (run["state"], run["slurm"]) for run in told} == {
        job: ("failed", "FAILED") if seed == 4 else ("done", "COMPLETED") for seed, job in ids.items()
    }
    table = python(cluster, "dst.launcher.status", "outputs", cwd=tmp_path)
    assert f"{folders[4].name} failed: {failed['error']}" in table
    assert table.endswith("6 runs: 5 done, 1 failed\n")

    (folders[4] / "checkpoints").unlink()
    shutil.move(tmp_path / "elsewhere", conf)
    shutil.copy(REPOSITORY / "conf" / "sparsity" / "set_itop.yaml", method)
    output = submit(cluster, *command, "hydra.launcher.wait=true", cwd=tmp_path, conf=conf)
    assert "6 runs: 5 finished already, 1 submitted" in output
    assert read_status(folders[4])["state"] == "done"
    assert [attempt["state"] for attempt in read_attempts(folders[4])] == ["failed", "done"]
    assert all(len(read_attempts(folder)) == 1 for seed, folder in folders.items() if seed != 4)


LONG = ("model.hidden=[16]", "schedule.epochs=1500", "schedule.update_every=100", "schedule.eval_every_epochs=100")
"""31,500 steps: longer than the half minute that SLURM may take to see that a time limit is near."""


def test_a_run_interrupted_three_times(cluster, tmp_path):
    """By its time limit, by ``scontrol requeue``, and by a job of a higher-priority partition."""
    interrupted, undisturbed = tmp_path / "interrupted", tmp_path / "undisturbed"
    conf = shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    frequent = ("schedule.epochs=6000", "checkpoint.every_steps=500", "tracking.every_steps=50")
    short_limit = (
        *("hardware.slurm.partition=low", "hardware.slurm.timeout_min=1", "hardware.slurm.signal_delay_s=40"),
        *("hardware.slurm.cpus=1",),
    )
    for root, options in ((interrupted, short_limit), (undisturbed, ())):
        root.mkdir()
        submit(cluster, *LONG, *frequent, *options, "sparsity=rigl_itop", cwd=root, conf=conf)
    shutil.rmtree(conf)  # neither the first nor any requeued attempt needs it
    ((_, job),), ((_, folder),) = jobs(interrupted).items(), by_seed(interrupted).items()

    wait_until(lambda: read_status(folder)["state"] == "preempted", "no signal before the time limit")
    cluster.start_now(job)
    cluster.run("scontrol", "update", f"jobid={job}", "TimeLimit=30")
    wait_until(lambda: is_moving(folder, 2), "not running after the first requeue")
    cluster.run("scontrol", "requeue", job)
    cluster.start_now(job)
    wait_until(lambda: is_moving(folder, 3), "not running after the second requeue")
    # As many of eight CPUs that only the interrupted run has to go, not the undisturbed one, which nothing preempts.
    other = cluster.sbatch("true", "--partition=high", "--cpus-per-task=7", cwd=tmp_path)
    cluster.wait_for(other, "COMPLETED", timeout=300)
    cluster.start_now(job)
    cluster.wait_for(job, "COMPLETED", timeout=600)
    ((_, reference),) = by_seed(undisturbed).items()
    wait_until(lambda: read_status(reference)["state"] == "done", "the undisturbed run does not end", 600)

    attempts = read_attempts(folder)
    assert [attempt["attempt"] for attempt in attempts] == [1, 2, 3, 4]
    causes = [attempt.get("cause") for attempt in attempts]
    assert causes == ["time limit", "stop request (SIGTERM)", "preemption", None]
    assert [attempt["state"] for attempt in attempts] == ["preempted"] * 3 + ["done"]
    assert len({attempt["config_digest"] for attempt in attempts}) == 1
    assert traces(folder) == traces(reference)
    steps = [row["step"] for row in read_metrics(folder)]
    assert steps == sorted(set(steps))
    assert set(range(50, 126_001, 50)) <= set(steps)
    assert [state["job"] for state in attempts] == [job] * 4


def test_a_job_killed_without_warning(cluster, tmp_path):
    """Its lock is stale, its state is lost; the next submission goes on from the newest checkpoint."""
    command = (*LONG, "schedule.epochs=600", "checkpoint.every_steps=500", "sparsity=set_itop")
    submit(cluster, *command, cwd=tmp_path)
    ((_, job),), ((_, folder),) = jobs(tmp_path).items(), by_seed(tmp_path).items()
    wait_until(lambda: is_moving(folder, 1) and list((folder / "checkpoints").glob("*.json")), "no checkpoint")
    child = read_status(folder)["pid"]
    supervisor = int(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[1])
    for pid in (supervisor, child):
        os.kill(pid, signal.SIGKILL)
    cluster.wait_for(job, ("FAILED", "NODE_FAIL", "CANCELLED"))
    (observed,) = observe([folder])
    assert (observed.state, observed.is_taken) == ("lost", False)
    assert "SLURM says" in observed.why
    assert f"; see {folder / 'log.txt'}, {read_launch(folder)['logs']}/{job}_0_log.out" in observed.why
    assert json.loads((folder / "lock").read_text())["pid"] == child

    assert "1 runs: 1 submitted" in submit(cluster, *command, "hydra.launcher.wait=true", cwd=tmp_path)
    first, second = read_attempts(folder)
    assert second["started_step"] > 0
    assert (first.get("state"), second["state"]) == (None, "done")
    reference = tmp_path / "reference"
    reference.mkdir()
    assert run(*command, "hardware.threads=1", "tracking=none", cwd=reference).code == 0
    ((_, undisturbed),) = by_seed(reference).items()
    assert traces(folder) == traces(undisturbed)


def test_cancel_and_requeue(cluster, tmp_path):
    submit(cluster, *LONG, "sparsity=set_itop", "seed=0,1", "hydra.launcher.max_parallel=1", cwd=tmp_path)
    folders = by_seed(tmp_path)
    wait_until(lambda: is_moving(folders[0], 1), "not running")
    assert "cancelled 2 jobs of 2 runs" in python(cluster, "dst.launcher.cancel", "outputs", cwd=tmp_path)
    wait_until(lambda: read_status(folders[0])["state"] == "preempted", "not stopped")
    assert [read_status(folders[seed])["attempt"] for seed in (0, 1)] == [1, 0]
    wait_until(lambda: "cause" in read_attempts(folders[0])[0], "no cause")
    assert read_attempts(folders[0])[0]["cause"] == "stop request (SIGTERM)"
    assert "nothing to submit" in python(cluster, "dst.launcher.requeue", "outputs", cwd=tmp_path)
    wait_until(lambda: not any(run.is_taken for run in observe(folders.values())), "the job does not end")
    dry = python(cluster, "dst.launcher.requeue", "outputs", "--preempted", "--dry-run", cwd=tmp_path)
    assert "2 runs would be submitted" in dry
    told = python(cluster, "dst.launcher.requeue", str(folders[0]), "--preempted", cwd=tmp_path)
    assert "1 runs submitted as job" in told
    wait_until(lambda: is_moving(folders[0], 2), "not continued")
    assert read_status(folders[0])["started_step"] > 0


def test_a_run_of_two_processes(cluster, tmp_path):
    """Its job has two tasks; signalled, it saves once and is requeued once, and ends as an undisturbed one does."""
    command = ("model.hidden=[16]", "schedule.epochs=100", "schedule.update_every=50", "sparsity=rigl_itop")
    two = ("hardware.processes=2", "hardware.threads=1", "tracking=none", "checkpoint.every_steps=500")
    submit(cluster, *command, *two, cwd=tmp_path)
    ((_, job),), ((_, folder),) = jobs(tmp_path).items(), by_seed(tmp_path).items()
    wait_until(lambda: is_moving(folder, 1), "not running")
    cluster.run("scancel", "--signal=USR2", job)
    wait_until(lambda: read_status(folder)["state"] == "preempted", "not stopped")
    cluster.start_now(job)
    cluster.wait_for(job, "COMPLETED", timeout=600)
    first, second = read_attempts(folder)
    assert (first["state"], second["state"]) == ("preempted", "done")
    assert first["cause"] in ("stop request (SIGUSR2)", "time limit or preemption")  # if SLURM was too busy to be asked
    assert second["started_step"] == first["step"] > 0
    (tmp_path / "alone").mkdir()
    assert [result.code for result in run_together(*command, *two, cwd=tmp_path / "alone")] == [0, 0]
    assert traces(folder) == traces(run_folder(tmp_path / "alone" / "outputs"))


@pytest.fixture
def held(tmp_path, monkeypatch):
    """Submit seven jobs where an array has at most three; return what was submitted, and the runs."""
    monkeypatch.setattr(slurm, "max_array_size", lambda: 3)
    monkeypatch.chdir(tmp_path)
    config = compose_cells(REPOSITORY / "conf", ["hardware.slurm.options=[hold]"], multirun=False)[0][1]
    frozen = []
    for number in range(7):
        folder = tmp_path / "outputs" / f"run{number}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text("{}")
        frozen.append((FrozenRun(str(folder), f"run {number}", "", ""), config))

    def submit_held(max_parallel):
        settings = LauncherSettings("slurm", max_parallel=max_parallel)
        return send(frozen, settings, root=tmp_path / "outputs", code=REPOSITORY).jobs

    return submit_held, [run for run, _ in frozen]


def test_arrays_are_as_few_as_the_cluster_allows(cluster, held):
    """Two arrays and a job, which share the throttle."""
    submit_held, runs = held
    first, second, last = submit_held(6)
    queued = cluster.run("squeue", "--noheader", "--format=%i").split()
    assert {f"{first}_[0-2%2]", f"{second}_[0-2%2]", last} <= set(queued)
    noted = [read_launch(Path(run.folder))["job"] for run in runs]
    assert noted[2:5] == [f"{first}_2", f"{second}_0", f"{second}_1"]


def test_no_more_run_at_a_time_than_asked_for(cluster, held):
    """There are more arrays than jobs may run: each waits for one before it."""
    submit_held, _ = held
    first, second, last = submit_held(2)
    waits = {
        job: cluster.run("squeue", "--noheader", "--format=%E", "--jobs", job).split()[0] for job in (second, last)
    }
    assert waits[second] == "(null)"
    assert waits[last].startswith(f"afterany:{first}")
    queued = cluster.run("squeue", "--noheader", "--format=%i").split()
    assert {f"{first}_[0-2%1]", f"{second}_[0-2%1]", last} <= set(queued)


def test_a_job_that_was_requeued_is_still_failed_if_one_of_its_runs_is(cluster, tmp_path):
    command = (*LONG, "sparsity=set_itop", "seed=0,1", "hydra.launcher.runs_per_job=2")
    submit(cluster, *command, "checkpoint.every_steps=100", "hardware.slurm.options=[hold]", cwd=tmp_path)
    (job,) = set(jobs(tmp_path).values())
    folders = by_seed(tmp_path)
    (folders[1] / "checkpoints").write_text("in the way")
    cluster.run("scontrol", "release", job)
    wait_until(lambda: read_status(folders[1])["state"] == "failed" and is_moving(folders[0], 1), "no failure")
    cluster.run("scancel", "--signal=USR2", job)
    wait_until(lambda: read_status(folders[0])["state"] == "preempted", "not stopped")
    cluster.start_now(job)
    (row,) = cluster.wait_for(job, ("FAILED", "COMPLETED"), timeout=300)
    assert (row["State"], row["ExitCode"]) == ("FAILED", "1:0")
    assert [read_status(folders[seed])["state"] for seed in (0, 1)] == ["done", "failed"]
    assert [len(read_attempts(folders[seed])) for seed in (0, 1)] == [2, 1]


def test_runs_that_share_a_job(cluster, tmp_path):
    """One of four fails, the folder of another is gone; their neighbours finish, and the job is FAILED."""
    command = (*SHORT, "sparsity=set_itop", "seed=0,1,2,3", "hydra.launcher.runs_per_job=4")
    submit(cluster, *command, "hardware.slurm.options=[hold]", cwd=tmp_path)
    (job,) = set(jobs(tmp_path).values())
    folders = by_seed(tmp_path)
    (folders[1] / "checkpoints").write_text("in the way")
    logs = Path(read_launch(folders[0])["logs"])
    shutil.rmtree(folders[0])
    cluster.run("scontrol", "release", job)
    cluster.wait_for(job, "FAILED", timeout=300)
    assert [read_status(folders[seed])["state"] for seed in (1, 2, 3)] == ["failed", "done", "done"]
    told = f"{folders[0].name}: it could not be started: FileNotFoundError"
    assert told in (logs / f"{job}_0_log.out").read_text()
