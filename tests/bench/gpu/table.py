"""The table of figures: a row for each, written whole as soon as it is known; and the time that is left."""

import csv
import io
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Self, TextIO

import torch


@dataclass(frozen=True)
class Row:
    """A figure of one variant; ``value`` is None where there is none, and ``note`` says why.

    ``ratio``: how many times better it is than ``against`` was in the same interleaved run; median of the rounds.
    """

    section: str
    what: str
    precision: str
    variant: str
    value: float | None = None
    unit: str = ""
    ratio: float | None = None
    against: str = ""
    target: str = ""
    note: str = ""
    failed: bool = False

    def __str__(self) -> str:
        value = "" if self.value is None else f"{self.value:.1f} {self.unit}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f} x {self.against}"
        target = f"({self.target})" if self.target else ""
        named = f"  {self.what:<16} {self.precision:<5} {self.variant:<32}"
        return " ".join(filter(None, [named, f"{value:>22}", ratio, target, self.note])).rstrip()


def failure(row: Row, error: Exception) -> Row:
    """Return the row of a figure that an error stood in the way of: its name, and its first line."""
    first = (str(error).strip().splitlines() or [""])[0]
    note = f"{type(error).__name__}: {first}"
    return Row(row.section, row.what, row.precision, row.variant, note=note, failed=True)


def machine(device: str) -> dict[str, str]:
    """Return where and when figures are taken."""
    on_gpu = device != "cpu"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "card": torch.cuda.get_device_name() if on_gpu else "cpu",
        "driver": _driver() if on_gpu else "",
        "torch": str(torch.__version__),
    }


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.partition("\n")[0].strip()


class Table:
    """A CSV file, which a script that is killed leaves with whole rows."""

    def __init__(self, file: TextIO, where: dict[str, str]) -> None:
        self._file, self._where = file, where
        self.failures = 0
        self._write([*where, *(field.name for field in fields(Row))])

    @classmethod
    @contextmanager
    def open(cls, path: Path, device: str) -> Iterator[Self]:
        """Yield a table in a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            yield cls(file, machine(device))

    def add(self, row: Row) -> None:
        """Write and print a row."""
        self.failures += row.failed
        self._write([*self._where.values(), *asdict(row).values()])
        print(row, flush=True)

    def _write(self, cells: list[object]) -> None:
        line = io.StringIO()
        csv.writer(line).writerow(cells)
        self._file.write(line.getvalue())
        self._file.flush()


class Clock:
    """The time of a section, of which what earlier ones have left over is its own, too; it is spent piece by piece."""

    def __init__(self, budget_s: float) -> None:
        self._ends, self._budget_s, self._longest = time.monotonic(), budget_s, 0.0

    def begin(self, share: float) -> None:
        """Begin a section with this share of all the time."""
        self._ends += share * self._budget_s
        self._longest = 0.0

    @contextmanager
    def piece(self) -> Iterator[None]:
        """Spend time on a piece of the section."""
        started = time.monotonic()
        yield
        self._longest = max(self._longest, time.monotonic() - started)

    @property
    def is_over(self) -> bool:
        """Say whether another piece, as long as the longest one so far, would take more than is left."""
        return self.left <= self._longest

    @property
    def left(self) -> float:
        """Seconds until the section shall end."""
        return self._ends - time.monotonic()
