"""What submitting sweeps costs: ``python -m tests.bench.submit``.

Sweeps of 1,000 cells: one of 1,000 learning rates, the first of which is impossible; and, on a machine with SLURM with
``--slurm 1000``, one of 5 methods, 2 densities and 100 seeds, which is frozen, submitted (held) and cancelled; or of as
many cells as are given (SLURM takes 10,000 at a time unless its MaxJobCount says more). Then, or with ``--packing``
only, the throughput of four runs side by side in a job against one after another.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
METHODS = "sparsity=set_itop,rigl,static,granet,gmp"
TARGET_S = {1000: 20, 12000: 150}
"""On a quiet machine, by the number of cells."""
BAD = ("sparsity=rigl_itop", f"schedule.lr.peak={','.join(str(k / 1000) for k in range(1000))}")
"""A rate of 0 is none."""
RUN = ("sparsity=rigl_itop", "hardware.threads=1", "tracking=none")
ON = {
    "cpu": ("model.hidden=[256,256]", "schedule.epochs=60"),
    "gpu": ("hardware=gpu", "model=resnet20", "data.size=32", "schedule.batch_size=64", "schedule.epochs=60"),
}
"""What is run side by side, by hardware."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--slurm", type=int, metavar="CELLS", help="submit this many held jobs to SLURM, then cancel them"
    )
    parser.add_argument("--packing", choices=ON, help="compare runs side by side on this hardware, and nothing else")
    options = parser.parse_args()
    if options.packing is None:
        _launch(options.slurm)
    _pack(ON[options.packing or "cpu"])


def _launch(slurm: int | None) -> None:
    launcher = "slurm" if slurm else "local"
    with tempfile.TemporaryDirectory() as folder:
        before = _processor_s()
        code, seconds, output = _timed(folder, "-m", f"hydra/launcher={launcher}", *BAD)
        told = [line for line in output.splitlines() if "peak=0.0" in line]
        print(
            f"  1,000 cells, 1 of them bad: exit code {code}, {len(told)} named, {seconds:.1f} s "
            f"(target: 15 s or less), of which the processor {_processor_s() - before:.1f} s"
        )
    if slurm:
        with tempfile.TemporaryDirectory() as folder:
            held = ("hydra/launcher=slurm", "hardware.slurm.options=[hold]", "tracking=none")
            good, before = (METHODS, "sparsity.density=0.1,0.2", f"seed=range(0,{slurm // 10})"), _processor_s()
            code, seconds, output = _timed(folder, "-m", *held, *good)
            target = f" (target: {TARGET_S[slurm]} s or less)" if slurm in TARGET_S else ""
            print(
                f"  {slurm:,} cells frozen and submitted: exit code {code}, {seconds:.1f} s{target}, "
                f"of which the processor {_processor_s() - before:.1f} s"
            )
            print("\n".join(f"    {line}" for line in output.splitlines()))
            subprocess.run(["scancel", f"--user={os.environ.get('USER', 'root')}"], check=False)


def _pack(options: tuple[str, ...]) -> None:
    one_by_one, together = sweep(4, options), sweep(4, options, packed=True)
    if one_by_one.code or together.code:
        told = f"{one_by_one.output}\n{together.output}"
        sys.exit(f"a run failed: exit codes {one_by_one.code} and {together.code}\n{told}")
    first, second = one_by_one.seconds, together.seconds
    print(f"  4 runs one after another in one process {first:.1f} s, side by side in one job {second:.1f} s:")
    print(f"    throughput {first / second:.2f} x on {os.cpu_count()} cores")


class Done(NamedTuple):
    """A command that has ended, and all that it, and the jobs that it started, have printed."""

    code: int
    seconds: float
    output: str


def sweep(runs: int, options: Sequence[str], *, packed: bool = False, **of_process: Any) -> Done:
    """Carry out so many runs, one after another in one process, or side by side in one job (``packed``).

    ``of_process``: what else ``subprocess.run`` takes, such as ``env``, or ``timeout``, after which the job is ended.
    """
    job = ("hydra/launcher=local", "hydra.launcher.wait=true", "hydra.launcher.max_parallel=1")
    how = (*job, f"hydra.launcher.runs_per_job={runs}") if packed else ()
    seeds = f"seed={','.join(map(str, range(runs)))}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = Done(*_timed(folder, "-m", *how, *RUN, *options, seeds, **of_process))
        except subprocess.TimeoutExpired:
            end = [sys.executable, "-m", "dst.launcher.cancel", folder]
            subprocess.run(end, cwd=ROOT, capture_output=True, check=False)
            raise
        logs = "\n".join(path.read_text(errors="replace") for path in sorted(Path(folder).rglob("*.out")))
    return done._replace(output=f"{done.output}\n{logs}")


def _processor_s() -> float:
    """Return the seconds of processor time of the commands so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _timed(folder: str, *arguments: str, **of_process: Any) -> tuple[int, float, str]:
    started = time.perf_counter()
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, **of_process)
    return done.returncode, time.perf_counter() - started, done.stdout + done.stderr


if __name__ == "__main__":
    main()
