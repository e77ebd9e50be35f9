"""What torch.compile builds lies below the output root; what a kill has left is not used, but removed."""

import atexit
import os
import subprocess
import sys

import pytest
from torch import nn

from dst.config.schema import Config, Hardware
from dst.run import build, compiled
from tests.processes import REPOSITORY

PROCESS = """
import os, signal, sys
from pathlib import Path
from dst.run.compiled import build_below, keep

root, name, end = sys.argv[1:]
build_below(Path(root))
build_below(Path(root, "another"))  # one place serves a process
place = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
print(*sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file() and path.name != "lock"))
(place / "ab").mkdir(exist_ok=True)
(place / "ab" / name).write_text("half")
if end == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
(place / "ab" / name).write_text("whole")
(place / "ab" / "x.lock").touch()
keep()
"""


def process(root, name, end):
    """Return what another process finds built already; it builds ``name``."""
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(root), name, end],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (-9 if end == "kill" else 0), done.stderr
    return done.stdout.split()


def test_what_is_whole_is_kept_and_what_a_kill_left_is_built_again(tmp_path):
    ours = tmp_path / ".inductor" / str(os.getuid())
    assert process(tmp_path, "a.so", "kill") == []
    (left,) = ours.iterdir()
    assert (left / "ab" / "a.so").read_text() == "half"
    assert process(tmp_path, "a.so", "end") == []
    assert (ours / "whole" / "ab" / "a.so").read_text() == "whole"
    os.utime(left, (0, 0))
    half = ours / "whole" / "ab" / ".b.so.0a1b2c3d.tmp"  # of a process that was killed while it kept a file
    half.write_text("ha")
    assert process(tmp_path, "b.so", "end") == ["ab/a.so"]
    half.unlink()
    assert [path.name for path in ours.iterdir()] == ["whole"]
    assert sorted(path.name for path in (ours / "whole" / "ab").iterdir()) == ["a.so", "b.so"]
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize("asked", ["elsewhere", None])
def test_the_environment_may_say_where_and_torch_may_not(asked, tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "_own", None)
    monkeypatch.setattr(compiled, "_ASKED", asked)
    monkeypatch.setattr(atexit, "register", lambda *arguments: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "set by torch")
    compiled.build_below(tmp_path)
    assert (tmp_path / ".inductor").exists() == (asked is None)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(tmp_path) if asked is None else "set by torch")


def test_what_another_process_is_just_putting_there_is_not_taken(tmp_path, monkeypatch):
    """It is gone, under its own name, before it can be copied: here, a link that leads nowhere."""
    whole = tmp_path / ".inductor" / str(os.getuid()) / "whole"
    whole.mkdir(parents=True)
    (whole / "a.so").write_text("whole")
    (whole / ".b.so.0123abcd.tmp").symlink_to(whole / "gone")
    monkeypatch.setattr(compiled, "_own", None)
    monkeypatch.setattr(compiled, "_ASKED", None)
    monkeypatch.setattr(atexit, "register", lambda *arguments: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    compiled.build_below(tmp_path)
    assert sorted(path.name for path in compiled._own.iterdir()) == ["a.so", "lock"]


def test_what_somebody_else_can_put_there_is_not_executed(tmp_path, monkeypatch):
    """In a root that a group shares with umask 002 a folder would be open to the group."""
    monkeypatch.setattr(compiled, "_own", None)
    monkeypatch.setattr(compiled, "_ASKED", False)
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    ours = tmp_path / ".inductor" / str(os.getuid())
    ours.mkdir(parents=True)
    ours.chmod(0o775)
    monkeypatch.setattr(os, "getuid", lambda: ours.lstat().st_uid + 1)
    foreign = ours.with_name(str(os.getuid()))
    foreign.mkdir()
    compiled.build_below(tmp_path)
    assert (os.environ["TORCHINDUCTOR_CACHE_DIR"], [*foreign.iterdir()]) == ("elsewhere", [])
    monkeypatch.setattr(os, "getuid", lambda: ours.lstat().st_uid)
    compiled.build_below(tmp_path)
    assert ours.stat().st_mode & 0o777 == 0o700
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(str(ours))


@pytest.mark.parametrize(("mode", "told"), [("default", {}), ("reduce-overhead", {"mode": "reduce-overhead"})])
def test_the_compiler_is_told_of_a_mode_that_is_not_its_own(mode, told, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "build_below", lambda _: None)
    monkeypatch.setattr(nn.Module, "compile", lambda _, **options: asked.append(options))
    build._convert(nn.Linear(2, 2), Config(hardware=Hardware(compile=True, compile_mode=mode)))
    assert asked == [told]
