"""The cluster of the tests does what SLURM does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import REPOSITORY
from tests.slurm import daemons
from tests.slurm.cluster import PACKAGES, Cluster, verdict


def test_a_job_completes(cluster: Cluster, tmp_path: Path):
    job = cluster.sbatch("echo here; nproc", cwd=tmp_path)
    assert cluster.wait_for(job, "COMPLETED") == [{"JobID": job, "State": "COMPLETED", "ExitCode": "0:0"}]
    assert (tmp_path / f"{job}.out").read_text().startswith("here\n")


def test_a_job_that_fails_is_failed_with_its_code(cluster: Cluster, tmp_path: Path):
    job = cluster.sbatch("exit 3", cwd=tmp_path)
    assert cluster.wait_for(job, ("FAILED", "COMPLETED")) == [{"JobID": job, "State": "FAILED", "ExitCode": "3:0"}]


def test_an_array_has_a_row_each_task(cluster: Cluster, tmp_path: Path):
    job = cluster.sbatch("exit $SLURM_ARRAY_TASK_ID", "--array=0-2", cwd=tmp_path)
    rows = cluster.wait_for(job, ("FAILED", "COMPLETED"))
    assert {row["JobID"]: row["ExitCode"] for row in rows} == {f"{job}_{task}": f"{task}:0" for task in range(3)}


def test_gpus_can_be_asked_for(cluster: Cluster, tmp_path: Path):
    cluster.wait_for(cluster.sbatch("true", "--gres=gpu:2", cwd=tmp_path), "COMPLETED")
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        cluster.sbatch("true", "--gres=gpu:3", cwd=tmp_path)


@pytest.mark.slow
def test_a_requeued_job_runs_again_without_the_wait_of_two_minutes(cluster: Cluster, tmp_path: Path):
    job = cluster.sbatch(
        'echo "$SLURM_RESTART_COUNT" >> starts; test -n "$SLURM_RESTART_COUNT" || sleep 60', cwd=tmp_path
    )
    cluster.wait_for(job, "RUNNING")
    _wait_for_file(tmp_path / "starts")  # SLURM calls a job running before its script is
    cluster.run("scontrol", "requeue", job)
    cluster.start_now(job)
    cluster.wait_for(job, "COMPLETED")
    assert (tmp_path / "starts").read_text() == "\n1\n"


@pytest.mark.slow
def test_a_high_job_preempts_a_low_one_which_is_told_first(cluster: Cluster, tmp_path: Path):
    script = 'trap "echo told >> signals" USR2; echo >> starts; while test $(wc -l < starts) = 1; do sleep 0.2; done'
    low = cluster.sbatch(script, "--partition=low", "--exclusive", "--requeue", "--signal=B:USR2@60", cwd=tmp_path)
    cluster.wait_for(low, "RUNNING")
    _wait_for_file(tmp_path / "starts")
    high = cluster.sbatch("sleep 0.5", "--partition=high", "--exclusive", cwd=tmp_path)
    cluster.wait_for(high, "COMPLETED")
    cluster.start_now(low)
    cluster.wait_for(low, "COMPLETED")
    assert (tmp_path / "signals").read_text() == "told\n"
    assert (tmp_path / "starts").read_text() == "\n\n"


@pytest.mark.slow
def test_a_cluster_whose_tests_were_killed_is_removed_by_the_next(cluster: Cluster, tmp_path: Path):
    code = """
import sys, time
from pathlib import Path
from tests.slurm.cluster import Cluster
with Cluster() as running:
    running.wait_for(running.sbatch("sleep 600", cwd=Path(sys.argv[1])), "RUNNING")
    print(running.folder, flush=True)
    time.sleep(600)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout
    folder = Path(owner.stdout.readline().strip())
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert _mentioning(folder)
    remover = "from tests.slurm.cluster import remove_stale; remove_stale()"
    subprocess.run([sys.executable, "-c", remover], cwd=REPOSITORY, check=True)
    assert not folder.exists()
    assert not _mentioning(folder)
    assert cluster.run("scontrol", "ping").count("UP") == 1


def test_a_daemon_that_does_not_come_up_is_told_with_its_last_words(tmp_path: Path):
    command = ["sh", "-c", "echo the port is taken; exit 7"]
    with pytest.raises(daemons.DaemonError, match=r"slurmd ended with code 7:\nthe port is taken"):
        daemons.start("slurmd", command, tmp_path, dict(os.environ), lambda: False)
    with pytest.raises(daemons.DaemonError, match=r"munged is not up after 0 s"):
        daemons.start("munged", ["sleep", "60"], tmp_path, dict(os.environ), lambda: False, timeout_s=0.2)
    pid = int((tmp_path / "munged.pid").read_text())
    daemons.stop(["slurmd", "munged"], tmp_path)  # it runs in another folder for all that its command says
    assert Path(f"/proc/{pid}").exists()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.parametrize(
    ("missing", "environ", "what"),
    [
        ([], {}, "run"),
        ([], {"DST_REQUIRE_SLURM": "1"}, "run"),
        (["sbatch"], {}, "skip"),
        (["sbatch"], {"DST_REQUIRE_SLURM": "0"}, "skip"),
        (["sbatch"], {"DST_REQUIRE_SLURM": "1"}, "fail"),
    ],
)
def test_without_slurm_tests_skip_unless_it_is_required(missing: list[str], environ: dict[str, str], what: str):
    verdict_, reason = verdict(missing, environ)
    assert verdict_ == what
    if missing:
        assert "sbatch missing" in reason
        assert f"apt-get install {PACKAGES}" in reason


def _wait_for_file(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not (path.exists() and path.stat().st_size):
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.05)


def _mentioning(folder: Path) -> list[int]:
    """Return the processes that have to do with a folder."""
    wanted, found = str(folder).encode(), []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            except OSError:
                continue
            if wanted in text:
                found.append(int(process.name))
    return found
