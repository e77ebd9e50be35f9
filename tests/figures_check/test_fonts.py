"""What conferences check in a PDF: every font is embedded, and none is of Type 3. Needs ``pdffonts`` (poppler)."""

import subprocess

import pytest

from analysis.figures import FIGURES, VENUES
from analysis.figures.__main__ import main
from tests.analysis.test_figures import rich as rich


def fonts(path):
    """Return type and "is embedded" of each font in a PDF."""
    listed = subprocess.run(["pdffonts", str(path)], capture_output=True, text=True, check=True).stdout.splitlines()
    assert listed[0].split()[:2] == ["name", "type"]
    types, embedded = listed[0].index("type"), listed[0].index("emb")
    return [(line[types:].split("  ")[0].strip(), line[embedded:].split()[0]) for line in listed[2:]]


@pytest.mark.parametrize("venue", [None, *VENUES])
def test_no_figure_has_a_font_of_type_3_and_all_are_embedded(rich, tmp_path, venue):
    words = [str(rich), "--out", str(tmp_path / "pdf"), *(["--venue", venue] if venue else [])]
    assert main(words) == 0
    files = sorted((tmp_path / "pdf").iterdir())
    assert [path.stem for path in files] == sorted(FIGURES)
    for path in files:
        found = fonts(path)
        assert found, path
        assert {embedded for _, embedded in found} == {"yes"}, path
        assert {kind.split()[0] for kind, _ in found} <= {"CID", "TrueType"}, (path, found)
        assert "Type 3" not in {kind for kind, _ in found}


def test_the_check_sees_a_font_of_type_3(tmp_path):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure()
    figure.text(0.5, 0.5, "Type 3")
    with rc_context({"pdf.fonttype": 3}):
        figure.savefig(tmp_path / "old.pdf")
    assert [kind for kind, _ in fonts(tmp_path / "old.pdf")] == ["Type 3"]
