"""A walk through what users do with their runs.

A killed sweep is renamed, moved, linked to, copied, mounted, read in other places, continued in other shells: each ends
as documented, and the figures stay those of a sweep left in peace.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from dst.records.catalog import find_runs
from dst.records.read import read_json, read_status, read_summary
from tests.processes import REPOSITORY, run

pytestmark = pytest.mark.slow

SWEEP = (
    *("-m", "sparsity=static,rigl_itop", "model.hidden=[16]", "schedule.epochs=2", "schedule.update_every=10"),
    *("tracking=none", "hardware.threads=1", "checkpoint.every_steps=21"),
)
STUDY = "a study é"


def at(root: Path | str, group: str = "first") -> tuple[str, str]:
    """Return the overrides that say where records go; a name with a space needs Hydra's quotes."""
    return f'output.root="{root}"', f"output.group={group}"


@pytest.fixture(scope="module")
def in_peace(tmp_path_factory):
    """What the sweep comes to where nothing happens."""
    folder = tmp_path_factory.mktemp("peace")
    result = run(*SWEEP, *at("outputs"), cwd=folder)
    assert result.code == 0, result.output
    return figures(folder / "outputs")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a study whose second run was killed in the last of its updates, after a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    assert run(*SWEEP, *at(STUDY), cwd=folder, fault="kill:update:6").code == -9
    return folder / STUDY


@pytest.fixture
def study(killed, tmp_path):
    """A copy of it, to do with as one likes; it says the same folder as the other's record."""
    return Path(shutil.copytree(killed, tmp_path / STUDY))


def figures(root: Path) -> dict[str, dict[str, float]]:
    """Return what the summary of each run says, by its id, but for times."""
    return {
        read_json(folder / "run.json")["id"]: {
            name: value for name, value in read_summary(folder).items() if not name.startswith("time/")
        }
        for folder in find_runs(root)
    }


def states(root: Path) -> list[str]:
    return sorted(read_status(folder)["state"] for folder in find_runs(root))


def rows(shown: str) -> list[str]:
    """Return the methods of the rows of a table, sorted; a row begins with the data."""
    lines = [line.split() for line in shown.splitlines() if line.lstrip().startswith("digits")]
    return sorted(words[2] for words in lines if words[1] == "mlp")


def python(*words: str, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
    """Start Python with what is in ``env`` beside this environment."""
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


def assert_continues(root: Path, in_peace: dict[str, dict[str, float]], group: str = "first", cwd: Path | None = None):
    """The same command finds both runs, trains the rest of one, and comes to the same figures."""
    result = run(*SWEEP, *at(root, group), cwd=cwd or root.parent)
    assert result.code == 0, result.output
    assert "2 runs: 1 finished already, 1 to train" in result.output
    assert "continuing from step 21" in result.output, result.output
    assert figures(root) == in_peace


# -- places ------------------------------------------------------------------------------------------------------------


def test_a_renamed_group_is_continued_by_its_new_name(study, in_peace):
    (study / "first").rename(study / "second")
    assert_continues(study, in_peace, group="second")


def test_a_root_is_continued_on_another_file_system(study, in_peace):
    elsewhere = another_file_system(study) / f"dst {os.getpid()}"
    try:
        shutil.move(study, elsewhere)
        assert_continues(elsewhere, in_peace, cwd=study.parent)
    finally:
        shutil.rmtree(elsewhere, ignore_errors=True)


def another_file_system(path: Path) -> Path:
    """Return a folder that may be written, on another file system than a path."""
    for folder in (Path("/dev/shm"), Path("/run"), Path.cwd()):
        if folder.is_dir() and os.access(folder, os.W_OK) and folder.stat().st_dev != path.stat().st_dev:
            return folder
    pytest.skip("this machine has one file system only that may be written")


def test_a_link_to_the_root_is_the_root(study, in_peace, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(study)
    assert_continues(link, in_peace)
    assert figures(study) == in_peace
    table = python("-m", "analysis.tables", str(link))
    assert (table.returncode, rows(table.stdout)) == (0, ["rigl_itop", "static"]), table.stderr


NO_TORCH = "import sys; sys.modules.update(dict.fromkeys(['torch', 'hydra', 'omegaconf', 'wandb']))"


def test_a_copied_group_is_tabulated_where_there_is_no_torch(study, tmp_path):
    copied = shutil.copytree(study / "first", tmp_path / "other machine" / "first")
    shutil.rmtree(study)
    show = "; from analysis import tables; sys.exit(tables.main(sys.argv[1:]))"
    table = python("-c", NO_TORCH + show, str(copied))
    assert (table.returncode, rows(table.stdout)) == (0, ["rigl_itop", "static"]), table.stderr


@contextmanager
def read_only(folder: Path) -> Iterator[Path]:
    """Mount a copy of a folder so that nobody can write to it."""
    mount = folder.with_name("mounted")
    mount.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "none", mount], check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        shutil.copytree(folder, mount / folder.name)
        subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
        yield mount / folder.name
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_read_only_mount_is_read_and_nothing_is_trained_on_it(study):
    with read_only(study) as mounted:
        for command in ("analysis.tables", "dst.launcher.status"):
            shown = python("-m", command, str(mounted))
            assert (shown.returncode, rows(shown.stdout), shown.stderr) == (0, ["rigl_itop", "static"], "")
        result = run(*SWEEP, *at(mounted), cwd=study.parent)
    assert result.code in (1, 2)
    assert "Read-only file system" in result.output or "read-only" in result.output
    assert "Traceback" not in result.output
    assert "1 finished already" in result.output


# -- shells and notebooks ----------------------------------------------------------------------------------------------


def test_a_bare_environment_gives_the_same_run_and_writes_ascii(study, in_peace, tmp_path):
    """No HOME, a terminal of ASCII, no docstrings and no asserts, a far time zone, from a folder of its own."""
    bare = {"PYTHONIOENCODING": "ascii", "PYTHONOPTIMIZE": "2", "TZ": "Pacific/Auckland", "PYTHONPATH": str(REPOSITORY)}
    environment = {name: value for name, value in os.environ.items() if name != "HOME"} | bare
    result = subprocess.run(
        [sys.executable, "-m", "run", *SWEEP, *at(study)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    assert result.stdout.decode("ascii").count("rigl_itop") > 0
    assert figures(study) == in_peace
    for command in ("analysis.tables", "dst.launcher.status"):
        shown = subprocess.run(
            [sys.executable, "-m", command, str(study)], cwd=tmp_path, env=environment, capture_output=True, check=False
        )
        assert (shown.returncode, shown.stderr.decode()) == (0, "")
        assert rows(shown.stdout.decode("ascii")) == ["rigl_itop", "static"]


def test_a_cell_of_a_notebook_continues_a_sweep(study, in_peace):
    words = " ".join(f"'{word}'" for word in (*SWEEP, *at(study)))
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(text) for text in (f"%run '{REPOSITORY}/run.py' {words}", "1 + 1")]
    )
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(study.parent)}}).execute()
    first, second = notebook.cells
    shown = "".join(output.get("text", "") for output in first.outputs)
    assert "2 runs: 1 finished already, 1 to train" in shown
    assert figures(study) == in_peace
    assert second.outputs[0]["data"]["text/plain"] == "2"  # the kernel lives on
