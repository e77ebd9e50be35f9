"""Many ways of Ctrl-C: ``python -m tests.chaos.ctrl_c --ways 100``.

Each way starts a command as a terminal would, and presses Ctrl-C one to three times from a random moment on. It must
end with one line and exit code 75 (saved) or 130, or 0 if it was done before; and the next start, which is the next
way, continues. What is whole in the end is compared with undisturbed runs. The interpreter's own start, before the
first line of ours, is left out: Ctrl-C waits until then.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dst.records.catalog import find_runs
from dst.records.read import read_status
from dst.signals import blocked
from tests.data.pictures import write_folder
from tests.processes import REPOSITORY, traces

SMALL = (
    *("model.hidden=[32]", "sparsity=rigl_itop", "schedule.update_every=10", "tracking.every_steps=10"),
    *("checkpoint.every_steps=50", "tracking=none", "hardware.threads=1"),
)
NEVER = ("Traceback", "Exception ignored", "Fatal Python error", "KeyboardInterrupt")
LAST_WORDS = ("stopped by SIGINT after step", "interrupted", "stopped on request")
DONE, SAVED, INTERRUPTED = 0, 75, 130
PATIENCE_S = 120.0
COMMANDS = {
    "one run": (*SMALL, "schedule.epochs=60"),
    "a sweep": (*SMALL, "schedule.epochs=30", "-m", "seed=0,1"),
    "streamed images": (
        *(*SMALL, "data=image_folder", "data.root={pictures}", "data.size=10", "data.val_fraction=0.1"),
        *("data.mean=[0.5,0.5,0.5]", "data.std=[0.25,0.25,0.25]", "data.storage=stream", "hardware.workers=1"),
        *("schedule.epochs=30", "schedule.batch_size=8"),
    ),
}
"""Their options; what is prepared of the images is removed before each way, so that it is prepared again."""


@dataclass
class Way:
    """How a command was interrupted: after ``moment`` seconds, then after each of the ``gaps``; and how it ended."""

    moment: float
    gaps: Sequence[float]
    code: int = 0
    output: str = ""
    seconds: float = 0.0
    """From the first Ctrl-C to the end."""
    pressed: int = 0
    """How often it was: the command may end before."""


@dataclass
class Command:
    """A command in a folder of its own, and what is known of it."""

    name: str
    options: Sequence[str]
    folder: Path
    seconds: float = 0.0
    reference: dict[str, dict[str, object]] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    """The step at which each run was saved last on request."""

    def start(self, way: Way) -> Way:
        """Carry out the command, and interrupt it in this way."""
        shutil.rmtree(self.folder / "outputs" / ".cache", ignore_errors=True)
        (self.folder / "outputs").mkdir(parents=True, exist_ok=True)
        log = self.folder / "log.txt"
        began = time.monotonic()
        with log.open("wb") as output, blocked([signal.SIGINT]):  # Ctrl-C waits until the program is there
            process = subprocess.Popen(
                [sys.executable, str(REPOSITORY / "run.py"), *self.options],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # a terminal signals a whole group
            )
        try:
            for pause in (way.moment, *way.gaps):
                if _has_ended(process, pause):
                    break
                began = began if way.pressed else time.monotonic()
                way.pressed += 1
                os.killpg(process.pid, signal.SIGINT)
            way.code = process.wait(PATIENCE_S)
            way.seconds = time.monotonic() - began
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        way.output = log.read_text(errors="replace")
        return way

    def runs(self) -> list[Path]:
        """Return the folders of its runs."""
        return sorted(find_runs(self.folder / "outputs"))

    def again(self) -> None:
        """Begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.saved.clear()


def _has_ended(process: "subprocess.Popen[bytes]", within: float) -> bool:
    try:
        process.wait(within)
    except subprocess.TimeoutExpired:
        return False
    return True


UNDISTURBED = Way(PATIENCE_S, ())


def faults(command: Command, way: Way) -> list[str]:
    """Return what is wrong with how a command ended, and with what it said about where it goes on."""
    found = [f"it says '{word}'" for word in NEVER if word in way.output]
    if way.code not in (DONE, SAVED, INTERRUPTED):
        found.append("this is no exit code of an interrupted command")
    states = {folder.name: (read_status(folder) or {}).get("state") for folder in command.runs()}
    if way.code == DONE and set(states.values()) != {"done"}:
        found.append(f"it claims to be done, but its runs are {states}")
    lines = [line for line in way.output.splitlines() if any(word in line for word in LAST_WORDS)]
    least = 0 if way.code == DONE else 1
    most = 2 if command.name == "a sweep" else 1  # its run, and the sweep
    if not least <= len(lines) <= most:
        found.append(f"it has {len(lines)} last lines instead of one")
    for run, step in command.saved.items():
        heard = [line for line in way.output.splitlines() if line.startswith(f"run {run}") or f"] run {run}" in line]
        begun = [line for line in heard if "; training" in line or "continuing from step" in line]
        went_on = [int(line.split("continuing from step ")[1].split(",")[0]) for line in begun if "continuing" in line]
        if begun and not (went_on and went_on[0] >= step):
            found.append(f"run {run} was saved at step {step}, but: {begun[0]}")
    return found


def note_saved(command: Command) -> None:
    """Remember where the runs were saved on request, for the next start."""
    for folder in command.runs():
        status = read_status(folder) or {}
        if status.get("state") == "preempted" and "stopped by" in str(status.get("error")):
            command.saved[folder.name] = status["step"]


def measured(name: str, folder: Path, options: Sequence[str]) -> Command:
    """Return a command with the time it takes and what it leaves behind when nobody disturbs it."""
    command = Command(name, options, folder)
    began = time.monotonic()
    way = command.start(UNDISTURBED)
    assert way.code == DONE, way.output
    command.seconds = time.monotonic() - began
    command.reference = {folder.name: traces(folder) for folder in command.runs()}
    command.again()
    return command


def differing(command: Command) -> list[str]:
    """Return the runs that do not end as the undisturbed ones; all have ended."""
    found = {folder.name: traces(folder) for folder in command.runs()}
    return [name for name, reference in command.reference.items() if found.get(name) != reference]


def random_way(command: Command, chance: random.Random) -> Way:
    """Return a random moment, of late ones more, and up to two further ones shortly after: milliseconds to a second."""
    gaps = [10 ** chance.uniform(-3, 0) for _ in range(chance.randrange(3))]
    return Way(command.seconds * chance.random() ** 0.5, gaps)


def main() -> int:
    """Try the ways, print each and the totals; return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.ctrl_c", description=__doc__)
    parser.add_argument("--ways", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    options = parser.parse_args()
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell may have let this be deaf to it, and its children
    chance, wrong = random.Random(options.seed), 0
    ends: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ctrl-c-") as place:
        pictures = write_folder(Path(place, "pictures"), {"train": 33, "val": 5})
        commands = [
            measured(name, Path(place, name), [word.format(pictures=pictures) for word in words])
            for name, words in COMMANDS.items()
        ]
        for command in commands:
            print(f"{command.name}: {command.seconds:.1f} s undisturbed", flush=True)
        number = 0
        while sum(ends.values()) < options.ways:
            number += 1
            command = commands[number % len(commands)]
            way = command.start(random_way(command, chance))
            found = faults(command, way)
            note_saved(command)
            if way.code == DONE:
                found += [f"run {name} does not end as undisturbed" for name in differing(command)]
                command.again()
            wrong += bool(found)
            if way.pressed:
                ends[f"exit code {way.code}"] += 1
            told = f"{command.name}, after {way.moment:.2f} s, {way.pressed} x: {way.code}, {way.seconds:.2f} s later"
            print(f"{number:4} {told}", *(f"\n     WRONG: {text}" for text in found), flush=True)
            if found:
                print(way.output, flush=True)
        for command in commands:  # the last start continues too, to the end
            way = command.start(UNDISTURBED)
            found = [*faults(command, way), *differing(command)]
            wrong += bool(found)
            print(f"{command.name}, to its end: {way.code}", *found, way.output if found else "", flush=True)
    print(f"{options.ways} ways, {wrong} wrong; {dict(ends)}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
