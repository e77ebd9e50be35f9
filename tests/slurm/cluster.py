"""A real SLURM of one machine: controller, node, accounting and database, all in one temporary folder.

It needs the programs of Debian's ``slurm-wlm munge slurmdbd mariadb-server``, no system service and no file outside
its folder; clients find it by ``SLURM_CONF``. Ports are chosen free, so that it disturbs no SLURM that is there and
the workers of a parallel test run can have one each.
"""

import fcntl
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Literal, Self

from tests.slurm import daemons, files

PACKAGES = "slurm-wlm munge slurmdbd mariadb-server"
"""What has to be installed."""

REQUIRED = "DST_REQUIRE_SLURM"
"""With this environment variable at 1, tests fail where SLURM is missing."""

PROGRAMS = (
    "munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd",
    "sbatch", "squeue", "sacct", "scontrol", "scancel", "sinfo",
)  # fmt: skip
"""What the cluster and its tests call."""

_PREFIX = "dst-slurm-"
_LOCK = "owner.lock"
_STOP_ORDER = ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged")
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])  # daemons are not on everybody's path


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]


def verdict(missing: Sequence[str], environ: Mapping[str, str]) -> tuple[Literal["run", "skip", "fail"], str]:
    """Return what the tests do where these programs are missing, and why."""
    if not missing:
        return "run", ""
    reason = f"no SLURM here ({', '.join(missing)} missing): apt-get install {PACKAGES}"
    if environ.get(REQUIRED) == "1":
        return "fail", f"{reason} ({REQUIRED}=1)"
    return "skip", reason


class Cluster:
    """A running SLURM; a context manager that stops it.

    Partitions: ``batch`` (default), ``low`` (requeued by a job in ``high``, five seconds after its signal), ``high``.
    The node pretends to have eight CPUs and two GPUs.
    """

    def __init__(self, max_array_size: int = 1001) -> None:
        self._max_array_size = max_array_size
        self._stack = ExitStack()
        self.folder = Path()

    @property
    def conf(self) -> Path:
        """What ``SLURM_CONF`` has to be."""
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment of this process, with the cluster's ``SLURM_CONF``."""
        return {**os.environ, "PATH": _PATH, "SLURM_CONF": str(self.conf)}

    def __enter__(self) -> Self:
        remove_stale()
        with ExitStack() as stack:  # what a start that fails half-way has to take back
            # Short and below /tmp: a socket's path has at most 107 characters, and munge wants to be reachable by all.
            self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir="/tmp"))
            stack.callback(_remove, self.folder)
            stack.enter_context(_own(self.folder))
            self._write_files()
            self._start_daemons()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # -----------------------------------------------------------------------------------------------------------------
    # What tests do with it

    def run(self, *command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
        """Return what a command prints; ``AssertionError`` with all of it if the command fails."""
        done = subprocess.run(
            command, cwd=cwd, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{' '.join(command)}: code {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def sbatch(self, script: str, *options: str, cwd: Path) -> str:
        """Submit a shell script, with output in ``cwd/<job>.out``, and return the job's id."""
        options = ("--parsable", "--output=%j.out", *options)
        return self.run("sbatch", *options, f"--wrap={script}", cwd=cwd).strip()

    def sacct(self, job_id: str) -> list[dict[str, str]]:
        """Return ``JobID``, ``State`` and ``ExitCode`` of a job, a row each task of an array."""
        text = self.run("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "JobID,State,ExitCode")
        return [dict(zip(("JobID", "State", "ExitCode"), line.split("|"), strict=True)) for line in text.splitlines()]

    def jobs(self, job_id: str) -> list[dict[str, str]]:
        """Return what the controller knows of a job, by field, for each task; nothing once it has forgotten the job."""
        done = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job_id],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return [dict(word.split("=", 1) for word in line.split() if "=" in word) for line in done.stdout.splitlines()]

    def wait_for(self, job_id: str, states: str | Iterable[str], timeout: float = 60) -> list[dict[str, str]]:
        """Return the rows of a job, as ``sacct`` does, once every task of it is in one of the states.

        The accounting, which lags by seconds, is waited for only where jobs have ended. The first word of a state
        counts. ``TimeoutError``, with what there was, if that does not happen.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        rows: list[dict[str, str]] = []

        def arrived() -> bool:
            rows[:] = known = [_row(job) for job in self.jobs(job_id)]
            if not all(row["State"] in wanted for row in known):
                return False
            if known and wanted & {"PENDING", "RUNNING"} >= {row["State"] for row in known}:
                return True
            rows[:] = self.sacct(job_id)
            # The last task of an array is listed under the array's own id for a while.
            are_all = {row["JobID"] for row in known} <= {row["JobID"] for row in rows}
            return bool(rows) and are_all and all(row["State"].split()[0] in wanted for row in rows)

        self._wait(arrived, timeout, lambda: f"job {job_id} is not {' or '.join(sorted(wanted))}: {rows}")
        return rows

    def start_now(self, job_id: str, timeout: float = 60) -> None:
        """Let a requeued job start at once; SLURM would hold it for two minutes.

        It may still be on its way to the queue: waits until it is there.
        """
        state: list[str] = []

        def pending() -> bool:
            state[:] = [job["JobState"] for job in self.jobs(job_id)]  # COMPLETING while anything is on the node
            return state == ["PENDING"]

        self._wait(pending, timeout, lambda: f"job {job_id} is not PENDING but {state}")
        # A node refuses a job that comes again within the second it was killed in: FAILED, "credential revoked".
        time.sleep(1.1)
        self.run("scontrol", "update", f"jobid={job_id}", "StartTime=now")

    def cancel_all(self, timeout: float = 30) -> None:
        """Cancel every job, and wait until none is left on the node."""
        self.run("scancel", "--full", f"--user={getpass.getuser()}")
        left: list[str] = []

        def empty() -> bool:
            left[:] = self.run("squeue", "--noheader", "--format=%i %T").splitlines()
            return not left

        self._wait(empty, timeout, lambda: f"jobs that do not end: {left}")

    @staticmethod
    def _wait(condition: Callable[[], bool], timeout: float, complaint: Callable[[], str]) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{complaint()} (after {timeout:.0f} s)")
            time.sleep(0.1)

    # -----------------------------------------------------------------------------------------------------------------
    # Starting

    def _write_files(self) -> None:
        folder, user, ports = self.folder, getpass.getuser(), files.Ports(*_free_ports(4))
        folder.chmod(0o755)
        for name in ("state", "spool", "database"):
            (folder / name).mkdir()
        for name in ("gpu0", "gpu1"):
            (folder / name).touch()
        self.conf.write_text(files.slurm_conf(folder, user, ports, self._max_array_size))
        (folder / "gres.conf").write_text(files.gres_conf(folder))
        (folder / "database.cnf").write_text(files.database_cnf(folder, user, ports))
        (folder / "database.sql").write_text(files.DATABASE_SQL)
        for name, data in {
            "slurmdbd.conf": files.slurmdbd_conf(folder, user, ports).encode(),
            "munge.key": os.urandom(128),
        }.items():
            (folder / name).touch(0o600)
            (folder / name).write_bytes(data)
        self._ports = ports

    def _start_daemons(self) -> None:
        folder, ports = self.folder, self._ports
        at = [f"--{option}={folder}/{name}" for option, name in {
            "socket": "munged.socket", "key-file": "munge.key", "pid-file": "munged.pid",
            "log-file": "munged.log", "seed-file": "munged.seed",
        }.items()]  # fmt: skip
        self._start("munged", ["munged", "--foreground", *at], (folder / "munged.socket").exists)

        options = f"--defaults-file={folder}/database.cnf"
        installed = subprocess.run(
            ["mariadb-install-db", options, "--skip-test-db", "--auth-root-authentication-method=normal"],
            env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if installed.returncode:
            raise daemons.DaemonError(f"mariadb-install-db failed:\n{installed.stdout}{installed.stderr}")
        self._start("mariadbd", ["mariadbd", options], lambda: _listens(ports.database))
        self._start("slurmdbd", ["slurmdbd", "-D"], lambda: _listens(ports.slurmdbd))
        self._start("slurmctld", ["slurmctld", "-D"], lambda: self._answers("scontrol", "ping"))
        self._start("slurmd", ["slurmd", "-D", "-N", "localhost"], self._is_idle)

    def _start(self, name: str, command: Sequence[str], is_up: Callable[[], bool]) -> None:
        daemons.start(name, command, self.folder, self.env, is_up)

    def _answers(self, *command: str) -> bool:
        return subprocess.run(command, env=self.env, capture_output=True, timeout=30, check=False).returncode == 0

    def _is_idle(self) -> bool:
        return self.run("sinfo", "--noheader", "--partition=batch", "--format=%t").strip() == "idle"


def remove_stale() -> None:
    """Stop and remove the clusters of test runs that were killed."""
    for folder in Path("/tmp").glob(f"{_PREFIX}*"):
        # A process that uses a cluster holds its lock, and loses it by dying.
        with suppress(OSError), (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)


def _own(folder: Path) -> IO[str]:
    """Return the lock of a new folder; it gets its name once it is held, so that no process finds it free."""
    unnamed = folder / f".{_LOCK}"
    lock = unnamed.open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    unnamed.rename(folder / _LOCK)
    return lock


def _remove(folder: Path) -> None:
    """Stop what runs in a folder, the node first, and remove it."""
    daemons.stop(_STOP_ORDER[:1], folder)
    daemons.kill_jobs(folder / "slurm.conf")
    daemons.stop(_STOP_ORDER[1:], folder)
    shutil.rmtree(folder, ignore_errors=True)


def _row(job: Mapping[str, str]) -> dict[str, str]:
    """Return what ``sacct`` would say of a job that the controller knows."""
    job_id = job["JobId"]
    if "ArrayTaskId" in job:
        task = job["ArrayTaskId"]
        job_id = f"{job['ArrayJobId']}_{task if task.isdigit() else f'[{task}]'}"
    return {"JobID": job_id, "State": job["JobState"], "ExitCode": job["ExitCode"]}


def _free_ports(number: int) -> list[int]:
    """Return ports that no process listens on; all are held until the last is found, so that they differ."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0
