import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.results import TableError, accuracy_figures, missing_cells, missing_networks, network_figures
from analysis.tables import accuracy_table, latex, main, network_table
from dst.records.catalog import catalog
from dst.records.store import Record
from tests.analysis.drawn import lines_of

REPOSITORY = Path(__file__).parents[2]

TABLE = """\
  data model method density test accuracy (%) realised density   Rs test FLOPs / dense train FLOPs / dense   n
digits   mlp  dense       —         98.00 ± —                1  0.5                  1                   1 1/3
digits   mlp   rigl     0.1      96.00 ± 1.41              0.1 0.55               0.12                0.24 2/3
digits   mlp    set     0.1      92.00 ± 2.00              0.1  0.6               0.12                0.24   3
"""

FOOTNOTES = [
    "missing in digits mlp dense density=—: seed 1 running; seed 2 not run",
    "missing in digits mlp rigl density=0.1: seed 2 failed",
]

DIFFERENCES = [
    "difference to the best, in points:",
    "  best: digits mlp rigl density=0.1 (n = 2)",
    "    set: -4.00, n = 2: not tested below 3 seeds",
]

CSV = """\
data,model,method,density,accuracy,accuracy_std,realised_density,rs,flops_test_ratio,flops_train_ratio,n,expected,missing,to_best,to_best_low,to_best_high,to_best_p,to_best_n,to_best_note
digits,mlp,dense,,98,,1,0.5,1,1,1,3,seed 1 running; seed 2 not run,,,,,,
digits,mlp,rigl,0.1,96,1.414213562,0.1,0.55,0.12,0.24,2,3,seed 2 failed,,,,,,
digits,mlp,set,0.1,92,2,0.1,0.6,0.12,0.24,3,3,,-4,,,,3 and 2,n = 2: not tested below 3 seeds
"""

LATEX = r"""% In the preamble: \usepackage{booktabs,siunitx,adjustbox}. Make it again by python -m analysis.tables.
{\footnotesize\setlength{\tabcolsep}{3pt}%
\par\smallskip\noindent\textit{digits, mlp}\par
\noindent
\begin{adjustbox}{max width=\columnwidth}
\begin{tabular}{@{}lS[table-format=1.1]S[table-format=2.2,detect-weight,mode=text]@{\,}lS[table-format=1.2]S[table-format=1.2]S[table-format=1.2]l@{}}
\toprule
Method & {Density} & \multicolumn{2}{c}{Accuracy (\%)} & {$R_s$} & {\shortstack{Test\\FLOPs}} & {\shortstack{Train\\FLOPs}} & n \\
\midrule
Dense & {--} & 98.00 &  & 0.5 & 1 & 1 & 1/3 \\
RigL & 0.1 & \bfseries 96.00 & $\pm$\,1.41 & 0.55 & 0.12 & 0.24 & 2/3 \\
SET & 0.1 & 92.00 & $\pm$\,2.00\rlap{$^{\dagger}$} & 0.6 & 0.12 & 0.24 & 3 \\
\bottomrule
\end{tabular}
\end{adjustbox}
\par\smallskip{\raggedright\noindent Bold: best of its density. $^{\dagger}$\,not tested: $n<3$, or no spread over the seeds.\par}
\par\smallskip{\raggedright\noindent missing in digits mlp dense density=--: seed 1 running; seed 2 not run\par}
\par\smallskip{\raggedright\noindent missing in digits mlp rigl density=0.1: seed 2 failed\par}
}
"""  # noqa: E501


def shown(frame):
    return accuracy_table(frame).to_string(index=False) + "\n"


def cells(frame, *columns):
    return accuracy_table(frame)[list(columns)].values.tolist()


def test_the_table_has_the_figures_computed_by_hand(tree):
    assert shown(catalog(tree)) == TABLE


def test_missing_cells_are_listed_with_their_state(tree):
    assert missing_cells(catalog(tree)) == FOOTNOTES


def test_latex(tree):
    assert latex(catalog(tree)) == LATEX


def test_latex_escapes_names(tmp_path, add_run):
    add_run(tmp_path, "g", "my_rigl", 0, state="failed")
    text = latex(catalog(tmp_path))
    assert text.count(r"my\_rigl") == 2
    assert "my_rigl" not in text


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_runs_does_not_matter(tree, seed):
    frame = catalog(tree).sample(frac=1, random_state=seed)
    assert shown(frame) == TABLE
    assert missing_cells(frame) == FOOTNOTES


def test_the_names_of_the_folders_do_not_matter(tree):
    for number, folder in enumerate(sorted((tree / "sweep").iterdir(), reverse=True)):
        folder.rename(tree / "sweep" / f"{number}")
    assert shown(catalog(tree)) == TABLE


def test_the_catalog_is_left_as_it_was(tree):
    frame = catalog(tree)
    accuracy_table(frame)
    pd.testing.assert_frame_equal(frame, catalog(tree))


def test_rows_that_differ_in_another_key_get_its_column(tree, add_run):
    for seed, accuracy in enumerate((0.96, 0.96, 0.96)):
        add_run(tree, "sweep", "set", seed, accuracy, **{"schedule.multiplier": 5})
    assert cells(catalog(tree), "method", "schedule.multiplier", "test accuracy (%)", "n") == [
        ["dense", "1", "98.00 ± —", "1/3"],
        ["rigl", "1", "96.00 ± 1.41", "2/3"],
        ["set", "1", "92.00 ± 2.00", "3"],
        ["set", "5", "96.00 ± 0.00", "3"],
    ]
    assert (
        missing_cells(catalog(tree))[1] == "missing in digits mlp rigl density=0.1 schedule.multiplier=1: seed 2 failed"
    )


@pytest.mark.parametrize(
    ("key", "value", "default", "other"),
    [
        ("data.split_seed", 1, "—", "1"),
        ("model.hidden", [32], "[64, 64]", "[32]"),
        ("schedule.optimizer.nesterov", False, "True", "False"),
        ("schedule.lr.floor", 0.001, "—", "0.001"),
    ],
)
def test_no_two_configs_share_a_row_even_if_their_labels_are_equal(tmp_path, add_run, key, value, default, other):
    add_run(tmp_path, "g", "set", 0, 0.80)
    add_run(tmp_path, "g", "set", 1, 0.80)
    add_run(tmp_path, "g", "set", 0, 0.90, **{key: value})
    found = cells(catalog(tmp_path), key, "test accuracy (%)", "n")
    assert sorted(found) == sorted([[default, "80.00 ± 0.00", "2"], [other, "90.00 ± —", "1/2"]])


def test_a_key_that_goes_along_with_the_labels_needs_no_column(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.8, **{"sparsity.grow.name": "random"})
    add_run(tmp_path, "g", "rigl", 0, 0.9, **{"sparsity.grow.name": "gradient"})
    assert list(accuracy_table(catalog(tmp_path)).columns[3:5]) == ["density", "test accuracy (%)"]


def test_keys_that_are_no_identity_do_not_split_rows(tree):
    assert catalog(tree)["config.data.root"].nunique() == 3
    assert len(accuracy_table(catalog(tree))) == 3


def test_a_key_that_older_records_do_not_know_does_not_split_a_row(tmp_path, add_run):
    """A digest that is the default is in no identity; of another data set it is, and is shown by its beginning."""
    root = tmp_path / "outputs"
    published, other = "a" * 64, "b" * 64
    add_run(root, "sweep", "set", 0, 0.90)
    folder = add_run(root, "sweep", "set", 1, 0.92)
    run = json.loads((folder / "run.json").read_text())
    run["config"]["data.digest"] = published  # recorded since, and still no identity
    (folder / "run.json").write_text(json.dumps(run))
    add_run(root, "sweep", "set", 0, 0.50, **{"data.name": "image_folder", "data.digest": other})
    add_run(root, "sweep", "set", 0, 0.70, **{"data.name": "image_folder", "data.digest": "c" * 64})
    table = accuracy_table(catalog(root))
    assert [*zip(table["data"], table["n"], strict=True)] == [
        ("digits", "2"),
        ("image_folder", "1/2"),
        ("image_folder", "1/2"),
    ]
    assert [*table["data.digest"][1:]] == ["b" * 12, "c" * 12]


def test_rows_are_in_order_of_their_labels_and_densities_are_numbers(tmp_path, add_run):
    for density in (0.2, 0.05, 0.1):
        add_run(tmp_path, "g", "set", 0, 0.8, density=density)
    add_run(tmp_path, "g", "set", 0, 0.9, density=None)
    assert [row[0] for row in cells(catalog(tmp_path), "density")] == ["—", "0.05", "0.1", "0.2"]


def test_seeds_of_other_groups_are_not_missed(tree, add_run):
    add_run(tree, "single", "snfs", 7, 0.9)
    assert cells(catalog(tree), "method", "n")[-1] == ["snfs", "1"]
    assert cells(catalog(tree), "method", "n")[1] == ["rigl", "2/3"]


def test_an_experiment_with_no_finished_run_keeps_its_row(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, state="preempted")
    add_run(tmp_path, "g", "set", 1, state="diverged")
    assert accuracy_table(catalog(tmp_path)).values.tolist() == [["digits", "mlp", "set", "0.1", *"—————", "0/2"]]
    assert missing_cells(catalog(tmp_path)) == [
        "missing in digits mlp set density=0.1: seed 0 preempted; seed 1 diverged"
    ]


def test_a_run_that_is_done_without_a_test_accuracy_is_missing(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.8)
    add_run(tmp_path, "g", "set", 1)
    assert missing_cells(catalog(tmp_path)) == [
        "missing in digits mlp set density=0.1: seed 1 done without test/accuracy"
    ]


def test_the_newest_attempt_is_the_one_that_counts(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.8)
    add_run(tmp_path, "g", "set", 0, 0.9, attempt=2)
    for frame in (catalog(tmp_path), catalog(tmp_path, all_attempts=True)):
        assert cells(frame, "test accuracy (%)", "n") == [["90.00 ± —", "1"]]


def test_one_seed_under_two_ids_is_refused(tmp_path, add_run):
    first = add_run(tmp_path, "g", "set", 0, 0.8)
    second = add_run(tmp_path, "g", "set", 0, 0.9, **{"schedule.multiplier": 1})
    with pytest.raises(TableError, match="one seed of one experiment twice") as error:
        accuracy_table(catalog(tmp_path))
    assert f"{first}, {second}" in str(error.value)


def test_an_unreadable_record_is_listed(tree):
    (tree / "sweep" / "set-0.1-2" / "run.json").write_text("{")
    assert cells(catalog(tree), "method", "n") == [["dense", "1/3"], ["rigl", "2/3"], ["set", "2/3"]]
    assert missing_cells(catalog(tree))[-2] == "missing in digits mlp set density=0.1: seed 2 not run"
    assert missing_cells(catalog(tree))[-1].startswith(f"not in the table: {tree}/sweep/set-0.1-2/run.json is not JSON")


def test_only_unreadable_records_make_an_empty_table(tmp_path, add_run):
    (add_run(tmp_path, "g", "set", 0) / "run.json").write_text("{")
    assert accuracy_figures(catalog(tmp_path)).empty
    assert accuracy_table(catalog(tmp_path)).empty
    assert len(missing_cells(catalog(tmp_path))) == 1


def run_cli(*arguments):
    command = [sys.executable, "-m", "analysis.tables", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", check=False)


def test_the_command_prints_and_writes_the_same_bytes_each_time(tree, tmp_path):
    written = []
    for name in ("first", "second"):
        result = run_cli(tree, "--csv", tmp_path / f"{name}.csv", "--latex", tmp_path / f"{name}.tex")
        assert (result.returncode, result.stderr) == (0, "")
        written.append((result.stdout, *((tmp_path / f"{name}.{kind}").read_text("utf-8") for kind in ("csv", "tex"))))
    assert written == [("\n".join([TABLE, *DIFFERENCES, "", *FOOTNOTES, ""]), CSV, LATEX)] * 2


def test_nothing_is_missing_nothing_is_noted(tmp_path, add_run, capsys):
    add_run(tmp_path, "g", "set", 0, 0.8)
    assert main([str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


@pytest.mark.parametrize(
    ("make", "reason"), [(Path.mkdir, "holds no run"), (Path.touch, "is no"), (None, "is no folder")]
)
def test_a_place_without_runs_is_an_error(tmp_path, make, reason):
    if make:
        make(tmp_path / "outputs")
    result = run_cli(tmp_path / "outputs")
    assert (result.returncode, result.stdout) == (2, "")
    assert f"{tmp_path}/outputs {reason}" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_copied_tree_makes_the_same_table(tree, tmp_path):
    shutil.copytree(tree, tmp_path / "copy")
    assert shown(catalog(tmp_path / "copy")) == TABLE


def test_tables_and_figures_start_without_torch_and_hydra():
    code = "import sys, analysis.figures; print(sorted({'torch', 'hydra', 'omegaconf'} & sys.modules.keys()))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


# -- the identity, never the wording -----------------------------------------------------------------------------------


def test_runs_of_one_identity_share_a_row_whatever_they_are_called(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.8)
    add_run(tmp_path, "g", "set", 1, 0.9, label="another")
    assert cells(catalog(tmp_path), "method", "test accuracy (%)", "n") == [["another, set", "85.00 ± 7.07", "2"]]


def test_methods_of_one_name_do_not_share_a_row(tmp_path, add_run):
    add_run(tmp_path, "g", "set", 0, 0.8)
    add_run(tmp_path, "g", "rigl", 1, 0.7, label="set")
    assert cells(catalog(tmp_path), "method", "sparsity.drop.name", "test accuracy (%)", "n") == [
        ["set", "rigl", "70.00 ± —", "1/2"],
        ["set", "set", "80.00 ± —", "1/2"],
    ]


def test_what_was_changed_in_a_method_is_shown_behind_its_label(tmp_path, add_run):
    changed = {"sparsity.grow.name": "random", "sparsity.drop_fraction.floor": 0.1}
    add_run(tmp_path, "g", "one", 0, 0.8, label="rigl", changed=changed)
    add_run(tmp_path, "g", "two", 0, 0.8, label="mine", changed={"sparsity.label": "mine", **changed})
    table = accuracy_table(catalog(tmp_path))
    assert [*table["method"]] == ["mine", "rigl grow=random drop_fraction.floor=0.1"]
    assert "sparsity.drop.name" not in table


def test_where_a_table_has_runs_of_two_schemas_it_has_a_column_for_it(tmp_path, add_run):
    """Also if a default has changed with the schema, so that the old identity has a key which the new one lacks."""
    for seed, accuracy in enumerate((0.8, 0.9)):
        add_run(tmp_path, "g", "set", seed, accuracy, schema=1, **{"schedule.epochs": 50})
        add_run(tmp_path, "g", "set", seed, accuracy)
    add_run(tmp_path, "g", "rigl", 0, 0.7)
    table = accuracy_table(catalog(tmp_path))
    assert [*table.columns[:5]] == ["data", "model", "method", "density", "schema"]
    assert table[["method", "schema", "test accuracy (%)", "n"]].values.tolist() == [
        ["rigl", "2", "70.00 ± —", "1/2"],
        ["set", "1", "85.00 ± 7.07", "2"],
        ["set", "2", "85.00 ± 7.07", "2"],
    ]
    assert list(table.columns).index("test accuracy (%)") == 5
    assert missing_cells(catalog(tmp_path)) == ["missing in digits mlp rigl density=0.1 schema=2: seed 1 not run"]
    assert "schema" in latex(catalog(tmp_path))
    words = ["schema=1", "schema=2"]
    assert lines_of(catalog(tmp_path)) == [("rigl", words[1]), *(("set", word) for word in words)]


# -- what wraps a method -----------------------------------------------------------------------------------------------


def test_what_wraps_a_method_has_a_column_where_a_run_has_one(tree, add_run):
    """Seeds are taken together by it, and by its options; records from before there were any have the default."""
    agent, tickets = {"correction.name": "agent"}, {"procedure.name": "sup_tickets"}
    for seed, accuracy in enumerate((0.93, 0.95)):
        add_run(tree, "sweep", "set", seed, accuracy, **agent)
        add_run(tree, "sweep", "set", seed, accuracy + 0.01, **agent, **{"correction.gamma": 0.2})
    assert cells(catalog(tree), "method", "correction", "density", "test accuracy (%)", "n") == [
        ["dense", "none", "—", "98.00 ± —", "1/3"],
        ["rigl", "none", "0.1", "96.00 ± 1.41", "2/3"],
        ["set", "agent", "0.1", "94.00 ± 1.41", "2/3"],
        ["set", "agent(gamma=0.2)", "0.1", "95.00 ± 1.41", "2/3"],
        ["set", "none", "0.1", "92.00 ± 2.00", "3"],
    ]
    table = accuracy_table(catalog(tree))
    assert [*table.columns[:5]] == ["data", "model", "method", "density", "correction"]
    assert not {"procedure", "correction.gamma"} & {*table}
    assert missing_cells(catalog(tree))[2] == "missing in digits mlp set density=0.1 correction=agent: seed 2 not run"
    assert ("set", "agent(gamma=0.2)") in lines_of(catalog(tree))
    for seed in range(3):
        add_run(tree, "sweep", "set", seed, 0.99, **tickets)
    assert cells(catalog(tree), "correction", "procedure", "test accuracy (%)")[2:] == [
        ["agent", "single", "94.00 ± 1.41"],
        ["agent(gamma=0.2)", "single", "95.00 ± 1.41"],
        ["none", "single", "92.00 ± 2.00"],
        ["none", "sup_tickets", "99.00 ± 0.00"],
    ]


# -- the networks on the way -------------------------------------------------------------------------------------------

NETWORKS = """\
  data model method density    phase    network step val accuracy (%) realised density   n
digits   mlp   rigl     0.1 pretrain pretrained   40     80.00 ± 2.83              0.1 2/3
digits   mlp   rigl     0.1  cycle 1   ticket 1   50     90.00 ± 1.41              0.1 2/3
digits   mlp   rigl     0.1  cycle 1 averaged 1   50        91.00 ± —             0.15 1/3
"""

MISSING_NETWORKS = [
    "missing in digits mlp rigl density=0.1, pretrained, ticket 1: seed 2 failed",
    "missing in digits mlp rigl density=0.1, averaged 1: seed 1 done without it; seed 2 failed",
]

NETWORKS_CSV = """\
data,model,method,density,phase,phase_name,step,network,realised_density,accuracy,accuracy_std,n,expected,missing
digits,mlp,rigl,0.1,0,pretrain,40,pretrained,0.1,80,2.828427125,2,3,seed 2 failed
digits,mlp,rigl,0.1,1,cycle 1,50,ticket 1,0.1,90,1.414213562,2,3,seed 2 failed
digits,mlp,rigl,0.1,1,cycle 1,50,averaged 1,0.15,91,,1,3,seed 1 done without it; seed 2 failed
"""

NETWORKS_LATEX_ROWS = r"""
Data & Model & Method & {Density} & Phase & Network & {Step} & Val accuracy (\%) & {Realised density} & N \\
\midrule
digits & mlp & RigL & 0.1 & pretrain & pretrained & 40 & 80.00 $\pm$ 2.83 & 0.1 & 2/3 \\
digits & mlp & RigL & 0.1 & cycle 1 & ticket 1 & 50 & 90.00 $\pm$ 1.41 & 0.1 & 2/3 \\
digits & mlp & RigL & 0.1 & cycle 1 & averaged 1 & 50 & 91.00 $\pm$ -- & 0.15 & 1/3 \\
"""


def log_network(folder, phase, step, name, accuracy, density=0.1):
    phase_name = f"cycle {phase}" if phase else "pretrain"
    with Record.open(folder) as record:
        where = {"phase": phase, "phase_name": phase_name, "step": step, "name": name}
        record.log_network(attempt=1, **where, density=density, active=100, loss=0.1, accuracy=accuracy)


@pytest.fixture
def networks(tree):
    """Those of rigl, whose third run failed before it made one: 78, 82: deviation sqrt(8); 89, 91: sqrt(2)."""
    for seed, (first, ticket) in enumerate([(0.78, 0.89), (0.82, 0.91)]):
        log_network(tree / "sweep" / f"rigl-0.1-{seed}", 0, 40, "pretrained", first)
        log_network(tree / "sweep" / f"rigl-0.1-{seed}", 1, 50, "ticket 1", ticket)
    log_network(tree / "sweep" / "rigl-0.1-0", 1, 50, "averaged 1", 0.91, density=0.15)
    return tree


def test_the_table_of_networks_has_the_figures_computed_by_hand(networks):
    assert network_table(catalog(networks)).to_string(index=False) + "\n" == NETWORKS
    assert missing_networks(catalog(networks)) == MISSING_NETWORKS
    assert shown(catalog(networks)) == TABLE


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_runs_does_not_matter_to_their_networks(networks, seed):
    frame = catalog(networks).sample(frac=1, random_state=seed)
    assert network_table(frame).to_string(index=False) + "\n" == NETWORKS


def test_the_command_prints_and_writes_networks(networks, tmp_path):
    result = run_cli(networks, "--networks", "--csv", tmp_path / "n.csv", "--latex", tmp_path / "n.tex")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "\n".join([NETWORKS, *MISSING_NETWORKS, ""])
    assert (tmp_path / "n.csv").read_text("utf-8") == NETWORKS_CSV
    assert NETWORKS_LATEX_ROWS in (tmp_path / "n.tex").read_text("utf-8")


def test_without_validation_networks_have_a_dash(networks):
    path = networks / "sweep" / "rigl-0.1-0" / "networks.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for folder in (path.parent, networks / "sweep" / "rigl-0.1-1"):
        lines = [{name: value for name, value in row.items() if not name.startswith("val/")} for row in rows]
        (folder / "networks.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    table = network_table(catalog(networks))
    assert [*zip(table["network"], table["val accuracy (%)"], table["n"], strict=True)] == [
        (name, "—", "2/3") for name in ("pretrained", "ticket 1", "averaged 1")
    ]


def test_networks_that_a_resume_voids_are_not_in_the_table(networks):
    with Record.open(networks / "sweep" / "rigl-0.1-0") as record:
        record.mark_resume(phase=1, step=45, attempt=2)
    assert network_figures(catalog(networks))[["network", "n"]].values.tolist() == [["pretrained", 2], ["ticket 1", 1]]


def test_settings_in_which_experiments_differ_are_columns_of_their_networks_too(networks, add_run):
    folder = add_run(networks, "sweep", "rigl", 0, 0.9, **{"schedule.multiplier": 5})
    log_network(folder, 0, 200, "pretrained", 0.75)
    table = network_table(catalog(networks))
    assert table[["schedule.multiplier", "network", "step"]].values.tolist() == [
        *(["1", name, step] for name, step in (("pretrained", "40"), ("ticket 1", "50"), ("averaged 1", "50"))),
        ["5", "pretrained", "200"],
    ]


def test_networks_that_cannot_be_read_are_listed(networks):
    path = networks / "sweep" / "rigl-0.1-0" / "networks.jsonl"
    path.write_text('{"phase": 0, "step": 40, "phase_name": "pretrain", "name": "pretrained", "density": "x"}\n')
    (networks / "sweep" / "set-0.1-2" / "run.json").write_text("{")
    assert [*network_table(catalog(networks))["network"]] == ["pretrained", "ticket 1"]
    first, *others = missing_networks(catalog(networks))
    assert first == "missing in digits mlp rigl density=0.1, pretrained, ticket 1: seed 0 unreadable; seed 2 failed"
    assert [note.partition(": ")[2].partition(" is ")[0] for note in others] == [
        f"{networks}/sweep/set-0.1-2/run.json",
        f"{path}: density must be a finite number, but",
    ]


def test_runs_without_networks_make_no_table_of_them(tree):
    result = run_cli(tree, "--networks")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == f"no run in {tree} has made networks on the way (none has a networks.jsonl)\n"
    assert network_table(catalog(tree)).empty


def test_copies_are_in_no_table_and_named_below_it(tree, tmp_path, capsys):
    group = tmp_path / "outputs" / "sweep"
    (first, *_) = (path for path in sorted(group.iterdir()) if path.name.startswith("set"))
    without = len(accuracy_table(catalog(tmp_path / "outputs")))
    shutil.copytree(first, group / f"{first.name} copy")
    shutil.copytree(group, tmp_path / "backup")
    assert main([str(tmp_path / "outputs"), str(tmp_path / "backup")]) == 0
    out = capsys.readouterr().out
    copies = f"{tmp_path}/outputs/sweep/{first.name} copy, {tmp_path}/backup/{first.name}, "
    assert f"run {first.name} is also in {copies}{tmp_path}/backup/{first.name} copy: {first} counts" in out
    assert out.count(" is also in ") == 8  # all runs of the tree
    assert out.split("\n\n")[0].count("digits") == without == 3
