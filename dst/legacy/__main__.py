"""``python -m dst.legacy [--from PAPER] [--as-run] "python main.py ..."``: a published command, as one of ours.

Exit codes: 0 translated; 2 it cannot be, and why.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from dst.config.schema import ConfigError
from dst.legacy.recognise import papers
from dst.legacy.tables import LegacyError
from dst.legacy.translate import text, translate
from dst.legacy.write import same_as
from dst.run.terminal import program

REFUSED: Final = 2
_REPOSITORY: Final = Path(__file__).resolve().parents[2]

_DESCRIPTION: Final = """\
Translate a command of the published codes of ITOP, AGENT, GraNet, Sup-tickets, shuffled blocks (DSB), and "Why Random
Pruning Is All We Need to Start Sparse" into ours. What it prints can be pasted: the command, then comments on how it
was read, what the published code ignores, what has no equivalent, and which published defaults are written out.

By default a command is read as its README says. --as-run reads it as the published code carries it out, as far as keys
can say that; the rest is listed as not reproduced."""

_EPILOG: Final = """\
for example:
  python -m dst.legacy --from itop "python main.py --sparse --growth gradient --model vgg-c --data cifar10"
  python -m dst.legacy "make cifar10.ERK.RigL DENSITY=0.2"
the command may also come from standard input: -
docs/from_published_codes.md has more."""


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line, without the program's name; return the exit code."""
    options = _parser().parse_args(list(arguments))
    words = options.command
    command = sys.stdin.read() if words == ["-"] else words[0] if len(words) == 1 else shlex.join(words)
    conf = _REPOSITORY / "conf"
    if not conf.is_dir():
        return _refused([f"{conf} is missing: translate in a clone of the repository, whose configs say what ours are"])
    try:
        found = translate(command, conf, source=options.source, as_run=options.as_run)
        preset = same_as(conf, found.overrides, found.paper, _REPOSITORY / "experiments" / "commands.csv")
    except LegacyError as error:
        return _refused(error.problems)
    except ConfigError as error:
        return _refused([f"the translated run is invalid: {problem}" for problem in error.problems])
    print(text(found, preset))
    return 0


def _refused(problems: Sequence[str]) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dst.legacy",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", dest="source", choices=papers(), metavar="PAPER", help=", ".join(papers()))
    parser.add_argument("--as-run", action="store_true", help="read it as the published code carries it out")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="the published command, in quotes")
    parser.set_defaults(command=[])
    return parser


if __name__ == "__main__":
    sys.exit(program(lambda: main(sys.argv[1:])))
