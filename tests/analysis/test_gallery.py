"""The page of figures, and what stands in docs/."""

import re
from pathlib import Path

import pytest

from analysis.gallery import command_of, main

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_figures_of_each_group_and_says_from_which_runs_they_are(tree, add_run, tmp_path, capsys):
    add_run(tree, "second", "set", 0, 0.9, density=0.2)
    for name in ("one", "two"):
        assert main([str(tree), "--out", str(tmp_path / name)]) == 0
    pages = [(tmp_path / name / "gallery.md").read_text() for name in ("one", "two")]
    assert pages[0] == pages[1]
    assert re.findall("^## (.*)$", pages[0], re.MULTILINE) == ["second", "sweep"]
    assert "From 8 runs (6 done, 1 failed, 1 running) of" in pages[0]
    shown = re.findall(r"\]\((gallery/.*)\)", pages[0])
    assert shown == ["gallery/second_accuracy_density.svg", "gallery/sweep_accuracy_density.svg"]
    for path in shown:
        assert (tmp_path / "one" / path).read_bytes() == (tmp_path / "two" / path).read_bytes()


def test_a_command_is_shown_without_where_it_ran():
    typed = "python run.py -m +experiment=itop/mini seed=0,1 output.root=/here data.root=/there tracking=none"
    assert command_of(typed) == "python run.py -m +experiment=itop/mini seed=0,1"


@pytest.mark.parametrize("words", [["nowhere"], ["."]])
def test_a_folder_without_runs_is_an_error(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--out", "o"]) == 2
    assert "give the folder that runs were written to" in capsys.readouterr().err


def test_the_gallery_in_docs_shows_every_figure_beside_it_and_names_no_machine():
    page = (DOCS / "gallery.md").read_text()
    shown = re.findall(r"\]\((gallery/[^)]*)\)", page)
    assert sorted(shown) == sorted(f"gallery/{path.name}" for path in (DOCS / "gallery").iterdir())
    texts = [page, *((DOCS / path).read_text() for path in shown)]
    assert not [text[:80] for text in texts if re.search(r"/(work|tmp|home|root)/", text)]
    assert max(len(text) for text in texts) < 80_000
    assert "minis: small networks on small data" in page
