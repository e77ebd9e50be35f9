"""Runs that share a GPU under MPS: stand-ins for NVIDIA's programs, but real processes, pipes and signals."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dst.config.launcher import LauncherSettings
from dst.config.schema import complete
from dst.launcher import executors, job, sharing
from dst.launcher.frozen import freeze
from dst.launcher.job import FrozenRun, Job
from dst.launcher.mps import Mps, UnavailableError
from dst.records.read import read_attempts, read_status
from dst.records.store import Record
from dst.run.cell import cells
from tests.composed import compose_cells
from tests.launcher.mps_stand_in import build, lives, starts
from tests.launcher.test_neighbours import AS_TORCH_SAYS
from tests.processes import REPOSITORY, run, run_folder, traces, wait_until


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return build(tmp_path_factory.mktemp("nvidia"))


@pytest.fixture
def notes(programs, tmp_path, monkeypatch):
    """A machine with MPS; the folder where its daemon keeps notes, which is gone at the end."""
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(programs))
    monkeypatch.setenv("STAND_IN", str(tmp_path))
    monkeypatch.delenv("CUDA_MPS_PIPE_DIRECTORY", raising=False)
    yield tmp_path
    for daemon, server, *_, folder in starts(tmp_path):
        assert not lives(daemon)
        assert not lives(server)
        assert not Path(folder).exists()


def test_a_job_has_a_daemon_of_its_own(notes, monkeypatch):
    """Requests to stop, which SLURM sends to all processes of a job, are not meant for it: its clients save first."""
    mps = Mps(("4", "7"), 5)
    ((daemon, server, gpus, folder),) = starts(notes)
    assert (gpus, mps.limit) == ("4,7", "0=1000M,1=2000M")  # of 3000 and 6000, for three clients at most on each
    limits = [f"set_default_device_pinned_mem_limit {limit}" for limit in ("0 1000M", "1 2000M")]
    assert (notes / "asked").read_text().splitlines() == limits
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert len(folder) < 90
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP):
        for process in (daemon, server, mps._keeper.pid):
            os.kill(int(process), number)
    assert lives(daemon)
    assert lives(server)
    as_client = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    # The daemon's first GPU is 0 for its clients, whatever its name was.
    assert mps.environment(("4",)) == {**as_client, "CUDA_VISIBLE_DEVICES": "0"}
    assert mps.environment(("7",)) == {**as_client, "CUDA_VISIBLE_DEVICES": "1"}
    mps.stop()

    monkeypatch.setenv("STAND_IN_IS_EXCLUSIVE", "1")
    monkeypatch.setenv("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=7G")
    another = Mps(("GPU-8a",), 2)
    assert another.environment(("GPU-8a",))["CUDA_VISIBLE_DEVICES"] == "GPU-8a"
    assert (another.is_exclusive, another.limit) == (True, "0=7G")
    another.stop()
    assert (notes / "asked").read_text().splitlines() == [*limits, "quit", "quit"]  # it is the clients' own


def test_a_daemon_that_does_not_quit_is_killed_with_its_servers(notes, monkeypatch):
    monkeypatch.setenv("STAND_IN_IS_DEAF", "1")
    code = "from dst.launcher import keeper; keeper._QUIT_S = 0.3; keeper.main([])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input="over", capture_output=True, text=True, check=True, cwd=REPOSITORY)
    ((*_, folder),) = starts(notes)
    assert done.stdout == f"ready {folder}\n"


def test_nothing_is_left_of_a_job_that_is_killed(notes):
    """Neither of its daemon nor of the servers; the keeper hears that it is gone, and lets its runs save."""
    (notes / "clients").write_text("4711\n")
    code = "import os; from dst.launcher.mps import Mps; Mps(('0',), 2); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY).returncode == -signal.SIGKILL
    ((daemon, server, *_, folder),) = starts(notes)
    wait_until(lambda: (notes / "asked").read_text().count("get_client_list 17") > 1, "nobody asks for clients", 10)
    assert lives(daemon)
    (notes / "clients").write_text("")
    wait_until(lambda: not lives(daemon) and not lives(server) and not Path(folder).exists(), "they live", 10)


@pytest.mark.parametrize(
    ("name", "value", "gpus", "why"),
    [
        ("CUDA_MPS_PIPE_DIRECTORY", "/of/the/cluster", "0", "that of CUDA_MPS_PIPE_DIRECTORY=/of/the/cluster is used"),
        ("PATH", "/nowhere", "0", "there is no nvidia-cuda-mps-control on PATH"),
        ("LD_LIBRARY_PATH", "/nowhere", "0", "libcuda.so.1: cannot open shared object file"),
        ("STAND_IN_HAS_NO_DEVICE", "1", "0", "CUDA error 100: no CUDA-capable device is detected"),
        ("STAND_IN", "/nowhere", "MIG-1", "MIG-1 is a part of a GPU (MIG)"),
        ("STAND_IN_REFUSES", "1", "0", "exit code 1: An instance of this daemon is already running"),
        (
            "STAND_IN_SERVES_NOBODY",
            "1",
            "0",
            "under MPS CUDA error 807: MPS server is not ready to accept new MPS client requests; [Control] the "
            "stand-in starts",
        ),
    ],
)
def test_where_it_cannot_be(notes, monkeypatch, name, value, gpus, why):
    monkeypatch.setenv(name, value)
    with pytest.raises(UnavailableError, match=r".") as error:
        Mps((gpus,), 2)
    assert why in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# What a job makes of it


@pytest.fixture
def as_job(notes, monkeypatch):
    """Return a function that carries out a job whose runs ``start`` starts in its own way; it returns their codes."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(job.slurm, "rename", lambda *_: None)
    monkeypatch.setattr(job, "_POLL_S", 0.02)
    popen = subprocess.Popen

    def carry_out(runs, start, **options):
        def begin(command, **more):
            return (start if "dst.launcher.node" in command else popen)(command, **more)

        with monkeypatch.context() as patch:
            patch.setattr(job.subprocess, "Popen", begin)
            supervisor = job._Supervisor(Job(runs, cuda=True, **options))
            supervisor.carry_out()
        return {Path(folder).name: code for folder, code in supervisor.codes.items()}

    yield carry_out
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def begin(as_job, tmp_path):
    """Return a function that carries out a job whose runs end as told, attempt by attempt, and returns their codes.

    A run that ends with a text has failed with this CUDA error, the others are done. ``found``: for each run and
    attempt the state before, why it was stopped, and the runs whose first fault was still to come.
    """
    popen, begun = subprocess.Popen, {}

    def carry_out(ends, **options):
        def start(command, **more):
            folder = Path(command[4])
            attempt = len(read_attempts(folder)) + 1
            text = ends[folder.name][attempt - 1]
            before = read_status(folder)
            to_come = [name for (name, last), p in begun.items() if last == 1 and p.poll() is None and ends[name][0]]
            carry_out.found[folder.name, attempt] = (before["state"], before["error"], to_come)
            record = Record.open(folder)
            record.write_status("failed" if text else "done", attempt=attempt, step=7, error=text, started=1.0)
            record.log_attempt(attempt, state="failed" if text else "done")
            (folder / "told.txt").write_text(AS_TORCH_SAYS.format(text) if text else "")
            shown = 'echo "in ${CUDA_MPS_PIPE_DIRECTORY:+MPS} GPU $CUDA_VISIBLE_DEVICES" >> "$0/shown"'
            words = f'{shown}; sleep {0.1 if folder.name == "a" else 0.3}; cat "$0/told.txt"; exit {int(bool(text))}'
            process = begun[folder.name, attempt] = popen(["sh", "-c", words, str(folder)], **more)
            return process

        runs = tuple(FrozenRun(str(tmp_path / name), name, "", "") for name in ends)
        for frozen in runs:
            Record.create(Path(frozen.folder), config_yaml="", run={"name": frozen.name}).write_status(
                "queued", attempt=0, step=0
            )
        return as_job(runs, start, **options)

    carry_out.found = {}
    return carry_out


ILLEGAL, LAUNCH = "an illegal memory access was encountered", "unspecified launch failure"
ENDED, NOT_READY = (
    "the MPS client has been terminated by the server",
    "MPS server is not ready to accept new MPS client",
)


def test_runs_that_a_neighbour_has_stopped_go_on(begin, notes, tmp_path, capsys):
    ends = {"a": [ILLEGAL], "b": [ENDED, None], "c": [ENDED, ENDED, None], "d": [None]}
    assert begin(ends, parallel=3, gpus=("5",)) == {"a": 1, "b": 0, "c": 0, "d": 0}
    assert read_status(tmp_path / "a")["error"] == ILLEGAL
    first, second = read_attempts(tmp_path / "b")
    assert (first["state"], second["state"]) == ("preempted", "done")
    assert first["cause"] == "stopped by the fault of run a on the GPU that they share"
    assert read_attempts(tmp_path / "c")[1]["cause"].startswith("stopped by MPS, which has failed")
    assert {line for name in ends for line in (tmp_path / name / "shown").read_text().splitlines()} == {"in MPS GPU 0"}
    assert len(starts(notes)) == 3  # anew after each fault
    state, error, _ = begin.found["b", 2]
    told = "stopped by the fault of run a on the GPU that they share after step 7; it goes on in the same job"
    assert (state, error) == ("preempted", told)
    assert begin.found["d", 1] == ("queued", None, [])  # MPS takes no client before all that are hit have ended
    told = capsys.readouterr().out
    assert "3 runs at once share GPU 5 under MPS, each with at most this memory: 0=1000M" in told
    assert "b was stopped by the fault of run a on the GPU that they share; it goes on in the same job" in told
    assert "its last words:\n[Control] the stand-in starts" in told


def test_where_it_cannot_be_told_who_has_caused_a_fault_all_go_on_apart(begin, notes, tmp_path, capsys):
    """The one that faults without MPS, too, has failed by its own fault."""
    ends = {"x": [LAUNCH, LAUNCH], "y": [LAUNCH, None]}
    assert begin(ends, parallel=2, gpus=("5",)) == {"x": 1, "y": 0}
    assert (tmp_path / "x" / "shown").read_text().splitlines() == ["in MPS GPU 0", "in  GPU 5"]
    assert [attempt["state"] for attempt in read_attempts(tmp_path / "x")] == ["preempted", "failed"]
    assert "of which run cannot be told; it goes on in the same job, without MPS" in capsys.readouterr().out
    assert len(starts(notes)) == 1


def test_how_often_a_run_goes_on_is_bounded(begin, tmp_path, monkeypatch):
    """Then it goes on without MPS; where only MPS can use the GPU, it has failed."""
    monkeypatch.setattr(sharing, "_TOGETHER", 1)
    assert begin({"a": [ENDED, ENDED, None], "b": [None]}, parallel=2, gpus=("0",))["a"] == 0
    assert (tmp_path / "a" / "shown").read_text().splitlines()[-1] == "in  GPU 0"
    monkeypatch.setenv("STAND_IN_IS_EXCLUSIVE", "1")
    assert begin({"c": [LAUNCH, LAUNCH], "d": [LAUNCH, None]}, parallel=2, gpus=("0",)) == {"c": 1, "d": 0}
    assert set((tmp_path / "c" / "shown").read_text().splitlines()) == {"in MPS GPU 0"}


@pytest.mark.parametrize(
    ("options", "refuses", "shown", "told"),
    [
        ({"gpus": ("0", "1")}, "", {"in  GPU 0", "in  GPU 1"}, ""),  # each has its own
        ({"gpus": ("3",)}, "1", {"in  GPU 3"}, "2 runs at once share GPU 3 without an MPS of this job: nvidia-cuda"),
    ],
)
def test_as_without_it(begin, notes, tmp_path, monkeypatch, capsys, options, refuses, shown, told):
    monkeypatch.setenv("STAND_IN_REFUSES", refuses)
    assert begin({"a": [None], "b": [LAUNCH]}, parallel=2, **options) == {"a": 0, "b": 1}
    assert {(tmp_path / name / "shown").read_text().strip() for name in "ab"} == shown
    out = capsys.readouterr().out
    assert told in out
    assert ("share" in out) == bool(told)


@pytest.mark.parametrize(("device", "uses"), [("cuda", True), ("cpu", False)])
@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_job_knows_whether_its_runs_use_gpus(monkeypatch, tmp_path, cluster, device, uses):
    class Executor:
        def __init__(self, *_, **__):
            pass

        def update_parameters(self, **_):
            pass

        def submit(self, submitted):
            sent.append(submitted)
            return SimpleNamespace(job_id=str(os.getpid()))

    sent = []
    monkeypatch.setattr(executors, "LocalExecutor", Executor)
    monkeypatch.setattr(executors, "SlurmExecutor", Executor)
    monkeypatch.setattr(executors.slurm, "max_array_size", lambda: 10)
    ((_, config),) = compose_cells(REPOSITORY / "conf", [f"hardware.device={device}"], multirun=False)
    found = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
    runs = [(FrozenRun(str(found.folder), "a run", "", ""), complete(config))]
    executors.send(runs, LauncherSettings(cluster, runs_per_job=2), root=tmp_path, code=tmp_path / "code")
    assert [submitted.cuda for submitted in sent] == [uses]


TINY = ("model.hidden=[16]", "schedule.epochs=3", "schedule.update_every=10", "checkpoint.every_steps=20")
QUIET = ("hardware.threads=1", "tracking=none", "tracking.progress=none", "sparsity=rigl_itop")
FAULTY = """
import sys
from dst.launcher import node
from tests.processes import _after_step
step, text = int(sys.argv.pop(1)), sys.argv.pop(1)
def fault():
    raise RuntimeError(f"CUDA error: {text}")
_after_step(step, fault)
sys.exit(node.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_from_its_checkpoint_as_if_nothing_had_been(as_job, tmp_path, monkeypatch):
    """Real runs, on the CPU: one commits a fault, MPS ends both, and only this one has failed."""
    monkeypatch.chdir(tmp_path)
    alike = compose_cells(REPOSITORY / "conf", [*TINY, *QUIET, "seed=0,1"], multirun=True)
    runs = tuple(freeze(cell, "a command") for cell in cells([complete(config) for _, config in alike]))
    guilty, innocent = (Path(run.folder) for run in runs)
    faults = {guilty.name: ["25", ILLEGAL], innocent.name: ["33", ENDED]}
    popen = subprocess.Popen

    def start(command, **more):
        fault = faults.pop(Path(command[4]).name, ["-1", ""])
        return popen([*command[:2], "-c", FAULTY, *fault, *command[4:]], **more)

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    assert as_job(runs, start, parallel=2, gpus=("0",)) == {guilty.name: 1, innocent.name: 0}
    assert read_status(guilty)["error"] == f"RuntimeError: CUDA error: {ILLEGAL}"
    first, second = read_attempts(innocent)
    assert (first["state"], first["step"]) == ("preempted", 33)
    assert first["cause"] == f"stopped by the fault of run {guilty.name} on the GPU that they share"
    assert (second["state"], second["started_step"]) == ("done", 20)
    (tmp_path / "alone").mkdir()
    assert run(*TINY, *QUIET, "seed=1", cwd=tmp_path / "alone").code == 0
    assert traces(innocent) == traces(run_folder(tmp_path / "alone" / "outputs"))
