"""What is asked of SLURM, and what becomes of runs that it does not take."""

import json
import os
import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from submitit.core.utils import FailedJobError

from dst.config import compose as composition
from dst.config import identity as identities
from dst.config import schema
from dst.config.checks import check
from dst.config.launcher import LauncherSettings
from dst.config.schema import ConfigError, Hardware, complete
from dst.launcher import executors, requeue, slurm, sweep
from dst.launcher import observe as observing
from dst.launcher import submit as submitting
from dst.launcher.executors import Submission, SubmissionError
from dst.launcher.observe import observe
from dst.launcher.request import jobs_of, sbatch_parameters, undisturbed
from dst.launcher.slurm import SlurmJob
from dst.records.catalog import find_runs
from dst.records.lock import locked
from dst.records.read import read_json, read_status
from dst.records.restate import restate
from dst.records.store import Record
from dst.run import cell as cell_module
from dst.run import feasible, resume
from dst.run.cell import Cell, cells, looked_up
from dst.training.stopping import StopFlag
from tests.composed import compose_cells
from tests.processes import REPOSITORY


def config(*overrides):
    ((_, found),) = compose_cells(REPOSITORY / "conf", overrides, multirun=False)
    return complete(found)


def asked(*overrides, runs_per_job=1, throttle=None):
    return sbatch_parameters(config(*overrides).hardware, runs_per_job, Path("/code"), throttle)


def test_defaults():
    found = asked("hardware=slurm", "hardware.threads=2", "hardware.workers=3", throttle=5)
    assert (found["time"], found["signal_delay_s"], found["nodes"], found["ntasks_per_node"]) == (240, 120, 1, 1)
    assert (found["cpus_per_task"], found["gpus_per_node"], found["array_parallelism"]) == (5, 1, 5)
    assert "--cpus-per-task=5" in found["srun_args"]
    assert not {"partition", "account", "qos", "constraint", "mem"} & found.keys()
    assert found["additional_parameters"] == {"requeue": True}
    assert "gpus_per_node" not in asked("hardware=slurm", "hardware.device=cpu")


def test_an_array_may_have_to_wait_for_another_one():
    given = config("hardware=slurm", "hardware.slurm.options=['dependency=singleton']").hardware
    found = sbatch_parameters(given, 1, Path("/code"), 1, after="12")
    assert found["additional_parameters"]["dependency"] == "afterany:12,singleton"
    assert asked("hardware=slurm")["additional_parameters"] == {"requeue": True}


@pytest.mark.parametrize("hardware", ["slurm", "slurm_ddp", "site_example"])
def test_the_checks_of_what_runs_elsewhere_touch_no_device(hardware):
    feasible.check(config(f"hardware={hardware}"), elsewhere=True)
    assert not torch.cuda.is_initialized()


def test_freezing_a_sweep_pays_once_for_each_cell(tmp_path, monkeypatch):
    """One identity and one YAML a cell, and what is the same for all cells once."""
    calls = Counter()

    def count(module, name):
        original = getattr(module, name)

        def counted(*args, **kwargs):
            calls[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)

    for module in (cell_module, resume, sweep, schema, identities, composition):
        for name in ("identity", "to_yaml", "groups"):
            if hasattr(module, name) and (module, name) != (
                composition,
                "to_yaml",
            ):  # which compares cells with Hydra's
                count(module, name)
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(submitting, "send", lambda *_, **__: Submission(["1"], tmp_path))
    command = [f"output.root={tmp_path}/outputs", "hydra/launcher=slurm", "sparsity=static,rigl", "seed=range(0,10)"]
    assert sweep.run_cells(REPOSITORY / "conf", command, multirun=True) == 0
    assert calls == {"identity": 20, "to_yaml": 20, "groups": 1}
    assert len(find_runs(tmp_path / "outputs")) == 20


@pytest.mark.parametrize("multirun", [False, True])
def test_a_command_that_is_refused_leaves_nothing_behind(tmp_path, monkeypatch, multirun):
    """Not even the data set that was decoded to see whether the run fits it."""
    monkeypatch.chdir(tmp_path)
    launcher = ["hydra/launcher=local"] if multirun else []
    cache = f"data.cache=outputs/.cache/{multirun}"  # a process loads a set once from each place
    with pytest.raises(ConfigError, match="no update in all"):
        sweep.run_cells(REPOSITORY / "conf", ["schedule.batch_size=100000", cache, *launcher], multirun=multirun)
    assert list(tmp_path.iterdir()) == []


def test_packed_runs_get_processors_for_all():
    assert asked("hardware=slurm", "hardware.threads=2", runs_per_job=4)["cpus_per_task"] == 8


def test_several_nodes():
    found = asked("hardware=slurm_ddp", "hardware.processes=8", "hardware.slurm.nodes=2")
    assert (found["nodes"], found["ntasks_per_node"], found["gpus_per_node"]) == (2, 4, 4)


def test_the_example_of_a_site_asks_for_all_it_says():
    found = asked("hardware=site_example")
    assert (found["partition"], found["mem"], found["cpus_per_task"]) == ("gpu", "49152M", 8)
    assert found["setup"][0] == "module load cuda"
    assert found["setup"][1].startswith("export PYTHONPATH=/code")
    assert found["additional_parameters"] == {"requeue": True, "nice": "100"}


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--time=10", "is what hardware.slurm.timeout_min says"),
        ("cpus_per_task=4", "is what hardware.slurm.cpus says"),
        ("ntasks=2", "is what hardware.processes says"),
        ("no-requeue", "would be ignored, or break requeueing"),
        ("--job-name=mine", "the launcher sets job-name"),
        ("mem-per-cpu=1G", "speaks against hardware.slurm.memory_gb"),
    ],
)
def test_an_option_that_has_its_own_key_is_refused(option, told):
    wanted = "hardware.slurm.memory_gb=1"
    (problem,) = check(config(wanted, f"hardware.slurm.options=['mail-type=FAIL','{option}']"))
    assert told in problem


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["hardware.slurm.srun_options=['cpu-bind=cores','--output=/dev/null']"], "the launcher sets output"),
        (["hardware.slurm.srun_options=['cpus-per-task=4']"], "is what hardware.slurm.cpus says"),
        (["hardware.slurm.srun_options=['--']"], "is no option of srun"),
        (["hardware.slurm.python=' '"], "hardware.slurm.python is empty"),
    ],
)
def test_what_would_not_start_a_program_is_refused(options, told):
    (problem,) = check(config(*options))
    assert told in problem


def test_options_of_srun_are_added_to_those_of_the_launcher():
    found = asked("hardware=slurm", "hardware.slurm.srun_options=['container-image=my.sqsh','--exclusive']")
    assert found["srun_args"][-2:] == ["--container-image=my.sqsh", "--exclusive"]


@pytest.mark.parametrize(("gigabytes", "megabytes"), [(0.0001, "1M"), (1, "1024M"), (1.0001, "1025M"), (0.5, "512M")])
def test_memory_is_rounded_up(gigabytes, megabytes):
    """To SLURM, 0M is all the memory of a node."""
    assert asked("hardware=slurm", f"hardware.slurm.memory_gb={gigabytes}")["mem"] == megabytes


def test_what_the_environment_says_against_a_request_is_hidden_from_sbatch(monkeypatch):
    """Its variables overrule a job's script; those of a job that this process belongs to make srun refuse the next."""
    own = [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]
    for name in own:
        monkeypatch.delenv(name)
    for name in ("SBATCH_TIMELIMIT", "SBATCH_ACCOUNT", "SBATCH_NICE", "SBATCH_NO_REQUEUE", "SLURM_MEM_PER_CPU"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_CPU_BIND", "cores")

    def left(*overrides):
        with undisturbed(asked("hardware=slurm", *overrides)):
            return {name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))}

    before = dict(os.environ)
    assert left() == {"SBATCH_ACCOUNT", "SBATCH_NICE", "SLURM_CONF", "SLURM_CPU_BIND"}
    assert left("hardware.slurm.account=a", "hardware.slurm.options=['nice=5']") == {"SLURM_CONF", "SLURM_CPU_BIND"}
    monkeypatch.setenv("SBATCH_MEM_PER_CPU", "1G")
    assert "SBATCH_MEM_PER_CPU" in left()
    assert "SBATCH_MEM_PER_CPU" not in left("hardware.slurm.memory_gb=1")
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CPUS_PER_TASK"):
        monkeypatch.setenv(name, "7")
    assert left() == {"SBATCH_ACCOUNT", "SBATCH_NICE", "SBATCH_MEM_PER_CPU", "SLURM_CONF"}
    assert before.items() <= os.environ.items()


def runs_of(*counts):
    """Return so many runs of each of several kinds of jobs."""
    kinds = [config("hardware=slurm", f"hardware.threads={number}") for number, _ in enumerate(counts, start=1)]
    return [(f"{kind}.{run}", kinds[kind]) for kind, count in enumerate(counts) for run in range(count)]


@pytest.mark.parametrize(
    ("counts", "options", "sizes"),
    [
        ([5], {}, [[1] * 5]),
        ([5], {"runs_per_job": 2}, [[2, 2, 1]]),
        ([7], {"max_submitted": 3}, [[3, 3, 1]]),
        ([7], {"max_submitted": 3, "runs_per_job": 4}, [[4, 3]]),
        ([7], {"max_submitted": 1, "runs_per_job": 4}, [[7]]),
        ([6, 2], {"max_submitted": 4}, [[2, 2, 2], [2]]),
        ([6, 2], {"max_submitted": 1}, [[6], [2]]),  # submitted again together, each by itself within its limit
    ],
)
def test_there_are_no_more_jobs_than_may_be_submitted(counts, options, sizes):
    found = jobs_of(runs_of(*counts), LauncherSettings("slurm", **options))
    assert [[len(job) for job in jobs] for jobs, _ in found] == sizes
    assert [run for jobs, _ in found for job in jobs for run in job] == [run for run, _ in runs_of(*counts)]


def test_on_this_machine_runs_share_processors_and_gpus(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: range(64))
    settings, wanted = LauncherSettings("local"), [Hardware(threads=2), Hardware(threads=3, workers=5)]
    assert executors._at_a_time(settings, wanted, ()) == 8
    assert executors._at_a_time(settings, wanted, ("0", "1")) == 8
    on_gpus = [Hardware(device="cuda", threads=2)]
    assert executors._at_a_time(settings, on_gpus, ("0", "1")) == 2
    assert executors._at_a_time(LauncherSettings("local", runs_per_job=3), on_gpus, ("0", "1")) == 6
    assert executors._at_a_time(LauncherSettings("local", max_parallel=5), on_gpus, ("0", "1")) == 5


SLURM = LauncherSettings("slurm")


def states(root):
    return {read_json(path / "run.json")["config"]["seed"]: read_status(path)["state"] for path in find_runs(root)}


def test_runs_that_are_not_taken_are_on_record_as_such(tmp_path, monkeypatch, capsys):
    """The first of two arrays is taken, the second is not."""

    def submit_array(self, jobs):
        if taken:
            raise FailedJobError("sbatch: error: QOSMaxSubmitJobPerUserLimit")
        assert states(tmp_path / "outputs") == {1: "queued", 2: "queued", 3: "submitting", 4: "submitting"}
        taken.extend(SimpleNamespace(job_id=f"7_{task}") for task in range(len(jobs)))
        return taken

    taken = []
    monkeypatch.chdir(tmp_path)
    new = cells([config("seed=5")])[0]
    (tmp_path / "outputs/default" / new.id / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(executors.slurm, "max_array_size", lambda: 2)
    monkeypatch.setattr(executors.SlurmExecutor, "affinity", lambda self: 1, raising=False)
    monkeypatch.setattr(executors.SlurmExecutor, "submit_array", submit_array, raising=False)
    with pytest.raises(SubmissionError, match="QOSMaxSubmitJobPerUserLimit"):
        submitting.submit(cells([config(f"seed={seed}") for seed in (1, 2, 3, 4, 5)]), SLURM, "a command")
    assert states(tmp_path / "outputs") == {1: "queued", 2: "queued", 3: "not submitted", 4: "not submitted"}
    told = capsys.readouterr().err
    assert told.startswith("left alone, since they cannot be submitted: 1 runs\n  outputs/default/" + new.id)
    assert "2 of 4 runs were not submitted: slurm did not take the job: sbatch: error: QOSMax" in told
    assert "; the same command submits them; the other 2 go on as job 7\n" in told
    assert told.endswith("hydra.launcher.runs_per_job=K each has K runs at once\n")
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {job: SlurmJob("PENDING") for job in ids})
    found = {run.state: run for run in observe(find_runs(tmp_path / "outputs"))}
    assert found.keys() == {"queued", "not submitted"}
    assert "QOSMaxSubmitJobPerUserLimit" in found["not submitted"].why
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {job: SlurmJob("COMPLETING") for job in ids})
    monkeypatch.setattr(submitting, "send", lambda *_, **__: "sent")
    again = submitting.submit(cells([config(f"seed={seed}") for seed in (1, 2)]), SLURM, "a command")
    assert (again.submitted, again.stopping) == ([], 2)
    monkeypatch.setattr(observing.slurm, "jobs", lambda ids: {job: SlurmJob("RUNNING") for job in ids})
    restate(again.folders[0], "cancelled")
    again = submitting.submit(cells([config(f"seed={seed}") for seed in (1, 2)]), SLURM, "a command")
    assert (again.submitted, again.stopping) == ([], 1)
    assert requeue.main(["outputs", "--dry-run"]) == 0
    assert capsys.readouterr().out.endswith("2 runs would be submitted\n")


@pytest.mark.parametrize(
    ("refusal", "is_too_many"),
    [
        ("QOSMaxSubmitJobPerUserLimit sbatch: error: Job violates accounting/QOS policy (job submit limit, ...)", True),
        ("AssocMaxSubmitJobLimit", True),
        ("sbatch: error: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", True),
        ("QOSMaxWallDurationPerJobLimit sbatch: error: Job violates ... policy (job submit limit, ...)", False),
        ("sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying", True),
        ("sbatch: error: invalid partition specified: gpu", False),
    ],
)
def test_a_queue_that_is_full_is_told_from_other_refusals(refusal, is_too_many):
    assert executors.is_too_many(refusal) == is_too_many


def test_a_sweep_here_begins_no_run_anew_that_another_process_has_begun_meanwhile(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (cell,) = cells([config("output.resume=never")])
    record = cell.record("another command")
    record.write_status("running", attempt=1, step=5)
    with locked(record.folder):
        assert sweep._one_of_many(cell, StopFlag()) == "refused"
    assert f"output.resume=never: run {record.folder} is running: cancel it first" in capsys.readouterr().err
    assert find_runs(tmp_path) == [record.folder.resolve()]


def test_what_a_command_has_done_is_counted_as_it_was_decided(tmp_path, monkeypatch, capsys):
    """A run may be done as soon as it is submitted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cell, "is_over", property(lambda cell: cell.id in done))
    monkeypatch.setattr(submitting, "send", lambda runs, *_, **__: done.update(c.id for c in known) or sent)
    known, done, sent = cells([config(f"seed={seed}") for seed in (1, 2, 3)]), set(), Submission(["1"], tmp_path)
    done.add(known[0].id)
    for cell in known[:2]:
        cell.record("a command")
    with locked(looked_up(known)[1].found):
        assert sweep._submit(looked_up(known), SLURM) == 0
    out = capsys.readouterr().out
    assert out.startswith("3 runs: 1 finished already, 1 under way already, 1 submitted\n")
    command = rf"  watch: (PYTHONPATH=\S+ )?python -m dst.launcher.status {tmp_path}/outputs\n"
    assert re.search(command, out)


def test_what_is_wrong_with_some_cells_does_not_keep_the_others(tmp_path, monkeypatch):
    """A damaged record, one begun with other code, a place that is taken; one that is alive is not begun again."""
    monkeypatch.chdir(tmp_path)
    sent = []
    monkeypatch.setattr(submitting, "send", lambda runs, *_, **__: sent.append([c.seed for _, c in runs]) or "sent")
    submitted = submitting.submit(cells([config(f"seed={seed}") for seed in (1, 2, 3)]), SLURM, "a command")
    torn, begun, live = submitted.folders
    (torn / "status.json").write_text("{")
    about = read_json(begun / "run.json")
    about |= {"dataset": {}, "versions": {}, "device": "cpu", "code": {"digest": "old", "git": None}}
    (begun / "run.json").write_text(json.dumps(about))
    Record.open(begun).write_status("preempted", attempt=1, step=5)
    new = cells([config("seed=4")])[0]
    (tmp_path / "outputs/default" / new.id / "checkpoints").mkdir(parents=True)
    with locked(live):
        again, anew = (
            submitting.submit(cells([config(f"seed={seed}", *more) for seed in range(1, 6)]), SLURM, "a command")
            for more in ([], ["output.resume=never"])
        )
    # What is not to be resumed needs no record that it can trust; the cell that is alive is left out all the same.
    assert sent == [[1, 2, 3], [5], [1, 2, 5]]
    why = {path.name: text for path, text in again.left.items()}
    assert list(why) == [torn.name, begun.name, new.id]
    assert "status.json is not JSON" in why[torn.name]
    assert "changed the code (was old, is " in why[begun.name]
    assert "dst.launcher.requeue" not in why[begun.name]  # that code lies nowhere
    assert "holds checkpoints but no record" in why[new.id]
    assert again.told().startswith("left alone, since they cannot be submitted: 3 runs\n")
    assert [path.name for path in anew.left] == [new.id]
    assert [path.name.partition(".")[2] for path in anew.submitted] == ["2", "2", "2"]


@pytest.mark.parametrize(
    ("settings", "overrides", "told"),
    [
        (LauncherSettings("local", runs_per_job=2), ["hardware.processes=2"], "only runs of one process share a job"),
        (LauncherSettings("local", max_parallel=2), ["hardware.processes=2"], "go one after another"),
        (LauncherSettings("slurm"), ["hardware.processes=3", "hardware.slurm.nodes=2"], "cannot be shared out evenly"),
        (LauncherSettings("local", max_submitted=2), [], "max_submitted=2 would be ignored: on this machine"),
        (LauncherSettings("slurm", max_submitted=0), [], "hydra.launcher.max_submitted=0: must be >= 1"),
        (LauncherSettings("local", max_parallel=0), [], "hydra.launcher.max_parallel=0: must be >= 1"),
    ],
)
def test_what_cannot_be_submitted(settings, overrides, told):
    with pytest.raises(ValueError, match=told):
        submitting.check_settings(settings, [config(*overrides)])
