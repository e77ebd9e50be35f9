"""What a GPU gives: ``python -m tests.bench.gpu``, which takes at most eight minutes, or ``--minutes``.

Five sections, the most important figures first: ``speed`` (samples a second of the real loop, eager and captured,
against pure compute and a plain loop), ``updates`` (of every method's topology), ``packed`` (runs side by side),
``memory`` (what a captured step holds and costs), ``compiled`` (the ways in which torch itself saves launches). Each
figure is a row of a CSV file as soon as it is known. What fails is a row with the error; the others go on, and the
exit code is 1. ``--device cpu --quick`` tries the script out.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch

from tests.bench.gpu.memory import memory
from tests.bench.gpu.packed import packed
from tests.bench.gpu.plan import Plan, quick
from tests.bench.gpu.speed import MODELS, compiled, speed
from tests.bench.gpu.table import Clock, Row, Table, failure
from tests.bench.gpu.updates import updates

Section = Callable[[Plan], Iterator[Row]]

SECTIONS: Final[Mapping[str, tuple[Section, float]]] = {
    "speed": (speed, 0.36),
    "updates": (updates, 0.18),
    "packed": (packed, 0.26),
    "memory": (memory, 0.04),
    "compiled": (compiled, 0.16),
}
"""In this order, each with its share of the time; what one leaves over is the next one's."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit code."""
    options = _read(arguments)
    clock = Clock(60 * options.minutes)
    sizes = {"device": options.device, "models": options.models, "clock": clock}
    plan = quick(**sizes) if options.quick else Plan(**sizes)
    with Table.open(options.csv, options.device) as table:
        print(f"torch {torch.__version__}, {options.device}, batch {plan.batch}; rows go to {options.csv}", flush=True)
        for name in options.only:
            section, share = SECTIONS[name]
            print(f"{name}:", flush=True)
            clock.begin(share / sum(SECTIONS[other][1] for other in options.only))
            try:
                for row in section(plan):
                    table.add(row)
            except Exception as error:
                table.add(failure(Row(name, "", "", ""), error))
    return 1 if table.failures else 0


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=(), help="of speed, memory and compiled")
    parser.add_argument("--minutes", type=float, default=8, help="for all sections together (default 8)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, which say nothing about speed")
    parser.add_argument("--csv", type=Path, default=Path("outputs/bench_gpu.csv"), help="a file for all figures")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU on this machine; --device cpu --quick tries the script out")
    return options


if __name__ == "__main__":
    sys.exit(main())
