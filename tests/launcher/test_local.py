"""The same sweeps without SLURM: processes of this machine, in the background."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobStatus

from dst.config.schema import ConfigError, complete
from dst.files import sha256
from dst.launcher import cancel, node, requeue, status
from dst.launcher.frozen import freeze, frozen_code
from dst.launcher.observe import observe
from dst.launcher.plugin.hydra_plugins.dst_launcher import SubmititLauncher
from dst.records.catalog import find_runs
from dst.records.lock import locked
from dst.records.provenance import code_digest, code_version
from dst.records.read import read_attempts, read_json, read_launch, read_status
from dst.records.store import Record
from dst.run.cell import cells
from tests.composed import compose_cells
from tests.processes import REPOSITORY, is_moving, run, run_folder, traces, wait_until

pytestmark = pytest.mark.slow

TINY = ("model.hidden=[16]", "schedule.epochs=4", "schedule.update_every=10", "sparsity=rigl_itop")
QUIET = ("hardware.threads=1", "tracking=none", "tracking.progress=none")
LOCAL = ("-m", "hydra/launcher=local", *QUIET)
ENDLESS = ("model.hidden=[16]", "schedule.epochs=5000", "schedule.update_every=100", "sparsity=set_itop")


def state(folder):
    return (read_status(folder) or {}).get("state")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_four_runs_in_one_job_are_four_runs(here):
    """Submitted as Hydra itself does it; then one after another, in folders of their own."""
    launcher = SubmititLauncher("local", wait=True, runs_per_job=4, max_parallel=1)
    launcher._conf = REPOSITORY / "conf"
    cells = [[*TINY, *QUIET, f"seed={seed}"] for seed in range(4)]
    results = launcher.launch(cells, 0)
    assert [result.status for result in results] == [JobStatus.COMPLETED] * 4
    assert len({read_launch(Path(result.return_value))["job"] for result in results}) == 1
    for cell, result in zip(cells, results, strict=True):
        alone = here / cell[-1]
        alone.mkdir()
        assert run(*cell, cwd=alone).code == 0
        assert traces(Path(result.return_value)) == traces(run_folder(alone / "outputs"))
    told = run(*LOCAL, *TINY, "seed=0,1,2,3", cwd=here)
    assert (told.code, told.output.splitlines()[0]) == (0, "4 runs: 4 finished already, 0 submitted")


def test_a_failing_cell_does_not_hurt_its_neighbours(here, capsys, monkeypatch):
    forecast = run("-m", *QUIET, *TINY, "seed=1", "output.group=other", cwd=here)
    assert forecast.code == 0
    failing = here / "outputs" / "default" / run_folder(here / "outputs" / "other").name
    (here / "outputs" / "other").rename(here / "aside")
    (failing / "metrics.jsonl").mkdir(parents=True)
    result = run(*LOCAL, *TINY, "seed=0,1,2", "hydra.launcher.wait=true", cwd=here)
    assert result.code == 1
    assert sorted(state(folder) for folder in find_runs(here / "outputs")) == ["done", "done", "failed"]
    assert "metrics.jsonl" in read_status(failing)["error"]
    log = "".join(path.read_text() for path in (here / "outputs").glob(".launch/*/*.out"))
    assert read_status(failing)["error"] in log

    assert status.main(["outputs"]) == 0
    assert "3 runs: 2 done, 1 failed" in capsys.readouterr().out
    (failing / "metrics.jsonl").rmdir()
    assert requeue.main(["outputs", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"{failing.relative_to(here)}\n1 runs would be submitted\n"
    (here / "aside" / "deeper").mkdir()
    monkeypatch.chdir(here / "aside" / "deeper")
    assert requeue.main([str(here / "outputs")]) == 0
    assert not any(path.is_dir() for path in Path().iterdir())  # what is relative in its config is so where it was
    wait_until(lambda: state(failing) == "done", "not done after the requeue")


def test_a_run_whose_folder_is_removed_hurts_no_other(here):
    """While it is queued, or while it runs."""
    assert run(*LOCAL, *TINY, "seed=0,1,2,3", "hydra.launcher.max_parallel=1", cwd=here).code == 0
    folders = {read_json(folder / "run.json")["config"]["seed"]: folder for folder in find_runs(here / "outputs")}
    logs = Path(read_launch(folders[0])["logs"])
    shutil.rmtree(folders[1])
    wait_until((folders[2] / "log.txt").exists, "the second one keeps the third")
    shutil.rmtree(folders[2], ignore_errors=True)
    wait_until(lambda: state(folders[3]) == "done", "the third one keeps the last")
    assert state(folders[0]) == "done"
    log = "".join(path.read_text() for path in logs.glob("*.out"))
    assert f"{folders[1].name}: it could not be started: FileNotFoundError" in log


def test_an_edit_of_the_code_blocks_none_but_the_runs_that_began_before_it(here, capsys):
    """Which go on with the code that they were submitted with."""
    code = here / "code"
    code.mkdir()
    for name in ("dst", "conf"):
        shutil.copytree(REPOSITORY / name, code / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "run.py", code)

    def submit(seeds):
        command = [sys.executable, str(code / "run.py"), *LOCAL, *TINY, "hydra.launcher.wait=true", seeds]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        return done.returncode, done.stdout.splitlines()[0], done.stderr

    alike = compose_cells(code / "conf", [*TINY, *QUIET, "seed=1,2"], multirun=True)
    failed = [here / "outputs" / "default" / cell.id for cell in cells([complete(config) for _, config in alike])]
    for folder in failed:
        (folder / "metrics.jsonl").mkdir(parents=True)
    assert submit("seed=0,1,2")[0] == 1
    assert [state(folder) for folder in failed] == ["failed", "failed"]
    begun_with = read_json(failed[0] / "run.json")["code"]["digest"]
    about = read_json(failed[1] / "run.json")
    Record.open(failed[1]).write_run({**about, "code": {**about["code"], "digest": "elsewhere"}})
    launch = read_launch(failed[1])
    Record.open(failed[1]).write_launch({**launch, "code": "/nowhere/elsewhere"})

    with (code / "dst" / "cli.py").open("a") as file:
        file.write("# an edit\n")
    exit_code, told, why = submit("seed=0,1,2,3")
    assert (exit_code, told) == (1, "4 runs: 1 finished already, 2 left alone, 1 submitted")
    assert f"{failed[0].relative_to(here)}: run {failed[0].name} in " in why
    remedy = f"python -m dst.launcher.requeue {failed[0].relative_to(here)}"
    assert remedy in why
    assert why.count("dst.launcher.requeue") == 1  # the other one's code is gone

    for folder in failed:
        (folder / "metrics.jsonl").rmdir()
    before = (failed[0] / "config.yaml").read_bytes()
    done = subprocess.run(
        [sys.executable, *shlex.split(remedy)[1:]],
        env={**os.environ, "PYTHONPATH": str(code)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.split(" as job")[0]) == (0, "1 runs submitted"), done.stderr
    wait_until(lambda: state(failed[0]) == "done", "not done after the requeue")
    assert read_json(failed[0] / "run.json")["code"]["digest"] == begun_with
    assert Path(read_launch(failed[0])["code"]).name == begun_with
    assert (failed[0] / "config.yaml").read_bytes() == before
    assert requeue.main([str(here / "outputs")]) == 2
    assert "the code elsewhere with which it was submitted is in no .code above" in capsys.readouterr().err
    assert state(failed[1]) == "failed"


def test_nothing_is_submitted_if_a_cell_is_bad(here):
    result = run(*LOCAL, *TINY, "seed=0,1", "sparsity.density=0.1,1.5", cwd=here)
    assert result.code == 2
    assert (
        "sparsity.density=1.5: must be in (0, 1) (in 2 of 4 cells: seed=0 sparsity.density=1.5, seed=1" in result.output
    )
    result = run(*LOCAL, "model=mlp,lenet_5", "seed=0,1", cwd=here)
    assert result.code == 2
    assert "configuration error: model lenet_5 needs images of at least 16x16" in result.output
    assert "(in 2 of 4 cells: model=lenet_5 seed=0, model=lenet_5 seed=1)" in result.output
    assert find_runs(here / "outputs") == []
    assert not list((here / "outputs").glob(".launch*"))


def test_killed_without_warning_and_cancelled(here, capsys):
    command = (*LOCAL, *ENDLESS, "checkpoint.every_steps=50", "seed=0")
    assert run(*command, cwd=here).code == 0
    folder = run_folder(here / "outputs")
    wait_until(lambda: is_moving(folder, 1) and list((folder / "checkpoints").glob("*.json")), "no checkpoint")
    assert "1 under way already" in run(*command, cwd=here).output
    # Nor is another one begun beside it, whatever is asked for.
    assert "1 runs: 1 under way already, 0 submitted" in run(*command, "output.resume=never", cwd=here).output
    refused = run(*ENDLESS, *QUIET, "seed=0", "output.resume=never", cwd=here)
    assert refused.code == 2
    assert f"{folder.name} is running, as job {read_launch(folder)['job']}: cancel it first" in refused.output
    refused = run(*ENDLESS, *QUIET, "seed=0", cwd=here)
    assert refused.code == 2
    assert f"process {read_status(folder)['pid']}" in refused.output

    job = int(read_launch(folder)["job"])
    children = subprocess.run(["pgrep", "-P", str(job)], capture_output=True, text=True, check=True).stdout.split()
    for pid in (job, *map(int, children), read_status(folder)["pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: observe([folder])[0].state == "lost", "not lost")

    assert "1 submitted" in run(*command, cwd=here).output
    wait_until(lambda: is_moving(folder, 2), "not continued")
    assert read_status(folder)["started_step"] > 0
    assert cancel.main(["outputs"]) == 0
    assert "cancelled 1 jobs of 1 runs" in capsys.readouterr().out
    wait_until(lambda: state(folder) == "preempted", "not stopped")
    wait_until(lambda: not observe([folder])[0].is_taken, "the job does not end")
    assert read_attempts(folder)[-1]["cause"] == "stop request (SIGTERM)"


def test_one_run_of_a_sweep_is_cancelled_and_the_others_go_on(here, capsys):
    """One that waits is passed over, one that runs saves; both may be submitted again while the job goes on."""
    command = (*LOCAL, *ENDLESS, "seed=0,1,2", "hydra.launcher.max_parallel=1")
    assert run(*command, cwd=here).code == 0
    by_seed = {read_json(folder / "run.json")["config"]["seed"]: folder for folder in find_runs(here / "outputs")}
    first, second, third = (by_seed[seed] for seed in range(3))
    try:
        assert cancel.main([str(second)]) == 0
        wait_until(lambda: is_moving(first, 1), "not running")
        assert cancel.main([str(first)]) == 0
        wait_until(lambda: is_moving(third, 1), "the last one does not get its turn")
        assert [found.state for found in observe([first, second, third])] == ["preempted", "cancelled", "running"]
        told = run(*command, cwd=here)
        assert (told.code, told.output.splitlines()[0]) == (0, "3 runs: 1 under way already, 2 submitted")
    finally:
        cancel.main(["outputs"])
    assert "cancelled 2 jobs of 3 runs" in capsys.readouterr().out
    wait_until(lambda: not any(found.is_taken for found in observe([first, second, third])), "the jobs do not end")
    assert state(third) == "preempted"
    assert read_attempts(second) == []


def test_a_changed_frozen_config_is_refused(here):
    ((_, config),) = compose_cells(REPOSITORY / "conf", [*TINY, *QUIET], multirun=False)
    (cell,) = cells([complete(config)])
    frozen = freeze(cell, "a command")
    folder = Path(frozen.folder)
    about = read_json(folder / "run.json")
    assert about["config_digest"] == frozen.digest == sha256((folder / "config.yaml").read_text())
    assert state(folder) == "submitting"
    (folder / "config.yaml").write_text(frozen.config.replace("peak:", "peak: 9 #"))
    assert node.main([frozen.folder, "--digest", frozen.digest]) == 2
    assert "is not what was submitted" in read_status(folder)["error"]

    with locked(folder):  # it is run by hand meanwhile
        Record.open(folder).write_status("running", attempt=1, step=0)
        assert node.main([frozen.folder, "--digest", frozen.digest]) == 2
        assert state(folder) == "running"


def test_two_commands_at_once_submit_a_run_once_and_return(here, capsys):
    """Their output is read to its end, which the jobs they leave behind must not hold back.

    A job whose process is killed, by which it is known, saves and ends: its runs may be submitted again.
    """
    options = ("seed=0,1", "hydra.launcher.max_parallel=1")
    command = [sys.executable, str(REPOSITORY / "run.py"), *LOCAL, *ENDLESS, *options]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    try:
        told = sorted(process.communicate(timeout=90)[0].splitlines()[0] for process in both)
        assert told == ["2 runs: 2 submitted", "2 runs: 2 under way already, 0 submitted"]
        folders = find_runs(here / "outputs")
        wait_until(lambda: any(is_moving(folder, 1) for folder in folders), "not running")
        job = int(read_launch(folders[0])["job"])
        os.kill(job, signal.SIGKILL)
        wait_until(lambda: not any(run.is_taken for run in observe(folders)), "the job does not end")
    finally:
        assert cancel.main(["outputs"]) == 0
    (begun,) = (folder for folder in folders if read_attempts(folder))
    assert (len(read_attempts(begun)), state(begun)) == (1, "preempted")
    why = f"its job's process {job} is gone after step {read_status(begun)['step']}; stopped"
    wait_until(lambda: read_status(begun)["error"] == why, f"not {why}")
    assert sorted(run.state for run in observe(folders)) == ["lost", "preempted"]


def test_status_tells_everything_as_json_and_starts_fast(here, capsys):
    assert status.main(["nowhere"]) == 2
    with pytest.raises(SystemExit):
        status.main(["outputs", "--state", "runing"])
    assert "invalid choice: 'runing' (choose from 'submitting', 'not submitted', 'queued'," in capsys.readouterr().err
    (here / "outputs").mkdir()
    assert status.main(["outputs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == []
    heavy = "import sys, dst.launcher.status; sys.exit(any(m in sys.modules for m in ('torch', 'hydra', 'pandas')))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run([sys.executable, "-c", heavy], env=environment, check=False).returncode == 0


def test_the_code_is_frozen_as_it_was_begun_with(tmp_path, monkeypatch):
    place = frozen_code(tmp_path)
    assert place.name == code_digest(place / "dst") == code_version()["digest"]
    assert frozen_code(tmp_path) == place
    monkeypatch.setattr("dst.launcher.frozen.code_version", lambda: {"digest": "what it was"})
    with pytest.raises(ConfigError, match="was changed while it was being submitted"):
        frozen_code(tmp_path)
    assert [path.name for path in (tmp_path / ".code").iterdir()] == [place.name]
