import pytest

from analysis.compare import compared, main
from analysis.joined import join
from analysis.rows import rows
from analysis.runs import load


@pytest.fixture
def two(tmp_path, add_run):
    """Set at two densities in A and B, which is 1, 2 and 3 points better at .1; B has a longer schedule."""
    for seed in range(3):
        for density in (0.1, 0.2):
            gap = (seed + 1) / 100 if density == 0.1 else 0
            add_run(tmp_path / "a", "g", "set", seed, 0.8, density=density)
            add_run(tmp_path / "b", "g", "set", seed, 0.8 + gap, density=density, **{"schedule.multiplier": 5})
    return tmp_path / "a", tmp_path / "b"


def side_by_side(a, b, value="accuracy"):
    return compared(load([a]), load([b]), value)


def test_two_sweeps_by_hand(two):
    table = side_by_side(*two)
    assert table.text.to_dict("list") == {
        "data": ["digits"] * 2,
        "model": ["mlp"] * 2,
        "method": ["set"] * 2,
        "density": ["0.1", "0.2"],
        "A": ["80.00 ± 0.00", "80.00 ± 0.00"],
        "B": ["82.00 ± 1.00", "80.00 ± 0.00"],
        "B - A (95 % interval)": [
            "+2.00 [-0.48, +4.48], p = 0.074, n = 3 pairs; within noise",
            "+0.00, n = 3 pairs; the same difference in each seed: no test; the test set resolves 1",
        ],
    }
    assert table.footnotes == ["A and B differ in schedule.multiplier (1 -> 5)"]


def test_numbers_of_two_sweeps(two):
    row = side_by_side(*two).numbers.iloc[0]
    assert [row["a"], row["a_n"], row["b"], row["b_std"], row["difference"]] == pytest.approx([80, 3, 82, 1, 2])
    assert row["difference_p"] == pytest.approx(0.0741799, abs=1e-6)
    assert row["keys"] == "schedule.multiplier 1 -> 5"


def test_an_experiment_without_match_is_listed(two, add_run):
    add_run(two[0], "g", "rigl", 0, 0.9)
    add_run(two[1], "g", "static", 0, 0.9, density=0.3)
    table = side_by_side(*two)
    assert len(table.text) == 2
    assert table.footnotes[1:] == [
        "in A, without one match in B: digits mlp rigl density=0.1",
        "in B, without one match in A: digits mlp static density=0.3",
    ]


def test_a_stray_run_does_not_keep_its_sweep_from_being_joined(two, add_run):
    add_run(two[0], "h", "set", 0, 0.1, **{"schedule.multiplier": 3})
    table = side_by_side(*two)
    assert table.text["density"].tolist() == ["0.1", "0.2"]
    assert table.footnotes[0] == "A and B differ in schedule.multiplier (1 -> 5)"
    assert len(table.footnotes) == 2


def test_other_methods_are_joined_where_that_is_what_tells_the_sweeps_apart(tmp_path, add_run):
    for density in (0.1, 0.2):
        for seed in range(3):
            add_run(tmp_path / "a", "g", "set", seed, 0.8, density=density)
            add_run(tmp_path / "b", "g", "rigl", seed, 0.7 + seed / 10, density=density)
    table = side_by_side(tmp_path / "a", tmp_path / "b")
    assert table.text[["method", "density"]].values.tolist() == [["set -> rigl", "0.1"], ["set -> rigl", "0.2"]]
    assert table.footnotes == ["A and B differ in sparsity.drop.name (set -> rigl)"]


def test_the_same_experiments_are_joined_and_said_to_be_the_same(two):
    table = side_by_side(two[0], two[0])
    assert table.footnotes == ["A and B have the same experiments"]
    assert len(table.text) == 2


def test_other_seeds_are_compared_as_two_samples(tmp_path, add_run):
    for seed in range(3):
        add_run(tmp_path / "a", "g", "set", seed, 0.80 + seed / 100)
        add_run(tmp_path / "b", "g", "set", seed + 3, 0.90 + seed / 100)
    (told,) = side_by_side(tmp_path / "a", tmp_path / "b").text["B - A (95 % interval)"]
    assert told == "+10.00 [+7.73, +12.27], p < 0.001, n = 3 and 3 (Welch)"


def test_joining_is_the_same_from_either_side(two, add_run):
    add_run(two[0], "g", "rigl", 0, 0.9)
    a, b = (rows(load([folder])) for folder in two)
    one, other = join(a, b), join(b, a)
    assert {(pair.a.name, pair.b.name) for pair in one.pairs} == {(pair.b.name, pair.a.name) for pair in other.pairs}


def test_the_command(two, tmp_path, capsys):
    assert main([*map(str, two), "--csv", str(tmp_path / "c.csv"), "--latex", str(tmp_path / "c.tex")]) == 0
    assert capsys.readouterr().out.startswith(f"A: {two[0]}\nB: {two[1]}\n\n  data model")
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 3
    assert r"SET & 0.1 & 80.00 & $\pm$\,0.00 & 82.00 & $\pm$\,1.00 & 2.00" in (tmp_path / "c.tex").read_text()
    assert main([*map(str, two), "--where", "density=0.3"]) == 2
    assert "there are 0.1, 0.2" in capsys.readouterr().err


def test_sweeps_without_a_common_experiment_make_no_table(two, tmp_path, add_run, capsys):
    for density in (0.3, 0.4):
        add_run(tmp_path / "c", "g", "rigl", 0, 0.9, density=density)
    assert main([str(two[0]), str(tmp_path / "c")]) == 2
    assert "no experiment of A has a match in B" in capsys.readouterr().err
