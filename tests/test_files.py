"""The one way to write a file whole or not at all, and to say by a digest what it holds."""

import ast
import hashlib
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dst import files
from dst.files import (
    OtherContentError,
    file_sha256,
    kept_back,
    read_verified,
    replace_text,
    replacing,
    sha256,
    write_or_keep,
)
from tests.limits import largest_file
from tests.processes import REPOSITORY


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Return what is done to the disk, in order: (``fsync`` or ``replace``, the name of the file or folder)."""
    found = []
    fsync, replace = os.fsync, os.replace

    def synced(file):
        found.append(("fsync", Path(os.readlink(f"/proc/self/fd/{file}")).name.rpartition(".")[2]))
        fsync(file)

    def replaced(source, target):
        found.append(("replace", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", replaced)
    return found


def test_the_new_content_replaces_the_old(tmp_path):
    (tmp_path / "a").write_text("old and longer")
    replace_text(tmp_path / "a", "Grüße\n")
    assert (tmp_path / "a").read_bytes() == "Grüße\n".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_until_the_end_readers_see_the_old_content(tmp_path):
    (tmp_path / "a").write_text("old")
    with replacing(tmp_path / "a") as (file,):
        file.write(b"new")
        file.flush()
        assert (tmp_path / "a").read_text() == "old"
    assert contents(tmp_path) == {"a": "new"}


def test_several_files_are_complete_on_the_disk_before_the_first_one_is_replaced(tmp_path, calls):
    with replacing(tmp_path / "data", tmp_path / "manifest", shared=False) as (data, manifest):
        data.write(b"1")
        manifest.write(b"2")
        assert sorted(os.listdir(tmp_path)) == ["data.tmp", "manifest.tmp"]
    folder = ("fsync", tmp_path.name.rpartition(".")[2])
    assert calls == [("fsync", "tmp"), ("fsync", "tmp"), ("replace", "data"), ("replace", "manifest"), folder]
    assert contents(tmp_path) == {"data": "1", "manifest": "2"}


def test_who_need_not_wait_for_the_disk_does_not(tmp_path, calls):
    replace_text(tmp_path / "a", "new", durable=False)
    assert calls == [("replace", "a")]
    assert contents(tmp_path) == {"a": "new"}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path, shared, error):
    for name in "ab":
        (tmp_path / name).write_text("old")

    def fail():
        with replacing(tmp_path / "a", tmp_path / "b", shared=shared) as (one, _):
            one.write(b"new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(tmp_path) == {"a": "old", "b": "old"}


@pytest.mark.parametrize(
    "size", [0, 5, 100_000]
)  # a short text fails when it is flushed, a long one when it is written
def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path, size):
    (tmp_path / "a").write_text("old")
    with largest_file(size), pytest.raises(OSError, match="File too large"):
        replace_text(tmp_path / "a", "x" * (size + 1))
    assert contents(tmp_path) == {"a": "old"}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, call):
    (tmp_path / "a").write_text("old")

    def broken(*_):
        raise OSError("broken")

    monkeypatch.setattr(files.os, call, broken)
    with pytest.raises(OSError, match="broken"):
        replace_text(tmp_path / "a", "new")
    assert contents(tmp_path) == {"a": "old"}


def test_where_there_is_no_folder_the_error_says_so(tmp_path):
    with pytest.raises(FileNotFoundError):
        replace_text(tmp_path / "none" / "a", "new")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        replace_text(tmp_path / "file" / "a", "new")


KILLED = """
import os, signal, sys
from pathlib import Path
from dst import files
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(files.os, sys.argv[2], die)
with files.replacing(Path(sys.argv[1]), shared=False) as (file,):
    file.write(b"x" * 100_000)
"""


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_between_writing_and_renaming_leaves_the_old_content(tmp_path, call):
    (tmp_path / "a").write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a"), call], check=False, cwd=REPOSITORY)
    assert killed.returncode == -signal.SIGKILL
    assert contents(tmp_path) == {"a": "old", "a.tmp": "x" * 100_000}
    with replacing(tmp_path / "a", shared=False) as (file,):  # what the kill has left is overwritten
        file.write(b"new")
    assert contents(tmp_path) == {"a": "new"}


@pytest.mark.parametrize(("took_s", "left"), [(59.0, []), (61.0, ["note"])])
def test_what_is_kept_back_is_not_written_after_an_error(tmp_path, monkeypatch, took_s, left):
    """Unless it took so long to find out that nobody wants to wait for it again."""
    moments = iter([0.0, 0.0, 0.0, 0.0, took_s])
    monkeypatch.setattr(files.time, "monotonic", lambda: next(moments))
    with kept_back():
        write_or_keep((tmp_path / "now").touch)
        assert os.listdir(tmp_path) == []
    assert os.listdir(tmp_path) == ["now"]
    (tmp_path / "now").unlink()

    def refuse():
        write_or_keep((tmp_path / "note").touch)
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"), kept_back():
        refuse()
    assert os.listdir(tmp_path) == left
    write_or_keep((tmp_path / "later").touch)
    assert sorted(os.listdir(tmp_path)) == ["later", *left]


def test_what_took_long_to_find_out_is_not_kept_back(tmp_path, monkeypatch):
    """The process may be killed before the block ends."""
    moments = iter([0.0, 59.0, 61.0])
    monkeypatch.setattr(files.time, "monotonic", lambda: next(moments))
    with kept_back():
        write_or_keep((tmp_path / "early").touch)
        write_or_keep((tmp_path / "late").touch)
        assert os.listdir(tmp_path) == ["late"]
    assert sorted(os.listdir(tmp_path)) == ["early", "late"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_permissions_are_those_that_the_umask_leaves(tmp_path, umask):
    before = os.umask(umask)
    try:
        replace_text(tmp_path / "a", "new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~umask


def test_processes_that_replace_the_same_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a"
    with replacing(path) as (one,), replacing(path) as (other,):
        one.write(b"one")
        other.write(b"other")
    assert contents(tmp_path) == {"a": "one"}  # it was the last to end


# -- digests -----------------------------------------------------------------------------------------------------------


def test_a_digest_is_sha256_in_hex():
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@given(st.binary(max_size=100), st.text(max_size=100))
def test_a_digest_is_of_the_bytes_whether_they_are_text_or_lie_in_a_file(tmp_path_factory, content, text):
    path = tmp_path_factory.mktemp("digest") / "file"
    path.write_bytes(content)
    expected = hashlib.sha256(content).hexdigest()
    with path.open("rb") as file:
        assert sha256(content) == file_sha256(path) == file_sha256(file) == expected
    assert read_verified(path, expected) == read_verified(path, None) == content
    assert sha256(text) == sha256(text.encode())


def test_a_file_with_another_content_is_refused(tmp_path):
    (tmp_path / "a").write_text("abc")
    with pytest.raises(OtherContentError, match=f"a has the digest {sha256('abc')}, but {sha256('abd')} was asked for"):
        read_verified(tmp_path / "a", sha256("abd"))


# -- one of each -------------------------------------------------------------------------------------------------------

ELSEWHERE = {
    ("dst/data/cache.py", "hashlib.sha256"): "of tensors, one after another",
    ("dst/data/content.py", "hashlib.sha256"): "of many files, one after another",
    ("dst/data/download.py", "os.replace"): "moves what torchvision has written",
    ("dst/data/files.py", "hashlib.blake2b"): "eight bytes a file",
    ("dst/data/files.py", "hashlib.sha256"): "of arrays, one after another",
    ("dst/data/published.py", "hashlib.md5"): "is what is published",
    ("dst/launcher/frozen.py", "os.rename"): "of a folder",
    ("dst/records/store.py", "os.fsync"): "of a history, which is appended to",
    ("dst/seeding.py", "hashlib.blake2b"): "a seed",
}


WAYS = re.compile(r"hashlib\.\w+|os\.(replace|rename|fsync)|tempfile\.NamedTemporaryFile")


def test_nothing_else_replaces_files_or_digests_them():
    found = {
        (path.relative_to(REPOSITORY).as_posix(), ast.unparse(node))
        for path in (REPOSITORY / "dst").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and WAYS.fullmatch(ast.unparse(node))
    }
    assert {place for place in found if place[0] != "dst/files.py"} == ELSEWHERE.keys()
    assert {way for file, way in found if file == "dst/files.py"} == {
        *("hashlib.sha256", "hashlib.file_digest", "os.replace", "os.fsync")
    }
