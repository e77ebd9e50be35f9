"""What is observed of a submission while it goes on, once it was cut off, and once its jobs were cancelled."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from dst.launcher import slurm
from dst.launcher.observe import observe
from dst.records.catalog import find_runs
from dst.records.read import read_launch
from tests.processes import REPOSITORY, run, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SWEEP = (
    *(
        "-m",
        "hydra/launcher=slurm",
        "hardware.threads=1",
        "tracking=none",
        "tracking.progress=none",
        "hardware.slurm.options=[hold]",
    ),
    *("model.hidden=[16]", "schedule.epochs=4", "schedule.update_every=10", "seed=0,1,2,3"),
)

PAUSES = """
import sys, time
from pathlib import Path
from dst.cli import main
from dst.launcher import submit as submitting
from dst.run.terminal import program

name, calls, *overrides = sys.argv[1:]
original, calls = getattr(submitting, name), iter(range(int(calls)))

def act(*arguments, **options):
    if next(calls, None) is None:
        print("paused", flush=True)
        time.sleep(600)
    return original(*arguments, **options)

setattr(submitting, name, act)
sys.exit(program(lambda: main(overrides, conf=Path("conf").resolve()), shows=False))
"""
"""The command line, which waits at a function of the launcher after this many calls of it."""

SLOW_SBATCH = """#!/bin/bash
echo asked > "$0.asked"
sleep 2
PATH=${PATH#*:}
exec sbatch "$@"
"""


class Command:
    """The sweep's command as a process with a process group of its own, as a shell starts it."""

    def __init__(self, cluster, cwd, *words, **environment):
        (cwd / "conf").exists() or (cwd / "conf").symlink_to(REPOSITORY / "conf")
        self.process = subprocess.Popen(
            [sys.executable, *words, *SWEEP],
            cwd=cwd,
            env={**cluster.env, "PYTHONPATH": str(REPOSITORY), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self, number):
        """Signal it, and all that it has started, as a terminal does; return its exit code and what it said."""
        os.killpg(self.process.pid, number)
        said = self.process.communicate(timeout=60)[0]
        return self.process.returncode, said


@pytest.fixture
def command(cluster, tmp_path):
    """Return a function that starts the sweep's command; what is left of it when the test ends is killed."""
    started = []

    def start(*words, **environment):
        started.append(Command(cluster, tmp_path, *words, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.end(signal.SIGKILL)


def states(root):
    return Counter(observed.state for observed in observe(find_runs(root / "outputs")))


def submit(cluster, cwd):
    result = run(*SWEEP, cwd=cwd, env=cluster.env)
    assert result.code == 0, result.output
    return result.output.splitlines()[0]


def test_a_submission_that_is_cut_off(cluster, command, tmp_path):
    """While it freezes by Ctrl-C, before its jobs are taken by a kill, and by Ctrl-C while SLURM takes them."""
    freezing = command("-c", PAUSES, "freeze", "2")
    assert freezing.process.stdout.readline() == "paused\n"
    elsewhere = [sys.executable, "-m", "dst.launcher.status", "outputs", "--json"]
    told = json.loads(cluster.run(*elsewhere, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)}))
    assert [(observed["state"], observed["is_taken"]) for observed in told] == [("submitting", True)] * 2
    code, said = freezing.end(signal.SIGINT)
    assert code == 130
    assert said == "4 of 4 runs were not submitted: interrupted; the same command submits them\n"
    assert [(observed.state, observed.why) for observed in observe(find_runs(tmp_path / "outputs"))] == [
        ("not submitted", "interrupted")
    ] * 2

    frozen = command("-c", PAUSES, "send", "0")
    assert frozen.process.stdout.readline() == "paused\n"
    assert states(tmp_path) == {"submitting": 4}
    assert frozen.end(signal.SIGKILL)[0] == -signal.SIGKILL
    assert states(tmp_path) == {"not submitted": 4}
    assert cluster.run("squeue", "--noheader") == ""

    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(SLOW_SBATCH)
    slow.chmod(0o755)
    path = f"{slow.parent}{os.pathsep}{cluster.env['PATH']}"
    taken = command(str(REPOSITORY / "run.py"), PATH=path)
    wait_until(Path(f"{slow}.asked").exists, "sbatch is not called")
    assert states(tmp_path) == {"submitting": 4}
    code, said = taken.end(signal.SIGINT)
    assert code == 130
    assert re.fullmatch(r"interrupted; all 4 runs had been submitted as job \d+, and go on\n", said)
    assert states(tmp_path) == {"queued": 4}
    assert len(cluster.run("squeue", "--noheader", "--array").splitlines()) == 4
    assert submit(cluster, tmp_path) == "4 runs: 4 under way already, 0 submitted"


def test_what_was_cancelled_is_submitted_by_the_same_command(cluster, tmp_path):
    """At once, whether the pending array was cancelled as a whole or by task."""
    assert submit(cluster, tmp_path) == "4 runs: 4 submitted"
    cancel = [sys.executable, "-m", "dst.launcher.cancel", "outputs"]
    told = cluster.run(*cancel, cwd=tmp_path, env={"PYTHONPATH": str(REPOSITORY)})
    assert told == "cancelled 4 jobs of 4 runs\n"
    assert states(tmp_path) == {"cancelled": 4}
    assert submit(cluster, tmp_path) == "4 runs: 4 submitted"

    (array,) = {observed.job.partition("_")[0] for observed in observe(find_runs(tmp_path / "outputs"))}
    cluster.run("scancel", f"{array}_1", f"{array}_2")
    assert states(tmp_path) == {"queued": 2, "cancelled": 2}
    assert submit(cluster, tmp_path) == "4 runs: 2 under way already, 2 submitted"

    cluster.run("scancel", *{observed.job.partition("_")[0] for observed in observe(find_runs(tmp_path / "outputs"))})
    assert states(tmp_path) == {"cancelled": 4}
    assert submit(cluster, tmp_path) == "4 runs: 4 submitted"


@pytest.mark.parametrize("partition", ["batch", "low"])
def test_a_time_limit_can_be_told_in_every_partition(cluster, tmp_path, partition):
    """SLURM says nothing of preemption where it cannot be."""
    job = cluster.sbatch("sleep 60", f"--partition={partition}", "--time=3", cwd=tmp_path)
    cluster.wait_for(job, "RUNNING")
    found = slurm.notice(job)
    assert found is not None
    assert not found.is_preemption
    assert found.left_s == pytest.approx(180, abs=60)


def test_a_sweep_that_is_submitted_by_a_job(cluster, tmp_path):
    """What its environment says of its own memory would keep srun from starting the runs.

    They are two jobs of three runs, with a Python that another program starts, as in a container.
    """
    container = tmp_path / "a container"
    container.write_text('#!/bin/sh\necho started >> "$0.used"\nexec "$@"\n')
    container.chmod(0o755)
    options = (
        *("hardware.slurm.memory_gb=0.0001", "hydra.launcher.max_submitted=2"),
        f"hardware.slurm.python='\\'{container}\\' {sys.executable}'",
        "hardware.slurm.srun_options=['cpu-bind=none']",
    )
    words = [word for word in SWEEP if not word.startswith(("hardware.slurm.options", "seed"))]
    command = shlex.join([sys.executable, str(REPOSITORY / "run.py"), *words, "seed=0,1,2", *options])
    cluster.wait_for(cluster.sbatch(command, "--mem-per-cpu=100M", cwd=tmp_path), "COMPLETED")
    folders = find_runs(tmp_path / "outputs")
    jobs = {read_launch(folder)["job"] for folder in folders}
    assert (len(folders), len(jobs)) == (3, 2)
    assert {job["MinMemoryNode"] for job in cluster.jobs(jobs.pop().partition("_")[0])} == {"1M"}
    wait_until(lambda: states(tmp_path) == {"done": 3}, f"not done: {states(tmp_path)}", 240)
    assert Path(f"{container}.used").read_text().split() == ["started"] * 2
