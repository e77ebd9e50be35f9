import subprocess

from dst.records import provenance


def test_code_digest_follows_the_sources_only(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("x = 1\n")
    (tmp_path / "notes.md").write_text("anything")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    first = provenance.code_version()
    (tmp_path / "notes.md").write_text("something else")
    assert provenance.code_version()["digest"] == first["digest"]
    (tmp_path / "a.py").write_text("x = 2\n")
    assert provenance.code_version()["digest"] != first["digest"]
    assert (first["git"], first["diff"]) == (None, None)  # no repository there


def test_git_commit_and_uncommitted_changes(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *arguments], check=True, capture_output=True, text=True
        )

    (tmp_path / "a.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "first")
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path)
    clean = provenance.code_version()
    assert clean["git"] == git("rev-parse", "HEAD").stdout.strip()
    assert clean["diff"] is None
    (tmp_path / "a.py").write_text("x = 2\n")
    assert provenance.code_version()["diff"] is not None


def test_versions_are_those_installed_and_absence_is_said():
    import torch

    assert provenance.library_versions()["torch"] == torch.__version__.partition("+")[0]
    assert provenance._version("no-such-library") is None
    assert set(provenance.machine()) == {"host", "platform", "machine"}
