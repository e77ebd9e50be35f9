"""Which runs are expected: those of one sweep; and what a run beside a sweep changes in its table (nothing)."""

import shutil

import pytest

from analysis.results import accuracy_figures, missing_cells
from analysis.tables import accuracy_table, results
from dst.records.catalog import catalog

FIRST = "python run.py -m sparsity=set,rigl seed=0,1,2"
STRAY = "python run.py sparsity=set schedule.epochs=1"


@pytest.fixture
def sweep(tmp_path, add_run):
    """Two methods and three seeds by one command, of which rigl lacks the last."""
    for seed, accuracy in enumerate((0.90, 0.92, 0.94)):
        add_run(tmp_path, "g", "set", seed, accuracy, command=FIRST, **{"schedule.epochs": 50})
        if seed < 2:
            add_run(tmp_path, "g", "rigl", seed, accuracy, command=FIRST, **{"schedule.epochs": 50})
    return tmp_path


def lines(root):
    return accuracy_table(catalog(root)).values.tolist()


def test_a_stray_run_in_the_group_adds_its_row_and_nothing_else(sweep, add_run):
    before, notes = lines(sweep), missing_cells(catalog(sweep))
    add_run(sweep, "g", "set", 7, 0.2, command=STRAY, **{"schedule.epochs": 1})
    assert [line for line in lines(sweep) if line not in before] == [
        ["digits", "mlp", "set schedule.epochs=1", "0.1", "20.00 ± —", "0.1", "1.2", "0.12", "0.24", "1"]
    ]
    assert [line for line in before if line not in lines(sweep)] == []
    assert "schedule.epochs" not in accuracy_table(catalog(sweep))
    assert missing_cells(catalog(sweep)) == notes == ["missing in digits mlp rigl density=0.1: seed 2 not run"]


def test_the_numbers_have_the_setting_of_a_stray_run_as_a_column(sweep, add_run):
    add_run(sweep, "g", "set", 7, 0.2, command=STRAY, **{"schedule.epochs": 1})
    figures = accuracy_figures(catalog(sweep))
    assert figures[["method", "schedule.epochs", "n"]].values.tolist() == [
        ["rigl", 50, 2],
        ["set", 50, 3],
        ["set", 1, 1],
    ]


def test_a_stray_run_of_a_method_that_the_sweep_lacks_says_how_it_differs(sweep, add_run):
    for method in ("set", "static"):
        add_run(sweep, "g", method, 7, 0.2, command=STRAY, **{"schedule.epochs": 1})
    assert [line[2] for line in lines(sweep)] == ["rigl", "set", "set schedule.epochs=1", "static schedule.epochs=1"]


def test_a_later_command_with_more_seeds_continues_the_sweep(sweep, add_run):
    more = FIRST.replace("0,1,2", "2,3")
    add_run(sweep, "g", "set", 3, 0.9, command=more, **{"schedule.epochs": 50})
    assert missing_cells(catalog(sweep)) == ["missing in digits mlp rigl density=0.1: seed 2 not run; seed 3 not run"]


def test_a_setting_that_is_swept_is_a_column(tmp_path, add_run):
    command = "python run.py -m schedule.epochs=10,50"
    for epochs in (10, 50):
        add_run(tmp_path, "g", "set", 0, 0.9, command=command, **{"schedule.epochs": epochs})
    assert [line[2:5] for line in lines(tmp_path)] == [["set", "0.1", "10"], ["set", "0.1", "50"]]


@pytest.mark.parametrize("name", ["a", "z"])
def test_it_does_not_matter_where_a_copy_of_a_run_lies(sweep, name):
    before, notes = lines(sweep), missing_cells(catalog(sweep))
    run = next((sweep / "g").glob("rigl*"))
    shutil.copytree(run, sweep / name / "copied")
    assert lines(sweep) == before
    (told,) = set(missing_cells(catalog(sweep))) - set(notes)  # nothing else than that there is one
    assert told == f"run {run.name} is also in {sweep / name / 'copied'}: {run} counts"


def test_in_latex_what_all_rows_of_a_data_set_share_is_in_its_title(tmp_path, add_run):
    for epochs in (10, 50):
        add_run(tmp_path, "g", "set", 0, 0.9, command="one", **{"schedule.epochs": epochs})
    add_run(tmp_path, "g", "rigl", 0, 0.9, command="one", **{"schedule.epochs": 10, "data.name": "mnist"})
    text = results(catalog(tmp_path)).latex
    assert r"\textit{digits, mlp}" in text
    assert r"\textit{mnist, mlp, schedule.epochs 10}" in text
    assert text.count("Schedule.epochs") == 1
