"""What needs programs of the system: ``make check-figures`` runs it. Without one of them it fails, it does not skip."""

import shutil

import pytest

from tests.analysis.conftest import add_run as add_run
from tests.analysis.conftest import tree as tree

PROGRAMS = {"pdflatex": ("pdflatex",), "pdffonts": ("pdffonts",), "Chromium": ("chromium", "chromium-browser")}
"""A program -> the names under which systems have it."""


def pytest_sessionstart():
    missing = [program for program, names in PROGRAMS.items() if not any(map(shutil.which, names))]
    if missing:
        raise pytest.UsageError(
            f"make check-figures needs {', '.join(missing)}: README.md says which packages have them"
        )
