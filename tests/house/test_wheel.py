"""``pip install .`` gives ``dst`` and ``analysis``: the wheel that pip builds works away from the repository."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.docs.pages import clone, snippets
from tests.processes import run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Build the wheel from a clean clone, with the setuptools that is here."""
    place = tmp_path_factory.mktemp("wheel")
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place / "built"]
    pip(*build, clone(place / "dst"))
    (built,) = (place / "built").glob("dst-*.whl")
    return built


@pytest.fixture(scope="module")
def elsewhere(wheel):
    """Install it into a folder of its own; return a function that runs Python with it in an empty folder."""
    target, empty = wheel.parent / "installed", wheel.parent / "empty"
    pip("install", "--no-deps", "--no-index", "--no-compile", "--target", target, wheel)
    empty.mkdir()

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(target), "XDG_CACHE_HOME": str(empty / ".cache")}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=False)

    return python


def pip(*arguments):
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, text=True)


def test_the_wheel_has_every_file_that_the_packages_have(wheel, tmp_path):
    """Not the notebooks, which are for whoever has the repository; nothing beside the two packages."""
    repository = clone(tmp_path)
    packages = ("dst", "analysis")
    files = [path for package in packages for path in (repository / package).rglob("*") if path.is_file()]
    expected = {path.relative_to(repository).as_posix() for path in files if path.suffix != ".ipynb"}
    found = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert found == expected


def test_the_core_is_imported_from_the_wheel_and_trains(elsewhere):
    (loop,) = (text for text in snippets("docs/python.md") if "for _ in range(500)" in text)
    told = elsewhere("-c", f"{loop}\nimport dst; print(dst.__file__)")
    assert told.returncode == 0, told.stderr
    density, place = told.stdout.splitlines()
    assert density.startswith("density 0.200, Rs 0.")
    assert "/installed/dst/" in place


def test_packed_layers_find_their_kernels_in_the_wheel(elsewhere):
    code = """
import torch
from dst.sparsity import Sparsifier
model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
sparsifier = Sparsifier(model, optimizer, density=0.2, distribution="uniform", compute="packed")
model(torch.randn(32, 64)).square().mean().backward()
sparsifier.step()
print(type(sparsifier.weights).__name__, sum(parameter.dim() == 1 for parameter in model.parameters()))
"""
    told = elsewhere("-c", code)
    assert told.returncode == 0, told.stderr
    assert told.stdout == "Packed 3\n", "two biases, and the active weights of the first layer"


def test_records_are_looked_at_from_the_wheel(elsewhere, tmp_path):
    small = ("model.hidden=[16]", "schedule.epochs=1", "tracking.progress=none", "tracking=none")
    assert run("-m", "sparsity=static,dense", "seed=0,1,2", *small, cwd=tmp_path).code == 0
    table = elsewhere("-m", "analysis.tables", tmp_path / "outputs")
    assert table.returncode == 0, table.stderr
    rows = [line.split() for line in table.stdout.splitlines() if line.lstrip().startswith("digits")]
    assert sorted((row[2], row[-1]) for row in rows) == [("dense", "3"), ("static", "3")]
    states = elsewhere("-m", "dst.launcher.status", tmp_path / "outputs")
    assert states.returncode == 0, states.stderr
    assert states.stdout.count("done") >= 6
    for command in (("cancel",), ("sync", "--dry-run")):
        told = elsewhere("-m", f"dst.launcher.{command[0]}", *command[1:], tmp_path / "outputs")
        assert told.returncode == 0, told.stderr
    code = (
        "import pathlib, sys; from dst.records.catalog import catalog; print(len(catalog(pathlib.Path(sys.argv[1]))))"
    )
    assert elsewhere("-c", code, tmp_path).stdout == "6\n"
