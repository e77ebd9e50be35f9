"""What a tree of runs may hold that must harm no table."""

import csv
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from analysis.latex import breakable, escaped
from analysis.runs import load
from analysis.tables import main, results
from tests.analysis.hostile import LABELS, make_hostile

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def hostile(tree, add_run):
    make_hostile(tree, add_run)
    return tree


def test_no_other_row_changes_and_each_run_is_listed(tree, add_run):
    before = results(load([tree]))
    make_hostile(tree, add_run)
    after = results(load([tree]))
    rows = after.text.values.tolist()
    assert [row for row in before.text.values.tolist() if row not in rows] == []
    assert [*after.text.columns] == [*before.text.columns]
    assert len(rows) == len(before.text) + len(LABELS) + 2
    assert [note for note in before.footnotes if note not in after.footnotes] == []
    told = after.footnotes
    assert sum(note.startswith("not in the table") for note in told) == 3
    for name in ("torn/torn", "torn/status", "torn/empty"):
        assert any(name in note for note in told)
    assert "missing in digits mlp failed density=0.1: seed 5 failed" in told
    assert "missing in digits mlp lost density=0.1: seed 6 diverged" in told


def test_no_control_code_reaches_the_terminal(hostile, capsys):
    assert main([str(hostile)]) == 0
    shown = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in shown)
    assert r"\x1b[31mred\x1b[0m" in shown
    assert r"two\nlines\ttab" in shown
    assert r"\u202eright to left" in shown


def test_no_cell_of_a_csv_is_a_formula(hostile, tmp_path):
    main([str(hostile), "--csv", str(tmp_path / "t.csv"), "--per-seed", str(tmp_path / "s.csv")])
    for name in ("t", "s"):
        lines = [*csv.reader(io.StringIO((tmp_path / f"{name}.csv").read_text("utf-8")))]
        texts = [cell for line in lines[1:] for cell in line if not _is_number(cell)]
        assert [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r"))] == []
        assert {'\'=cmd|"/C calc"!A0', "'+1", "'@SUM(A1)", "'-2"} <= {cell for line in lines for cell in line}


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return not text.startswith("+")


def test_a_negative_number_stays_a_number_in_a_csv(hostile, tmp_path):
    main([str(hostile), "--csv", str(tmp_path / "t.csv")])
    assert ",-4,," in (tmp_path / "t.csv").read_text("utf-8")


@pytest.mark.parametrize("escape", [escaped, breakable])
@pytest.mark.parametrize(
    ("text", "tex"),
    [
        ("a^b~c", r"a\textasciicircum{}b\textasciitilde{}c"),
        (r"\x{y}", r"$\backslash$x$\{$y$\}$"),
        ("50 % & $5_#", r"50 \% \& $\mathdollar$5\_\#"),
        ("<|>", "$<$$|$$>$"),
        ("é ç \x1b\n", "é ç U+001BU+000A"),
        ("中", "U+4E2D"),
        ("2 ± —", r"2 $\pm$ --"),
    ],
)
def test_every_character_is_text_to_latex(escape, text, tex):
    assert escape(text) == tex


def test_long_words_may_be_broken():
    assert breakable("/a/" + "b" * 40).count(r"\allowbreak{}") >= 3
    assert breakable("short words only") == "short words only"


def run_cli(*arguments, module="analysis.tables", cwd=REPOSITORY, **environment):
    command = [sys.executable, "-m", module, *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, check=False)


def test_an_ascii_terminal_gets_plain_signs(hostile, tmp_path):
    result = run_cli(hostile, PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode("ascii")
    assert "92.00 +- 2.00" in text
    assert r"\u4e2d\u6587 \xe9 +-" in text


def test_twice_gives_the_same_bytes_from_any_folder(hostile, tmp_path):
    written = []
    for cwd in (REPOSITORY, tmp_path):
        files = [tmp_path / f"{cwd.name}.{kind}" for kind in ("csv", "tex", "seeds")]
        given = zip(("--csv", "--latex", "--per-seed"), files, strict=True)
        result = run_cli(hostile, *(part for pair in given for part in pair), cwd=cwd, PYTHONHASHSEED=str(len(written)))
        assert (result.returncode, result.stderr) == (0, b"")
        written.append([result.stdout, *(file.read_bytes() for file in files)])
    assert written[0] == written[1]


@pytest.mark.parametrize("module", ["analysis.tables", "analysis.compare"])
def test_a_closed_pipe_is_no_traceback(hostile, module):
    folders = [hostile, hostile] if module == "analysis.compare" else [hostile]
    command = [sys.executable, "-m", module, *map(str, folders)]
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run(command, cwd=REPOSITORY, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (result.returncode, result.stderr) == (0, b"")


def test_files_that_cannot_be_written_are_an_error(tree, capsys):
    assert main([str(tree), "--csv", str(tree / "nowhere" / "t.csv")]) == 1
    assert "cannot write the table" in capsys.readouterr().err
