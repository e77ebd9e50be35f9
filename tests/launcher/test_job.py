"""What a job does about signals, GPUs and runs that say nothing of their end."""

import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from dst.launcher import job
from dst.launcher.job import FrozenRun, Job
from dst.launcher.slurm import Notice
from dst.records.lock import locked
from dst.records.read import read_attempts, read_launch, read_status
from dst.records.store import Record
from tests.processes import REPOSITORY, wait_until


@pytest.fixture
def run(tmp_path):
    record = Record.create(tmp_path / "run", config_yaml="", run={"name": "a run"})
    record.write_status("preempted", attempt=2, step=5)
    return FrozenRun(str(record.folder), "a run", "", "")


@pytest.fixture
def supervisor(run, monkeypatch):
    """The first task of a job of SLURM, whose run has saved and ended."""
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "7"}.items():
        monkeypatch.setenv(name, value)
    for name in ("SLURM_ARRAY_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job, "_MAIN_WAIT_S", 0)
    monkeypatch.setattr(job.slurm, "notice", lambda job: Notice(False, 130.0))
    found = job._Supervisor(Job((run,), max_requeues=3, signal_delay_s=120))
    found.codes = {run.folder: 75}
    return found


def stopped(supervisor, *signals, requeue=lambda number, frame: None):
    """Return the cause on record after a job got these signals, and whether it was requeued."""
    calls = []
    for number in signals:
        supervisor._request(number, None)
    supervisor._stopped(list(supervisor.job.runs), lambda *found: calls.append(found) or requeue(*found))
    folder = job.Path(supervisor.job.runs[0].folder)
    return read_attempts(folder)[-1]["cause"], len(calls), read_status(folder)["error"]


def test_a_stop_request_is_final(supervisor):
    cause, requeues, error = stopped(supervisor, signal.SIGTERM)
    assert (cause, requeues) == ("stop request (SIGTERM)", 0)
    assert error == "stop request (SIGTERM) after step 5; stopped"


def test_what_follows_the_time_limit_does_not_take_the_requeueing_away(supervisor):
    """SLURM sends SIGTERM at the limit, while the run may still save."""
    assert stopped(supervisor, signal.SIGUSR2, signal.SIGTERM)[:2] == ("time limit", 1)


def test_preemption_may_be_announced_by_sigterm(supervisor, monkeypatch):
    """Where preempt_send_user_signal is not set, which is SLURM's default."""
    monkeypatch.setattr(job.slurm, "notice", lambda job: Notice(True, 3600.0))
    assert stopped(supervisor, signal.SIGTERM)[:2] == ("preemption", 1)


@pytest.mark.parametrize(
    ("notice", "cause"),
    [
        (Notice(False, 200.0), "time limit"),  # SLURM looks once a minute
        (Notice(False, -30.0), "time limit"),
        (Notice(False, 900.0), "stop request (SIGUSR2)"),
        (Notice(False, float("inf")), "stop request (SIGUSR2)"),
        (Notice(True, 10.0), "preemption"),
        (None, "time limit or preemption"),
    ],
)
def test_the_cause_is_what_slurm_says(supervisor, monkeypatch, notice, cause):
    """Wherever this signal comes from, the job goes back into the queue."""
    monkeypatch.setattr(job.slurm, "notice", lambda job: notice)
    assert stopped(supervisor, signal.SIGUSR2)[:2] == (cause, 1)


@pytest.mark.parametrize("whose", ["its own", "SLURM's"])
def test_the_number_of_requeues_is_limited(supervisor, monkeypatch, whose):
    if whose == "its own":
        supervisor.job.requeues = 3
    else:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    cause, requeues, error = stopped(supervisor, signal.SIGUSR2)
    assert (cause, requeues) == ("time limit", 0)
    assert "not requeued: it was 3 times (hardware.slurm.max_requeues)" in error


def test_a_requeueing_that_fails_is_told(supervisor):
    def refuse(*_):
        raise subprocess.CalledProcessError(1, ["scontrol", "requeue", "7"])

    cause, requeues, error = stopped(supervisor, signal.SIGUSR2, requeue=refuse)
    assert (cause, requeues) == ("time limit", 1)
    assert "it could not be requeued: Command '['scontrol', 'requeue', '7']'" in error


def test_a_requeued_job_remembers_who_failed(supervisor, run, tmp_path):
    supervisor.codes[str(tmp_path / "another")] = 1
    stopped(supervisor, signal.SIGUSR2)
    again = supervisor.job.checkpoint().function
    assert (again.runs, again.code, again.requeues) == ((run,), 1, 1)


def test_a_run_that_had_not_begun_has_no_attempt(supervisor, run):
    record = Record.open(job.Path(run.folder))
    record.write_status("queued", attempt=0, step=0)
    supervisor._request(signal.SIGTERM, None)
    supervisor._stopped([run], None)
    assert read_attempts(record.folder) == []
    assert read_status(record.folder)["state"] == "queued"


def test_a_run_that_ends_without_a_word_has_failed(supervisor, run, tmp_path):
    record = Record.open(job.Path(run.folder))
    (tmp_path / "log.txt").write_text("cannot be imported")
    child = job._Child(run, None, tmp_path / "log.txt", ())
    record.write_status("queued", attempt=0, step=0)
    assert supervisor._judged(child, 1) == 1
    status = read_status(record.folder)
    assert (status["state"], status["attempt"]) == ("failed", 0)
    assert "exit code 1 before it began" in status["error"]


@pytest.mark.parametrize(
    ("state", "code"), [("failed", 1), ("diverged", 3), ("done", 0), ("queued", 75), ("running", 75)]
)
def test_a_signal_that_meets_a_process_without_a_handler(supervisor, run, tmp_path, state, code):
    """One that had not begun goes on later; one that has said how it ended is not begun anew."""
    (tmp_path / "log.txt").write_text("")
    Record.open(job.Path(run.folder)).write_status(state, attempt=1, step=0)
    supervisor.requested = signal.SIGUSR2
    assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), -signal.SIGUSR2) == code


@pytest.mark.parametrize(("cluster", "left"), [("local", None), ("slurm", "7")])
def test_a_run_that_was_stopped_by_itself_leaves_a_job_that_never_resumes_it(supervisor, run, tmp_path, cluster, left):
    """So that it can be submitted again while others of its job go on; a job of SLURM may be put back with it."""
    supervisor.environment = SimpleNamespace(cluster=cluster, job_id="7")
    record = Record.open(job.Path(run.folder))
    for number, after in (("7", left), ("8", "8")):  # 8: it was submitted again already
        record.write_launch({"cluster": cluster, "job": number})
        assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), 75) == 75
        assert read_launch(record.folder)["job"] == after


@pytest.mark.parametrize("state", ["preempted", "running", "cancelled"])
def test_a_run_that_goes_on_and_ends_without_a_word_has_failed(supervisor, run, tmp_path, state):
    """Such as a continued one whose Python does not start any more."""
    (tmp_path / "log.txt").write_text("")
    Record.open(job.Path(run.folder)).write_status(state, attempt=2, step=5)
    with locked(job.Path(run.folder)):  # by hand, somewhere else: then it is the other one's state
        assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), 2) == 2
        assert read_status(job.Path(run.folder))["state"] == state
    # It was refused, and its node has told why wherever it is this run's state.
    assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), 2) == 2
    assert read_status(job.Path(run.folder))["state"] == state
    assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), 1) == 1
    status = read_status(job.Path(run.folder))
    assert (status["state"], status["attempt"], status["step"]) == ("failed", 2, 5)


@pytest.fixture
def signals_as_they_were():
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals_as_they_were")
def test_nothing_that_becomes_of_one_run_hurts_its_neighbours(supervisor, run, monkeypatch, tmp_path, capsys):
    """Gone before it starts, gone with its log while it runs, nonsense in its record, no memory for its process."""

    def end(name):
        """Let the process of a run find out what it is to do."""
        folder = tmp_path / name
        if name == "gone_later":
            job.shutil.rmtree(folder)
        if name == "mad":
            (folder / "status.json").write_text('{"state": ["running"], "attempt": "one"}')
            return "exit 3"
        return "kill -40 $$" if name == "gone_later" else "exit 0"

    def start(command, **options):
        name = job.Path(command[4]).name
        if name == "no_memory":
            raise MemoryError
        return popen(["sh", "-c", end(name)], **options)

    popen = subprocess.Popen
    monkeypatch.setattr(job.subprocess, "Popen", start)
    monkeypatch.setattr(job.slurm, "rename", lambda *_: None)
    names = ["gone", "gone_later", "mad", "no_memory", "fine"]
    runs = [FrozenRun(str(tmp_path / name), name, "", "") for name in names]
    for name in names[1:]:
        Record.create(tmp_path / name, config_yaml="", run={"name": name}).write_status("queued", attempt=0, step=0)
    supervisor.waiting, supervisor.codes, supervisor.job.runs = list(runs), {}, tuple(runs)
    assert supervisor.carry_out() == 1
    assert [supervisor.codes[run.folder] for run in runs] == [1, 1, 3, 1, 0]
    assert read_status(tmp_path / "no_memory")["error"] == "it could not be started: MemoryError: "
    told = capsys.readouterr()
    assert "gone: it could not be started: FileNotFoundError" in told.err
    assert "gone_later ended with exit code -40" in told.out


def test_a_run_that_was_given_to_another_job_is_left_to_it(supervisor, run, monkeypatch, capsys):
    """Its own job was believed to be lost, or was requeued by hand after the run had been submitted again."""
    started = []
    monkeypatch.setattr(supervisor, "_start", started.append)
    for owner in ("8_1", "7", None):
        Record.open(job.Path(run.folder)).write_launch({"cluster": "slurm", "job": owner})
        supervisor._start_or_tell(run)
    assert started == [run, run]
    assert supervisor.codes[run.folder] == 2
    assert "run: not started, since it was submitted again as job 8_1" in capsys.readouterr().out
    assert read_status(job.Path(run.folder))["state"] == "preempted"


def test_a_process_whose_parent_is_gone_is_asked_to_stop(tmp_path):
    """Killed before or after the process has said that it wants to know."""
    says = "import signal, time; from dst.signals import stop_with; import sys"
    heard = "signal.signal(signal.SIGTERM, lambda *_: (open(sys.argv[2], 'w').close(), sys.exit()))"
    child = f"{says}; {heard}; stop_with(int(sys.argv[1])); time.sleep(30)"
    shell = f'{sys.executable} -c "$0" $1 "$2" & sleep 1; kill -9 $$'
    begun = [
        subprocess.Popen(["sh", "-c", shell.replace("$1", who), child, "", str(tmp_path / name)], cwd=REPOSITORY)
        for name, who in {"later": "$$", "before": "1"}.items()
    ]
    for name, shell_process in zip(("later", "before"), begun, strict=True):
        assert shell_process.wait() == -signal.SIGKILL
        wait_until((tmp_path / name).exists, "not asked", 10)


def test_a_log_that_cannot_be_written_does_not_end_a_job():
    """Its disk is full."""
    said = "from dst.launcher.job import _say; _say('a line'); _say('another'); import os; os._exit(7)"
    with open("/dev/full", "w") as full:
        assert subprocess.run([sys.executable, "-c", said], stdout=full, check=False, cwd=REPOSITORY).returncode == 7


def test_each_run_gets_the_gpu_that_is_least_used(supervisor):
    supervisor.job.gpus, supervisor.job.parallel = ("0", "1"), 3
    for number, gpu in enumerate(["0", "1", "0"]):
        assert supervisor._gpus() == (gpu,)
        supervisor.running.append(job._Child(f"run {number}", None, None, (gpu,)))
    supervisor.running.pop(1)
    assert supervisor._gpus() == ("1",)
    supervisor.job.parallel = 1
    assert supervisor._gpus() == ("0", "1")


@pytest.mark.usefixtures("signals_as_they_were")
def test_a_second_interrupt_would_be_no_request(supervisor, monkeypatch):
    """SLURM signals all processes of a job, and the job its runs."""
    sent = []
    child = SimpleNamespace(process=SimpleNamespace(send_signal=sent.append))

    def reap():
        if sent:
            supervisor.running.clear()

    supervisor.running, supervisor.waiting, supervisor.requested = [child], [], signal.SIGINT
    monkeypatch.setattr(supervisor, "_reap", reap)
    monkeypatch.setattr(job.slurm, "rename", lambda *_: None)
    supervisor.carry_out()
    assert sent == [signal.SIGTERM]


def test_a_run_that_has_not_begun_is_not_waited_for(supervisor, run, monkeypatch):
    """As one process of a run whose other process was not started any more; the others save in their own time."""
    begun = Record.create(job.Path(run.folder).parent / "begun", config_yaml="", run={"name": "another"})
    other = FrozenRun(str(begun.folder), "another", "", "")
    started = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    supervisor.running = [job._Child(r, p, None, ()) for r, p in zip((run, other), started, strict=True)]
    with locked(begun.folder):
        supervisor._end_unbegun()
    assert started[0].wait() == -signal.SIGKILL
    assert started[1].poll() is None
    started[1].kill()
    started[1].wait()


def test_a_killed_run_has_failed(supervisor, run, tmp_path):
    (tmp_path / "log.txt").write_text("")
    Record.open(job.Path(run.folder)).write_status("running", attempt=3, step=5)
    assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), -signal.SIGKILL) == 1
    assert "killed by SIGKILL (was its memory too small?)" in read_status(job.Path(run.folder))["error"]
    (attempt,) = read_attempts(job.Path(run.folder))
    assert (attempt["attempt"], attempt["state"]) == (3, "failed")


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("diverged", 3), ("failed", 1)])
def test_a_run_that_is_killed_after_its_end_was_recorded_keeps_that_end(supervisor, run, tmp_path, state, code):
    (tmp_path / "log.txt").write_text("")
    Record.open(job.Path(run.folder)).write_status(state, attempt=1, step=5, error="as it was")
    assert supervisor._judged(job._Child(run, None, tmp_path / "log.txt", ()), -signal.SIGABRT) == code
    status = read_status(job.Path(run.folder))
    assert (status["state"], status["error"]) == (state, "as it was")
