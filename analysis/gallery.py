"""A page of figures, group by group: ``python -m analysis.gallery DIR --out FOLDER`` makes docs/gallery.md."""

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from analysis.figures import FIGURES, svg
from analysis.runs import NoRunsError, load
from analysis.text import show
from dst.run import given
from dst.run.terminal import program

_PICKED: Final = {
    "agent_mini": ("curves", "accuracy_flops"),
    "granet_mini": ("accuracy_density", "accuracy_flops", "layer_density"),
    "itop_mini": ("rs", "extended_training", "accuracy_flops"),
    "shuffled_blocks_mini": ("curves", "layer_exchange"),
    "sup_tickets_mini": ("networks",),
}
"""Group of runs -> the figures that say most about it."""

_USUAL: Final = ("networks", "accuracy_density", "curves")
_OF_THE_MACHINE: Final = ("output.", "data.root=", "data.download=", "tracking", "hydra.", "hydra/", "hardware")
"""How words of a command begin that say where it ran, not what."""

_INTRODUCTION: Final = """# Gallery

Figures of `python -m analysis.figures` ([how](figures.md)), made by `python -m analysis.gallery` from the records of
runs. The runs are minis: small networks on small data, minutes on a CPU. They show what figures look like and whether
methods can be told apart there; no number here reproduces a published one.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page and its figures, and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis.gallery", description="A page of figures, group by group."
    )
    parser.add_argument("dir", type=given.path, metavar="DIR", help="folder of runs; each group in it is a section")
    parser.add_argument(
        "--out", type=given.path, required=True, metavar="FOLDER", help="for gallery.md and gallery/*.svg"
    )
    options = parser.parse_args(arguments)
    try:
        _write(load([options.dir]), options.out)
    except NoRunsError as error:
        show([str(error)], sys.stderr)
        return 2
    except OSError as error:
        show([f"--out {options.out}: cannot write there ({error})"], sys.stderr)
        return 2
    show([str(options.out / "gallery.md")])
    return 0


def _write(frame: pd.DataFrame, out: Path) -> None:
    (out / "gallery").mkdir(parents=True, exist_ok=True)
    sections = [_section(str(group), runs, out) for group, runs in frame.groupby("group")]
    (out / "gallery.md").write_text("\n".join([_INTRODUCTION, *sections]), encoding="utf-8")


def _section(group: str, runs: pd.DataFrame, out: Path) -> str:
    states = ", ".join(f"{count} {state}" for state, count in runs["state"].value_counts().sort_index().items())
    commands = "\n".join(dict.fromkeys(command_of(text) for text in sorted(runs["command"].dropna(), key=len)))
    figures = "\n".join(_figures(group, runs, out))
    return f"## {group}\n\nFrom {len(runs)} runs ({states}) of\n\n```\n{commands}\n```\n\n{figures}"


def _figures(group: str, runs: pd.DataFrame, out: Path) -> Iterator[str]:
    """Write the figures of a group and yield the text that shows them."""
    for name in _PICKED.get(group, _USUAL):
        figure = FIGURES[name](runs)
        if figure is not None:
            path = out / "gallery" / f"{group.replace('/', '-')}_{name}.svg"
            path.write_text(svg(figure) + "\n", encoding="utf-8")
            yield f"**{FIGURES[name].title}.** {FIGURES[name].caption}\n"
            yield f"![{FIGURES[name].title} of {group}](gallery/{path.name})\n"


def command_of(text: str) -> str:
    """Return a command without the words that say where it ran."""
    return shlex.join(word for word in shlex.split(text) if not word.startswith(_OF_THE_MACHINE))


if __name__ == "__main__":
    sys.exit(program(main))
