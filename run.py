"""Entry point: ``python run.py [group=option] [key=value] [-m]``; ``--help`` explains."""

import sys
from pathlib import Path

from dst.run.terminal import program


def _main() -> int:
    from dst.cli import main  # within the program, which answers Ctrl-C

    return main(sys.argv[1:], conf=Path(__file__).resolve().parent / "conf")


if __name__ == "__main__":
    sys.exit(program(_main, shows=False))
