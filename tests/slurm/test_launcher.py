"""Sweeps on a real SLURM: what is submitted is what runs, states are true, and nothing is lost on the way."""

import shutil
from pathlib import Path

import pytest

from dst.launcher.seen import look
from dst.records.catalog import find_runs
from dst.records.read import read_attempts, read_json, read_launch, read_status
from tests.processes import REPOSITORY, run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SLURM = ("-m", "hydra/launcher=slurm", "hardware.threads=1", "tracking=none")
SHORT = ("model.hidden=[16]", "schedule.epochs=4", "schedule.update_every=10")


def python(cluster, *arguments, cwd):
    """Run a module of ours as users do; return what it prints."""
    return cluster.run(
        str(REPOSITORY / ".venv/bin/python"), "-m", *arguments, cwd=cwd, env={"PYTHONPATH": str(REPOSITORY)}
    )


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
    assert [seen.state for seen in look(find_runs(tmp_path / "outputs"))] == ["queued"] * 6
    again = submit(cluster, *command, cwd=tmp_path, conf=conf)
    assert "6 runs: 6 under way already, 0 submitted" in again

    method = conf / "sparsity" / "set_itop.yaml"
    method.write_text(method.read_text().replace("initial: 0.5", "initial: 0.9"))
    shutil.move(conf, tmp_path / "elsewhere")
    folders = by_seed(tmp_path)
    (folders[4] / "checkpoints").write_text("in the way")
    cluster.run("scontrol", "release", array)
    cluster.wait_for(array, ("COMPLETED", "FAILED"), timeout=240)

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
    assert "cannot write checkpoint" in failed["error"] or "checkpoints" in failed["error"]
    log = Path(read_launch(folders[4])["logs"], f"{ids[4]}_0_log.out").read_text()
    assert failed["error"].splitlines()[0] in log

    table = python(cluster, "dst.launcher.status", "outputs", cwd=tmp_path)
    rows = {line.split()[-1]: line for line in table.splitlines() if f" {array}_" in line}
    assert len(rows) == 6
    assert all((" done " in row) == (" COMPLETED " in row) for row in rows.values())
    assert " failed  FAILED " in rows[ids[4]] or (" failed " in rows[ids[4]] and " FAILED " in rows[ids[4]])
    assert "6 runs: 5 done, 1 failed" in table

    (folders[4] / "checkpoints").unlink()
    shutil.move(tmp_path / "elsewhere", conf)
    shutil.copy(REPOSITORY / "conf" / "sparsity" / "set_itop.yaml", method)
    output = submit(cluster, *command, "hydra.launcher.wait=true", cwd=tmp_path, conf=conf)
    assert "6 runs: 5 finished already, 1 submitted" in output
    assert read_status(folders[4])["state"] == "done"
    assert [attempt["state"] for attempt in read_attempts(folders[4])] == ["failed", "done"]
    assert all(len(read_attempts(folder)) == 1 for seed, folder in folders.items() if seed != 4)
