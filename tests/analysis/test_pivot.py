import json

import pytest

from analysis.rows import TableError
from analysis.runs import load
from analysis.selection import SelectionError
from analysis.tables import Table, main, results
from analysis.tables import pivoted as make


@pytest.fixture
def densities(tmp_path, add_run):
    """Set and rigl at two densities by three seeds; rigl is 3, 4 and 5 points better at .1, and equal at .2.

    Gaps at .1: mean 4, deviation 1, error 1 / sqrt(3), t = 4 sqrt(3), p = 1 - t / sqrt(2 + t^2) = .0202.
    """
    for seed in range(3):
        add_run(tmp_path, "g", "set", seed, 0.80 + seed / 100)
        add_run(tmp_path, "g", "rigl", seed, 0.83 + 2 * seed / 100)
        add_run(tmp_path, "g", "set", seed, 0.9, density=0.2)
        add_run(tmp_path, "g", "rigl", seed, 0.9, density=0.2)
    return tmp_path


def pivoted(root, rows=("method",), columns=("density",), value="accuracy", summary="mean") -> Table:
    return make(load([root]), rows, columns, value, summary)


def test_methods_by_densities_by_hand(densities):
    table = pivoted(densities)
    assert table.text.to_dict("list") == {
        "method": ["rigl", "set"],
        "density=0.1": ["85.00 ± 2.00", "81.00 ± 1.00"],
        "density=0.2": ["90.00 ± 0.00", "90.00 ± 0.00"],
    }
    assert table.footnotes == ["n = 3"]
    assert table.differences == [
        "difference to the best, in points, with 95 % interval (p by Holm over 1):",
        "  best: method=rigl, density=0.1 (n = 3)",
        "    method=set: -4.00 [-6.48, -1.52], p = 0.020, n = 3 pairs",
        "  best: method=rigl, density=0.2 (n = 3)",
        "    method=set: +0.00, n = 3 pairs; the same difference in each seed: no test; the test set resolves 1",
    ]


def test_the_best_is_bold_and_what_is_not_told_from_it_is_marked(densities):
    lines = pivoted(densities).latex.splitlines()
    assert r"RigL & \bfseries 85.00 & $\pm$\,2.00 & \bfseries 90.00 & $\pm$\,0.00 \\" in lines
    assert r"SET & 81.00 & $\pm$\,1.00 & \bfseries 90.00 & $\pm$\,0.00\rlap{$^{\dagger}$} \\" in lines


def test_a_cell_without_run_is_a_dash_and_a_missing_seed_a_footnote(densities, add_run):
    add_run(densities, "g", "static", 0, 0.5)
    add_run(densities, "g", "static", 1, state="diverged")
    add_run(densities, "g", "static", 2, 0.4, state="failed")
    table = pivoted(densities)
    assert table.text.iloc[2].tolist() == ["static", "50.00", "—"]
    assert table.footnotes == [
        "n = 3 in all other cells",
        "missing in method=static, density=0.1 (1/3): seed 1 diverged; seed 2 failed",
    ]


def test_any_key_may_be_a_row_or_a_column_and_any_figure_a_value(densities):
    table = pivoted(densities, rows=["density", "method"], columns=["seed"], value="rs")
    assert table.text.columns.tolist() == ["density", "method", "seed=0", "seed=1", "seed=2"]
    assert table.text.iloc[0].tolist() == ["0.1", "rigl", "0.5", "0.6", "0.7"]
    assert table.differences == []


@pytest.mark.parametrize(("summary", "shown"), [("mean", "83.00 ± 4.36"), ("median", "81.00 ± 4.36")])
def test_seeds_are_summarised_as_asked(tmp_path, add_run, summary, shown):
    """80, 81, 88: mean 83, median 81, squared deviations 9 + 4 + 25 over 2: 4.36."""
    for seed, accuracy in enumerate((0.80, 0.81, 0.88)):
        add_run(tmp_path, "g", "set", seed, accuracy)
    assert pivoted(tmp_path, summary=summary).text.iloc[0, 1] == shown


def test_two_experiments_in_a_cell_are_an_error_that_names_the_key(densities, add_run):
    add_run(densities, "g", "set", 0, 0.9, **{"schedule.multiplier": 5})
    with pytest.raises(TableError) as error:
        pivoted(densities)
    assert str(error.value) == (
        "method=set density=0.1 has runs that differ in schedule.multiplier (1 and 5): "
        "choose by --where schedule.multiplier=..., or name the key in --rows or --columns"
    )
    assert pivoted(densities, columns=["density", "schedule.multiplier"]).text.columns.tolist()[1:3] == [
        "density=0.1 schedule.multiplier=1",
        "density=0.1 schedule.multiplier=5",
    ]


def test_unknown_keys_and_texts_as_values_are_errors(densities):
    with pytest.raises(SelectionError, match="did you mean 'method'"):
        pivoted(densities, rows=["metod"])
    with pytest.raises(TableError, match="'method' is no number in any run"):
        pivoted(densities, value="method")


def test_the_command_makes_a_pivot_where_any_of_its_options_is_given(densities, tmp_path, capsys):
    assert main([str(densities), "--value", "rs", "--csv", str(tmp_path / "p.csv")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["method", "density=0.1", "density=0.2"]
    assert (tmp_path / "p.csv").read_text().splitlines()[:2] == [
        "method,density,rs,rs_std,n,expected,missing",
        "rigl,0.1,0.6,0.1,3,3,",
    ]
    assert main([str(densities), "--rows", "metod"]) == 2
    assert "did you mean" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(densities), "--networks", "--rows", "method"])


def log_validation(folder, accuracy):
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "val/accuracy": accuracy}))


def test_best_val_is_the_figure_of_the_seed_with_the_best_validation_accuracy(tmp_path, add_run):
    for seed, (test, val) in enumerate([(0.95, 0.7), (0.91, 0.8), (0.93, 0.8)]):
        log_validation(add_run(tmp_path, "g", "set", seed, test), val)
    assert results(load([tmp_path]), "best_val").numbers[["accuracy", "rs", "n"]].values.tolist() == [[91, 0.6, 3]]
    assert pivoted(tmp_path, summary="best_val").text.iloc[0, 1] == "91.00"


def test_without_validation_best_val_has_no_figure_and_says_so(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.9)
    table = results(load([tmp_path]), "best_val")
    assert table.text["best-val test accuracy (%)"].tolist() == ["—"]
    assert table.footnotes == [
        "no figure for digits mlp set density=0.1: its records have no val/accuracy, by which best_val chooses"
    ]
