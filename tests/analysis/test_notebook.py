"""The notebooks, on one tree of cheap runs that the commands of the platform have made."""

import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from analysis.figures import FIGURES as DRAWINGS
from analysis.notebook import Said, show
from dst.records.catalog import catalog, find_runs
from dst.records.entries import Entry, entry_path, write_entry
from tests.e2e.test_command_line import SILENT
from tests.processes import run

REPOSITORY = Path(__file__).parents[2]
NOTEBOOKS = {path.stem: path for path in (REPOSITORY / "analysis").glob("*.ipynb")}
NAMES = (
    *("accuracy", "blocks", "compare", "curves", "extended_training", "flops", "layer_density", "rs", "sup_tickets"),
    "tabular",
)

SHORT = ("model.hidden=[16,16]", "schedule.epochs=4", "schedule.update_every=5", *SILENT)
TABLE = (*SHORT, "data.path=wine")
SWEEPS = {
    "digits": (
        ("sparsity=dense", "seed=0,1"),
        ("sparsity=static,set_itop", "sparsity.density=0.2", "schedule.multiplier=1,2", "seed=0,1"),
    ),
    "blocks": (("sparsity=dsb", "model.hidden=[32,32]", "sparsity.density=0.5"),),
    "tickets": (("sparsity=rigl_itop", "procedure=sup_tickets", "procedure.cycle_epochs=1", "schedule.epochs=10"),),
}
OF_A_PROCEDURE = {"imp": ("procedure.level_epochs=1",)}


def commands():
    """Return the words of each command that the notebook about tables gives, without its seeds."""
    (given,) = (cell.source for cell in read("tabular").cells if cell.id == "title")
    lines = [line for line in given.splitlines() if line.startswith("python run.py ")]
    return [[word for word in shlex.split(line)[2:] if not word.startswith("seed=")] for line in lines]


def read(name):
    return nbformat.read(NOTEBOOKS[name], as_version=4)


def train(folder, *words):
    result = run("-m", *words, cwd=folder)
    assert result.code == 0, result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with outputs of all that the notebooks are about."""
    folder = tmp_path_factory.mktemp("trained")
    for sweep, lines in SWEEPS.items():
        for line in lines:
            train(folder, f"output.group={sweep}", *SHORT, *line)
    for words in commands():
        assert words[:2] == ["-m", "data=tabular"]
        procedure = next((word.partition("=")[2] for word in words if word.startswith("procedure=")), "")
        train(folder, *words[1:], "seed=0,1", *TABLE, *OF_A_PROCEDURE.get(procedure, ()))
    return folder


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Return a function that executes a notebook and returns the outputs of its cells by their id."""

    def execute(name, outputs, *, cwd=REPOSITORY, **env):
        for key, value in {"DST_OUTPUTS": str(outputs), "IPYTHONDIR": str(tmp_path / "ipython"), **env}.items():
            monkeypatch.setenv(key, value)
        notebook = read(name)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(cwd)}}).execute()
        return {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}

    return execute


def text(outputs):
    (output,) = outputs
    return output.data["text/plain"]


def is_figure(outputs):
    (output,) = outputs
    return output.data.get("image/svg+xml", "").startswith("<svg")


def test_these_are_the_notebooks():
    assert sorted(NOTEBOOKS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_stored_without_outputs(name):
    notebook = nbformat.read(NOTEBOOKS[name], as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [(cell.outputs, cell.execution_count) for cell in code] == [([], None)] * len(code)
    assert max(len(cell.source.splitlines()) for cell in code) < 12  # the logic is in the library


FIGURES = {
    "accuracy": ["figure"],
    "blocks": ["figure", "layers"],
    "compare": [],
    "curves": ["figure"],
    "extended_training": ["figure"],
    "flops": ["figure"],
    "layer_density": ["figure"],
    "rs": ["figure", "exchange"],
    "sup_tickets": ["figure"],
    "tabular": ["figure", "flops"],
}


@pytest.mark.slow
def test_every_notebook_shows_its_figures_and_tables_of_what_was_trained(trained, execute):
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(NAMES, pool.map(lambda name: executed(name, trained, execute), NAMES), strict=True))
    for name, cells in found.items():
        shown = {cell for cell, outputs in cells.items() if outputs and is_figure(outputs)}
        assert shown == set(FIGURES[name]), name
        assert not [cell for cell, outputs in cells.items() if outputs and "Nothing to show" in str(outputs)], name
    assert "multiplier" in text(found["extended_training"]["table"])
    assert "ticket 1" in text(found["sup_tickets"]["networks"])
    assert "level 1" in text(found["tabular"]["networks"])
    assert text(found["tabular"]["missing"]) == "Nothing is missing."
    assert "dsb" in text(found["blocks"]["table"])


def executed(name, folder, execute):
    return execute(name, folder / "outputs", DST_OTHER=str(folder / "outputs" / "digits"))


@pytest.mark.slow
def test_where_there_is_nothing_to_show_a_notebook_says_so(tree, execute):
    cells = execute("sup_tickets", tree)
    assert text(cells["runs"]) == "Nothing to show: there are no runs of this kind."
    assert text(cells["table"]) == "Nothing to show: there are no runs."
    assert text(cells["figure"]).startswith("Nothing to show: this figure needs runs of a procedure")


def test_a_figure_that_no_run_has_says_what_it_needs(tree):
    said = repr(show("networks", catalog(tree)))
    assert said == f"Nothing to show: this figure needs {DRAWINGS['networks'].needs}."
    assert repr(show("networks", catalog(tree / "nowhere"))) == said


@pytest.mark.slow
def test_a_notebook_in_its_folder_shows_a_group_whose_runs_lie_elsewhere_and_what_is_missing(tree, execute, tmp_path):
    for found in find_runs(tree):
        entry = Entry(found.name, found.name, found, "python run.py")
        write_entry(entry_path(tree / "paper", found.name), entry, root=tree)
    cells = execute("accuracy", tmp_path / "outputs/paper", cwd=REPOSITORY / "analysis")
    assert [line.split() for line in text(cells["runs"]).splitlines()[2:]] == [
        [".", "done", "6"], ["failed", "1"], ["running", "1"],
    ]  # fmt: skip
    flat = "\n".join(" ".join(line.split()) for line in text(cells["table"]).replace(" ± ", "±").splitlines())
    for value in ("98.00±—", "96.00±1.41", "92.00±2.00"):
        assert value in flat
    assert text(cells["missing"]).splitlines() == [
        "missing in digits mlp dense density=—: seed 1 running; seed 2 not run",
        "missing in digits mlp rigl density=0.1: seed 2 failed",
    ]
    assert is_figure(cells["figure"])


def test_what_is_said_is_shown_as_it_is_whatever_signs_are_in_it():
    assert Said(("<script>", "a & b"))._repr_html_() == "&lt;script&gt;<br>a &amp; b"


@pytest.mark.slow
def test_a_wrong_folder_is_an_error_that_names_it(execute, tmp_path):
    with pytest.raises(CellExecutionError, match=r"nowhere is no folder: give the folder that runs were written to"):
        execute("accuracy", tmp_path / "nowhere")
