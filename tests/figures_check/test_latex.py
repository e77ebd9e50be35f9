"""Tables in an article of two columns: they compile, nothing is wider than its column, and no font is of Type 3."""

import re
import subprocess

import pytest

from analysis.compare import main as compare
from analysis.tables import main as tables
from tests.analysis.hostile import make_hostile

ARTICLE = r"""\documentclass[twocolumn]{article}
\usepackage{booktabs,siunitx,adjustbox}
\begin{document}
\begin{table}\caption{The first}\input{table}\end{table}
\end{document}
"""
LEAST_SCALE = 0.8
"""A table of a usual sweep is not made smaller than this to fit; of ``\footnotesize``, that is 6.4 points."""

SWEEP = "python run.py -m sparsity=..."


@pytest.fixture
def sweep(tmp_path, add_run):
    """Six methods, dense among them, three densities, five seeds; two data sets."""
    methods = ("rigl_itop", "set_itop", "granet_uniform", "static", "srigl", "dense")
    for data in ("digits", "cifar10"):
        for place, method in enumerate(methods):
            for density in (0.05, 0.1, 0.2) if method != "dense" else (None,):
                for seed in range(5):
                    accuracy = 0.9 + place / 100 + (density or 1) / 20 + seed * (place + 1) / 1000
                    where = {"command": SWEEP, "data.name": data}
                    add_run(tmp_path / "runs", "g", method, seed, accuracy, density=density, **where)
    return tmp_path / "runs"


def compiled(folder):
    """Compile the article in a folder, and return the log."""
    (folder / "article.tex").write_text(ARTICLE)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "article.tex"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    assert result.returncode == 0, result.stdout[-3000:]
    log = (folder / "article.log").read_text(errors="replace")
    assert "Overfull" not in log, re.findall(r"Overfull.*", log)
    assert "Missing character" not in log
    fonts = subprocess.run(["pdffonts", folder / "article.pdf"], capture_output=True, text=True, check=True).stdout
    assert "Type 3" not in fonts, fonts
    assert "Type 1" in fonts
    return log


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--where", "data=digits"],
        ["--where", "data=digits", "--rows", "method", "--columns", "density"],
        ["--rows", "data,method", "--columns", "density", "--value", "rs"],
        ["--summary", "median"],
    ],
)
def test_tables_fit_a_column_of_an_article(sweep, tmp_path, options):
    assert tables([str(sweep), "--latex", str(tmp_path / "table.tex"), *options]) == 0
    compiled(tmp_path)


def test_two_sweeps_fit_a_column_of_an_article(sweep, tmp_path, add_run):
    for seed in range(5):
        add_run(tmp_path / "other", "g", "rigl_itop", seed, 0.8 + seed / 100, **{"schedule.multiplier": 5})
    assert compare([str(sweep), str(tmp_path / "other"), "--latex", str(tmp_path / "table.tex")]) == 0
    compiled(tmp_path)


def test_a_hostile_tree_compiles(tree, add_run, tmp_path):
    make_hostile(tree, add_run)
    assert tables([str(tree), "--latex", str(tmp_path / "table.tex")]) == 0
    compiled(tmp_path)


def test_a_table_of_a_sweep_is_hardly_made_smaller(sweep, tmp_path):
    tables([str(sweep), "--where", "data=digits", "--latex", str(tmp_path / "table.tex")])
    path = tmp_path / "table.tex"
    measured = r"\setbox0=\hbox{\begin{tabular}"
    text = path.read_text().replace(r"\begin{tabular}", measured, 1)
    text = text.replace(r"\end{tabular}", r"\end{tabular}}\typeout{WIDTH \the\wd0}\box0", 1)
    path.write_text(text.replace(r"\begin{adjustbox}{max width=\columnwidth}", "").replace(r"\end{adjustbox}", ""))
    (tmp_path / "article.tex").write_text(
        ARTICLE.replace(r"\begin{table}", r"\typeout{COLUMN \the\columnwidth}\begin{table}")
    )
    command = ["pdflatex", "-interaction=nonstopmode", "article.tex"]
    log = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False).stdout
    (width,), (column,) = (re.findall(rf"{name} ([\d.]+)pt", log) for name in ("WIDTH", "COLUMN"))
    assert float(column) > LEAST_SCALE * float(width)


def test_the_check_sees_a_table_that_is_too_wide(tmp_path):
    (tmp_path / "table.tex").write_text(r"\noindent\begin{tabular}{l}" + "too wide " * 20 + r"\end{tabular}")
    with pytest.raises(AssertionError, match="Overfull"):
        compiled(tmp_path)
