"""Entry point: ``python run.py [group=option] [key=value] [-m]``; ``--help`` explains."""

import sys
from pathlib import Path

from dst.cli import main
from dst.run.terminal import program

if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:], conf=Path(__file__).resolve().parent / "conf"), shows=False))
