"""The command: ``python -m analysis.figures DIR... --out FOLDER``."""

import argparse
import sys
from collections.abc import Sequence

import pandas as pd

from analysis.figures import FIGURES, FORMATS, THEMES, VENUES, write
from analysis.rows import TableError
from analysis.runs import NoRunsError, load
from analysis.selection import SelectionError
from analysis.tables import WHERE
from analysis.text import show
from dst.run import given
from dst.run.terminal import program


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the figures of the runs below some folders, and return the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return _write(options)
    except (NoRunsError, SelectionError, TableError) as error:
        show([str(error)], sys.stderr)
    except OSError as error:
        show([f"--out {options.out}: cannot write there ({error})"], sys.stderr)
    return 2


def _write(options: argparse.Namespace) -> int:
    frame = load(options.dir, options.where)
    names = list(dict.fromkeys(options.only or FIGURES))
    options.out.mkdir(parents=True, exist_ok=True)
    drawn = [_write_one(frame, name, options) for name in names]
    if not any(drawn):
        show(["no figure was written: no run has what one of them shows"], sys.stderr)
    return 0 if any(drawn) else 2


def _write_one(frame: pd.DataFrame, name: str, options: argparse.Namespace) -> bool:
    figure = FIGURES[name](frame, theme=options.theme, venue=options.venue)
    if figure is None:
        show([f"{name}: not drawn, it needs {FIGURES[name].needs}"], sys.stderr)
        return False
    path = options.out / f"{name}.{options.format}"
    write(figure, path)
    show([str(path)])
    show([f"  {note}" for note in figure.left_out], sys.stderr)
    return True


def _parser() -> argparse.ArgumentParser:
    about = "Figures of the runs below some folders, ready for a paper: text is embedded as Type 42 fonts."
    parser = argparse.ArgumentParser(prog="python -m analysis.figures", description=about)
    parser.add_argument(
        "dir", type=given.path, nargs="+", metavar="DIR", help="folder of runs, e.g. outputs or outputs/<group>"
    )
    parser.add_argument("--where", action="append", type=given.word, default=[], metavar="KEY=VALUE", help=WHERE)
    parser.add_argument(
        "--out", type=given.path, required=True, metavar="FOLDER", help="where the files go; it is made"
    )
    parser.add_argument("--only", nargs="+", choices=[*FIGURES], metavar="NAME", help=f"of: {', '.join(FIGURES)}")
    parser.add_argument("--format", choices=FORMATS, default="pdf", help="default: pdf")
    parser.add_argument("--venue", choices=[*VENUES], help="size and font of a paper's column there (by tueplots)")
    parser.add_argument("--theme", choices=[*THEMES], default="light", help="default: light")
    return parser


if __name__ == "__main__":
    sys.exit(program(main))
