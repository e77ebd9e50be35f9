import csv
import io
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.figures import FIGURES, THEMES, svg
from analysis.report.__main__ import main
from analysis.report.drawings import Styles, with_fill
from analysis.report.safe import visible
from analysis.runs import load
from analysis.text import csv_text
from dst.records.entries import Entry, entry_path, write_entry
from tests.analysis.pages import Page
from tests.analysis.report_runs import METHODS, identity_of, write_run, write_sweep
from tests.processes import REPOSITORY

SCRIPT = "<script>alert(1)</script>"
FORMULA = '=HYPERLINK("http://evil.example","see")'
UNICODE = "naïve 方法 \u202edesrever"
CONTROL = "bell\x07 and escape\x1b[31m & 'quotes\""
HOSTILE = (SCRIPT, FORMULA, UNICODE, CONTROL)


def report(*folders, out):
    assert main([*map(str, folders), "--out", str(out)]) == 0
    return out.read_bytes().decode()


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out the figures, which take seconds, where a test is about something else."""
    monkeypatch.setattr("analysis.report.page.drawings", lambda *_: iter(()))


@pytest.fixture
def sweep(tmp_path):
    """Two methods and two seeds, all done."""
    root = tmp_path / "outputs"
    write_sweep(root / "sweep", ("set", "rigl"), (0.1,), (0, 1))
    return root


def begun(root, run_id, method, seed, state, *, error=None, **about):
    """Write a run of ``sweep``'s group that has no result."""
    first = json.loads(next((root / "sweep").glob("*/run.json")).read_text())
    own = identity_of(method, 0.1, seed) | {"data.name": "digits"}
    config = first["config"] | own | {"sparsity.label": method}
    status = {"error": error, "step": 7}
    return write_run(root / "sweep" / run_id, state=state, status=status, identity=own, config=config, **about)


@pytest.fixture
def hostile(sweep):
    """The sweep, and beside it what may go wrong in a tree of runs."""
    for nth, text in enumerate(HOSTILE):
        begun(sweep, f"hostile{nth}", text, 0, "failed", error=text, name=text, command=text, host=text, device=text)
    torn = begun(sweep, "torn", "set", 2, "done")
    (torn / "run.json").write_text('{"id": "to')
    begun(sweep, "diverged", "rigl", 3, "diverged", error="loss is nan at step 7")
    begun(sweep, "gone", "set", 4, "running")
    moved = Entry("moved", "a run that was moved", sweep / "other" / "moved", "python run.py seed=9")
    write_entry(entry_path(sweep / "sweep", "moved"), moved, root=sweep)
    shutil.copytree(sweep / "sweep" / f"{0:012x}", sweep / "copies" / "a copy")
    return sweep


# -- a page that any reader can read -----------------------------------------------------------------------------------


def check(html):
    """Assert that a page is whole, needs nothing from elsewhere, and can be used by keyboard and by ear."""
    page = Page(html)
    assert page.wrong == []
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for name in ("aria-labelledby", "aria-describedby"):
        assert {one for value in page.values(name) for one in value.split()} <= set(ids)
    links = [link for link in page.values("href") if not link.startswith("data:")]
    assert {link.removeprefix("#") for link in links} <= set(ids)
    assert not {"script", "iframe", "object", "embed", "link", "img", "base", "form"} & {e.tag for e in page.elements}
    assert not [name for element in page.elements for name in element.attributes if name.startswith("on")]
    assert not page.values("src")
    assert set(page.values("xmlns") + page.values("xmlns:xlink")) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    styles = "".join(style.text for style in page.all("style")) + "".join(page.values("style"))
    assert "//" not in styles
    assert "@import" not in styles
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", html)
    levels = [int(element.tag[1]) for element in page.elements if re.fullmatch("h[1-6]", element.tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for table in page.all("table"):
        assert len(table.all("caption")) == 1
        assert all(cell.attributes["scope"] in ("col", "row") for cell in table.all("th"))
    for box in [element for element in page.elements if element.attributes.get("class") == "scroll"]:
        assert box.attributes["tabindex"] == "0"
        assert box.attributes["role"] == "region"
        assert {"aria-label", "aria-labelledby"} & set(box.attributes)
    for drawing in page.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert [child.tag for child in drawing.children[:2]] == ["title", "desc"]
        assert all(child.text for child in drawing.children[:2])
    first, *_ = page.all("a")
    assert (first.attributes["class"], first.attributes["href"]) == ("skip", "#main")
    return page


def test_the_page_is_whole_and_needs_nothing_from_elsewhere(sweep, tmp_path):
    page = check(report(sweep, out=tmp_path / "r.html"))
    assert [heading.text for heading in page.all("h2")] == [
        "What ran", "Results", "Figures", "Failed and missing", "How to reproduce", "All runs", "Numbers to save",
    ]  # fmt: skip
    assert page.all("svg")


def test_a_hostile_tree_makes_a_page_that_is_whole_too(hostile, tmp_path):
    page = check(report(hostile, out=tmp_path / "r.html"))
    texts = page.root.text
    for shown in (SCRIPT, FORMULA, r"naïve 方法 \u202edesrever", "bell\\x07 and escape\\x1b[31m & 'quotes\""):
        assert shown in texts


# -- what it tells -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_the_rows_of_a_hostile_tree_are_those_without_what_is_hostile(sweep, tmp_path, hostile):
    names = [f"{nth:012x}" for nth in range(4)]
    alone = tmp_path / "alone" / "sweep"
    for name in names:
        shutil.copytree(sweep / "sweep" / name, alone / name)
    few = Page(report(alone.parent, out=tmp_path / "few.html")).table("accuracy")
    many = Page(report(hostile, out=tmp_path / "many.html")).table("accuracy")
    assert len(few) == 2

    def figures(rows):
        return [[row[name] for name in ("method", "test accuracy (%)", "Rs")] for row in rows]

    assert [row for row in figures(many) if row[0] in ("SET", "RigL")] == figures(few)


@pytest.mark.usefixtures("no_figures")
def test_every_run_without_a_result_is_listed_with_why_and_what_mends_it(hostile, tmp_path):
    rows = {row["folder"]: row for row in Page(report(hostile, out=tmp_path / "r.html")).table("unfinished")}
    assert {folder.rpartition("/")[2]: row["state"] for folder, row in rows.items()} == {
        **{f"hostile{nth}": "failed" for nth in range(4)},
        **{"torn": "unreadable", "diverged": "diverged", "gone": "lost", "moved": "missing"},
    }
    diverged, gone = (rows[str(hostile / "sweep" / name)] for name in ("diverged", "gone"))
    assert diverged["why"] == "loss is nan at step 7"
    assert "schedule.lr.peak" in diverged["what to do"]
    assert diverged["command"] == ""
    assert gone["command"] == "cd '/home/somebody/a study' && python run.py -m sparsity=set,rigl seed=0,1"


@pytest.mark.usefixtures("no_figures")
def test_a_job_is_mended_by_requeue(sweep, tmp_path):
    folder = begun(sweep, "job", "set", 5, "failed", error="out of memory")
    (folder / "launch.json").write_text(json.dumps({"cluster": "slurm", "job": "17", "cwd": "/home/somebody"}))
    (row,) = Page(report(sweep, out=tmp_path / "r.html")).table("unfinished")
    assert (row["why"], row["command"]) == ("out of memory", f"python -m dst.launcher.requeue {folder}")


@pytest.mark.usefixtures("no_figures")
def test_seeds_that_were_never_run_are_listed_with_the_command_that_runs_them(sweep, tmp_path):
    shutil.rmtree(sweep / "sweep" / f"{3:012x}")  # rigl, seed 1
    (row,) = Page(report(sweep, out=tmp_path / "r.html")).table("not-run")
    assert row["experiment"] == "digits mlp rigl density=0.1"
    assert row["seeds"] == "1"
    assert row["command"] == "cd '/home/somebody/a study' && python run.py -m sparsity=set,rigl seed=1"


@pytest.mark.usefixtures("no_figures")
def test_copies_count_once_and_are_listed(hostile, tmp_path):
    (row,) = Page(report(hostile, out=tmp_path / "r.html")).table("aside")
    folders = {str(hostile / "sweep" / f"{0:012x}"), str(hostile / "copies" / "a copy")}
    assert {row["folder"], row["counted instead"]} == folders


@pytest.mark.usefixtures("no_figures")
def test_a_whole_sweep_lacks_nothing(sweep, tmp_path):
    page = Page(report(sweep, out=tmp_path / "r.html"))
    assert "Nothing: every run is done, and every experiment has all its seeds." in page.root.text


@pytest.mark.usefixtures("no_figures")
def test_it_says_how_to_make_the_runs_again(sweep, tmp_path):
    text = Page(report(sweep, out=tmp_path / "r.html")).root.text
    for told in (
        "commit 9c27c41cb0719e3ad21da66dc08e3f528939bf71; the digest of its sources is 9e54151a9b698fad.",
        "with Python 3.11.7",
        "pip install torch==2.14.1 numpy==2.4.6",
        "cd '/home/somebody/a study' && python run.py -m sparsity=set,rigl seed=0,1",
        "e892ceec3a88d14c",
        "node7",
        "NVIDIA H100",
        "2026-01-01 08:00 to 09:00 UTC",
    ):
        assert told in text


@pytest.mark.usefixtures("no_figures")
def test_code_that_was_not_committed_is_told(sweep, tmp_path):
    begun(sweep, "changed", "set", 6, "failed", code={"digest": "ab", "git": "c" * 40, "diff": "d1ff"})
    page = Page(report(sweep, out=tmp_path / "r.html"))
    assert len(page.all("article")) == 2
    assert "with changes that were not committed (digest of the diff d1ff)" in page.root.text


def test_two_runs_of_one_seed_and_experiment_make_no_table_but_a_page_that_says_so(sweep, tmp_path):
    other = shutil.copytree(sweep / "sweep" / f"{0:012x}", sweep / "sweep" / "other")
    about = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps(about | {"id": "other"}))
    page = check(report(sweep, out=tmp_path / "r.html"))
    assert "There is no table: one seed of one experiment twice" in page.root.text
    assert len(page.table("runs")) == 5


def test_the_same_runs_make_the_same_bytes(hostile, tmp_path):
    first, second = (report(hostile, out=tmp_path / name) for name in ("a.html", "b.html"))
    assert first == second


# -- numbers to save ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_figures")
def test_the_numbers_to_save_are_those_of_the_table_and_of_every_run(sweep, tmp_path):
    files = Page(report(sweep, out=tmp_path / "r.html")).files()
    assert set(files) == {"accuracy.csv", "runs.csv"}
    rows = [*csv.DictReader(io.StringIO(files["accuracy.csv"]))]
    assert [(row["method"], row["n"]) for row in rows] == [("rigl", "2"), ("set", "2")]
    runs = [*csv.DictReader(io.StringIO(files["runs.csv"]))]
    assert {run["id"] for run in runs} == {f"{nth:012x}" for nth in range(4)}
    assert all(float(run["test/accuracy"]) > 0.9 for run in runs)


@pytest.mark.usefixtures("no_figures")
def test_no_cell_to_save_is_a_formula(hostile, tmp_path):
    for content in Page(report(hostile, out=tmp_path / "r.html")).files().values():
        for row in csv.reader(io.StringIO(content)):
            assert not [cell for cell in row if cell[:1] in "=+-@\t\r" and cell and not _is_number(cell)]


def _is_number(cell):
    try:
        float(cell)
    except ValueError:
        return False
    return True


@given(st.text())
def test_no_text_becomes_a_formula(text):
    ((cell,),) = csv.reader(io.StringIO(csv_text(pd.DataFrame({"x": [text or "-"]})).partition("\n")[2]))
    assert cell[:1] not in ("=", "+", "-", "@", "\t", "\r")


@given(st.text(st.characters(exclude_categories=())))
def test_what_is_shown_can_be_written_and_has_no_control_codes(text):
    shown = visible(text)
    assert shown.encode().decode() == shown
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)


def test_what_is_harmless_is_shown_as_it_is():
    assert visible("naïve 方法 · 1.0\n<b>") == "naïve 方法 · 1.0\n<b>"


# -- as a command ------------------------------------------------------------------------------------------------------


def test_an_empty_or_wrong_folder_is_an_error_that_says_what_to_give(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, told in (("empty", "holds no run"), ("none", "is no folder")):
        assert main([str(tmp_path / name), "--out", str(tmp_path / "r.html")]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("place", ["no/such/folder/r.html", "."])
@pytest.mark.usefixtures("no_figures")
def test_a_report_that_cannot_be_written_is_an_error(sweep, tmp_path, capsys, place):
    assert main([str(sweep), "--out", str(tmp_path / place)]) == 1
    assert "cannot write the report: " in capsys.readouterr().err


def test_the_last_line_says_where_the_report_is_and_how_large(hostile, tmp_path):
    out = tmp_path / "résumé.html"
    command = [sys.executable, "-m", "analysis.report", str(hostile), "--out", str(out)]
    environment = {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0
    size = out.stat().st_size / 1e6
    assert done.stdout.splitlines()[-1] == rf"{tmp_path}/r\xe9sum\xe9.html: 12 runs, {size:.2f} MB"


@pytest.mark.slow
def test_the_report_of_300_runs_fits_into_a_mail(tmp_path):
    methods = (*METHODS, *(f"{name} grow=random" for name in METHODS))
    densities = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    folders = write_sweep(tmp_path / "outputs", methods, densities, (0, 1, 2), epochs=40, layers=10)
    assert len(folders) >= 300
    html = report(tmp_path / "outputs", out=tmp_path / "r.html")
    check(html)
    assert len(html.encode()) < 5_000_000


# -- light and dark ----------------------------------------------------------------------------------------------------


def styles_in(drawn):
    tags = re.findall("<[^>]*>", svg(drawn))
    return [with_fill(tag, found[1]) for tag in tags if (found := re.search(' style="([^"]*)"', tag))]


def test_on_dark_paper_figures_have_the_colours_that_they_are_drawn_in_for_it(sweep):
    frame, styles, compared = load([sweep]), Styles(), 0
    for drawing in FIGURES.values():
        light, dark = drawing(frame, theme="light"), drawing(frame, theme="dark")
        if light is not None:
            assert [styles.on_dark(style).lower() for style in styles_in(light)] == list(
                map(str.lower, styles_in(dark))
            )
            compared += 1
    assert compared >= 5


def luminance(colour):
    parts = (part / 255 for part in bytes.fromhex(colour.removeprefix("#")))
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize(("theme", "nth"), [("light", 0), ("dark", 1)])
def test_text_has_the_contrast_that_readers_need(theme, nth):
    style = (REPOSITORY / "analysis" / "report" / "style.css").read_text()
    colours = {
        name: found[nth] for name in ("soft", "link", "good", "bad", "open") if (found := values_of(style, name))
    }
    assert len(colours) == 5
    for colour in (THEMES[theme].ink, *colours.values()):
        darker, lighter = sorted((luminance(colour), luminance(THEMES[theme].background)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, colour


def values_of(style, name):
    return re.findall(rf"--{name}: (#[0-9a-f]{{6}});", style)
