"""What looking at many runs costs: ``python -m tests.bench.records [--runs 10000]``.

One run is trained; its folder is copied that many times, with other ids, seeds, rates, methods and figures, into groups
of 250. Most copies are done; some failed, some wait, some were killed. Then each look at the tree is timed, in a
process of its own: finding all run folders, looking for one run as its start does, the catalog, each for the first time
and again, which has the indexes that the first left; and ``status``. On a busy machine the time of the processor says
more than the one of the clock.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dst.records.catalog import find_runs

ROOT = Path(__file__).parents[2]
RUN = (
    *("sparsity=rigl_itop", "model.hidden=[16]", "schedule.epochs=20", "tracking=none", "tracking.progress=none"),
    *("hardware.threads=1", "output.root=seed"),
)
GROUP = 250
"""Runs of a group."""
TARGET_S = {"catalog": 5.0, "catalog again": 1.0, "status": 5.0}
"""At 10,000 runs, on two cores."""

PREPARED = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
import pandas
from dst.launcher.status import main as status
from dst.records.catalog import catalog, find_runs
from dst.run.cell import looked_up
root = Path(sys.argv[1])
config = SimpleNamespace(output=SimpleNamespace(root=str(root)))
cell = SimpleNamespace(config=config, id=f"{7:012x}", at=lambda found, copies=(): found)
began, used = time.perf_counter(), time.process_time()
"""
"""What goes before; imports are no part of a time."""
LOOKS = {
    "walk": "find_runs(root)",
    "walk again": "find_runs(root)",
    "look-up of a start": "assert looked_up([cell])[0].name == cell.id",
    "catalog": "catalog(root)",
    "catalog again": "catalog(root)",
    "status": "sys.stdout = open(os.devnull, 'w'); status([str(root)]); sys.stdout = sys.__stdout__",
}
"""What is timed -> the statement."""
ENDED = "\nprint(time.perf_counter() - began, time.process_time() - used)"


def main() -> None:
    """Make the tree, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=2000, help="how many run folders (default: 2000)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="make the tree there, or use the one that is there")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.keep or Path(folder, "outputs")
        if not root.exists():
            began = time.perf_counter()
            make(root, options.runs)
            print(f"  {options.runs:,} run folders made in {time.perf_counter() - began:.1f} s", flush=True)
            time.sleep(3)  # what has just been written is in no index
        for what in LOOKS:
            show(what, root)


def show(what: str, root: Path) -> None:
    """Time a look at the tree, and print how long it took."""
    code = [sys.executable, "-c", PREPARED + LOOKS[what] + ENDED, str(root)]
    done = subprocess.run(code, cwd=ROOT, check=True, capture_output=True, text=True)
    seconds, used = map(float, done.stdout.split())
    target = f" (target at 10,000 runs: {TARGET_S[what]:g} s or less)" if what in TARGET_S else ""
    print(f"  {what:<18} {seconds:6.2f} s, of which the processor {used:5.2f} s{target}", flush=True)


# -- the tree ----------------------------------------------------------------------------------------------------------


def make(root: Path, runs: int) -> None:
    """Make an output root with so many runs, in groups."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, str(ROOT / "run.py"), *RUN], cwd=folder, check=True, capture_output=True)
        (first,) = find_runs(Path(folder, "seed"))
        files = {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()}
    for number in range(runs):
        write(root / f"sweep_{number // GROUP:03}" / f"{number:012x}", dict(varied(files, number)))


def write(folder: Path, files: dict[Path, bytes]) -> None:
    """Write the files of a run."""
    (folder / "checkpoints").mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def varied(files: dict[Path, bytes], number: int) -> Iterator[tuple[Path, bytes]]:
    """Yield the files of one of the runs."""
    about, status, summary = (json.loads(files[Path(f"{name}.json")]) for name in ("run", "status", "summary"))
    seed, rate, method = (
        number % 10,
        (0.1, 0.05, 0.02, 0.01, 0.005)[number // 10 % 5],
        ("rigl", "set")[number // 50 % 2],
    )
    chosen = {"seed": seed, "schedule.lr.peak": rate, "sparsity.label": method}
    changed: dict[str, Any] = {"id": f"{number:012x}", "name": f"digits mlp {method} lr={rate} seed={seed} #{number}"}
    about |= changed | {"identity": about["identity"] | chosen, "config": about["config"] | chosen}
    state = {17: "failed", 18: "queued", 19: "running"}.get(number % 20, "done")
    status |= {"state": state, "error": "RuntimeError: boom" if state == "failed" else None}
    figures = {name: value * (1 + number / 1e6) for name, value in summary.items() if isinstance(value, float)}
    yield from (item for item in files.items() if item[0].name not in ("run.json", "status.json", "summary.json"))
    yield Path("run.json"), json.dumps(about, indent=2).encode()
    yield Path("status.json"), json.dumps(status, indent=2).encode()
    if state == "done":
        yield Path("summary.json"), json.dumps(summary | figures, indent=2).encode()


if __name__ == "__main__":
    main()
