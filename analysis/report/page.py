"""The page of a report: its parts put together, and filled into the template with everything escaped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from analysis import built
from analysis.figures import THEMES
from analysis.report import sheets
from analysis.report.drawings import Styles
from analysis.report.figures import drawings
from analysis.report.gather import Run, counted, gather, present, set_aside, span
from analysis.report.origins import origins
from analysis.report.safe import to_save, visible
from analysis.rows import TableError
from analysis.selection import HIDDEN
from dst.run.report import duration

_SECTIONS: Final = (
    ("what-ran", "What ran"),
    ("results", "Results"),
    ("figures", "Figures"),
    ("not-done", "Failed and missing"),
    ("reproduce", "How to reproduce"),
    ("all-runs", "All runs"),
    ("save", "Numbers to save"),
)
"""The sections of a page, by the ids of their headings."""


@dataclass(frozen=True)
class Results:
    """Tables of results, the same as numbers to save (file name, table, what it is), and why some could not be made."""

    tables: Sequence[sheets.Sheet]
    files: Sequence[tuple[str, pd.DataFrame, str]]
    problems: Sequence[str] = ()


def render(folders: Sequence[Path], frame: pd.DataFrame, tell: Callable[[str], None] = lambda _: None) -> str:
    """Return the page about a catalog of the runs in some folders. The same runs make the same bytes."""
    frame = present(frame)
    runs = gather(frame, tell)
    found = results(frame)
    styles = Styles()
    drawn = [*drawings(frame, styles, tell)]
    lacking = [sheets.unfinished(runs), sheets.not_run(frame, runs), sheets.aside(set_aside(folders, frame))]
    return _template().render(
        title=f"Runs in {', '.join(map(str, folders))}",
        subtitle=_subtitle(runs),
        sections=_SECTIONS,
        style=_style(),
        themes=THEMES,
        styles=styles,
        overview=_overview(runs),
        what_ran=_filled(sheets.groups(runs), sheets.machines(runs)),
        results=found.tables,
        problems=found.problems,
        figures=drawn,
        missing=_filled(*lacking),
        origins=origins(runs),
        data=_filled(sheets.data_sets(runs)),
        runs=sheets.all_runs(runs),
        files=[(name, to_save(table), about) for name, table, about in [*found.files, _catalog(frame)]],
    )


def results(frame: pd.DataFrame) -> Results:
    """Return the tables of results of a catalog; one that cannot be made is a problem to show, not an end."""
    try:
        accuracies, networks = built.results(frame), built.networks(frame)
    except TableError as error:
        return Results([], [], [f"There is no table: {error}."])
    caption = "Test accuracy, mean and sample standard deviation over seeds"
    tables = [sheets.of_table("accuracy", caption, accuracies, 6)]
    files = [("accuracy.csv", accuracies.numbers, "test accuracy, density, Rs and FLOPs of each experiment")]
    if not networks.numbers.empty:
        caption = "Networks made on the way, by their accuracy on the validation set"
        tables += [sheets.of_table("networks", caption, networks, 4)]
        files += [("networks.csv", networks.numbers, "the networks that runs made on the way")]
    return Results(tables, files)


def _catalog(frame: pd.DataFrame) -> tuple[str, pd.DataFrame, str]:
    kept = frame.drop(columns=list(HIDDEN), errors="ignore").dropna(axis="columns", how="all")
    return "runs.csv", kept, "every run with its config and final figures"


def _filled(*tables: sheets.Sheet) -> list[sheets.Sheet]:
    return [table for table in tables if table.rows]


def _subtitle(runs: Sequence[Run]) -> str:
    when = span(runs)
    return f"{len(runs)} runs: {counted(run.state for run in runs)}.{f' Records of {when}.' if when else ''}"


def _overview(runs: Sequence[Run]) -> list[tuple[str, str]]:
    seconds = sum(run.seconds or 0 for run in runs)
    rows = {
        "training time, all runs": duration(seconds) if seconds else "",
        "devices": _listed(run.device for run in runs),
        "hosts": _listed(run.host for run in runs),
        "code": _listed(run.version for run in runs),
        "data sets": _listed(run.dataset.get("name") for run in runs),
    }
    return [(name, value) for name, value in rows.items() if value]


def _listed(values: Any) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in values if value))


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("analysis.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else visible(str(value)),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _style() -> Markup:
    return Markup(files("analysis.report").joinpath("style.css").read_text(encoding="utf-8"))
