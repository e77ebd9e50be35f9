"""One HTML file about the runs below some folders: ``python -m analysis.report DIR... [--out report.html]``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.runs import NoRunsError, load
from analysis.selection import SelectionError
from analysis.tables import WHERE
from analysis.text import show
from dst.files import replace_text
from dst.run import given
from dst.run.terminal import program

_DESCRIPTION = """\
Make one HTML file about the runs below the folders: what ran, tables, figures, what failed or is missing and how to
mend it, how to reproduce it, and the numbers to save. It needs no network and no scripts, so it can be mailed. The same
runs make the same file."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.report", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dirs", type=given.path, nargs="+", metavar="DIR", help="folder of runs, e.g. outputs")
    parser.add_argument(
        "--out", type=given.path, default=Path("report.html"), metavar="FILE", help="default: report.html"
    )
    parser.add_argument("--where", action="append", type=given.word, default=[], metavar="KEY=VALUE", help=WHERE)
    options = parser.parse_args(arguments)
    try:
        frame = load(options.dirs, options.where)
    except (NoRunsError, SelectionError) as error:
        show([str(error)], sys.stderr)
        return 2
    _tell(f"{len(frame)} runs")
    from analysis.report.page import render  # here: it imports what draws, which a wrong folder need not wait for

    page = render(options.dirs, frame, _tell)
    try:
        replace_text(options.out, page)
    except OSError as error:
        show([f"cannot write the report: {error}"], sys.stderr)
        return 1
    show([f"{options.out}: {len(frame)} runs, {len(page.encode()) / 1e6:.2f} MB"])
    return 0


def _tell(what: str) -> None:
    print(f"  {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(program(main))
