"""``python -m tests.golden COMMIT`` tells whether today's code trains every method to the same bits as that commit's.

Both run the same commands on this machine through ``run.py``, once undisturbed and once killed and continued; then
weights, masks, optimizer state and the lines of the record (times aside) are compared. Only files of the record and of
the checkpoint are read, since modules move. Bits differ between kinds of CPU, so they are compared, never committed.
"""

import argparse
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
PROBLEMS = {
    "mlp": ("model.hidden=[64,32]", "schedule.epochs=2"),
    "conv": ("model=resnet20", "schedule.epochs=2", "schedule.batch_size=256"),
}
"""What each method trains on: digits, 42 steps of linear layers and 12 of convolutions."""
EVERY = {"mlp": 10, "conv": 3}
"""Steps from update to update: three updates or more also for a method that stops at 75 %."""
COMMON = (
    *("tracking=none", "tracking.progress=none", "tracking.every_steps=1", "checkpoint.every_steps=2"),
    *("hardware.determinism=strict", "hardware.threads=1"),
)
STATE = ("model", "optimizer", "sparsifier")
COUNTERS = ("step", "evaluated", "val_loss", "val_accuracy", "samples")


def main() -> int:
    """Compare, print a line a method and problem, and return 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    parser.add_argument("commit", help="the commit to compare with, e.g. HEAD~1")
    parser.add_argument("--methods", nargs="*", help="only these (default: all that both have)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        then, now = Path(temporary) / "then", Path(temporary) / "now"
        unpack(options.commit, then)
        copy(now)
        methods = options.methods or sorted(methods_of(then) & methods_of(now))
        if only := sorted(methods_of(then) ^ methods_of(now)):
            print(f"in one of the two only, not compared: {', '.join(only)}")
        return int(sum(differs(then, now, problem, methods) for problem in PROBLEMS) > 0)


def unpack(commit: str, folder: Path) -> None:
    """Lay the tracked files of a commit into a folder."""
    archive = subprocess.run(["git", "archive", commit], cwd=REPOSITORY, stdout=subprocess.PIPE, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def copy(folder: Path) -> None:
    """Lay what runs of the working tree into a folder."""
    folder.mkdir()
    for name in ("dst", "conf"):
        shutil.copytree(REPOSITORY / name, folder / name)
    shutil.copy(REPOSITORY / "run.py", folder)


def methods_of(folder: Path) -> set[str]:
    """Return the names of all methods."""
    return {path.stem for path in (folder / "conf" / "sparsity").glob("*.yaml")}


def differs(then: Path, now: Path, problem: str, methods: list[str]) -> bool:
    """Run a problem by both, twice, and say of every method whether anything differs."""
    reference = outcomes(then, problem, methods, kill=False)
    found = {"undisturbed": outcomes(now, problem, methods, kill=False)}
    found["killed and continued"] = outcomes(now, problem, methods, kill=True)
    any_differs = False
    for method in methods:
        for way, outcome in found.items():
            differences = list(compare(reference[method], without_new_figures(outcome[method], reference[method]), ""))
            any_differs |= bool(differences)
            told = "; ".join(differences[:4]) + (f"; and {len(differences) - 4} more" if len(differences) > 4 else "")
            print(f"{problem:5} {method:16} {way:21} {told or 'same'}", flush=True)
    return any_differs


def outcomes(code: Path, problem: str, methods: list[str], *, kill: bool) -> dict[str, Any]:
    """Train every method, in as few sweeps as can be; return what it came to, by method.

    In one sweep, two names of one composition may be one run.
    """
    found: dict[str, Any] = {}
    while left := [method for method in methods if method not in found]:
        new = swept(code, code / f"{problem}{kill}{len(found)}", problem, left, kill=kill)
        assert new.keys() & set(left), f"none of {', '.join(left)} was trained"
        found |= new
    return found


def swept(code: Path, outputs: Path, problem: str, methods: list[str], *, kill: bool) -> dict[str, Any]:
    """Train methods in one sweep; return what the runs came to, by the method that gives them their name."""
    options = (*PROBLEMS[problem], f"schedule.update_every={EVERY[problem]}", *COMMON, f"output.root={outputs}")
    command = [sys.executable, "run.py", "-m", f"sparsity={','.join(methods)}", *options]
    if kill:
        kill_in_every_run(command, code, outputs, len(methods))
    subprocess.run(command, cwd=code, stdout=subprocess.DEVNULL, check=True)
    folders = [path.parent for path in (outputs / "default").glob("*/summary.json")]
    if kill and (undisturbed := [choice(folder) for folder in folders if attempts(folder) == 1]):
        print(f"{problem:5} no kill has met {', '.join(undisturbed)}")
    return {choice(folder): outcome(folder) for folder in folders}


def kill_in_every_run(command: list[str], code: Path, outputs: Path, runs: int) -> None:
    """Start the command again and again, and kill it each time in the middle of the next run."""
    for nth in range(1, runs + 1):
        with subprocess.Popen(command, cwd=code, stdout=subprocess.DEVNULL) as process:
            while process.poll() is None and len(list(outputs.glob("default/*/checkpoints/*"))) < 2 * nth:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)


def choice(folder: Path) -> str:
    """Return which method a run is of."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    return str(config["sparsity"]["label"])


def attempts(folder: Path) -> int:
    """Return how often a run was begun or continued."""
    return int(json.loads((folder / "status.json").read_text())["attempt"])


def outcome(folder: Path) -> dict[str, Any]:
    """Return what a run came to: the state in its newest checkpoint, and the lines of its record."""
    newest = max(folder.glob("checkpoints/*.pt"), key=lambda path: path.stat().st_mtime_ns)
    state = torch.load(newest, map_location="cpu", weights_only=True)
    return {
        **{name: state[name] for name in STATE},
        "counters": {name: state["counters"][name] for name in COUNTERS},
        "flops": flops(state),
        "metrics": history(folder / "metrics.jsonl"),
        "layers": history(folder / "layers.jsonl"),
        "networks": history(folder / "networks.jsonl"),
        "summary": timeless(json.loads((folder / "summary.json").read_text())),
    }


def flops(state: Mapping[str, Any]) -> int:
    """Return the training FLOPs of a checkpoint, of code with a ledger or from before it."""
    if "ledger" not in state:
        return int(state["counters"]["flops"])
    return sum(total for account, total in state["ledger"].items() if account != "measuring")


def history(path: Path) -> list[dict[str, Any]]:
    """Return the lines that count: each step's last word, times and attempts aside. No file: none."""
    lines: dict[tuple[Any, ...], dict[str, Any]] = {}
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else []):
        if "event" not in line:
            values = timeless(line)
            lines[line["step"], *(line.get(name) for name in ("phase", "name", "layer")), *sorted(values)] = values
    return [lines[key] for key in sorted(lines, key=str)]


def timeless(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are to be the same whenever and in however many attempts a run is carried out."""
    return {key: value for key, value in line.items() if not key.startswith("time/") and key != "attempt"}


def without_new_figures(outcome: dict[str, Any], reference: Mapping[str, Any]) -> dict[str, Any]:
    """Return an outcome without the final figures that the reference does not have; they change none that it has."""
    figures = reference["summary"].keys()
    return {**outcome, "summary": {key: value for key, value in outcome["summary"].items() if key in figures}}


def compare(one: Any, other: Any, where: str) -> Iterator[str]:
    """Yield where two nested states differ."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{where}: {one.dtype} {list(one.shape)} became {other.dtype} {list(other.shape)}"
        elif not torch.equal(one, other):
            yield f"{where}: {int((one != other).sum())} of {one.numel()} values"
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in one.keys() | other.keys():
            if key not in one or key not in other:
                yield f"{where}.{key} is in {'the former' if key in one else 'the latter'} only"
            else:
                yield from compare(one[key], other[key], f"{where}.{key}".lstrip("."))
    elif isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            yield f"{where}: {len(one)} items became {len(other)}"
        for i, pair in enumerate(zip(one, other, strict=False)):
            yield from compare(*pair, f"{where}[{i}]")
    elif one != other:
        yield f"{where}: {one} became {other}"


if __name__ == "__main__":
    sys.exit(main())
