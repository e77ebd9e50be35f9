import shutil
import subprocess
import sys

import pytest

from dst.records import provenance


@pytest.fixture
def code_version(tmp_path, monkeypatch):
    """The function, about a folder that changes meanwhile."""
    monkeypatch.setattr(provenance, "PACKAGE", tmp_path)
    return provenance.code_version.__wrapped__


def test_code_digest_follows_the_sources_only(tmp_path, code_version):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.md").write_text("anything")
    first = code_version()
    (tmp_path / "notes.md").write_text("something else")
    assert code_version()["digest"] == first["digest"]
    for name in ("a.py", "b.c", "b.h"):  # kernels are code too
        before = code_version()["digest"]
        (tmp_path / name).write_text("x = 2\n")
        assert code_version()["digest"] != before
    assert (first["git"], first["diff"]) == (None, None)  # no repository there


def test_what_an_editor_leaves_beside_the_sources_is_no_code(tmp_path):
    package, copied = tmp_path / "package", tmp_path / "copied"
    (package / "sub").mkdir(parents=True)
    (package / "sub" / "a.py").write_text("x = 1\n")
    before = provenance.code_digest(package)
    (package / "sub" / ".#a.py").symlink_to("someone@somewhere.1")
    (package / "sub" / "gone.py").symlink_to("nowhere")
    (package / "sub" / ".a.py").write_text("x = 2\n")
    (package / ".old").mkdir()
    (package / ".old" / "b.py").touch()
    assert provenance.code_digest(package) == before
    shutil.copytree(package, copied, ignore=provenance.passed_over)
    assert [path.name for path in copied.rglob("*")] == ["sub", "a.py"]
    assert provenance.code_digest(copied) == before


def test_it_is_looked_at_once_a_process():
    assert provenance.code_version() is provenance.code_version()


def test_git_commit_and_uncommitted_changes(tmp_path, code_version):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )

    (tmp_path / "a.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    clean = code_version()
    assert clean["git"] == git("rev-parse", "HEAD").stdout.strip()
    assert clean["diff"] is None
    (tmp_path / "a.py").write_text("x = 2\n")
    assert code_version()["diff"] is not None


def test_versions_are_those_installed_and_absence_is_said():
    import torch

    assert provenance.library_versions()["torch"] == torch.__version__.partition("+")[0]
    assert provenance._version("no-such-library") is None
    assert set(provenance.machine()) == {"host", "platform", "machine"}


def test_a_command_can_be_pasted_where_it_is_printed(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path / "a b")
    monkeypatch.delenv("PYTHONPATH", raising=False)
    words = ("dst.launcher.status", tmp_path / "é b")
    bare = f"python -m dst.launcher.status '{tmp_path}/é b'"
    assert provenance.pasteable(*words) == f"PYTHONPATH={provenance.PACKAGE.parent} {bare}"
    monkeypatch.setenv("PYTHONPATH", f"/x:{provenance.PACKAGE.parent}")
    assert provenance.pasteable(*words) == bare
    monkeypatch.setenv("PYTHONPATH", "/x")
    monkeypatch.chdir(provenance.PACKAGE.parent)
    assert provenance.pasteable(*words) == bare
    shown = subprocess.run(
        provenance.pasteable("dst.run.sources", "--help").replace("python", sys.executable, 1),
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
